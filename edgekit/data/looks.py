"""What can be seen of the images of a set when each is decoded once."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image as Pillow
from PIL import ImageOps

from edgekit.data.images import ImageSet, spread
from edgekit.errors import BadInput
from edgekit.types import Step

TRANSPARENT = "transparent"
_NAMED = 5
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Look:
    """Of one decoded image: its mode or `TRANSPARENT`, its shorter side, a hash of its pixels."""

    mode: str
    side: int
    digest: bytes
    has_damaged_exif: bool


@dataclass(frozen=True)
class Looked:
    """A set, `what` it is for, and what was seen of it: `looks`, or why an image is `unreadable`, by number."""

    what: str
    images: ImageSet
    looks: dict[int, Look]
    unreadable: dict[int, str]

    @property
    def decoded(self) -> int:
        return len(self.looks) + len(self.unreadable)

    @property
    def has_labels(self) -> bool:
        return any(label is not None for label in self.images.labels)

    def class_name(self, label: int | None) -> str:
        named = label is not None and 0 <= label < len(self.images.classes)
        return self.images.classes[label or 0] if named else str(label)

    def some(self, numbers: Sequence[int], what: str) -> str:
        """How many these images are, and the first few by name."""
        if len(numbers) == len(self.images):
            return f"all {len(numbers):,} {self.what} images {what}"
        return f"{self.of(len(numbers))} {what}: {listed(map(self.name, numbers), len(numbers))}"

    def of(self, count: int) -> str:
        return f"{count:,} of {len(self.images):,} {self.what} images"

    def name(self, number: int) -> str:
        """Decodes it once more, which spares a name for each of a million images."""
        try:
            return self.images[number].name
        except BadInput as error:
            return error.message


def look_at(what: str, images: ImageSet, limit: int | None, on_step: Step | None) -> Looked:
    """Decode images in threads; Pillow's decoders let others run."""
    numbers = spread(images.labels, limit or len(images))
    chunks = [numbers[at : at + _CHUNK] for at in range(0, len(numbers), _CHUNK)]
    seen = Looked(what, images, {}, {})
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    # `read_image` sets filters for a moment, which threads would leave mixed up; here they find that one set already.
    with warnings.catch_warnings():
        warnings.simplefilter("error", Pillow.DecompressionBombWarning)
        try:
            for chunk, looks in zip(chunks, pool.map(lambda c: [_seen(images, n) for n in c], chunks), strict=True):
                for number, look in zip(chunk, looks, strict=True):
                    if isinstance(look, str):
                        seen.unreadable[number] = look
                    else:
                        seen.looks[number] = look
                if on_step:
                    on_step(f"checking the {what} images", seen.decoded, len(numbers))
        finally:
            pool.shutdown(cancel_futures=True)
    return seen


def _seen(images: ImageSet, number: int) -> Look | str:
    """An image as it looks, or why it cannot be read."""
    try:
        image = images[number]
    except BadInput as error:
        return error.message
    has_damaged_exif = False
    try:
        ImageOps.exif_transpose(image.pixels)
    except Exception:  # Pillow parses EXIF only here, and raises whatever the damage leads to
        has_damaged_exif = True
    pixels = _comparable(image.pixels)
    digest = hashlib.blake2b(repr((pixels.mode, pixels.size)).encode() + pixels.tobytes(), digest_size=16)
    mode = TRANSPARENT if pixels.mode == "RGBA" else "RGB" if image.pixels.mode == "RGBA" else image.pixels.mode
    return Look(mode, min(image.pixels.size), digest.digest(), has_damaged_exif)


def _comparable(pixels: Pillow.Image) -> Pillow.Image:
    """RGB, as the model sees most; what that would cut off or hide stays as it is."""
    if pixels.mode[0] in "IF":
        return pixels
    if pixels.has_transparency_data:
        pixels = pixels.convert("RGBA")
        if pixels.getchannel("A").getextrema() != (255, 255):
            return pixels
    return pixels.convert("RGB")


def listed(texts: Iterable[str], total: int | None = None) -> str:
    """The first few; of an iterator no more are made."""
    shown = [text for _, text in zip(range(_NAMED), texts, strict=False)]
    total = total if total is not None else len(texts) if isinstance(texts, Sequence) else len(shown)
    return "; ".join(shown) + (f"; and {total - len(shown)} more" if total > len(shown) else "")
