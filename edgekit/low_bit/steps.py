"""Where the steps of activations start: the ends with the least squared error on the values that a float model has."""

import torch
from torch import Tensor

from edgekit.low_bit.quantizers import ends
from edgekit.low_bit.scheme import Placement
from edgekit.low_bit.student import Student

_VALUES = 2**18
_RATIOS = torch.linspace(1, 0.1, 91)
_SMALLEST = 1e-8


@torch.no_grad()
def start_steps(teacher: Student, placement: Placement, images: Tensor) -> dict[str, tuple[float, int]]:
    """The scale and zero point of each tensor with bits, by name; `images` are one batch of the program."""
    found: dict[str, tuple[float, int]] = {}

    def see(name: str, x: Tensor) -> None:
        found[name] = _best(x.flatten(), placement.activations[name])

    teacher.observe(images, set(placement.activations), see)
    return found


def _best(x: Tensor, bits: int) -> tuple[float, int]:
    """Both ends shrink together: what a ReLU leaves has only one."""
    if len(x) > _VALUES:
        x = x[:: -(-len(x) // _VALUES)]
    low, high = ends(bits)
    least, greatest = x.min().clamp(max=0), x.max().clamp(min=0)
    best, error = (1.0, 0), torch.inf
    for ratio in _RATIOS.tolist():
        scale = float(((greatest - least) * ratio / (high - low)).clamp(min=_SMALLEST))
        zero = int((low - least * ratio / scale).round().clamp(low, high))
        rounded = (((x / scale).round() + zero).clamp(low, high) - zero) * scale
        if (wrong := float((x - rounded).square().sum())) < error:
            best, error = (scale, zero), wrong
    return best
