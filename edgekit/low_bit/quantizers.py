"""Rounding to few bits, in forms that train: w' and x' are floats that lie on the steps.

Rounding passes gradients on unchanged (Bengio et al. 2013, straight through).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_RATIOS = 100
# 2.4 weighs the ends less than a squared error does (BRECQ's and Genie's choice for weights).
_NORM = 2.4
_SMALLEST = 1e-8
# The rectified sigmoid of AdaRound reaches 0 and 1 (Nagel et al. 2020, equation 23).
_STRETCH, _SHIFT = 1.2, 0.1


def through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` with the gradient of `x`."""
    return x + (rounded - x).detach()


def ends(bits: int) -> tuple[int, int]:
    """The least and greatest signed integer of so many bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def along(scale: Tensor, weight: Tensor) -> Tensor:
    """One value an output channel, shaped to multiply a weight."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


class MinMaxWeight(nn.Module):
    """Weights between the least and greatest of each output channel, found anew at every step (GDFQ, from ZeroQ).

    Affine, with 2^bits steps; nothing is clamped, so all gradients pass.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bits = bits

    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Integers, the scale and the zero point of each output channel."""
        low, high = ends(self.bits)
        flat = self.weight.detach().flatten(1)
        least, greatest = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
        scale = ((greatest - least) / (high - low)).clamp(min=_SMALLEST)
        zero = (low - least / scale).round().clamp(low, high)
        q = (self.weight.detach() / along(scale, self.weight)).round() + along(zero, self.weight)
        return q.clamp(low, high), scale, zero

    def forward(self) -> Tensor:
        q, scale, zero = self.steps()
        return through(self.weight, (q - along(zero, q)) * along(scale, q))


class LearnedWeight(nn.Module):
    """Symmetric weights whose rounding is learned.

    The scale of a channel has the least sum of |w - w'|^2.4 of a hundred. While `choice` is there, each weight is
    rounded down or up as it says, softly (AdaRound, Nagel et al. 2020, equations 22 and 23):

        w' = s clamp(floor(w / s) + h, -2^(b-1), 2^(b-1) - 1)        h = clamp(1.2 sigmoid(v) - 0.1, 0, 1)

    `decide` makes the choices final; from then on w / s itself is trained, straight through the rounding.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        scale = best_scale(weight.detach(), bits)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        ratio = weight.detach() / along(scale, weight)
        self.ratio = nn.Parameter(ratio)
        rest = (ratio - ratio.floor()).clamp(0.01, 0.99)
        self.choice: nn.Parameter | None = nn.Parameter(torch.logit((rest + _SHIFT) / _STRETCH))

    def chosen(self) -> Tensor:
        """h, between 0 (down) and 1 (up)."""
        assert self.choice is not None
        return (_STRETCH * self.choice.sigmoid() - _SHIFT).clamp(0, 1)

    def indecision(self, sharpness: float) -> Tensor:
        """How many choices are open: the sum of 1 - |2h - 1|^sharpness (equation 24)."""
        return (1 - (2 * self.chosen() - 1).abs().pow(sharpness)).sum()

    @torch.no_grad()
    def decide(self) -> None:
        """Round every weight for good; what is trained from here on starts inside the cell that was chosen."""
        if self.choice is None:
            return
        q = (self.ratio.floor() + (self.chosen() >= 0.5)).clamp(*ends(self.bits))
        self.ratio.copy_(torch.minimum(torch.maximum(self.ratio, q - 0.49), q + 0.49))
        self.choice = None

    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Integers, the scale and the zero point (zero) of each output channel."""
        up = self.ratio.round() if self.choice is None else self.ratio.floor() + (self.chosen() >= 0.5)
        return up.detach().clamp(*ends(self.bits)), self.scale, torch.zeros_like(self.scale)

    def forward(self) -> Tensor:
        scale, (low, high) = along(self.scale, self.ratio), ends(self.bits)
        if self.choice is not None:
            return (self.ratio.detach().floor() + self.chosen()).clamp(low, high) * scale
        inside = self.ratio.clamp(low, high)
        return through(inside, inside.round()) * scale


def best_scale(weight: Tensor, bits: int) -> Tensor:
    """The symmetric scale of each output channel with the least sum of |w - w'|^2.4."""
    low, high = ends(bits)
    flat = weight.flatten(1)
    widest = torch.maximum(flat.amax(1) / high, flat.amin(1) / low).clamp(min=_SMALLEST)
    best, least = widest, torch.full_like(widest, math.inf)
    for ratio in torch.linspace(1, 0.3, _RATIOS).tolist():
        scale = widest * ratio
        rounded = (flat / scale[:, None]).round().clamp(low, high) * scale[:, None]
        error = (flat - rounded).abs().pow(_NORM).sum(1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


class EmaMinMax(nn.Module):
    """A tensor between moving averages of the least and greatest of each batch, affine (GDFQ: 0.9, all values kept).

    It follows batches while `observing`, and is fixed from then on.
    """

    def __init__(self, bits: int, keep: float = 0.9) -> None:
        super().__init__()
        self.bits, self.keep, self.observing = bits, keep, True
        self.ends: Tensor
        self.register_buffer("ends", torch.full((2,), math.nan))

    def steps(self) -> tuple[Tensor, Tensor]:
        """The scale and the zero point."""
        low, high = ends(self.bits)
        least, greatest = self.ends[0].clamp(max=0), self.ends[1].clamp(min=0)
        scale = ((greatest - least) / (high - low)).clamp(min=_SMALLEST)
        return scale, (low - least / scale).round().clamp(low, high)

    def forward(self, x: Tensor) -> Tensor:
        if self.observing:
            seen = torch.stack(x.detach().aminmax())
            self.ends = seen if self.ends.isnan().any() else self.keep * self.ends + (1 - self.keep) * seen
        scale, zero = self.steps()
        low, high = ends(self.bits)
        rounded = ((x / scale).round() + zero).clamp(low, high)
        return through(x, (rounded - zero) * scale)


class LearnedStep(nn.Module):
    """A tensor in steps of a learned size, affine with a fixed zero point (LSQ, Esser et al. 2020, equations 1 to 3).

    What is trained is the logarithm of the step's ratio to where it started, so that an update is relative.
    """

    def __init__(self, bits: int, scale: float, zero_point: int) -> None:
        super().__init__()
        self.bits, self.zero_point = bits, zero_point
        self.start: Tensor
        self.register_buffer("start", torch.tensor(scale))
        self.log_ratio = nn.Parameter(torch.zeros(()))

    @property
    def scale(self) -> Tensor:
        return self.start * self.log_ratio.exp()

    def steps(self) -> tuple[Tensor, Tensor]:
        """The scale and the zero point."""
        return self.scale.detach(), torch.tensor(float(self.zero_point))

    def forward(self, x: Tensor) -> Tensor:
        low, high = (end - self.zero_point for end in ends(self.bits))
        scale = self.scale
        inside = (x / scale).clamp(low, high)
        return through(inside, inside.round()) * scale


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of class scores (N, C) in nats a sample."""
    p, q = (F.log_softmax(y / temperature, 1) for y in (teacher, student))
    return F.kl_div(q, p, reduction="batchmean", log_target=True)
