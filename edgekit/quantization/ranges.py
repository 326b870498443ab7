"""The range of each tensor over the calibration samples, and the scale and zero point that represent it.

    q = clamp(round(x / scale) + zero_point, -128, 127)        x' = (q - zero_point) scale

Estimators: `minmax` keeps all values; `percentile` cuts 0.01 % of them off; `mse` chooses the ends with the
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
# No runtime represents a scale that is not a normal float32; what is below is zero to all of them.
_SMALLEST = 1e-20


@dataclass(frozen=True)
class Range:
    """The ends of what is represented; they enclose zero, which is exact: padding and ReLU add no error."""

    low: float
    high: float

    def __or__(self, other: "Range") -> "Range":
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of a tensor in int8."""

    scale: float
    zero_point: int


def qparams_of(r: Range, levels: int = QMAX - QMIN) -> QParams:
    """The scale and zero point that represent a range in int8."""
    scale = _float32(max((r.high - r.low) / levels, _SMALLEST))
    return QParams(scale, min(max(round(QMIN - r.low / scale), QMIN), QMAX))


def weight_scales(weight: Tensor, levels: int = QMAX) -> Tensor:
    """One symmetric scale for each output channel (the first dimension) of a weight."""
    return (weight.detach().flatten(1).abs().amax(1) / levels).clamp(min=_SMALLEST)


def _float32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


def _minmax(values: Sequence[Tensor]) -> Range:
    return Range(min(0.0, *(float(v.min()) for v in values)), max(0.0, *(float(v.max()) for v in values)))


def _percentile(values: Sequence[Tensor]) -> Range:
    full = _minmax(values)
    centres, counts = _histogram(values, full)
    share = counts.cumsum(0) / counts.sum()
    low = float(centres[int((share <= 1 - _PERCENTILE).sum())])
    high = float(centres[min(int((share < _PERCENTILE).sum()), _BINS - 1)])
    return Range(min(0.0, low if full.low < 0 else 0.0), max(0.0, high if full.high > 0 else 0.0))


def _mse(values: Sequence[Tensor]) -> Range:
    full = _minmax(values)
    if full.low == full.high:
        return full
    centres, counts = _histogram(values, full)
    held = counts > 0
    centres, counts = centres[held], counts[held]
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


def _histogram(values: Sequence[Tensor], full: Range) -> tuple[Tensor, Tensor]:
    """Centres of the bins, and how many of the values that are not zero lie in each."""
    width = (full.high - full.low) / _BINS
    counts = torch.zeros(_BINS, dtype=torch.float64)
    zeros = 0
    for v in values:
        flat = v.flatten().float()
        zeros += int((flat == 0).sum())
        counts += torch.histc(flat, _BINS, full.low, full.high).double()
    centres = full.low + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)
    # Most of what follows a ReLU is exactly zero, and zero costs no error whatever the scale.
    counts[min(int(-full.low / width), _BINS - 1)] -= zeros
    return centres, counts.clamp(min=0)


Estimator = Callable[[Sequence[Tensor]], Range]

ESTIMATORS: Mapping[str, Estimator] = {"minmax": _minmax, "percentile": _percentile, "mse": _mse}
