"""The range of each tensor over the calibration samples, and the scale and zero point that represent it.

    q = clamp(round(x / scale) + zero_point, -128, 127)        x' = (q - zero_point) scale

Estimators: `minmax` keeps all values; `percentile` cuts 0.01 % of them off each end; `mse` chooses the ends with the
least mean squared error (Banner et al. 2019, section 3, with the search on a histogram).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.quantization._ops import QMAX, QMIN

_BINS = 2048
_PERCENTILE = 0.9999
_FRACTIONS = torch.linspace(0.2, 1, 33)
# No runtime represents a scale that is not a normal float32, nor the product of two that overflow it.
_SMALLEST, _LARGEST = 1e-20, 1e15


@dataclass(frozen=True)
class Range:
    """The ends of what is represented; they enclose zero, which is exact: padding and ReLU add no error."""

    low: float
    high: float

    def __or__(self, other: "Range") -> "Range":
        return Range(min(self.low, other.low), max(self.high, other.high))

    @property
    def span(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of a tensor in int8."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each of equal bins between the ends; zeros are in none, they cost no error."""

    range: Range
    counts: Tensor

    def __or__(self, other: "Histogram") -> "Histogram":
        """Of both sets of values; where the ends differ, a value may move by one bin."""
        both = self.range | other.range
        return Histogram(both, self._between(both) + other._between(both))

    @property
    def centres(self) -> Tensor:
        return self.range.low + self.range.span / _BINS * (torch.arange(_BINS, dtype=torch.float64) + 0.5)

    def _between(self, ends: Range) -> Tensor:
        if ends == self.range or not ends.span:
            return self.counts
        places = ((self.centres - ends.low) * (_BINS / ends.span)).long().clamp(0, _BINS - 1)
        return torch.zeros_like(self.counts).index_add_(0, places, self.counts)


def histogram(values: Sequence[Tensor]) -> Histogram:
    """The histogram of all values of some tensors. Raises `ValueError` if one is not finite, or beyond 1e15."""
    ends = torch.stack([torch.stack(v.aminmax()) for v in values if v.numel()] or [torch.zeros(2)]).double()
    found = Range(min(0.0, float(ends[:, 0].min())), max(0.0, float(ends[:, 1].max())))
    if not bool(ends.isfinite().all()) or max(found.high, -found.low) > _LARGEST:
        raise ValueError("values are not finite")
    counts = torch.zeros(_BINS, dtype=torch.float64)
    if found.span > _SMALLEST:
        for v in values:
            counts += torch.histc(v[v != 0].float(), _BINS, found.low, found.high).double()
    return Histogram(found, counts)


def qparams_of(r: Range, levels: int = QMAX - QMIN) -> QParams:
    """The scale and zero point that represent a range in int8."""
    scale = float32(max(r.span / levels, _SMALLEST))
    return QParams(scale, min(max(round(QMIN - r.low / scale), QMIN), QMAX))


def weight_scales(weight: Tensor, levels: int = QMAX) -> Tensor:
    """One symmetric scale for each output channel (the first dimension) of a weight."""
    return (weight.detach().flatten(1).abs().amax(1) / levels).clamp(min=_SMALLEST)


def float32(x: float) -> float:
    """The nearest float32: what every runtime stores."""
    return float(torch.tensor(x, dtype=torch.float32))


def _minmax(seen: Histogram) -> Range:
    return seen.range


def _percentile(seen: Histogram) -> Range:
    total = float(seen.counts.sum())
    if not total:
        return seen.range
    full, centres, share = seen.range, seen.centres, seen.counts.cumsum(0) / total
    low = float(centres[int((share <= 1 - _PERCENTILE).sum())])
    high = float(centres[min(int((share < _PERCENTILE).sum()), _BINS - 1)])
    return Range(min(0.0, low if full.low < 0 else 0.0), max(0.0, high if full.high > 0 else 0.0))


def _mse(seen: Histogram) -> Range:
    full, held = seen.range, seen.counts > 0
    if not bool(held.any()):
        return full
    centres, counts = seen.centres[held], seen.counts[held]
    # One end after the other: both at once would be a thousand candidates for the same answer.
    highs = full.high * _FRACTIONS
    high = highs[_errors(torch.full_like(highs, full.low), highs, centres, counts).argmin()]
    lows = full.low * _FRACTIONS
    low = lows[_errors(lows, torch.full_like(lows, float(high)), centres, counts).argmin()]
    return Range(float(low), float(high))


def _errors(lows: Tensor, highs: Tensor, centres: Tensor, counts: Tensor) -> Tensor:
    """The squared error of int8 with each pair of ends, over the bins of a histogram."""
    scales = ((highs - lows) / (QMAX - QMIN)).clamp(min=_SMALLEST)[:, None]
    zeros = (QMIN - lows[:, None] / scales).round().clamp(QMIN, QMAX)
    steps = ((centres / scales).round() + zeros).clamp(QMIN, QMAX)
    return (((steps - zeros) * scales - centres) ** 2 * counts).sum(1)


Estimator = Callable[[Histogram], Range]

ESTIMATORS: Mapping[str, Estimator] = {"minmax": _minmax, "percentile": _percentile, "mse": _mse}
