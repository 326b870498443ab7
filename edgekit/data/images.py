"""Image sets as the contract has them: a folder, a `.npz`, or a `.tar` with a `labels.csv`."""

import csv
import io
import tarfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from edgekit.errors import BadInput

HELD_OUT = ("val", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
HELP = (
    "A data path is a folder of images (flat, or <split>/<class>/image), a .npz with `images` and `labels`, "
    "or a .tar of images with a labels.csv."
)


@dataclass(frozen=True)
class Image:
    """One decoded photo with its label (an index, or None) and where it came from."""

    pixels: Pillow.Image
    label: int | None
    name: str


class ImageSet(Protocol):
    """Images in a fixed order, each decoded when it is asked for, which raises `BadInput` where it cannot be read.

    `labels` has one for each image, None where it is unknown; `classes` names the labels where the set knows the names.
    """

    classes: tuple[str, ...]
    labels: Sequence[int | None]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Image: ...
    def __iter__(self) -> Iterator[Image]: ...


def open_images(path: Path, splits: Sequence[str] = HELD_OUT) -> ImageSet:
    """The image set at `path`, of its splits the first of `splits` that is there. Raises `BadInput`.

    Images are decoded one by one, as the set is iterated or indexed.
    """
    if not path.exists():
        raise BadInput(f"there is no data at {path}", HELP)
    forms: Mapping[str, Callable[[Path, Sequence[str]], ImageSet]] = {".npz": _Npz, ".tar": _Tar}
    opener = _Folder if path.is_dir() else forms.get(path.suffix)
    if opener is None:
        raise BadInput(f"{path} is not a set of images", HELP)
    try:
        images = opener(path, splits)
    except (OSError, ValueError, KeyError, BadZipFile, tarfile.TarError) as error:
        raise BadInput(f"{path} cannot be read as images: {error}", HELP) from error
    if not len(images):
        raise BadInput(f"{path} holds no images ({', '.join(SUFFIXES)})", HELP)
    return images


def read_image(source: Path | bytes, name: str = "") -> Pillow.Image:
    """One photo, wholly decoded. Raises `BadInput` for what is missing, broken, no image or absurdly large."""
    name = name or ("the image" if isinstance(source, bytes) else str(source))
    if isinstance(source, Path) and not source.is_file():
        raise BadInput(f"there is no image {source}", "Give the path of a photo, e.g. a .jpg or .png file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
                image.load()
                return image.copy()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadInput(f"{name} is not an image that can be read ({error})", "Give a .jpg or .png photo.") from error
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise BadInput(f"{name} is too large to be a photo ({error})", "Scale it down first.") from error


def spread(labels: Sequence[int | None], number: int, seed: int = 0) -> tuple[int, ...]:
    """The indices of `number` images, ascending: at random within each class, and as many of a class as is its share.

    A systematic sample of the images ordered by class (Cochran, Sampling Techniques, 1977, section 8.2): every image is
    as likely as any other, and a class has at most one image more or less than its share of `number`.
    """
    rng = np.random.default_rng(seed)
    classes = np.array([-1 if label is None else label for label in labels])
    by_class = np.lexsort((rng.permutation(len(labels)), classes))
    places = (rng.random() + np.arange(number)) * len(labels) / number
    return tuple(sorted(by_class[places.astype(int)].tolist())) if number < len(labels) else tuple(range(len(labels)))


class _Indexed(ABC):
    """What follows from labels and access by number."""

    labels: Sequence[int | None]

    @abstractmethod
    def __getitem__(self, index: int) -> Image: ...

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Image]:
        return (self[i] for i in range(len(self)))


class _Folder(_Indexed):
    """Flat: no labels. One level of folders: classes. `val/` or `test/` above the classes: that split."""

    def __init__(self, root: Path, splits: Sequence[str]) -> None:
        for split in splits:
            if (root / split).is_dir():
                root = root / split
                break
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.classes = tuple(p.name for p in folders)
        self._files: list[tuple[Path, int | None]] = [(p, None) for p in _image_files(root)]
        if not self._files:
            self._files = [(p, label) for label, folder in enumerate(folders) for p in _image_files(folder)]
        else:
            self.classes = ()
        self.labels = [label for _, label in self._files]

    def __getitem__(self, index: int) -> Image:
        path, label = self._files[index]
        return Image(read_image(path), label, str(path))


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


class _Npz(_Indexed):
    """`images` uint8 (N,H,W) or (N,H,W,3), or `jpeg` bytes with `offsets`; `labels` and `classes` where known."""

    def __init__(self, path: Path, _splits: Sequence[str]) -> None:
        with np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
        self._name = path.name
        labels = arrays.get("labels")
        self.classes = tuple(str(c) for c in arrays.get("classes", ()))
        self._jpeg, self._offsets = arrays.get("jpeg"), arrays.get("offsets")
        self._images = arrays.get("images")
        if self._images is None and (self._jpeg is None or self._offsets is None):
            raise ValueError(f"it has no array `images`, only {', '.join(arrays) or 'nothing'}")
        if self._images is not None and not _are_pixels(self._images):
            raise ValueError(f"`images` is {self._images.dtype} {self._images.shape}, not uint8 (N, H, W, 3)")
        if self._offsets is not None and self._jpeg is not None and not _cut(self._offsets, len(self._jpeg)):
            raise ValueError(f"`offsets` do not cut the {len(self._jpeg)} bytes of `jpeg` into images")
        number = len(self._images) if self._images is not None else len(arrays["offsets"]) - 1
        if labels is not None and (labels.shape != (number,) or labels.dtype.kind not in "iu"):
            raise ValueError(f"`labels` is {labels.dtype} {labels.shape}, not {number} whole numbers")
        self.labels = [None] * number if labels is None else labels.tolist()

    def __getitem__(self, index: int) -> Image:
        return Image(self._pixels(index), self.labels[index], f"{self._name}[{index}]")

    def _pixels(self, i: int) -> Pillow.Image:
        if self._images is not None:
            return Pillow.fromarray(self._images[i])
        assert self._jpeg is not None
        assert self._offsets is not None
        return read_image(self._jpeg[self._offsets[i] : self._offsets[i + 1]].tobytes(), f"{self._name}[{i}]")


def _are_pixels(array: NDArray[np.generic]) -> bool:
    return array.dtype == np.uint8 and (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3))


def _cut(offsets: NDArray[np.generic], length: int) -> bool:
    ends = offsets.astype(np.int64) if offsets.dtype.kind in "iu" and offsets.ndim == 1 else np.zeros(0, np.int64)
    return len(ends) > 1 and ends[0] >= 0 and ends[-1] <= length and bool((np.diff(ends) > 0).all())


class _Tar(_Indexed):
    """Images and a `labels.csv` with the columns `file` and `index`; members are read in memory, never unpacked."""

    def __init__(self, path: Path, splits: Sequence[str]) -> None:
        self._path = path
        with tarfile.open(path) as tar:
            members = {m.name: m for m in tar.getmembers() if m.isfile()}
            table = next((m for name, m in members.items() if PurePosixPath(name).name == "labels.csv"), None)
            labels = _read_labels(tar, table) if table else {}
        names = sorted(n for n in members if PurePosixPath(n).suffix.lower() in SUFFIXES)
        self.labels = [labels.get(PurePosixPath(n).name) for n in names]
        self.classes: tuple[str, ...] = ()
        if not labels:
            # No table: the folder of an image names its class, below `val/` where there are splits.
            within = ([n for n in names if split in PurePosixPath(n).parent.parts] for split in splits)
            names = next(filter(None, within), names)
            self.classes = tuple(sorted({PurePosixPath(n).parent.name for n in names}))
            self.labels = [self.classes.index(PurePosixPath(n).parent.name) for n in names]
        self._members = [members[n] for n in names]

    def __getitem__(self, index: int) -> Image:
        member = self._members[index]
        try:
            with tarfile.open(self._path) as tar:
                file = tar.extractfile(member)
                content = b"" if file is None else file.read()
        except (OSError, tarfile.TarError) as error:
            raise BadInput(f"{self._path} is damaged: {error}", HELP) from error
        return Image(read_image(content, member.name), self.labels[index], member.name)


def _read_labels(tar: tarfile.TarFile, table: tarfile.TarInfo) -> dict[str, int]:
    file = tar.extractfile(table)
    assert file is not None
    try:
        rows = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"its labels.csv is not a table ({error})") from error
    if not rows or not {"file", "index"} <= rows[0].keys():
        raise ValueError("its labels.csv needs the columns `file` and `index`")
    if not all((row["index"] or "").isdecimal() for row in rows):
        raise ValueError("its labels.csv has an `index` that is not a number")
    return {PurePosixPath(row["file"]).name: int(row["index"]) for row in rows}
