"""MicroNet: image recognition with 4 to 21 million multiply-adds (Li et al., ICCV 2021, arXiv:2108.05894).

Micro-factorized convolution. A pointwise matrix is W = P Phi Q^T: a grouped 1x1 convolution that compresses, a channel
shuffle and a grouped 1x1 convolution that expands, so that every output sees every input once. A depthwise k x k
kernel is a k x 1 and a 1 x k one, its rank-1 form. The two meet in three kinds of block:

    lite     depthwise pair C -> 2C -> 4C, activation, grouped compress
    full     grouped expand, activation, depthwise pair, activation, grouped compress, activation
    expand   grouped expand, activation: the second factor of the last block's product

Dynamic Shift-Max, the activation. Channels in G groups of C/G; x'[g, c] = x[g + 1, c + 1], both cyclic; coefficients
are functions of the image, squeezed through S channels::

    (a_1, b_1, ..., a_K, b_K) = 4 hsigmoid(W_2 relu(W_1 mean(x) + c_1) + c_2) - 2 + constants
    y = max_k (a_k x + b_k x')           K = 2, or K = 1: a fusion without a maximum

Logits pass a batch norm and a hard swish, as published. State names are the published ones.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgekit.models._layers import Shuffle, make_divisible
from edgekit.models._micronet_deploy import (
    ExpandDeploy,
    FullDeploy,
    HeadLinear,
    LiteDeploy,
    MicroNetDeploy,
    StemDeploy,
    full_parts,
)
from edgekit.models._micronet_layers import Constants, DepthwisePair, GroupedPointwise, ShiftMax
from edgekit.models._weights import same_names
from edgekit.types import ModelSpec, Preprocess


class Row(NamedTuple):
    """One block: kernel and stride of its depthwise pair, channels, groups and shuffles, squeeze ratio.

    A lite block has no `expand_groups`, an expand block no `compress_groups`.
    """

    kernel: int
    stride: int
    hidden: int
    out: int
    expand_groups: int
    shuffle: int
    compress_groups: int
    out_shuffle: int
    ratio: int


class Variant(NamedTuple):
    """A published network: the stem's two widths, head, how many branches K each activation has, blocks.

    `fusions` are K after the expansion, the depthwise pair and the compression, 0 for none (ReLU6 at the first two);
    `constants` is (a_k, b_k) of each branch where K = 2.
    """

    stem: tuple[int, int]
    head: int
    dropout: float
    fusions: tuple[int, int, int]
    constants: Constants
    rows: tuple[Row, ...]


IDENTITY, HALVES = ((1.0, 0.0), (1.0, 0.0)), ((1.0, 0.0), (0.5, 0.5))

VARIANTS: Mapping[str, Variant] = {
    "m0": Variant((2, 4), 640, 0.05, (2, 2, 1), IDENTITY, (
        Row(3, 2, 16, 8, 0, 4, 2, 2, 1),
        Row(3, 2, 32, 12, 0, 8, 4, 4, 1),
        Row(5, 2, 48, 16, 0, 12, 4, 4, 1),
        Row(5, 1, 64, 32, 4, 4, 4, 4, 1),
        Row(5, 2, 128, 64, 8, 8, 8, 8, 1),
        Row(3, 1, 256, 96, 8, 8, 8, 8, 2),
        Row(0, 1, 384, 384, 12, 12, 0, 0, 2),
    )),
    "m1": Variant((3, 6), 960, 0.05, (2, 2, 1), IDENTITY, (
        Row(3, 2, 24, 8, 0, 6, 2, 2, 1),
        Row(3, 2, 32, 16, 0, 8, 4, 4, 1),
        Row(5, 2, 64, 16, 0, 16, 4, 4, 1),
        Row(5, 1, 96, 32, 4, 4, 4, 4, 1),
        Row(5, 2, 192, 64, 8, 8, 8, 8, 1),
        Row(3, 1, 384, 96, 8, 8, 8, 8, 2),
        Row(0, 1, 576, 576, 12, 12, 0, 0, 2),
    )),
    "m2": Variant((4, 8), 1024, 0.1, (2, 2, 1), IDENTITY, (
        Row(3, 2, 32, 12, 0, 8, 4, 4, 1),
        Row(3, 2, 48, 16, 0, 12, 4, 4, 1),
        Row(3, 1, 64, 24, 0, 16, 4, 4, 1),
        Row(5, 2, 144, 32, 6, 6, 4, 4, 1),
        Row(5, 1, 192, 32, 8, 8, 4, 4, 2),
        Row(5, 1, 192, 64, 8, 8, 8, 8, 2),
        Row(5, 2, 384, 96, 8, 8, 8, 8, 2),
        Row(3, 1, 576, 128, 12, 12, 8, 8, 2),
        Row(0, 1, 768, 768, 16, 16, 0, 0, 2),
    )),
    "m3": Variant((4, 12), 1024, 0.1, (0, 2, 0), HALVES, (
        Row(3, 2, 48, 16, 0, 12, 4, 4, 1),
        Row(3, 2, 64, 24, 0, 16, 4, 4, 1),
        Row(3, 1, 96, 24, 0, 24, 4, 4, 1),
        Row(5, 2, 144, 32, 6, 6, 4, 4, 1),
        Row(5, 1, 192, 32, 8, 8, 4, 4, 2),
        Row(5, 1, 192, 64, 8, 8, 8, 8, 2),
        Row(5, 1, 384, 80, 8, 8, 8, 8, 2),
        Row(5, 1, 480, 80, 10, 10, 8, 8, 2),
        Row(5, 2, 480, 120, 10, 10, 10, 10, 2),
        Row(5, 1, 720, 120, 12, 12, 10, 10, 2),
        Row(3, 1, 720, 144, 12, 12, 12, 12, 2),
        Row(0, 1, 864, 864, 12, 12, 0, 0, 2),
    )),
}  # fmt: skip


class Stem(nn.Module):
    """Image (B, cin, H, W) -> (B, out, H/2, W/2), not negative."""

    def __init__(self, cin: int, middle: int, out: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(DepthwisePair(cin, middle, out, 3, 2, depthwise=False), Shuffle(middle), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def deploy(self) -> nn.Module:
        pair, shuffle, _ = self.stem
        assert isinstance(pair, DepthwisePair)
        assert isinstance(shuffle, Shuffle)
        return StemDeploy(pair, shuffle.groups)


class Block(nn.Module):
    """A row of the table, one of the three kinds: (B, cin, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, cin: int, row: Row, fusions: tuple[int, int, int], constants: Constants) -> None:
        super().__init__()
        self.cin = cin
        self.residual = row.stride == 1 and cin == row.out
        if not row.compress_groups:
            layers = _expand_layers(cin, row, fusions)
        elif not row.expand_groups:
            layers = _lite_layers(cin, row, fusions, constants)
        else:
            layers = _full_layers(cin, row, fusions, constants)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)

    def order(self, after: Tensor) -> Tensor:
        """The order in which the deploy form takes its channels if it gives them in the order `after`."""
        if self.residual:
            return after
        natural = torch.arange(self.cin)
        if not isinstance(self.layers[0], GroupedPointwise) or len(self.layers) == 2:
            return natural
        expand, shuffle, compress = self.layers[0], self.layers[2], self.layers[7]
        assert isinstance(shuffle, Shuffle)
        assert isinstance(compress, GroupedPointwise)
        parts = full_parts(expand, shuffle.groups, _shuffles(list(self.layers)[6:7]), compress)
        groups = natural.reshape(expand.parts().conv.groups, -1)
        return torch.cat([groups[part].flatten() for part in parts])

    def deployed(self, before: Tensor, after: Tensor) -> nn.Module:
        """The deploy form, whose channels come in the order `before` and go out in the order `after`."""
        layers = list(self.layers)
        dynamic = [layer if isinstance(layer, ShiftMax) else None for layer in layers]
        pairs = [layer for layer in layers if isinstance(layer, DepthwisePair)]
        points = [layer for layer in layers if isinstance(layer, GroupedPointwise)]
        if not pairs:
            return ExpandDeploy(points[0], dynamic[1])
        if len(points) == 1:
            inner, outer = _shuffles(layers[:4]), _shuffles(layers[5:])
            return LiteDeploy(pairs[0], dynamic[1], inner, points[0], dynamic[5], outer, self.residual, before, after)
        (first,), inner, outer = _shuffles(layers[:3]), _shuffles(layers[3:7]), _shuffles(layers[8:])
        return FullDeploy(
            points[0], dynamic[1], first, pairs[0], dynamic[5], inner, points[1], dynamic[8], outer,
            self.residual, before, after,
        )  # fmt: skip


def _shuffles(layers: Sequence[nn.Module]) -> list[int]:
    return [layer.groups for layer in layers if isinstance(layer, Shuffle)]


# Where a variant leaves a layer out, an identity keeps its place: the state's names count the layers.


def _lite_layers(cin: int, row: Row, fusions: tuple[int, int, int], constants: Constants) -> list[nn.Module]:
    return [
        DepthwisePair(cin, 2 * cin, row.hidden, row.kernel, row.stride),
        _activation(fusions[1], row.hidden, row.shuffle, row.ratio, constants),
        Shuffle(row.shuffle),
        Shuffle(row.hidden // 2) if fusions[1] else nn.Identity(),
        GroupedPointwise(row.hidden, row.out, row.compress_groups),
        *_after_compression(row, fusions),
    ]


def _full_layers(cin: int, row: Row, fusions: tuple[int, int, int], constants: Constants) -> list[nn.Module]:
    hidden = row.hidden
    dynamic = (fusions[0] > 0) + (fusions[1] > 0)
    return [
        GroupedPointwise(cin, hidden, row.expand_groups),
        _activation(fusions[0], hidden, row.shuffle, row.ratio, constants),
        Shuffle(row.shuffle),
        DepthwisePair(hidden, hidden, hidden, row.kernel, row.stride),
        nn.Identity(),
        _activation(fusions[1], hidden, hidden // row.shuffle, row.ratio, constants),
        Shuffle(hidden // (2 * dynamic)) if dynamic else nn.Identity(),
        GroupedPointwise(hidden, row.out, row.compress_groups),
        *_after_compression(row, fusions),
    ]


def _expand_layers(cin: int, row: Row, fusions: tuple[int, int, int]) -> list[nn.Module]:
    squeezed = make_divisible(row.out // (8 * row.ratio), 4)
    return [
        GroupedPointwise(cin, row.out, row.expand_groups),
        ShiftMax(row.out, row.expand_groups, squeezed) if fusions[2] else nn.Identity(),
    ]


def _after_compression(row: Row, fusions: tuple[int, int, int]) -> list[nn.Module]:
    """A fusion of one branch, squeezed half as much as the others, and the shuffles towards the next block."""
    if not fusions[2]:
        return [nn.Identity(), Shuffle(row.out_shuffle)]
    squeezed = make_divisible(row.out // (4 * row.ratio), 4)
    return [ShiftMax(row.out, row.out_shuffle, squeezed), Shuffle(row.out_shuffle), Shuffle(row.out // 2)]


def _activation(fusions: int, channels: int, groups: int, ratio: int, constants: Constants) -> nn.Module:
    if not fusions:
        return nn.ReLU6()
    return ShiftMax(channels, groups, make_divisible(channels // (8 * ratio), 4), constants)


class NormedLinear(nn.Module):
    """Linear, batch norm, hard swish: (B, cin) -> (B, out)."""

    def __init__(self, cin: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(cin, out), nn.BatchNorm1d(out), nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def deploy(self) -> nn.Module:
        linear, norm, _ = self.linear
        assert isinstance(linear, nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d)
        return HeadLinear(linear, norm)


class MicroNet(nn.Module):
    """Logits (B, num_classes) for images (B, in_channels, H, W), H and W divisible by 32."""

    feature_strides = (4, 8, 16, 32)

    def __init__(self, variant: str, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        table = VARIANTS[variant]
        channels = table.stem[1]
        blocks: list[nn.Module] = [Stem(in_channels, *table.stem)]
        for index, row in enumerate(table.rows):
            # The first block of M0, M1 and M2 keeps ReLU6 at its high resolution.
            fusions = table.fusions if index or not table.fusions[0] else (table.fusions[0], 0, table.fusions[2])
            blocks.append(Block(channels, row, fusions, table.constants))
            channels = row.out
        self.features = nn.Sequential(*blocks)
        # The last block of each resolution: the next one, if any, has a stride.
        self.ends = [i for i, row in enumerate(table.rows) if i and row.stride == 2] + [len(table.rows)]
        self.feature_channels = tuple(table.rows[end - 1].out for end in self.ends)
        self.classifier = nn.Sequential(
            NormedLinear(channels, table.head), nn.Dropout(table.dropout), NormedLinear(table.head, num_classes)
        )
        self.apply(_init)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.classifier(nn.functional.hardswish(maps.clamp(0, 6).mean((-2, -1))))

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The last block's maps (B, C, H/s, W/s) at strides 4, 8, 16 and 32; the expand block belongs to the last."""
        maps, x = [], image
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.ends:
                maps.append(x)
        return tuple(maps)

    def deploy(self) -> nn.Module:
        stem, *rest = self.features
        blocks = [block for block in rest if isinstance(block, Block)]
        orders = [torch.arange(self.feature_channels[-1])]
        for block in reversed(blocks):
            orders.insert(0, block.order(orders[0]))
        deployed = [b.deployed(*between) for b, between in zip(blocks, pairwise(orders), strict=True)]
        return MicroNetDeploy(
            [stem, *deployed], orders, self.ends, self.feature_strides, self.feature_channels, self.classifier
        )


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, (2 / (module.weight[0, 0].numel() * module.out_channels)) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
        nn.init.zeros_(module.bias)


def build(variant: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """`MicroNet`, which is the same for every image size."""
    return MicroNet(variant, num_classes, in_channels)


def _spec(variant: str, params: int, macs: int, published: str, top1: float) -> ModelSpec:
    return ModelSpec(
        name=f"micronet-{variant}",
        family="micronet",
        build=partial(build, variant),
        params=params,
        macs=macs,
        paper="https://arxiv.org/abs/2108.05894",
        licence="Apache-2.0 (this implementation); the published code is MIT",
        preprocess=Preprocess(resize=256, crop=(224, 224), interpolation="bilinear"),
        convert_state=same_names,
        labels="imagenet1k",
        weights=(f"published micronet-{variant}.pth",),
        notes=f"Published top-1 {top1} % on ImageNet-1k. MACs are those of convolutions and linears; the published "
        f"{published}M adds the activations' multiplies. Logits pass a hard swish: none is below -0.375.",
    )


MODELS = (
    _spec("m0", 1_019_590, 3_448_880, "4", 46.6),
    _spec("m1", 1_777_587, 5_314_080, "6", 51.4),
    _spec("m2", 2_393_876, 10_338_128, "12", 59.4),
    _spec("m3", 2_622_960, 18_236_000, "21", 62.5),
)
