"""A model of your own: a function that returns it, for `edgekit export -m recipes/own_model.py:model`."""

from itertools import pairwise

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Three strided convolutions and a classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = (3, 16, 32, 64)
        self.features = nn.Sequential(
            *[
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.GELU())
                for a, b in pairwise(channels)
            ]
        )
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((-2, -1)))


def model(num_classes: int = 10) -> nn.Module:
    """What -m names; --num-classes is passed on, --weights is loaded into it."""
    return SmallNet(num_classes)
