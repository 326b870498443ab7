"""`Preprocess`, applied: the same few lines for verification, evaluation and `predict`."""

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgekit.errors import UnknownName
from edgekit.types import Preprocess

_FILTERS: Mapping[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def apply(preprocess: Preprocess, image: Image.Image) -> NDArray[np.float32]:
    """The model's input (C, H, W) for one photo, upright as its camera says.

    The shorter side is resized to `resize` (never stretched), the centre `crop` is taken,
    then (pixel * scale - mean) / std in float32. Raises `UnknownName` for an interpolation that is none.
    """
    image = upright(preprocess, image)
    height, width = preprocess.crop
    image = _resize(image, max(preprocess.resize, 1), resampling(preprocess))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    # A crop that is larger than the image (an elongated photo, a small resize) is filled with black by Pillow.
    return normalize(preprocess, np.asarray(image.crop((left, top, left + width, top + height)), np.float32))


def resampling(preprocess: Preprocess) -> Image.Resampling:
    """Pillow's filter of that name. Raises `UnknownName`."""
    if preprocess.interpolation not in _FILTERS:
        raise UnknownName("interpolation", preprocess.interpolation, _FILTERS)
    return _FILTERS[preprocess.interpolation]


def upright(preprocess: Preprocess, image: Image.Image) -> Image.Image:
    """The photo as its camera says it is held, in 8 bits and as many channels as the model takes."""
    with suppress(Exception):  # damaged EXIF raises whatever its parser stumbles over; the pixels are whole
        image = ImageOps.exif_transpose(image)
    return _eight_bit(image).convert("L" if len(preprocess.mean) == 1 else "RGB")


def normalize(preprocess: Preprocess, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, H, W) of pixels (H, W[, C]) from 0 to 255: (pixel * scale - mean) / std."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if preprocess.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    mean, std = np.asarray(preprocess.mean, np.float32), np.asarray(preprocess.std, np.float32)
    values = (pixels * np.float32(preprocess.scale) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey at 255 where it should scale it."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray(np.rint(np.asarray(image, np.float32) / 257).astype(np.uint8))


def _resize(image: Image.Image, shorter: int, resample: Image.Resampling) -> Image.Image:
    if min(image.size) == shorter:
        return image
    ratio = shorter / min(image.size)
    return image.resize((max(shorter, round(image.width * ratio)), max(shorter, round(image.height * ratio))), resample)
