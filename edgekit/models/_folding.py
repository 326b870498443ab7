"""Layers with given values, and norms as the affine maps they are: what deploy forms are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """y = weight x + bias, with weight (O, I)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    _fill(layer, weight, bias)
    return layer


def convolution(
    weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1, 1), groups: int = 1
) -> nn.Conv2d:
    """A convolution by weight (O, I / groups, kH, kW), or (O, I) for 1x1, padded by half its kernel."""
    if weight.dim() == 2:
        weight = weight[:, :, None, None]
    out, cin, height, width = weight.shape
    layer = nn.Conv2d(
        cin * groups, out, (height, width), (stride[0], stride[1]), (height // 2, width // 2), groups=groups,
        bias=bias is not None,
    )  # fmt: skip
    _fill(layer, weight, bias)
    return layer


def _fill(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)


def plain(norm: nn.LayerNorm) -> nn.LayerNorm:
    """The norm without its gain and shift."""
    return nn.LayerNorm(list(norm.normalized_shape), norm.eps, elementwise_affine=False)


def affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """a and b of the batch norm a x + b in eval mode, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics depends on the batch and cannot be folded")
    gain = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return gain, norm.bias.double() - norm.running_mean.double() * gain
