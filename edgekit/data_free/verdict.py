"""From numbers to a verdict: low, raised or high risk, why, and what to do.

The limits were set on ResNet-20 (CIFAR-10) and MobileNetV1-0.25 and V2 (ImageNet), calibrated with photos, with none,
and badly on purpose: with statistics that were made wrong, and with features that are too small.
"""

from collections.abc import Sequence
from dataclasses import replace

from edgekit.data_free.held_out import CROSS_FAMILY, IN_FAMILY, OWN_PRIORS, PHOTOS
from edgekit.types import Agreement, Risk, TensorRisk

LEVELS = ("low", "raised", "high")
WORST = 3
DISPUTED = 2.0
"""Estimates of a range that differ by more than this factor."""
CLIPPED = 0.02
FEW_STEPS = 32
ROUGH_WEIGHTS_DB = 25.0
MISFIT = (0.5, 1.0)
"""Stored deviations. Trained networks: 0.3 at most. One norm's mean moved by 3 deviations: 2.3 and more."""
SCALE = (2.0, 3.0)
"""Times the stored deviation. Trained networks: 1.6 at most. One norm's variance multiplied by 25: 5."""
KL = (0.1, 0.3)
"""Nats on images that fit and on stock photos. Calibrated with photos: 0.02; what costs 40 points of accuracy: 0.5."""
KL_OTHERS = (0.5, 1.0)
"""Nats on images of no subject, calibrated with or not, of which networks are less sure."""
KL_LEARNED, KL_LEARNED_OTHERS = (0.25, 1.0), (1.5, 3.0)
"""The same of few bits. ResNet-20 on stock photos, and what it costs (`benchmarks/few_bits_risk.py`): learned w4a4 0.31
nats, 2 points; rounded w6a6 0.7, 7; w4a4 behind ReLUs alone 0.6, 10; w5a5 1.9, 19; w4a4 in every tensor 3.3, 41."""
SQNR_DB = (15.0, 8.0)
"""For outputs that are no class scores."""
DISPUTED_SHARE = (0.1, 0.5)
_ADVICE = {
    "low": "Nothing to do; 8 unlabelled photos would tell more: --calibration PATH",
    "raised": "Give even 8 unlabelled photos like those it will see: --calibration PATH",
    "high": "Do not ship this: give 32 unlabelled photos, or even 8, like those it will see: --calibration PATH",
}
_LEARNED = {
    "low": "Photos like those it will see would still teach it more: --calibration PATH",
    "raised": "Let it learn from unlabelled photos like those it will see: --calibration PATH",
    "high": "Do not use this: take more bits, or let it learn from photos (--calibration PATH).",
}
"""Of few bits, which are learned from images, the more the better."""

Finding = tuple[int, str]
"""An index of `LEVELS` and the reason for it."""


def judged(risk: Risk) -> Risk:
    """`risk` with its level, reasons, advice and worst tensors, from its numbers."""
    found = [*_statistics(risk), *_agreements(risk), *_tensors(risk)]
    level = max((f[0] for f in found), default=0)
    reasons = [text for _, text in sorted((f for f in found if f[0] > 0), key=lambda f: -f[0])]
    return replace(
        risk,
        level=LEVELS[level],
        reasons=tuple(reasons or [_nothing_found(risk)]),
        advice=(_ADVICE if risk.tensors else _LEARNED)[LEVELS[level]],
        worst=tuple(t.tensor for t in sorted(_inner(risk), key=_badness)[:WORST]),
    )


def with_reasons(tensor: TensorRisk) -> TensorRisk:
    """`tensor` with what looks wrong with it, in plain words."""
    found = []
    if tensor.saturation > CLIPPED:
        found.append(f"clipped: {tensor.saturation:.1%} of its values lie outside")
    if tensor.disagreement > DISPUTED:
        found.append(f"estimators disagree {tensor.disagreement:.1f}x about its range")
    if tensor.prior_spread > DISPUTED:
        found.append(f"families of images disagree {tensor.prior_spread:.1f}x about its range")
    if 0 < tensor.steps < FEW_STEPS:
        found.append(f"too wide: {tensor.steps} of 256 steps are used")
    if tensor.weight_db is not None and tensor.weight_db < ROUGH_WEIGHTS_DB:
        found.append(f"weights round badly: {tensor.weight_db:.0f} dB")
    return replace(tensor, why=tuple(found))


def _badness(tensor: TensorRisk) -> tuple[bool, float]:
    return not tensor.why, tensor.own_db


def _level(value: float, limits: tuple[float, float]) -> int:
    """How many limits are passed; falling limits are passed downwards."""
    sign = 1 if limits[1] >= limits[0] else -1
    return sum(sign * value > sign * limit for limit in limits)


def _statistics(risk: Risk) -> list[Finding]:
    if not risk.norm_fits:
        if not risk.tensors:
            return [(1, "no statistics are stored: what it learned from was made without them")]
        return [(1, "no statistics are stored: every range is a guess")]
    found: list[Finding] = []
    for fit in risk.norm_fits:
        times = max(fit.scale, 1 / max(fit.scale, 1e-9))
        if level := _level(fit.mean, MISFIT):
            found.append((level, f"{fit.name} stores a mean that is {fit.mean:.1f} deviations from what arrives there"))
        elif level := _level(times, SCALE):
            found.append((level, f"{fit.name} stores a deviation that is {times:.1f}x off what arrives there"))
    found.sort(key=lambda f: -f[0])
    if len(found) > 1:
        found = [(found[0][0], f"{found[0][1]} (and so for {len(found) - 1} more)")]
    if not risk.trusted:
        return [(1, f"stored statistics do not fit the weights and were not used: {text}") for _, text in found]
    return [(level, f"stored statistics do not fit the weights: {text}") for level, text in found]


def _agreements(risk: Risk) -> list[Finding]:
    found = []
    for a in risk.agreements:
        if a.kl is None:
            level, what = _level(a.sqnr_db, SQNR_DB), f"{a.sqnr_db:.1f} dB"
        else:
            near = a.family == PHOTOS or (a.relation == IN_FAMILY and a.family != OWN_PRIORS)
            close, far = (KL, KL_OTHERS) if risk.tensors else (KL_LEARNED, KL_LEARNED_OTHERS)
            level = _level(a.kl, close if near else far)
            what = f"{a.top1:.0%} the same class, KL {a.kl:.2g}"
        worse = a.kl if a.kl is not None else -a.sqnr_db
        found.append((level, worse, f"{risk.scheme} answers otherwise than float on {a.family} ({what})"))
    return [(level, text) for level, _, text in [max(found)]] if found else []


def _tensors(risk: Risk) -> list[Finding]:
    inner, found = _inner(risk), list[Finding]()
    for what, count in (
        ("estimators", sum(t.disagreement > DISPUTED for t in inner)),
        ("families of images", sum(t.prior_spread > DISPUTED and not t.stored for t in inner)),
    ):
        share = count / max(len(inner), 1)
        level = min(1, _level(share, DISPUTED_SHARE))
        found.append((level, f"{what} disagree by more than {DISPUTED:g}x about {count} of {len(inner)} ranges"))
    return found


def _inner(risk: Risk) -> list[TensorRisk]:
    """All but the input, whose range is that of pixels."""
    return [t for t in risk.tensors if t.layer != "input"]


def _nothing_found(risk: Risk) -> str:
    same = worst(risk.agreements, CROSS_FAMILY)
    if same is None:
        return "nothing looks wrong"
    number = f"{same.sqnr_db:.0f} dB" if same.top1 is None else f"{same.top1:.0%} the same class"
    where = f"{number} on the worst, {same.family}"
    return (
        f"stored statistics fit the weights, and {risk.scheme} agrees with float on images of other families ({where})"
    )


def worst(agreements: Sequence[Agreement], relation: str) -> Agreement | None:
    """The family of this relation on which int8 is furthest from float."""
    chosen = [a for a in agreements if a.relation == relation]
    return min(chosen, key=lambda a: (-(a.kl or 0.0), a.sqnr_db), default=None)
