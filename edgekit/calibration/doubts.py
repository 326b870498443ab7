"""Does the network know such inputs? Its batch norms remember what it was trained on, and its answers show whether
it tells the photos apart.

Two measures. *Batch norm*: over the calibration set, the mean m and variance v of what enters a layer, against the
running mean M and variance V from training: shift |m - M| / sqrt(V) and spread |log(v / V)|, the median over channels.
The first layers tell of pixels that are prepared otherwise, all of them of other photos. *Information*: by how many
nats an answer p differs from the average answer q, KL(p || q), as in the inception score (Salimans et al., 2016,
arXiv:1606.03498). It is highest for the preprocessing that the network was trained with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgekit.loading import Loaded
from edgekit.types import Preprocess, Step

Calls = Sequence[tuple[Tensor, ...]]

MOST_PHOTOS = 64
ENOUGH = 16
"""Photos. Fewer differ so much among themselves that only what is grossly wrong can be told."""
FIRST_LAYERS = 3
FIRST_LIMIT = 1.0
"""Shift + spread of the first layers. Measured on 16 or more photos: at most 0.88 with the right preprocessing, at
least 1.15 with another mean and std."""
FIRST_LIMIT_OF_FEW = 2.5
ALL_LIMIT = 0.5
"""Shift + spread of all layers. Measured: at most 0.33 on photos of another subject, 0.48 on enlarged ones, 0.5 to 0.97
on drawn digits."""
LEAST_INFORMATION = 0.2
"""Of what so many photos and classes allow. Measured on ImageNet models: 0.28 and more on photos, at most 0.16 on
digits and noise. A network of ten classes tells more of digits (0.27 to 0.39): these are not seen here."""
UNTRAINED = 0.9
"""Entropy of an answer over its maximum, above which the network does not answer at all."""
GAIN, SIGNIFICANT, ENOUGH_TO_COMPARE = 0.1, 3.0, 32
"""Nats, standard errors, photos. Measured with the right preprocessing: at most 2.3 standard errors."""
USUAL: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "-1 to 1": ((0.5,) * 3, (0.5,) * 3),
    "0 to 1": ((0.0,) * 3, (1.0,) * 3),
    "0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
}
"""What networks are trained with, as mean and std of pixels / 255."""


@dataclass(frozen=True)
class _Misfit:
    """Medians over channels and layers: shift in standard deviations, spread as |log| of a ratio of variances."""

    shift: float
    spread: float

    @property
    def total(self) -> float:
        return self.shift + self.spread

    def __str__(self) -> str:
        return f"means off by {self.shift:.2f} deviations, variances by a factor of {math.exp(self.spread):.2f}"


@dataclass(frozen=True)
class _Seen:
    """Of one run: how the first and all batch norms misfit (None without any), and nats told of each photo."""

    first: _Misfit | None
    every: _Misfit | None
    information: Tensor | None
    share: float = 0.0


def doubts(loaded: Loaded, calls: Calls, photos: int, on_step: Step | None = None) -> tuple[str, ...]:
    """Warnings, with what was seen: the inputs are prepared otherwise than for training, or are no such photos."""
    assert loaded.preprocess is not None
    batch = loaded.inputs[0].shape[0]
    photos = min(photos, MOST_PHOTOS)
    calls = calls[: -(-photos // batch)]
    if loaded.weights.source.startswith("seed:"):
        return _range_doubts(loaded.preprocess, calls)
    if on_step:
        on_step("comparing the photos with what the network knows", 0, 1)
    seen = _observe(loaded, calls, photos)
    found = _batch_norm_doubts(loaded, calls, photos, seen) or _information_doubts(loaded, calls, photos, seen)
    if not found and seen.first is None and seen.information is None:
        found = _range_doubts(loaded.preprocess, calls)
    if on_step:
        on_step("comparing the photos with what the network knows", 1, 1)
    return found


def _batch_norm_doubts(loaded: Loaded, calls: Calls, photos: int, seen: _Seen) -> tuple[str, ...]:
    if seen.first is None or seen.every is None:
        return ()
    assert loaded.preprocess is not None
    if seen.first.total > (FIRST_LIMIT if photos >= ENOUGH else FIRST_LIMIT_OF_FEW):
        better = ""
        for name, preprocess, other in _alternatives(loaded.preprocess, calls):
            fit = _observe(loaded, other, photos).first
            if fit is not None and fit.total < FIRST_LIMIT and fit.total < seen.first.total / 2:
                better = f" They would fit with {name} ({fit}): {_typed(preprocess)}."
                break
        return (
            f"the network was trained on other inputs: at its first batch norms {seen.first}. "
            f"{_inputs_seen(loaded.preprocess, calls)}{better or _suggestion(loaded.preprocess)}",
        )
    if photos >= ENOUGH and seen.every.total > ALL_LIMIT:
        return (
            f"the network was trained on photos of another kind (subject, sharpness, colours): over all its batch "
            f"norms {seen.every}. Calibrate with photos like those it will see: --calibration PATH",
        )
    return ()


def _information_doubts(loaded: Loaded, calls: Calls, photos: int, seen: _Seen) -> tuple[str, ...]:
    if seen.information is None or photos < ENOUGH:
        return ()
    preprocess = loaded.preprocess
    assert preprocess is not None
    if photos >= ENOUGH_TO_COMPARE and (better := _told_better(loaded, calls, photos, seen)):
        return (better,)
    if seen.share < LEAST_INFORMATION:
        return (
            f"the network gives nearly the same answer for all of {photos} photos: {seen.share:.0%} of what it could "
            f"tell about them. They are unlike what it was trained on. "
            f"{_inputs_seen(preprocess, calls)}{_suggestion(preprocess)}",
        )
    return ()


def _told_better(loaded: Loaded, calls: Calls, photos: int, seen: _Seen) -> str:
    """Other inputs, made of the same photos, that the network tells more about; "" where there are none.

    A gain counts where it is several times its standard error over the photos.
    """
    assert loaded.preprocess is not None
    assert seen.information is not None
    # Where there are batch norms, another mean or std has been seen there; red and blue swapped are not seen there.
    others = [] if seen.first else [(n, _typed(p), c) for n, p, c in _alternatives(loaded.preprocess, calls)]
    if len(loaded.preprocess.mean) == 3:
        swapped = "edgekit feeds RGB, so swap the channels inside the model."
        others.append(("blue before red", swapped, tuple((x.flip(1),) for (x,) in calls)))
    best, text = 0.0, ""
    before = float(seen.information.mean())
    for name, remedy, inputs in others:
        information = _observe(loaded, inputs, photos).information
        if information is None:
            continue
        gains = information - seen.information
        gain = float(gains.mean())
        if gain > max(best, GAIN, SIGNIFICANT * float(gains.std()) / math.sqrt(photos)):
            best = gain
            text = (
                f"the network tells these photos apart better with other inputs, {name}: {before + gain:.2f} nats a "
                f"photo instead of {before:.2f}. {_inputs_seen(loaded.preprocess, calls)} "
                f"If it was trained so: {remedy}"
            )
    return text


def _range_doubts(preprocess: Preprocess, calls: Calls) -> tuple[str, ...]:
    """Where the network cannot be asked: inputs that few networks are trained on."""
    mean, std = _moments(calls)
    if abs(mean) <= 3 and 0.05 <= std <= 4:
        return ()
    usual = "Networks are trained on inputs of a mean of about 0 and a deviation of about 1."
    return (f"{_inputs_seen(preprocess, calls)} {usual}{_suggestion(preprocess)}",)


def _moments(calls: Calls) -> tuple[float, float]:
    values = torch.cat([x for (x,) in calls]).double()
    return float(values.mean()), float(values.std())


def _inputs_seen(preprocess: Preprocess, calls: Calls) -> str:
    mean, std = _moments(calls)
    return f"After preprocessing ({_typed(preprocess)}) the inputs have mean {mean:.3g} and deviation {std:.3g}."


def _suggestion(preprocess: Preprocess) -> str:
    if max(map(abs, preprocess.mean)) > 2 and preprocess.scale < 0.1:
        divided = replace(
            preprocess,
            mean=tuple(m * preprocess.scale for m in preprocess.mean),
            std=tuple(s * preprocess.scale for s in preprocess.std),
        )
        return f" They apply after pixels are divided by {1 / preprocess.scale:g}: {_typed(divided)}?"
    return " Are --mean and --std those of its training, and the photos like those it will see?"


def _typed(preprocess: Preprocess) -> str:
    mean, std = (",".join(f"{v:.4g}" for v in values) for values in (preprocess.mean, preprocess.std))
    return f"--mean {mean} --std {std}"


def _alternatives(preprocess: Preprocess, calls: Calls) -> list[tuple[str, Preprocess, Calls]]:
    """The usual preprocessings but the present one, and the same photos in each; exact, for each is affine."""

    def column(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values)[:, None, None]

    channels, unit = len(preprocess.mean), 255 * preprocess.scale
    found: list[tuple[str, Preprocess, Calls]] = []
    for name, (mean, std) in USUAL.items():
        if channels == 1:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        other = replace(preprocess, mean=tuple(m * unit for m in mean), std=tuple(s * unit for s in std))
        if torch.allclose(torch.tensor(other.mean + other.std), torch.tensor(preprocess.mean + preprocess.std), 0.1):
            continue
        slope = column(preprocess.std) / column(other.std)
        offset = (column(preprocess.mean) - column(other.mean)) / column(other.std)
        found.append((name, other, tuple((x * slope + offset,) for (x,) in calls)))
    return found


class _BatchNorms(TorchDispatchMode):
    """Moments of what enters each batch norm; also sees those of a `.pt2` program, which has no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "batch_norm" in func.name():
            x, _, _, mean, var = args[:5]
            if mean is not None and var is not None:
                over, x = (0, *range(2, x.ndim)), x.double()
                self.moments.append((x.mean(over), x.square().mean(over), mean.double(), var.double()))
        return func(*args, **(kwargs or {}))


def _observe(loaded: Loaded, calls: Calls, photos: int) -> _Seen:
    sums: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    answers = []
    for inputs in calls:
        with torch.no_grad(), _BatchNorms() as norms:
            outputs = [y for y in tree_leaves(loaded.module(*inputs)) if isinstance(y, Tensor)]
        sums = (
            [(m + a, s + b, mean, var) for (m, s, mean, var), (a, b, _, _) in zip(sums, norms.moments, strict=True)]
            if sums
            else norms.moments
        )
        answers.append(outputs[0] if len(outputs) == 1 else None)
    misfits = [_misfit(m / len(calls), s / len(calls), mean, var) for m, s, mean, var in sums if _trained(mean, var)]
    information, share = _information([a for a in answers if a is not None and a.ndim == 2], photos)
    if not misfits or _counted_nothing(loaded):
        return _Seen(None, None, information, share)
    return _Seen(_median(misfits[:FIRST_LAYERS]), _median(misfits), information, share)


def _trained(mean: Tensor, var: Tensor) -> bool:
    """Statistics that are not as they were created."""
    return bool(mean.abs().max() > 1e-6) or bool((var - 1).abs().max() > 1e-2)


def _counted_nothing(loaded: Loaded) -> bool:
    """Batch norms that have counted no batch, in a module without a weights file: built, never trained."""
    counts = [b for name, b in loaded.module.named_buffers() if name.endswith("num_batches_tracked")]
    return loaded.weights.source in ("own", "memory") and bool(counts) and not any(map(bool, counts))


def _misfit(mean: Tensor, square: Tensor, running_mean: Tensor, running_var: Tensor) -> _Misfit:
    # Channels that are nearly dead vary by next to nothing, and any shift is large against that.
    alive = running_var > 1e-3 * running_var.median()
    var = (square - mean.square()).clamp_min(0)
    shift = ((mean - running_mean).abs() / running_var.sqrt())[alive]
    spread = (var / running_var).clamp_min(1e-9).log().abs()[alive]
    return _Misfit(float(shift.median()), float(spread.median()))


def _median(misfits: Sequence[_Misfit]) -> _Misfit:
    values = torch.tensor([[m.shift, m.spread] for m in misfits]).quantile(0.5, dim=0)
    return _Misfit(float(values[0]), float(values[1]))


def _information(answers: Sequence[Tensor], photos: int) -> tuple[Tensor | None, float]:
    """Nats that each answer tells, and their mean as a share of what is possible; (None, 0) for no class scores."""
    if not answers or answers[0].shape[1] < 2 or photos < 2:
        return None, 0.0
    scores = torch.cat(list(answers))[:photos].double()
    is_probability = bool((scores >= 0).all()) and torch.allclose(scores.sum(1), torch.ones(()).double(), atol=1e-3)
    p = scores if is_probability else nn.functional.softmax(scores, dim=1)
    entropy, q = torch.special.entr(p).sum(1), p.mean(0)
    if entropy.mean() > UNTRAINED * math.log(p.shape[1]):
        return None, 0.0
    information = -entropy - (p * q.clamp_min(1e-30).log()).sum(1)
    return information, float(information.mean()) / math.log(min(photos, p.shape[1]))
