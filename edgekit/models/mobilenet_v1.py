"""MobileNet: Efficient Convolutional Neural Networks for Mobile Vision Applications (arXiv:1704.04861), table 1.

A 3x3 convolution of stride 2, then 13 depthwise separable blocks y = R(BN(P R(BN(D x)))): D filters each channel by
itself (3x3), P mixes channels (1x1), R is ReLU6. The width multiplier scales every number of channels (section 3.3).
The weights that exist were trained in TensorFlow: SAME padding, and 1e-3 under the root of batch norm.
"""

import re
from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.models._layers import conv
from edgekit.types import ModelSpec, Preprocess

STEM = 32
# Table 1: channels c and stride s of the blocks.
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
EPS = 1e-3
# The blocks after which the next one, or the pooling, leaves a resolution: strides 4, 8, 16, 32.
TAPS = (2, 4, 10, 12)


class SeparableBlock(nn.Module):
    """Depthwise 3x3, then pointwise, each with batch norm and ReLU6: (B, Cin, H, W) -> (B, Cout, H/s, W/s)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.dw = conv(cin, cin, 3, stride, cin, same=True)
        self.dw_bn = nn.BatchNorm2d(cin, eps=EPS)
        self.pw = conv(cin, cout, 1, 1, 1, same=True)
        self.pw_bn = nn.BatchNorm2d(cout, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.dw_bn(self.dw(x)))
        return F.relu6(self.pw_bn(self.pw(x)))


class MobileNetV1(nn.Module):
    """Logits (B, num_classes) for images (B, in_channels, H, W); `width` multiplies the numbers of channels."""

    feature_strides = (4, 8, 16, 32)

    def __init__(self, width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        channels = [max(int(c * width), 8) for c in (STEM, *(c for c, _ in BLOCKS))]
        self.feature_channels = tuple(channels[tap + 1] for tap in TAPS)
        self.conv1 = conv(in_channels, channels[0], 3, 2, 1, same=True)
        self.bn1 = nn.BatchNorm2d(channels[0], eps=EPS)
        self.blocks = nn.ModuleList(
            SeparableBlock(channels[i], channels[i + 1], stride) for i, (_, stride) in enumerate(BLOCKS)
        )
        self.dropout = nn.Dropout(1e-3)
        self.head = nn.Conv2d(channels[-1], num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The last maps of strides 4, 8, 16 and 32: (B, feature_channels[i], H/s, W/s)."""
        x = F.relu6(self.bn1(self.conv1(image)))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                maps.append(x)
        return tuple(maps)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.head(self.dropout(maps.mean((-2, -1), keepdim=True))).flatten(1)


_KERAS = re.compile(r"(?:.+/)?conv(?:1|_(?P<part>dw|pw)_(?P<block>\d+)|_(?P<head>preds))(?P<norm>_bn)?/(?P<leaf>\w+)")
_LEAVES = {
    "kernel": "weight", "depthwise_kernel": "weight", "bias": "bias",
    "gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip


def convert_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state from Keras's names (`conv_dw_1_bn/gamma`) and layouts; ours pass as they are.

    Keras stores a kernel as (H, W, I, O), a depthwise one as (H, W, C, 1).
    """
    state: dict[str, Tensor] = {}
    for name, value in published.items():
        found = _KERAS.fullmatch(name)
        if name.endswith("num_batches_tracked"):
            continue
        if found is None or found["leaf"] not in _LEAVES:
            state[name] = value
            continue
        if value.ndim == 4:
            value = value.permute((2, 3, 0, 1) if found["part"] == "dw" else (3, 2, 0, 1)).contiguous()
        if found["part"]:
            layer = f"blocks.{int(found['block']) - 1}.{found['part']}{found['norm'] or ''}"
        else:
            layer = "head" if found["head"] else "bn1" if found["norm"] else "conv1"
        state[f"{layer}.{_LEAVES[found['leaf']]}"] = value
    return state


def _build(width: float, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return MobileNetV1(width, num_classes, in_channels)  # no parameter depends on the size of the image


def _spec(suffix: str, width: float, params: int, macs: int) -> ModelSpec:
    return ModelSpec(
        name=f"mobilenet-v1{suffix}",
        family="mobilenet-v1",
        build=partial(_build, width),
        params=params,
        macs=macs,
        paper="https://arxiv.org/abs/1704.04861",
        licence="Apache-2.0 (this implementation)",
        preprocess=Preprocess(resize=256, crop=(224, 224), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
        convert_state=convert_state,
        stride=1,
        labels="imagenet1k",
        weights=("Keras, as .npz of its variables by path",),
        notes=f"Width {width:g}; TensorFlow SAME padding; pixels / 127.5 - 1.",
    )


MODELS = (
    _spec("", 1.0, 4_231_976, 568_740_352),
    _spec("-075", 0.75, 2_585_560, 325_400_448),
    _spec("-050", 0.5, 1_331_592, 149_497_088),
    _spec("-025", 0.25, 470_072, 41_030_272),
)
