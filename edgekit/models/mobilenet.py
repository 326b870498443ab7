"""MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., CVPR 2018, arXiv:1801.04381).

A block expands its input t times with a 1x1 convolution, filters it depthwise and projects it
linearly: y = P(DW(E(x))) (+ x where shapes allow), ReLU6 after E and DW, none after P (section 3.3).
State names are torchvision's, so its checkpoints load as they are.
"""

import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from edgekit.models._layers import conv, conv_bn_relu6, init_he, make_divisible, maps_at
from edgekit.types import ModelSpec, Preprocess

# Table 2 of the paper: expansion t, channels c, repeats n, stride s.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expand: int, same: bool, eps: float) -> None:
        super().__init__()
        hidden = cin * expand
        layers: list[nn.Module] = [] if expand == 1 else [conv_bn_relu6(cin, hidden, 1, 1, 1, same, eps)]
        layers += [
            conv_bn_relu6(hidden, hidden, 3, stride, hidden, same, eps),
            conv(hidden, cout, 1, 1, 1, same),
            nn.BatchNorm2d(cout, eps=eps),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Logits (B, num_classes) for images (B, in_channels, H, W); `padding` is "same" (TensorFlow) or "symmetric"."""

    feature_strides = (4, 8, 16, 32)

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, padding: str = "same"
    ) -> None:
        super().__init__()
        if padding not in ("same", "symmetric"):
            raise ValueError(f"padding is 'same' or 'symmetric', not {padding!r}")
        same = padding == "same"
        eps = 1e-3 if same else 1e-5  # the batch norm default of the framework that the padding is of
        channels, last = make_divisible(32 * width), make_divisible(1280 * max(1.0, width))
        features: list[nn.Module] = [conv_bn_relu6(in_channels, channels, 3, 2, 1, same, eps)]
        total, last_of = 2, {}  # stride so far; for each stride its last layer and that layer's channels
        for expand, base, repeats, stride in STAGES:
            for i in range(repeats):
                cout = make_divisible(base * width)
                features.append(InvertedResidual(channels, cout, stride if i == 0 else 1, expand, same, eps))
                channels = cout
            total *= stride
            last_of[total] = (len(features) - 1, channels)
        self.taps, self.feature_channels = zip(*(last_of[s] for s in self.feature_strides), strict=True)
        self.features = nn.Sequential(*features, conv_bn_relu6(channels, last, 1, 1, 1, same, eps))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        self.apply(init_he)

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The last blocks' maps of strides 4, 8, 16 and 32, before the last 1x1 convolution."""
        return maps_at(self.features, self.taps, image)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.classifier(self.features[-1](maps).mean((-2, -1)))


_FOLDED = re.compile(r"(?P<stem>features\..+)\.(?P<index>[0-9]+)\.bias")


def convert_state(eps: float, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state from torchvision's names, with batch norm or with batch norm already folded.

    Folded: a convolution has a bias and its norm is absent. Its norm then becomes the identity
    (mean 0, variance 1, gain sqrt(1 + eps)) with the bias as shift, which computes the same.
    """
    state = {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}
    for match in list(filter(None, map(_FOLDED.fullmatch, state))):
        weight = state.get(f"{match['stem']}.{match['index']}.weight")
        if weight is None or weight.ndim != 4:
            continue  # a norm's, or a stray one: loading names what is missing
        bias = state.pop(match.string)
        norm = f"{match['stem']}.{int(match['index']) + 1}"
        state[f"{norm}.weight"] = torch.full_like(bias, (1 + eps) ** 0.5)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.ones_like(bias)
    return state


def _spec(name: str, padding: str, preprocess: Preprocess, notes: str, tag: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="mobilenet",
        build=partial(_build, padding),
        params=3_504_872,
        macs=300_774_272,
        paper="https://arxiv.org/abs/1801.04381",
        licence="Apache-2.0 (this implementation)",
        preprocess=preprocess,
        convert_state=partial(convert_state, 1e-3 if padding == "same" else 1e-5),
        stride=1,
        labels="imagenet1k",
        weights=(tag,),
        notes=notes,
    )


def _build(padding: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return MobileNetV2(num_classes, in_channels, padding=padding)  # no parameter depends on the size of the image


MODELS = (
    _spec(
        "mobilenet-v2",
        "same",
        # The published TensorFlow weights were trained on (x - 127) / 127.5.
        Preprocess(resize=256, crop=(224, 224), interpolation="bilinear", mean=(127 / 255,) * 3, std=(0.5,) * 3),
        "TensorFlow SAME padding, for weights trained in TensorFlow or Keras.",
        "TensorFlow/Keras weights under torchvision's names, batch norm intact or folded",
    ),
    _spec(
        "mobilenet-v2-symmetric",
        "symmetric",
        Preprocess(resize=256, crop=(224, 224), interpolation="bilinear"),
        "PyTorch's symmetric padding, for weights trained in PyTorch.",
        "torchvision weights",
    ),
)
