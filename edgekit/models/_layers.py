"""Blocks that more than one family uses."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class SamePadConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: the odd pixel goes to the bottom and right.

    Output size is ceil(input / stride). On an even size a strided 3x3 kernel pads 0 left/top and 1
    right/bottom, which `padding=1` does not: weights trained in TensorFlow need it.
    """

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (-1, -2):
            size, kernel = x.shape[axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            stride = self.stride[axis]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        # A symmetric amount goes into the convolution itself: one op, and no padded copy of the input.
        if pads[0] == pads[1] and pads[2] == pads[3]:
            padding = (pads[2], pads[0])
        else:
            x, padding = F.pad(x, pads), (0, 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Shuffle(nn.Module):
    """Channels, seen as (groups, C / groups), transposed: (B, C, H, W) -> the same shape."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def conv_bn_relu6(cin: int, cout: int, kernel: int, stride: int, groups: int, same: bool, eps: float) -> nn.Sequential:
    """Conv2d without bias, batch norm, ReLU6; `same` takes TensorFlow's padding."""
    return nn.Sequential(conv(cin, cout, kernel, stride, groups, same), nn.BatchNorm2d(cout, eps=eps), nn.ReLU6())


def conv(cin: int, cout: int, kernel: int, stride: int, groups: int, same: bool) -> nn.Conv2d:
    """A k x k convolution without bias whose output is input / stride large."""
    if same:
        return SamePadConv2d(cin, cout, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def make_divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded to a multiple of `divisor`, never more than 10 % below it."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def maps_at(layers: nn.Sequential, taps: Sequence[int], image: Tensor) -> tuple[Tensor, ...]:
    """The outputs of the layers numbered in `taps`, each layer applied to the one before it, up to the last tap."""
    maps, x = [], image
    for index, layer in enumerate(layers):
        x = layer(x)
        if index in taps:
            maps.append(x)
        if index == taps[-1]:
            break
    return tuple(maps)


def init_he(module: nn.Module) -> None:
    """He's normal by fan out for a convolution, N(0, 0.01²) for a linear layer, biases 0."""
    if isinstance(module, nn.Conv2d):
        # A depthwise filter feeds one channel, which nn.init's own count overlooks.
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, (2 / fan_out) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
