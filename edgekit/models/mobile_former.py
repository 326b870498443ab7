"""Mobile-Former: a MobileNet and a few learned tokens that talk to each other.

Paper: "Mobile-Former: Bridging MobileNet and Transformer", Chen et al., CVPR 2022, arXiv:2108.05895.

A convolutional path of features X (pixels x C) and T tokens Z (T x d, 3 or 6 of them, learned) run side by side. Every
block is four steps, X and Z split in two heads in the bridges and Z in four in the Former::

    Mobile -> Former    Z <- LN(Z + W_o (gate(Z) * softmax(s W_q Z X^T) X))       gate(u) = 2 hsigmoid(W_g u)
    Former              Z <- LN(Z + W_c softmax(s W_q Z Z^T) Z),   Z <- LN(Z + FFN(Z))
    Mobile              X <- an inverted bottleneck with dynamic ReLU
    Mobile <- Former    X <- X + softmax(s X (W_k Z)^T) (W_v Z)

What is not written is not there: keys and values of the first two are the raw features and tokens. Dynamic ReLU takes
its slopes, channel by channel, from the first token z::

    (h_1, h_2) = hsigmoid(W_2 relu(W_1 z)),   y = max(2 h_1 x, (2 h_2 - 1) x)

The bottleneck is pointwise-depthwise-pointwise, or, where the map is halved, two depthwise-pointwise pairs whose
depthwise convolutions widen. A last Mobile -> Former bridge ends the tokens; the classifier reads the pooled map and
the first token. State names are the published ones.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgekit.models._layers import Shuffle
from edgekit.models._mobile_former_deploy import MobileFormerDeploy
from edgekit.models._weights import same_names
from edgekit.types import ModelSpec, Preprocess

BRIDGE_HEADS = 2
FORMER_HEADS = 4


class Row(NamedTuple):
    """One block: output channels, hidden channels, stride; two hidden widths where the block halves the map."""

    out: int
    hidden: tuple[int, ...]
    stride: int = 1


class Variant(NamedTuple):
    """A published network: the stem's width, tokens T x d, the classifier's width and dropout, blocks.

    The first row is the lite block, without tokens. `groups` are those of every pointwise convolution.
    """

    stem: int
    tokens: int
    dim: int
    head: int
    dropout: float
    rows: tuple[Row, ...]
    groups: int = 1


_SMALL = (
    Row(12, (24,), 2), Row(12, (36,)),
    Row(24, (72, 96), 2), Row(24, (72,)),
    Row(48, (144, 192), 2), Row(48, (192,)), Row(64, (288,)),
    Row(96, (384, 384), 2), Row(96, (576,)),
)  # fmt: skip

VARIANTS: Mapping[str, Variant] = {
    "26m": Variant(8, 3, 128, 1024, 0.1, _SMALL, groups=4),
    "52m": Variant(8, 3, 128, 1024, 0.2, _SMALL),
    "96m": Variant(12, 4, 128, 1280, 0.2, (
        Row(12, (24,)),
        Row(16, (72, 64), 2),
        Row(32, (96, 128), 2), Row(32, (96,)),
        Row(64, (192, 256), 2), Row(64, (256,)), Row(88, (384,)),
        Row(128, (528, 512), 2), Row(128, (768,)),
    )),
    "151m": Variant(12, 6, 192, 1280, 0.2, (
        Row(12, (24,)),
        Row(16, (72, 64), 2), Row(16, (48,)),
        Row(32, (96, 128), 2), Row(32, (96,)),
        Row(64, (192, 256), 2), Row(64, (256,)), Row(88, (384,)), Row(88, (528,)),
        Row(128, (528, 512), 2), Row(128, (768,)), Row(128, (768,)),
    )),
    "214m": Variant(12, 6, 192, 1600, 0.2, (
        Row(12, (24,)),
        Row(20, (72, 80), 2), Row(20, (60,)),
        Row(40, (120, 160), 2), Row(40, (160,)),
        Row(80, (240, 320), 2), Row(80, (320,)), Row(112, (480,)), Row(112, (672,)),
        Row(160, (672, 640), 2), Row(160, (960,)), Row(160, (960,)),
    )),
    "294m": Variant(16, 6, 192, 1920, 0.3, (
        Row(16, (32,)),
        Row(24, (96, 96), 2), Row(24, (96,)),
        Row(48, (144, 192), 2), Row(48, (192,)),
        Row(96, (288, 384), 2), Row(96, (384,)), Row(128, (576,)), Row(128, (768,)),
        Row(192, (768, 768), 2), Row(192, (1152,)), Row(192, (1152,)),
    )),
    "508m": Variant(24, 6, 192, 1920, 0.3, (
        Row(24, (48,)),
        Row(40, (144, 160), 2), Row(40, (120,)),
        Row(72, (240, 288), 2), Row(72, (216,)),
        Row(128, (432, 512), 2), Row(128, (512,)), Row(176, (768,)), Row(176, (1056,)),
        Row(240, (1056, 960), 2), Row(240, (1440,)), Row(240, (1440,)),
    )),
}  # fmt: skip


def pointwise(cin: int, out: int, groups: int) -> list[nn.Module]:
    """1x1 convolution and its norm."""
    return [nn.Conv2d(cin, out, 1, groups=groups, bias=False), nn.BatchNorm2d(out)]


def depthwise(cin: int, out: int, stride: int) -> list[nn.Module]:
    """3x3 convolution of each channel, by out / cin kernels each, and its norm."""
    return [nn.Conv2d(cin, out, 3, stride, 1, groups=cin, bias=False), nn.BatchNorm2d(out)]


def shuffled(layers: list[nn.Module], shuffle: int, groups: int) -> nn.Sequential:
    """Layers, then a shuffle where the pointwise convolutions have groups."""
    return nn.Sequential(*layers, *([Shuffle(shuffle)] if groups > 1 else []))


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of (B, N, C) on (B, M, C), channels in `heads` contiguous parts: (B, N, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    mix = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return (mix @ v).transpose(1, 2).flatten(2)


class MobileToFormer(nn.Module):
    """Tokens (B, T, d) read the map (B, C, H, W): gated attention, residual, norm -> (B, T, d)."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Sequential(nn.Linear(dim, channels), nn.Hardsigmoid())
        self.q = nn.Linear(dim, channels)
        self.proj = nn.Linear(channels, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        read = attend(self.q(tokens), pixels, pixels, BRIDGE_HEADS)
        return self.layer_norm(tokens + self.proj(2 * self.alpha(tokens) * read))


class Former(nn.Module):
    """Self-attention among tokens and a feed-forward network, norms after: (B, T, d) -> the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q = nn.Linear(dim, dim)
        self.channel_mlp = nn.Linear(dim, dim)
        self.layer_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.layer_norm(tokens + self.channel_mlp(attend(self.q(tokens), tokens, tokens, FORMER_HEADS)))
        return self.ffn_norm(tokens + self.ffn(tokens))


class FormerToMobile(nn.Module):
    """Pixels of the map (B, C, H, W) read the tokens (B, T, d), and add: the map's shape. `proj` makes the values."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.k = nn.Linear(dim, channels)
        self.proj = nn.Linear(dim, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        read = attend(pixels, self.k(tokens), self.proj(tokens), BRIDGE_HEADS)
        return x + read.transpose(1, 2).reshape(x.shape)


class DynamicRelu(nn.Module):
    """max(a_1 x, a_2 x) with the slopes of each channel from the first token: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.hyper = nn.Sequential(
            nn.Linear(dim, dim // 4), nn.ReLU(), nn.Linear(dim // 4, 2 * channels), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        first, second = self.hyper(tokens[:, 0])[:, :, None, None].chunk(2, 1)
        return torch.maximum(2 * first * x, (2 * second - 1) * x)


class LiteBlock(nn.Module):
    """Depthwise, ReLU6, pointwise; without tokens: (B, cin, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, cin: int, row: Row, groups: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *depthwise(cin, row.hidden[0], row.stride),
            nn.ReLU6(),
            Shuffle(cin) if groups > 1 else nn.Identity(),  # an identity keeps the place: names count the layers
            *pointwise(row.hidden[0], row.out, groups),
        )
        self.residual = row.stride == 1 and cin == row.out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class FormerBlock(nn.Module):
    """The bridges and the Former around a bottleneck: map and tokens -> map and tokens."""

    def __init__(self, cin: int, out: int, dim: int) -> None:
        super().__init__()
        self.local_global = MobileToFormer(cin, dim)
        self.global_block = Former(dim)
        self.global_local = FormerToMobile(out, dim)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.global_block(self.local_global(x, tokens))
        return self.global_local(self.mobile(x, tokens), tokens), tokens

    def mobile(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The convolutional step."""
        raise NotImplementedError


class BottleneckBlock(FormerBlock):
    """Pointwise, depthwise, pointwise at one resolution: map (B, cin, H, W) -> (B, out, H, W)."""

    def __init__(self, cin: int, row: Row, dim: int, groups: int) -> None:
        super().__init__(cin, row.out, dim)
        (hidden,) = row.hidden
        self.conv1 = shuffled(pointwise(cin, hidden, groups), groups, groups)
        self.hyper1 = DynamicRelu(hidden, dim)
        self.conv2 = nn.Sequential(*depthwise(hidden, hidden, 1))
        self.hyper2 = DynamicRelu(hidden, dim)
        self.conv3 = shuffled(pointwise(hidden, row.out, groups), groups, groups)
        self.residual = cin == row.out

    def mobile(self, x: Tensor, tokens: Tensor) -> Tensor:
        hidden = self.hyper1(self.conv1(x), tokens)
        y = self.conv3(self.hyper2(self.conv2(hidden), tokens))
        return x + y if self.residual else y


class DownBlock(FormerBlock):
    """Two widening depthwise-pointwise pairs, the first of stride 2: map (B, cin, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, cin: int, row: Row, dim: int, groups: int) -> None:
        super().__init__(cin, row.out, dim)
        first, second = row.hidden
        self.conv1 = shuffled(depthwise(cin, first, 2), cin, groups)
        self.hyper1 = DynamicRelu(first, dim)
        self.conv2 = nn.Sequential(*pointwise(first, row.out, groups))
        self.conv3 = shuffled(depthwise(row.out, second, 1), row.out, groups)
        self.hyper3 = DynamicRelu(second, dim)
        self.conv4 = nn.Sequential(*pointwise(second, row.out, groups))

    def mobile(self, x: Tensor, tokens: Tensor) -> Tensor:
        y = self.conv2(self.hyper1(self.conv1(x), tokens))
        return y + self.conv4(self.hyper3(self.conv3(y), tokens))


class Classifier(nn.Module):
    """Last map (B, cin, H, W) and first token (B, d) -> logits (B, num_classes)."""

    def __init__(self, cin: int, variant: Variant, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            Shuffle(variant.groups) if variant.groups > 1 else nn.Identity(),
            *pointwise(cin, 6 * cin, variant.groups),
            nn.ReLU6(),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Hardswish(), nn.Flatten())
        self.fc = nn.Sequential(
            nn.Linear(6 * cin + variant.dim, variant.head), nn.BatchNorm1d(variant.head), nn.Hardswish()
        )
        self.classifier = nn.Sequential(nn.Dropout(variant.dropout), nn.Linear(variant.head, num_classes))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.classifier(self.fc(torch.cat([self.pool(self.conv(x)), token], 1)))


class MobileFormer(nn.Module):
    """Logits (B, num_classes) for images (B, in_channels, H, W), H and W divisible by 32."""

    feature_strides = (4, 8, 16, 32)

    def __init__(self, variant: str, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        table = VARIANTS[variant]
        self.tokens = nn.Embedding(table.tokens, table.dim)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, table.stem, 3, 2, 1, bias=False), nn.BatchNorm2d(table.stem), nn.ReLU6()
        )
        lite, *others = table.rows
        blocks: list[nn.Module] = [LiteBlock(table.stem, lite, table.groups)]
        for before, row in zip(table.rows, others, strict=False):
            kind = DownBlock if row.stride == 2 else BottleneckBlock
            blocks.append(kind(before.out, row, table.dim, table.groups))
        self.features = nn.ModuleList(blocks)
        # The last block at each resolution from stride 4 on.
        halvings = [i for i, row in enumerate(table.rows) if row.stride == 2]
        self.ends = [i - 1 for i in halvings[1:]] + [len(table.rows) - 1]
        self.feature_channels = tuple(table.rows[i].out for i in self.ends)
        self.local_global = MobileToFormer(table.rows[-1].out, table.dim)
        self.classifier = Classifier(table.rows[-1].out, table, num_classes)
        self.apply(_init)

    def forward(self, image: Tensor) -> Tensor:
        maps, tokens = self._maps_and_tokens(image)
        return self.classifier(maps[-1], self.local_global(maps[-1], tokens)[:, 0])

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The last block's maps (B, C, H/s, W/s) at strides 4, 8, 16 and 32."""
        return self._maps_and_tokens(image)[0]

    def _maps_and_tokens(self, image: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        tokens = self.tokens.weight.repeat(len(image), 1, 1)
        lite, *others = self.features
        outputs = [lite(self.stem(image))]
        for block in others:
            x, tokens = block(outputs[-1], tokens)
            outputs.append(x)
        return tuple(outputs[i] for i in self.ends), tokens

    def deploy(self) -> nn.Module:
        return MobileFormerDeploy(self)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, (2 / (module.weight[0, 0].numel() * module.out_channels)) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
        nn.init.zeros_(module.bias)


def build(variant: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """`MobileFormer`, which is the same for every image size."""
    return MobileFormer(variant, num_classes, in_channels)


def _spec(variant: str, params: int, macs: int, top1: float) -> ModelSpec:
    return ModelSpec(
        name=f"mobile-former-{variant}",
        family="mobile-former",
        build=partial(build, variant),
        params=params,
        macs=macs,
        paper="https://arxiv.org/abs/2108.05895",
        licence="Apache-2.0 (this implementation); the published code and weights have no licence",
        preprocess=Preprocess(resize=256, crop=(224, 224), interpolation="bilinear"),
        convert_state=same_names,
        labels="imagenet1k",
        weights=(f"published mobile-former-{variant} checkpoint",),
        notes=f"Published top-1 {top1} % on ImageNet-1k. MACs are those of convolutions, linears and attention; the "
        f"published {variant.upper()} adds the elementwise multiplies of dynamic ReLU.",
    )


MODELS = (
    _spec("26m", 3_232_788, 23_550_208, 64.0),
    _spec("52m", 3_469_092, 49_290_496, 68.7),
    _spec("96m", 4_585_252, 92_017_040, 72.8),
    _spec("151m", 7_595_828, 146_249_168, 75.2),
    _spec("214m", 9_425_920, 208_374_240, 76.7),
    _spec("294m", 11_422_648, 286_732_160, 77.9),
    _spec("508m", 13_976_976, 498_467_680, 79.3),
)
