"""MobileNetV3: Searching for MobileNetV3 (Howard et al., ICCV 2019, arXiv:1905.02244), tables 1 and 2.

MobileNetV2's inverted residual, with squeeze-and-excitation after the depthwise filter in some blocks (section 5.3)
and, in the deeper ones, h-swish (section 5.2)::

    y = P(SE(DW(E(x)))) (+ x where shapes allow)           E, DW with batch norm and activation, P with batch norm
    SE(z) = z * h-sigmoid(W2 ReLU(W1 mean(z)))             one factor a channel; the middle has a quarter of them
    h-sigmoid(x) = ReLU6(x + 3) / 6,   h-swish(x) = x h-sigmoid(x)

State names and padding are torchvision's, so its checkpoints load as they are.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.models._layers import conv, init_he, make_divisible, maps_at
from edgekit.models._weights import same_names
from edgekit.types import ModelSpec, Preprocess

# Kernel, expanded channels, channels, squeeze-and-excitation, h-swish, stride: (table, width of the classifier).
Row = tuple[int, int, int, bool, bool, int]
LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
STEM = 16


class SqueezeExcite(nn.Module):
    """(B, C, H, W) -> the same shape, each channel times a factor in [0, 1] that the means of all decide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = make_divisible(channels // 4)
        self.fc1 = nn.Conv2d(channels, middle, 1)
        self.fc2 = nn.Conv2d(middle, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.relu(self.fc1(x.mean((-2, -1), keepdim=True)))
        return x * F.hardsigmoid(self.fc2(squeezed))


class SqueezeExciteDeploy(nn.Module):
    """6 SE(z): h-sigmoid's offset is in the bias, its slope is left to the convolution that follows.

    ReLU6(x + 3) is the activation of a convolution in every runtime; a clamp to [0, 1], which would hold the slope too,
    is no activation in LiteRT, and its XNNPACK delegate does not take it.
    """

    def __init__(self, train: SqueezeExcite) -> None:
        super().__init__()
        self.fc1, self.fc2 = train.fc1, train.fc2
        assert self.fc2.bias is not None
        self.fc2.bias += 3

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.relu(self.fc1(x.mean((-2, -1), keepdim=True)))
        return x * F.relu6(self.fc2(squeezed))


class InvertedResidual(nn.Module):
    """One row of a table: (B, Cin, H, W) -> (B, Cout, H/s, W/s)."""

    def __init__(self, cin: int, kernel: int, hidden: int, cout: int, squeeze: bool, hswish: bool, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if hidden == cin else [_conv_bn(cin, hidden, 1, 1, 1, _activation(hswish))]
        layers.append(_conv_bn(hidden, hidden, kernel, stride, hidden, _activation(hswish)))
        if squeeze:
            layers.append(SqueezeExcite(hidden))
        layers.append(_conv_bn(hidden, cout, 1, 1, 1))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)

    def deploy(self) -> nn.Module:
        """The same with one multiplication and no h-sigmoid in SE: P(SE(z)) = (P / 6)(6 SE(z))."""
        for index, layer in enumerate(self.block):
            if isinstance(layer, SqueezeExcite):
                self.block[index] = SqueezeExciteDeploy(layer)
                project = self.block[-1][0].weight  # type: ignore[index]
                project.copy_(project.double() / 6)
        return self


def _conv_bn(cin: int, cout: int, kernel: int, stride: int, groups: int, *activation: nn.Module) -> nn.Sequential:
    norm = nn.BatchNorm2d(cout, eps=1e-3, momentum=0.01)
    return nn.Sequential(conv(cin, cout, kernel, stride, groups, same=False), norm, *activation)


def _activation(hswish: bool) -> nn.Module:
    return nn.Hardswish() if hswish else nn.ReLU()


class MobileNetV3(nn.Module):
    """Logits (B, num_classes) for images (B, in_channels, H, W); `rows` is `LARGE` or `SMALL`, `width` the head's."""

    feature_strides = (4, 8, 16, 32)

    def __init__(self, rows: tuple[Row, ...], width: int, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn(in_channels, STEM, 3, 2, 1, nn.Hardswish())]
        cin, stride, last = STEM, 2, {2: 0}  # the last layer of each stride
        for index, (kernel, hidden, cout, squeeze, hswish, step) in enumerate(rows, start=1):
            layers.append(InvertedResidual(cin, kernel, hidden, cout, squeeze, hswish, step))
            cin, stride = cout, stride * step
            last[stride] = index
        self.taps = tuple(last[s] for s in self.feature_strides)
        self.feature_channels = tuple(rows[tap - 1][2] for tap in self.taps)
        self.features = nn.Sequential(*layers, _conv_bn(cin, 6 * cin, 1, 1, 1, nn.Hardswish()))
        self.classifier = nn.Sequential(
            nn.Linear(6 * cin, width), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(width, num_classes)
        )
        self.apply(init_he)

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The last blocks' maps of strides 4, 8, 16 and 32, before the last 1x1 convolution."""
        return maps_at(self.features, self.taps, image)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.classifier(self.features[-1](maps).mean((-2, -1)))


def _build(
    rows: tuple[Row, ...], width: int, num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> nn.Module:
    return MobileNetV3(rows, width, num_classes, in_channels)  # no parameter depends on the size of the image


def _spec(size: str, rows: tuple[Row, ...], width: int, params: int, macs: int) -> ModelSpec:
    return ModelSpec(
        name=f"mobilenet-v3-{size}",
        family="mobilenet-v3",
        build=partial(_build, rows, width),
        params=params,
        macs=macs,
        paper="https://arxiv.org/abs/1905.02244",
        licence="Apache-2.0 (this implementation)",
        preprocess=Preprocess(resize=256, crop=(224, 224), interpolation="bilinear"),
        convert_state=same_names,
        stride=1,
        labels="imagenet1k",
        weights=("torchvision IMAGENET1K_V1",),
        notes="PyTorch's symmetric padding; the last 1x1 convolution has no squeeze-and-excitation, as in torchvision.",
    )


MODELS = (
    _spec("small", SMALL, 1024, 2_542_856, 56_510_400),
    _spec("large", LARGE, 1280, 5_483_032, 216_589_760),
)
