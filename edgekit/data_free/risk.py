"""What can be said without a label of a quantized model that no data calibrated: does it hold on other images too?

Images that int8 was calibrated on say little: a range that is too narrow fits them. So float and int8 are compared on
images of the same family, made with another seed, and on families that are made in another way. What these have in
common holds for photos too. The difference between the two numbers is how far the first can be trusted.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.export import ExportedProgram

from edgekit.data_free import DataFreeCalibration, calls
from edgekit.data_free.held_out import CROSS_FAMILY, FITTING, PHOTOS, Family, held_out, others
from edgekit.data_free.layer_errors import (
    Grid,
    OutputErrors,
    TensorErrors,
    answer_errors,
    disagreement,
    errors,
    grids,
    sqnr,
    weight_errors,
)
from edgekit.data_free.priors import prior_images
from edgekit.data_free.stored import described, norm_fits, norm_inventory, train_form
from edgekit.data_free.verdict import judged, with_reasons
from edgekit.loading import Loaded
from edgekit.quantization import float_form
from edgekit.types import Agreement, NormFit, Risk, Step, TensorRisk

_FIT_IMAGES, _FIT_PRIOR = 8, "dead_leaves"
_Measured = Sequence[tuple[Family, Mapping[str, TensorErrors], OutputErrors]]


def assess(
    loaded: Loaded, int8: Loaded, calibration: DataFreeCalibration, *, seed: int = 0, on_step: Step | None = None
) -> Risk:
    """The risk of `int8`, which was made of the float model `loaded` with `calibration`; the same for the same seed.

    Nothing is measured on data: `Risk.accuracy` is for the caller to fill in.
    """
    assert int8.quantized is not None
    prepared = float_form(loaded.program, calibration.samples, int8.quantized.options)
    measured = _measured(prepared, int8.program, held_out(loaded, calibration, seed + 1, on_step), on_step)
    form = train_form(loaded)
    stored = described(loaded, prepared, tuple(calibration.samples[0]))
    fits = _fits(loaded, form, seed + 1)
    weights = weight_errors(int8.program, prepared)
    tensors = [_tensor(g, measured, calibration, weights, g.tensor in stored) for g in grids(int8.program)]
    inner = [t for t in tensors if t.layer != "input"]
    return judged(
        Risk(
            level="low",
            reasons=(),
            advice="",
            agreements=tuple(_agreement(family, answers) for family, _, answers in measured),
            stored_share=sum(t.stored for t in inner) / max(len(inner), 1),
            norms=norm_inventory(form),
            norm_fits=fits,
            tensors=tuple(map(with_reasons, tensors)),
            worst=(),
            trusted=calibration.trusted or not fits,
        )
    )


def assess_answers(loaded: Loaded, quantized: Loaded, images: Tensor, relation: str, prior: str, seed: int) -> Risk:
    """The risk of `quantized`, in few bits, by its answers alone: its ranges are learned, and of other grids.

    `images` (N, C, H, W) fit the stored statistics and began as `prior`; `relation` is theirs to those that it was
    learned from. `seed` is one that nothing was learned with.
    """
    assert quantized.quantized is not None
    families = [Family(FITTING, relation, calls(loaded, images)), *others(loaded, images, (prior,), seed)]
    form = train_form(loaded)
    risk = Risk(
        level="low",
        reasons=(),
        advice="",
        agreements=tuple(_agreement(f, answer_errors(loaded.module, quantized.module, f.samples)) for f in families),
        stored_share=0.0,
        norms=norm_inventory(form),
        norm_fits=_fits(loaded, form, seed),
        tensors=(),
        worst=(),
        scheme=quantized.quantized.scheme,
    )
    return judged(risk)


def _measured(
    prepared: ExportedProgram, int8: ExportedProgram, families: Sequence[Family], on_step: Step | None
) -> _Measured:
    done, total = 0, sum(len(f.samples) for f in families)
    found = []

    def one() -> None:
        nonlocal done
        done += 1
        if on_step:
            on_step("comparing with float", done, total)

    for family in families:
        found.append((family, *errors(prepared, int8, family.samples, one)))
    return found


def _fits(loaded: Loaded, form: ExportedProgram, seed: int) -> tuple[NormFit, ...]:
    shape = tuple(loaded.inputs[0].shape[1:])
    if len(shape) != 3:
        return ()
    images = prior_images(_FIT_PRIOR, _FIT_IMAGES, (shape[0], shape[1], shape[2]), loaded.preprocess, seed)
    return norm_fits(form, calls(loaded, images))


def _agreement(family: Family, answers: OutputErrors) -> Agreement:
    rows = answers.rows
    return Agreement(
        family=family.name,
        relation=family.relation,
        images=sum(len(s[0]) for s in family.samples),
        top1=answers.same / rows if rows else None,
        kl=answers.nats / rows if rows else None,
        sqnr_db=sqnr(answers.signal, answers.noise),
    )


def _tensor(
    grid: Grid,
    measured: _Measured,
    calibration: DataFreeCalibration,
    weights: Mapping[str, float],
    stored: bool,
) -> TensorRisk:
    by_family = {family.name: found[grid.tensor] for family, found, _ in measured}
    seen = {name: e.estimate for name, e in by_family.items()}
    crossed = [seen[family.name] for family, _, _ in measured if family.relation == CROSS_FAMILY]
    said = {name: ranges[grid.tensor] for name, ranges in calibration.estimates.items() if grid.tensor in ranges}
    if not said and calibration.stand_in is not None:
        # One estimator chose the range: what it is compared with is what photos, though not the user's, ask for.
        said = {"analytic": grid.range, **{name: seen[name] for name in (PHOTOS,) if name in seen}}
    every = {**said, **seen}
    return TensorRisk(
        layer=grid.layer,
        tensor=grid.tensor,
        range=(grid.range.low, grid.range.high),
        ranges={name: (r.low, r.high) for name, r in every.items()},
        disagreement=disagreement(said.values()),
        prior_spread=disagreement(crossed),
        saturation=max(e.saturation for e in by_family.values()),
        steps=max(grid.steps_of(e.bulk) for e in by_family.values()),
        own_db=min(e.own_db for e in by_family.values()),
        sqnr_db=min(e.sqnr_db for e in by_family.values()),
        weight_db=weights.get(grid.compute),
        stored=stored,
    )
