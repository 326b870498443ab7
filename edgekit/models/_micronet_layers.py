"""What MicroNet's blocks are made of, as `micronet.py`'s equations have it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

Constants = tuple[tuple[float, float], ...]


class Normed(NamedTuple):
    """A convolution and the norm behind it."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d


class ShiftMax(nn.Module):
    """Dynamic Shift-Max with one branch for each pair of `constants`: (B, C, H, W) -> the same shape.

    `order[i]` is the channel whose value x' has at i.
    """

    order: Tensor

    def __init__(self, channels: int, groups: int, squeezed: int, constants: Constants = ((1.0, 0.0),)) -> None:
        super().__init__()
        self.constants = constants
        outputs = 2 * len(constants) * channels
        self.fc = nn.Sequential(
            nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, outputs), nn.Hardsigmoid()
        )
        shifted = torch.arange(channels).reshape(groups, -1).roll((-1, -1), (0, 1)).flatten()
        self.register_buffer("order", shifted, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        coefficients = self.fc(x.mean((-2, -1))) * 4 - 2
        parts = coefficients[:, :, None, None].chunk(2 * len(self.constants), 1)
        shifted = x[:, self.order]
        branches = [
            (parts[2 * k] + a) * x + (parts[2 * k + 1] + b) * shifted for k, (a, b) in enumerate(self.constants)
        ]
        return branches[0] if len(branches) == 1 else torch.maximum(branches[0], branches[1])

    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        first, _, second, _ = self.fc
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        return first, second


class DepthwisePair(nn.Module):
    """k x 1 then 1 x k, each with its norm: cin -> `middle` -> `out` channels; the stem's k x 1 is not depthwise."""

    def __init__(self, cin: int, middle: int, out: int, kernel: int, stride: int, depthwise: bool = True) -> None:
        super().__init__()
        half, groups = kernel // 2, cin if depthwise else 1
        self.conv = nn.Sequential(
            nn.Conv2d(cin, middle, (kernel, 1), (stride, 1), (half, 0), groups=groups, bias=False),
            nn.BatchNorm2d(middle),
            nn.Conv2d(middle, out, (1, kernel), (1, stride), (0, half), groups=middle, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def parts(self) -> tuple[Normed, Normed]:
        return _normed(*list(self.conv)[:2]), _normed(*list(self.conv)[2:])


class GroupedPointwise(nn.Module):
    """1x1 convolution in groups and its norm: (B, cin, H, W) -> (B, out, H, W)."""

    def __init__(self, cin: int, out: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(cin, out, 1, groups=groups, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def parts(self) -> Normed:
        return _normed(*self.conv)


def _normed(conv: nn.Module, norm: nn.Module) -> Normed:
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return Normed(conv, norm)
