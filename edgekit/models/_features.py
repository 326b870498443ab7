"""A model of the zoo as a backbone for detection and segmentation."""

from typing import Any

from torch import Tensor, nn


class Features(nn.Module):
    """Image (B, C, H, W) -> the stage outputs (B, channels[i], H / strides[i], W / strides[i]), finest first."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.strides: tuple[int, ...] = model.feature_strides
        self.channels: tuple[int, ...] = model.feature_channels

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.model.forward_features(image)
