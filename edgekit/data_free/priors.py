"""Images that no camera took, with the statistics of those that one did.

Natural images have a spectrum of about 1 / f (Field 1987), edges because things occlude each other (the dead leaves
model: Matheron 1968; Lee, Mumford and Huang 2001), and contrasts of every size. `noise` has none of it; it is there to
be compared with.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edgekit.errors import UnknownName
from edgekit.types import Preprocess

_MEAN = (124.0, 117.0, 104.0)
_GREY, _CONTRAST = 115.0, 60.0
"""Grey levels: the mean of the pixels of photos, by colour and of all, and their deviation."""
_LIGHT = 32.0
"""Grey levels: the deviation of the means of photos, of what is bright and what is dark."""
_SLOPE = 1.2
"""Of amplitudes over frequency. Measured over photos: 0.9 to 1.2 (Tolhurst et al. 1992)."""
_LEAVES = 150
_LEAST, _MOST = 0.02, 0.5
"""Radii of leaves, as parts of the image; their number falls with the third power, so that all scales look alike."""
_TEXTURE = 12.0
_COLOUR = 0.35
"""Of the contrast, what channels have each for themselves: colours of photos are pale."""

Prior = Callable[[tuple[int, int, int], torch.Generator], Tensor]


def prior_images(
    kind: str, count: int, shape: tuple[int, int, int], preprocess: Preprocess | None, seed: int
) -> Tensor:
    """`count` images of the prior `kind` as inputs (N, C, H, W) of a model that prepares pixels by `preprocess`.

    None for inputs that are no pixels: these have mean 0 and deviation 1. Raises `UnknownName`.
    """
    if kind not in PRIORS:
        raise UnknownName("image prior", kind, PRIORS)
    generator = torch.Generator().manual_seed(seed)
    images = torch.stack([PRIORS[kind](shape, generator) for _ in range(count)])
    if preprocess is None:
        return (images - _GREY) / _CONTRAST
    if shape[0] == len(_MEAN):
        order = _MEAN if preprocess.channel_order == "RGB" else _MEAN[::-1]
        images = images + (torch.tensor(order) - _GREY)[:, None, None]
    return to_inputs(images, preprocess)


def bold(images: Tensor, preprocess: Preprocess | None) -> Tensor:
    """Images as photos of hard light are: twice the contrast, white and black where that ends."""
    if preprocess is None:
        return 2 * images
    return to_inputs(_GREY + 2 * (to_pixels(images, preprocess) - _GREY), preprocess)


def to_inputs(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Pixels (N, C, H, W), cut off at 0 and 255, as inputs of a model."""
    mean, std = _columns(preprocess)
    return (pixels.clamp(0, 255) * preprocess.scale - mean) / std


def to_pixels(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Inputs (N, C, H, W) of a model as pixels, 0 to 255."""
    mean, std = _columns(preprocess)
    return ((images * std.to(images) + mean.to(images)) / preprocess.scale).clamp(0, 255)


def bounds(preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """The least and the largest input (C, 1, 1) that a photo has."""
    mean, std = _columns(preprocess)
    ends = torch.stack([-mean / std, (255 * preprocess.scale - mean) / std])
    return ends.amin(0), ends.amax(0)


def _columns(preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    return torch.tensor(preprocess.mean)[:, None, None], torch.tensor(preprocess.std)[:, None, None]


def _noise(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return _GREY + _CONTRAST * torch.randn(shape, generator=generator)


def _pink(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Amplitudes of about 1 / f, with phases of chance; most of it the same in all channels."""
    field = (1 - _COLOUR) * _spectrum((1, *shape[1:]), generator) + _COLOUR * _spectrum(shape, generator)
    field = field / field.std().clamp(min=1e-6)
    return _exposed(_GREY + _CONTRAST * field, generator)


def _exposed(image: Tensor, generator: torch.Generator) -> Tensor:
    """Photos differ in light and contrast."""
    light, contrast = torch.randn((), generator=generator), torch.rand((), generator=generator)
    return _GREY + _LIGHT * light + (0.7 + contrast) * (image - _GREY)


def _spectrum(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    height, width = shape[1:]
    white = torch.fft.rfft2(torch.randn(shape, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    # What is longer than the image is not seen in it.
    frequency[0, 0] = math.inf
    field = torch.fft.irfft2(white / frequency**_SLOPE, s=(height, width))
    return field / field.std().clamp(min=1e-6)


def _dead_leaves(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Discs and rectangles that fall on each other, each of one colour with a shade and a texture of its own."""
    channels, height, width = shape
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    image = torch.full(shape, _GREY)
    textures = torch.stack([_spectrum((1, height, width), generator)[0] for _ in range(4)])
    for u in torch.rand(_LEAVES, 12, generator=generator).tolist():
        radius = (_MOST**-2 + (1 - u[0]) * (_LEAST**-2 - _MOST**-2)) ** -0.5
        # All of a leaf is in this window, however it is turned: it is all that is painted.
        down, right = (_window(centre, 1.5 * radius, size) for centre, size in ((u[1], height), (u[2], width)))
        y, x = rows[down] - u[1], columns[:, right] - u[2]
        turn, stretch = math.pi * u[3], 0.4 + 0.6 * u[4]
        along, across = y * math.cos(turn) + x * math.sin(turn), x * math.cos(turn) - y * math.sin(turn)
        disc = (along**2 + (across / stretch) ** 2) < radius**2
        leaf = disc if u[5] < 0.5 else (along.abs() < radius) & (across.abs() < radius * stretch)
        own = u[7:10] if channels == 3 else [u[7]] * channels
        colour = torch.tensor([255 * ((1 - _COLOUR) * u[6] + _COLOUR * c) for c in own])[:, None, None]
        texture = _TEXTURE * 3 * u[11] * textures[int(4 * u[11]), down, right]
        shade = 60 * (u[10] - 0.5) * along / radius + texture
        image[:, down, right] = torch.where(leaf, colour + shade, image[:, down, right])
    return _exposed(_GREY + _CONTRAST * (image - image.mean()) / image.std().clamp(min=1.0), generator)


def _window(centre: float, radius: float, size: int) -> slice:
    return slice(max(0, int((centre - radius) * size) - 1), min(size, int((centre + radius) * size) + 2))


PRIORS: Mapping[str, Prior] = {"noise": _noise, "pink": _pink, "dead_leaves": _dead_leaves}
