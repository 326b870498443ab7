"""MicroNet's blocks in their deploy form: the same functions as in `micronet.py`, in operations every runtime has.

What changes, each an identity:

- Shuffles are permutations. They go into the columns of the next convolution, and a map keeps one order of its channels
  until then. In `cyclic` order x' is three or four slices of x. The compression's columns then lie in a few blocks.
- max(z_1, z_2) = z_2 + relu(z_1 - z_2) with z_1 - z_2 = (a_1 - a_2) x + (b_1 - b_2) x': no maximum of two maps.
- 4 hsigmoid(u) - 2 = 2 clamp(u / 3, -1, 1). The factor 2 goes into the convolution that makes x.
- mean(V u + c) = V mean(u) + c: an activation behind a pointwise convolution squeezes the smaller map u.
- One branch: a x + b x' and the shuffles behind it are one pointwise convolution of (a x, b x), which is one product.
  Behind the expand block, where that convolution is too large, x' is the convolution of u moved by one group.
- C -> 2C -> 4C depthwise is a dense k x 1 convolution to 4C and a depthwise 1 x k: runtimes are slow where a depthwise
  convolution has more outputs than inputs. Merging the pair into k x k was measured, and is slower, except for the
  stem, whose two maps of few channels and many pixels become one.
- Other grouped 1x1 convolutions stay grouped: measured, their dense form is slower from 64 > 256 channels on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.models._folding import affine, convolution, linear
from edgekit.models._micronet_algebra import (
    block_count,
    components,
    cyclic,
    dense,
    folded,
    inputs,
    inverse,
    pointwise,
    reordering,
    shuffled,
)
from edgekit.models._micronet_layers import DepthwisePair, GroupedPointwise, Normed, ShiftMax


class Shift(nn.Module):
    """Channels in another order by slices and one concatenation: (B, C, H, W) -> the same shape."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        listed = order.tolist()
        starts = [i for i in range(len(listed)) if i == 0 or listed[i] != listed[i - 1] + 1]
        ends = [*starts[1:], len(listed)]
        self.ranges = [(listed[start], listed[end - 1] + 1) for start, end in zip(starts, ends, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, start:stop] for start, stop in self.ranges], 1)


class Coefficients(nn.Module):
    """Half of the coefficients of a map (B, P, H, W): `count` maps (B, C, 1, 1).

    `squeeze` is the first linear on the map's means, `rows` the second one's outputs in the order that they are wanted
    in, `constants` what is added to each.
    """

    added: Tensor

    def __init__(
        self, squeeze: tuple[Tensor, Tensor], second: nn.Linear, rows: Tensor, constants: Tensor, count: int
    ) -> None:
        super().__init__()
        self.first = linear(*squeeze)
        self.second = linear(second.weight.double()[rows] / 3, second.bias.double()[rows] / 3)
        self.register_buffer("added", constants / 2)
        self.count, self.size = count, len(rows) // count

    def forward(self, source: Tensor) -> list[Tensor]:
        hidden = F.relu(self.first(source.mean((-1, -2), keepdim=True).flatten(1)))
        both = (F.hardtanh(self.second(hidden)) + self.added)[:, :, None, None]
        if self.count == 1:
            return [both]
        return [both[:, i * self.size : (i + 1) * self.size] for i in range(self.count)]


def _each(activation: ShiftMax) -> Tensor:
    """The constant of each output of an activation's second linear."""
    return torch.tensor(activation.constants).flatten().repeat_interleave(len(activation.order))


class ShiftMaxDeploy(nn.Module):
    """Two-branch Dynamic Shift-Max of x = `twice` / 2, squeezed from `source`: (B, C, H, W) -> the same shape.

    `names` is the activation's own channel at each position; `squeeze` is its first linear on `source`'s means.
    """

    def __init__(self, activation: ShiftMax, names: Tensor, squeeze: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        rows = torch.cat([names + part * len(names) for part in range(4)])
        self.coefficients = Coefficients(squeeze, activation.linears()[1], rows, _each(activation), 4)
        self.shift = Shift(inverse(names)[activation.order[names]])

    def forward(self, twice: Tensor, source: Tensor) -> Tensor:
        a1, b1, a2, b2 = self.coefficients(source)
        shifted = self.shift(twice)
        difference = F.relu((a1 - a2) * twice + (b1 - b2) * shifted)
        return difference + (a2 * twice + b2 * shifted)


class StemDeploy(nn.Module):
    """The stem's pair as one 3 x 3 convolution: (B, cin, H, W) -> (B, out, H/2, W/2), not negative; W even.

    Between the two, the norm's shift b is zero outside of the map: `edge` takes it off the left column's outer tap.
    """

    edge: Tensor

    def __init__(self, pair: DepthwisePair, shuffle: int) -> None:
        super().__init__()
        first, second = pair.parts()
        (weight1, bias1), (weight2, bias2) = folded(first), folded(second)
        order = shuffled(len(bias2), [shuffle])
        middle = order * len(bias1) // len(bias2)
        weight2 = weight2[order]
        bias = bias2[order] + bias1[middle] * weight2.sum((1, 2, 3))
        self.conv = convolution(weight1[middle] * weight2, bias, (2, 2))
        self.register_buffer("edge", (-bias1[middle] * weight2[:, 0, 0, 0]).float().reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            raise ValueError(f"MicroNet's deploy form needs an even image width, got {x.shape[-1]}")
        x = self.conv(x)
        return F.hardtanh(x + F.pad(self.edge, (0, x.shape[-1] - 1)), 0.0, 6.0)


class DepthwiseDeploy(nn.Module):
    """A block's 1 x k convolution with channels in the order `names`, and the activation behind it."""

    def __init__(self, layer: Normed, names: Tensor, activation: ShiftMax | None) -> None:
        super().__init__()
        weight, bias = folded(layer)
        scale = 1 if activation is None else 2
        self.conv = convolution(weight[names] * scale, bias[names] * scale, layer.conv.stride, len(names))
        self.activation: ShiftMaxDeploy | None = None
        if activation is not None:
            first, _ = activation.linears()
            squeeze = first.weight.double()[:, names] / 2, first.bias.double()
            self.activation = ShiftMaxDeploy(activation, names, squeeze)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.hardtanh(x, 0.0, 6.0) if self.activation is None else self.activation(x, x)


class CompressDeploy(nn.Module):
    """Compression, one-branch Shift-Max where there is one, and shuffles: (B, hidden, H, W) -> (B, out, H, W).

    `columns` is the compression's own input at each position and `labels` the part that it lies in; outputs are in the
    order `after`.
    """

    def __init__(
        self, layer: GroupedPointwise, columns: Tensor, labels: Tensor, fusion: ShiftMax | None,
        shuffles: Sequence[int], after: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        matrix, mask, bias = dense(layer.parts())
        matrix, mask, out = matrix[:, columns], mask[:, columns], len(bias)
        label = (mask * (labels + 1)).amax(1)
        last = shuffled(out, shuffles)[after]
        self.coefficients: Coefficients | None = None
        self.mix: nn.Conv2d | None = None
        if fusion is not None:
            # Each output twice: once for a x, and once, where it is the x' of another channel, for b x'.
            rows, second = torch.arange(2 * out) % out, torch.arange(2 * out) >= out
            arranged = torch.argsort(label[rows], stable=True)
            rows, second = rows[arranged], second[arranged]
            matrix, bias = 2 * matrix, 2 * bias
            self.coefficients = _single(fusion, rows, second)
            read = torch.where(second, fusion.order[last][:, None] == rows, last[:, None] == rows)
            self.mix = pointwise(read.double())
        else:
            rows = torch.argsort(label, stable=True)
            if block_count(mask[rows]) > 1:
                self.mix = pointwise((last[:, None] == rows).double())
            else:
                rows = last
        self.conv = pointwise(matrix[rows], bias[rows], mask[rows])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.coefficients is not None:
            x = x * self.coefficients(x)[0]
        return x if self.mix is None else self.mix(x)


def _single(fusion: ShiftMax, rows: Tensor, second: Tensor) -> Coefficients:
    """Coefficients of an activation with one branch on the channels `rows`, the `second` of which are read as x'."""
    squeeze, expand = fusion.linears()
    weight = squeeze.weight.double()[:, rows] / 2 * ~second
    picked = torch.where(second, len(fusion.order) + inverse(fusion.order)[rows], rows)
    return Coefficients((weight, squeeze.bias.double()), expand, picked, _each(fusion)[picked], 1)


class LiteDeploy(nn.Module):
    """A lite block: (B, C, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(
        self, pair: DepthwisePair, activation: ShiftMax | None, inner: Sequence[int], compress: GroupedPointwise,
        fusion: ShiftMax | None, outer: Sequence[int], residual: bool, before: Tensor, after: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        first, second = pair.parts()
        cin, hidden = first.conv.in_channels, second.conv.out_channels
        names = cyclic(range(cin), hidden // cin)
        weight, bias = folded(first)
        full = weight.new_zeros(hidden, cin, *weight.shape[2:])
        middle = names * len(bias) // hidden
        full[torch.arange(hidden), names * cin // hidden] = weight[middle, 0]
        self.first = convolution(full[:, before], bias[middle], first.conv.stride)
        self.second = DepthwiseDeploy(second, names, activation)
        columns = inverse(shuffled(hidden, inner))[names]
        self.compress = CompressDeploy(compress, columns, torch.zeros(hidden), fusion, outer, after)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.compress(self.second(self.first(x)))
        return x + hidden if self.residual else hidden


class FullDeploy(nn.Module):
    """A full block: (B, C, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(
        self, expand: GroupedPointwise, activation: ShiftMax | None, shuffle: int, pair: DepthwisePair,
        activation2: ShiftMax | None, inner: Sequence[int], compress: GroupedPointwise,
        fusion: ShiftMax | None, outer: Sequence[int], residual: bool, before: Tensor, after: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        matrix, mask, bias = dense(expand.parts())
        matrix, mask, hidden = matrix[:, before], mask[:, before], len(bias)
        size = hidden // expand.parts().conv.groups
        parts = full_parts(expand, shuffle, inner, compress)
        names = cyclic([group for part in parts for group in part], size)
        labels = torch.cat([torch.full((len(part) * size,), i) for i, part in enumerate(parts)])
        scale = 1 if activation is None else 2
        self.expansion = pointwise(matrix[names] * scale, bias[names] * scale, mask[names])
        self.activation = _squeezed(activation, matrix, bias, names)
        first, second = pair.parts()
        own = inverse(shuffled(hidden, [shuffle]))[names]
        weight, bias = folded(first)
        self.first = convolution(weight[own], bias[own], first.conv.stride, hidden)
        self.second = DepthwiseDeploy(second, own, activation2)
        columns = inputs(hidden, shuffle, inner)[names]
        self.compress = CompressDeploy(compress, columns, labels, fusion, outer, after)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.expansion(x)
        hidden = F.hardtanh(hidden, 0.0, 6.0) if self.activation is None else self.activation(hidden, x)
        hidden = self.compress(self.second(self.first(hidden)))
        return x + hidden if self.residual else hidden


def _squeezed(activation: ShiftMax | None, matrix: Tensor, bias: Tensor, names: Tensor) -> ShiftMaxDeploy | None:
    """An activation behind a pointwise convolution, squeezed from that convolution's input."""
    if activation is None:
        return None
    first, _ = activation.linears()
    weight = first.weight.double()
    return ShiftMaxDeploy(activation, names, (weight @ matrix, weight @ bias + first.bias.double()))


def full_parts(
    expand: GroupedPointwise, shuffle: int, inner: Sequence[int], compress: GroupedPointwise
) -> list[list[int]]:
    """The expansion's groups in the order in which a full block's deploy form takes and has them, part by part."""
    conv = expand.parts().conv
    return components(inputs(conv.out_channels, shuffle, inner), conv.groups, compress.parts().conv.groups)


class ExpandDeploy(nn.Module):
    """The expand block: (B, C, H, W) -> (B, out, H, W)."""

    def __init__(self, expand: GroupedPointwise, fusion: ShiftMax | None) -> None:
        super().__init__()
        matrix, mask, bias = dense(expand.parts())
        self.coefficients: Coefficients | None = None
        if fusion is not None:
            first, second = fusion.linears()
            weight, order = first.weight.double(), fusion.order
            squeeze = weight @ matrix, weight @ bias + first.bias.double()
            self.coefficients = Coefficients(squeeze, second, torch.arange(2 * len(bias)), _each(fusion), 2)
            matrix, bias = 2 * matrix, 2 * bias
            conv = expand.parts().conv
            moved = torch.arange(conv.in_channels).roll(-(conv.in_channels // conv.groups))
            self.shift = Shift(moved)
            self.shifted = pointwise(matrix[order][:, moved], bias[order], mask[order][:, moved])
        self.conv = pointwise(matrix, bias, mask)

    def forward(self, x: Tensor) -> Tensor:
        if self.coefficients is None:
            return self.conv(x)
        a, b = self.coefficients(x)
        return a * self.conv(x) + b * self.shifted(self.shift(x))


class HeadLinear(nn.Module):
    """Linear with its norm in it, and hard swish: (B, cin) -> (B, out)."""

    def __init__(self, plain: nn.Linear, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        gain, shift = affine(norm)
        self.linear = linear(plain.weight.double() * gain[:, None], plain.bias.double() * gain + shift)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(self.linear(x))


class MicroNetDeploy(nn.Module):
    """The network with each map between blocks in the order that the next block takes its channels in.

    `orders[i]` is that order behind block i. Features are given in the published one.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], orders: Sequence[Tensor], ends: Sequence[int],
        strides: tuple[int, ...], channels: tuple[int, ...], classifier: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__()
        self.feature_strides, self.feature_channels, self.ends = strides, channels, tuple(ends)
        self.features, self.classifier = nn.ModuleList(blocks), classifier
        self.restore = nn.ModuleList(
            nn.Identity() if orders[end].equal(orders[end].sort()[0]) else reordering(inverse(orders[end]))
            for end in ends
        )

    def forward(self, image: Tensor) -> Tensor:
        for block in self.features:
            image = block(image)
        pooled = F.hardtanh(image, 0.0, 6.0).mean((-1, -2), keepdim=True).flatten(1)
        return self.classifier(F.hardswish(pooled))

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The same maps as those of the train form."""
        maps: list[Tensor] = []
        for index, block in enumerate(self.features):
            image = block(image)
            if index in self.ends:
                maps.append(self.restore[len(maps)](image))
        return tuple(maps)
