"""The generator of GDFQ (Xu et al., ECCV 2020): noise and a class in, an image out, in units of the model's input."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLOPE = 0.2
_START = 4
"""The image is this many times as large as the first map: two upsamplings."""


class Generator(nn.Module):
    """(N, latent) noise and (N) labels to (N, C, H, W).

    The label's embedding times the noise, a linear to a map of H / 4 x W / 4, then twice upsampling, 3x3 convolution,
    batch norm and LeakyReLU, and a 3x3 convolution, tanh and batch norm without parameters, which makes mean 0 and
    deviation 1. `width` is GDFQ's 128; half of it behind the second upsampling. `eps` of 0.8 in the inner batch norms
    is GDFQ's, whose 0.8 was meant as a momentum.
    """

    def __init__(self, classes: int, shape: tuple[int, ...], latent: int = 100, width: int = 128) -> None:
        super().__init__()
        channels, height, self.width = shape[0], shape[1], width
        self._map = (-(-height // _START), -(-shape[2] // _START))
        self._shape = shape[1:]
        self.embedding = nn.Embedding(classes, latent)
        self.start = nn.Linear(latent, width * self._map[0] * self._map[1])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width, 0.8), nn.BatchNorm2d(width // 2, 0.8)])
        self.first = nn.Conv2d(width, width, 3, 1, 1)
        self.second = nn.Conv2d(width, width // 2, 3, 1, 1)
        self.last = nn.Conv2d(width // 2, channels, 3, 1, 1)
        self.normal = nn.BatchNorm2d(channels, affine=False)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        x = self.start(noise * self.embedding(labels)).reshape(-1, self.width, *self._map)
        x = functional.interpolate(self.norms[0](x), scale_factor=2.0)
        x = functional.leaky_relu(self.norms[1](self.first(x)), _SLOPE)
        x = functional.interpolate(x, size=self._shape)
        x = functional.leaky_relu(self.norms[2](self.second(x)), _SLOPE)
        result: Tensor = self.normal(torch.tanh(self.last(x)))
        return result
