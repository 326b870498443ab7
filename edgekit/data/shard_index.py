"""Where the images of a tar shard are: its headers, read once. Nothing is unpacked."""

import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.data.images import SUFFIXES

NO_LABEL = -1
BLOCK = 512
"""Bytes of a header, which is just before what it describes."""
_LONGEST_LABEL = 2**20
_METADATA = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class Index:
    """Where the images of a shard begin, their bytes and labels, one for each sample; how it is damaged, if it is."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    damage: str = ""


def scan(path: Path) -> Index:
    """Read the headers of a shard, and its labels; images are skipped."""
    rows: list[tuple[int, int, int]] = []
    damage = ""
    key, seen, label, image = "", set[str](), NO_LABEL, (0, 0)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                stem, suffix = _split(member.name)
                if not member.isreg() or member.issparse() or not suffix:
                    continue
                if stem != key or suffix in seen:
                    rows += [(*image, label)] if image[0] else []
                    key, seen, label, image = stem, set(), NO_LABEL, (0, 0)
                seen.add(suffix)
                if f".{suffix}" in SUFFIXES and not image[0]:
                    image = (member.offset_data, member.size)
                elif suffix in ("cls", "json") and (suffix == "cls" or label == NO_LABEL):
                    label = _label(tar, member, suffix)
            rows += [(*image, label)] if image[0] else []
            damage = _end(path, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        damage = f"it is no whole tar file ({error})"
    except OSError as error:
        damage = f"it cannot be read ({error.strerror or error})"
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    return Index(columns[0], columns[1], columns[2], damage or ("" if rows else "it holds no images"))


def _split(name: str) -> tuple[str, str]:
    """Key and suffix, at the first dot of a file's name, as webdataset splits them; no suffix for what it skips."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower() if stem and not _METADATA.match(name) else ""


def _end(path: Path, offset: int) -> str:
    """tarfile takes a header that is cut off or overwritten for the end."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(BLOCK)
    return "" if len(block) == BLOCK and not any(block) else f"it ends in the middle, at byte {offset:,}"


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> int:
    file = tar.extractfile(member)
    if file is None or member.size > _LONGEST_LABEL:
        return NO_LABEL
    try:
        text = file.read().decode("utf-8")
        value = int(text) if suffix == "cls" else json.loads(text)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return NO_LABEL
    return value if type(value) is int and 0 <= value < 2**31 else NO_LABEL


def member_name(header: bytes) -> str:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace").name
    except tarfile.TarError:
        return ""
