"""ResNet for CIFAR: Deep Residual Learning for Image Recognition (He et al., CVPR 2016, arXiv:1512.03385), section 4.2.

Three stages of n blocks on maps of 32, 16 and 8 pixels with 16, 32 and 64 channels, 6n + 2 weighted layers::

    y = ReLU(BN(W2 ReLU(BN(W1 x))) + S(x))        3x3 convolutions; the first of a stage has stride 2

Where a stage begins, S has no parameters (option A): every second pixel, and zero channels, half of them on each side.
Elsewhere S is the identity. State names are those of the published CIFAR checkpoints.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.models._layers import conv
from edgekit.models._weights import same_names
from edgekit.types import ModelSpec, Preprocess

CHANNELS = (16, 32, 64)


class Shortcut(nn.Module):
    """Option A: (B, Cin, H, W) -> (B, Cout, ceil(H/2), ceil(W/2)) with every second pixel and Cout - Cin zeros."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.cin, self.cout = cin, cout

    def forward(self, x: Tensor) -> Tensor:
        before = (self.cout - self.cin) // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.cout - self.cin - before))

    def deploy(self) -> nn.Module:
        """The same as one convolution, whose matrix holds ones and zeros.

        XNNPACK takes no strided slice. This is one op in every runtime, 0.6 % of ResNet-20's multiplications, faster
        than a depthwise convolution or a 1x1 pooling with a pad, and exact in float16 and in int8 by channel.
        """
        select = nn.Conv2d(self.cin, self.cout, 1, 2, bias=False)
        before = (self.cout - self.cin) // 2
        with torch.no_grad():
            select.weight.zero_()[before : before + self.cin, :, 0, 0].fill_diagonal_(1)
        return select


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, Cin, H, W) -> (B, Cout, ceil(H/s), ceil(W/s))."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(cin, cout, 3, stride, 1, same=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = conv(cout, cout, 3, 1, 1, same=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Logits (B, num_classes) for images (B, in_channels, H, W); 3 stages of `blocks` blocks, 6 * blocks + 2 layers."""

    feature_strides = (1, 2, 4)
    feature_channels = CHANNELS

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, CHANNELS[0], 3, 1, 1, same=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        self.layer1 = _stage(CHANNELS[0], CHANNELS[0], 1, blocks)
        self.layer2 = _stage(CHANNELS[0], CHANNELS[1], 2, blocks)
        self.layer3 = _stage(CHANNELS[1], CHANNELS[2], 2, blocks)
        self.linear = nn.Linear(CHANNELS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # the paper's [13]: N(0, 2 / fan in)
        nn.init.zeros_(self.linear.bias)

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The maps that the stages end with: (B, 16, H, W), (B, 32, H/2, W/2), (B, 64, H/4, W/4)."""
        first = self.layer1(F.relu(self.bn1(self.conv1(image))))
        second = self.layer2(first)
        return first, second, self.layer3(second)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.linear(maps.mean((-2, -1)))


def _stage(cin: int, cout: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(cin, cout, stride), *(BasicBlock(cout, cout, 1) for _ in range(blocks - 1)))


def _build(blocks: int, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return CifarResNet(blocks, num_classes, in_channels)  # no parameter depends on the size of the image


def _spec(blocks: int, params: int, macs: int, stated: str) -> ModelSpec:
    return ModelSpec(
        name=f"resnet{6 * blocks + 2}-cifar",
        family="resnet-cifar",
        build=partial(_build, blocks),
        params=params,
        macs=macs,
        paper="https://arxiv.org/abs/1512.03385",
        licence="Apache-2.0 (this implementation); published weights: BSD-2-Clause",
        preprocess=Preprocess(resize=32, crop=(32, 32), interpolation="bilinear"),
        convert_state=same_names,
        input=(3, 32, 32),
        num_classes=10,
        stride=1,
        labels="cifar10",
        weights=("akamaster/pytorch_resnet_cifar10 (CIFAR-10)",),
        notes=f"Option-A shortcuts. The published weights state {stated} % on CIFAR-10's test set.",
    )


MODELS = (_spec(3, 269_722, 40_551_040, "91.78"), _spec(9, 853_018, 125_485_696, "93.62"))
