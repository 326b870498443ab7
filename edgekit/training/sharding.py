"""An image set as tar shards, in the form that webdataset reads too."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from edgekit.artifacts import atomic_folder
from edgekit.data import ImageSet
from edgekit.data.images import SUFFIXES
from edgekit.data.shards import CLASSES, COUNTS
from edgekit.errors import BadInput
from edgekit.types import Step


@dataclass(frozen=True, kw_only=True)
class Written:
    """`pattern` is what `open_shards` takes; `unreadable` are images that were left out, with why."""

    pattern: str
    shards: int
    samples: int
    unreadable: tuple[str, ...]


def write_shards(
    images: ImageSet, out: Path, *, size: int = 1000, seed: int = 0, on_step: Step | None = None
) -> Written:
    """Write the folder `out`: shards of `size` images in an order of chance, classes.txt and shards.json.

    Files go in as they are, images from a .npz or .tar as PNG. The same images and seed give the same bytes. Raises
    `BadInput` where `out` is there already, or no image can be read.
    """
    if out.exists():
        raise BadInput(f"{out} is there already", "Give another folder with -o, or remove it.")
    unreadable: list[str] = []
    samples = _samples(images, np.random.default_rng(seed).permutation(len(images)).tolist(), unreadable, on_step)
    width = max(3, len(str((len(images) - 1) // size)))
    rows: list[dict[str, str | int]] = []
    with atomic_folder(out) as folder:
        while batch := [sample for _, sample in zip(range(size), samples, strict=False)]:
            path = folder / f"shards-{len(rows):0{width}d}.tar"
            _write(path, batch, len(rows) * size)
            rows.append({"url": path.name, "nsamples": len(batch), "filesize": path.stat().st_size})
        if not rows:
            raise BadInput(f"not one of {len(images)} images can be read: {unreadable[0]}", "Give .jpg or .png photos.")
        index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": out.name, "shardlist": rows}
        (folder / COUNTS).write_text(json.dumps(index, indent=1), encoding="utf-8")
        if images.classes:
            (folder / CLASSES).write_text("".join(f"{name}\n" for name in images.classes), encoding="utf-8")
    pattern = f"{out}/shards-{{{0:0{width}d}..{len(rows) - 1:0{width}d}}}.tar"
    total = len(images) - len(unreadable)
    return Written(pattern=pattern, shards=len(rows), samples=total, unreadable=tuple(unreadable))


_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
_Sample = tuple[str, bytes, int | None]


def _samples(images: ImageSet, order: list[int], unreadable: list[str], on_step: Step | None) -> Iterator[_Sample]:
    """Suffix, content and label; what cannot be read is said in `unreadable`."""
    for done, number in enumerate(order, 1):
        try:
            image = images[number]
        except BadInput as error:
            unreadable.append(error.message)
            continue
        finally:
            if on_step:
                on_step("writing shards", done, len(order))
        path = Path(image.name)
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield path.suffix.lower(), path.read_bytes(), image.label
        else:
            yield ".png", _png(image.pixels), image.label


def _png(pixels: Image.Image) -> bytes:
    """Upright, for how the camera was held does not go with it."""
    buffer = io.BytesIO()
    upright = ImageOps.exif_transpose(pixels)
    (upright if upright.mode in _PNG_MODES else upright.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, samples: Iterable[_Sample], first: int) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (suffix, content, label) in enumerate(samples, first):
            _add(tar, f"{number:08d}{suffix}", content)
            if label is not None:
                _add(tar, f"{number:08d}.cls", str(label).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
