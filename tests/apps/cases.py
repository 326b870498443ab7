"""Photos of every awkward kind, and what `edgekit.data.apply` makes of them: what every language has to give.

A case is what a platform's decoder hands over: pixels as 0xAARRGGBB, not yet upright, and the EXIF orientation.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.data import apply
from edgekit.types import Preprocess

ORIENTATION = 0x0112
IMAGENET = Preprocess(resize=37, crop=(32, 32))
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Case:
    """`argb` (H, W) uint32; `tensor` (C, H, W) float32; `step` is 1/255 in the tensor's units, by channel.

    `exact`: nothing is resized, so that the tensors are equal but for the rounding of one float operation.
    """

    name: str
    argb: NDArray[np.uint32]
    orientation: int
    preprocess: Preprocess
    tensor: NDArray[np.float32]
    exact: bool

    @property
    def step(self) -> NDArray[np.float32]:
        return np.asarray([self.preprocess.scale / s for s in self.preprocess.std], np.float32)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with hard edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([127 + 127 * np.sin(x / 7 + c) * np.cos(y / 11 - c) for c in range(3)], -1)
    base[(x // 8 + y // 8) % 2 == 0] *= 0.5
    return Image.fromarray(np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8))


def case(name: str, image: Image.Image, preprocess: Preprocess, orientation: int = 1) -> Case:
    """What `edgekit.data.apply` makes of `image`, read from a file as a user's would be."""
    buffer = io.BytesIO()
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    image.save(buffer, "PNG", exif=exif)
    read = Image.open(io.BytesIO(buffer.getvalue()))
    rgba = np.asarray(image.convert("RGBA"), np.uint32)
    argb = rgba[..., 3] << 24 | rgba[..., 0] << 16 | rgba[..., 1] << 8 | rgba[..., 2]
    size = image.size
    return Case(
        name=name, argb=argb, orientation=orientation, preprocess=preprocess, tensor=apply(preprocess, read),
        exact=min(size) == preprocess.resize,
    )  # fmt: skip


def cases() -> Iterator[Case]:
    """Odd sizes, every filter and orientation, grey, alpha, one pixel, a huge one, crops beyond the edge."""
    for width, height in ((64, 64), (37, 37), (53, 37), (37, 54), (38, 91), (200, 51), (31, 33), (301, 299)):
        yield case(f"{width}x{height}", photo(width, height), IMAGENET)
    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos"):
        for width, height in ((97, 61), (20, 29), (401, 300)):
            p = Preprocess(resize=37, crop=(32, 32), interpolation=interpolation, mean=HALF, std=HALF)
            yield case(f"{interpolation} {width}x{height}", photo(width, height, 1), p)
    for orientation in range(1, 9):
        yield case(f"orientation {orientation}", photo(50, 41, 2), IMAGENET, orientation)
    grey = photo(45, 60, 3).convert("L")
    yield case("grey photo", grey, IMAGENET)
    one = Preprocess(resize=37, crop=(32, 32), mean=(0.5,), std=(0.25,))
    yield case("one channel of a colour photo", photo(45, 60, 4), one)
    yield case("one channel of grey", grey, one)
    alpha = photo(45, 60, 5)
    alpha.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 45, dtype=np.uint8), (60, 1))))
    yield case("alpha", alpha, IMAGENET)
    for size in ((1, 1), (1, 40), (300, 1), (2, 3)):
        yield case(f"tiny {size[0]}x{size[1]}", photo(*size, 6), IMAGENET)
    yield case("huge", photo(4032, 3024, 7), Preprocess(resize=256, crop=(224, 224)))
    yield case("BGR, 0 to 255", photo(64, 48, 8), Preprocess(
        resize=40, crop=(40, 32), mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), scale=1.0, channel_order="BGR",
        interpolation="bilinear"))  # fmt: skip
    yield case("a crop larger than the photo", photo(90, 30, 9), Preprocess(resize=30, crop=(48, 40)))
    yield case("an odd rest", photo(70, 41, 10), Preprocess(resize=41, crop=(32, 33)))
