"""Tar shards as webdataset writes them, as an image set: members of one key make a sample, read by their place.

webdataset's own reader is not used: it cannot start at a step without reading up to it, what it gives depends on the
number of workers, processes get unequal parts, its addresses may be shell commands, and its decoders unpickle.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import overload

import numpy as np

from edgekit.data.images import Image, read_image
from edgekit.data.shard_index import BLOCK, NO_LABEL, Index, member_name, scan
from edgekit.errors import BadInput
from edgekit.types import Step

CLASSES, COUNTS, SIZES = "classes.txt", "shards.json", "sizes.json"
HELP = "Give tar shards on this machine, all of them, such as 'data/shards-{000..099}.tar' (in quotes)."
MOST = 100_000
"""Shards."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_READERS = 16


class Shards:
    """Samples of all shards in their order. The headers of a shard are read when one of its samples first is.

    A sample that is not there or has no image that can be read raises `BadInput`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes: Sequence[int],
        classes: tuple[str, ...],
        known: Mapping[int, Index] | None = None,
    ) -> None:
        self.classes = classes
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        """The number of the first sample of each shard, and the number of all."""
        self.labels: Sequence[int | None] = _Labels(self)
        self._paths, self._known = paths, dict(known or {})

    @property
    def is_labelled(self) -> bool:
        """Whether the first shard has labels."""
        return bool((self._index(0).labels != NO_LABEL).any())

    def label(self, number: int) -> int | None:
        shard, place = self._place(number)
        labels = self._index(shard).labels
        return int(labels[place]) if place < len(labels) and labels[place] != NO_LABEL else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __iter__(self) -> Iterator[Image]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Image:
        shard, place = self._place(number)
        path, index = self._paths[shard], self._index(shard)
        if place >= len(index.offsets):
            why = index.damage or f"the shard has only {len(index.offsets)} samples"
            raise BadInput(
                f"{path.name}[{place}] is not there: {why}", f"Correct {COUNTS} or {SIZES}, or write it again."
            )
        try:
            with path.open("rb") as file:
                file.seek(index.offsets[place] - BLOCK)
                header, content = file.read(BLOCK), file.read(index.lengths[place])
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}", HELP) from error
        name = f"{path.name}/{member_name(header) or f'[{place}]'}"
        return Image(read_image(content, name), self.label(number), name)

    def _place(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])

    def _index(self, shard: int) -> Index:
        if shard not in self._known:
            self._known[shard] = scan(self._paths[shard])
        return self._known[shard]


class _Labels(Sequence[int | None]):
    """Of each sample, None where it has none; read with the headers of its shard."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> int | None: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int | None]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int | None] | None:
        if isinstance(index, slice):
            return [self._shards.label(number) for number in range(len(self))[index]]
        return self._shards.label(index)


def is_pattern(text: str) -> bool:
    """Whether this names shards, as shards-{000..099}.tar does."""
    return "{" in text and text.endswith(".tar")


def open_shards(pattern: str, on_step: Step | None = None) -> Shards:
    """The shards that the pattern, in braces, names. Raises `BadInput` for all that are missing or damaged at once.

    How many samples they have is in `shards.json` (`shardlist` of `url`, `nsamples`, perhaps `filesize`) or
    `sizes.json` (names to numbers) beside them, as webdataset's tools write them; else all headers are read now.
    """
    paths = shard_paths(pattern)
    classes = _classes(paths[0].parent / CLASSES)
    stated = _stated(paths)
    if stated is not None:
        return Shards(paths, stated, classes)
    known: dict[int, Index] = {}
    pool = ThreadPoolExecutor(_READERS)
    try:
        for shard, index in enumerate(pool.map(scan, paths)):
            known[shard] = index
            if on_step:
                on_step("reading the headers of the shards", shard + 1, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    damaged = [f"{paths[shard]}: {index.damage}" for shard, index in known.items() if index.damage]
    if damaged:
        raise BadInput(f"{len(damaged)} of {len(paths)} shards cannot be used\n  " + _listed(damaged), HELP)
    return Shards(paths, tuple(len(index.offsets) for index in known.values()), classes, known)


def shard_paths(pattern: str) -> tuple[Path, ...]:
    """The files that a pattern names. Raises `BadInput` for addresses and commands, which are not followed."""
    from braceexpand import braceexpand

    if _ADDRESS.match(pattern):
        raise BadInput(f"{pattern} is no path on this machine; addresses and commands are not followed", HELP)
    if re.search(r"\d{7,}\.\.|\.\.\d{7,}", pattern):
        raise BadInput(f"{pattern} names more than {MOST:,} shards", HELP)
    try:
        paths = tuple(Path(name) for name in islice(braceexpand(pattern, escape=False), MOST + 1))
    except ValueError as error:
        raise BadInput(f"{pattern} is not a pattern of shards: {error}", HELP) from error
    if len(paths) > MOST:
        raise BadInput(f"{pattern} names more than {MOST:,} shards", HELP)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise BadInput(f"{len(missing)} of the {len(paths)} shards of {pattern} are missing: {_listed(missing)}", HELP)
    twice = sorted({str(path) for path in paths if paths.count(path) > 1}) if len(set(paths)) < len(paths) else []
    if twice:
        raise BadInput(f"{pattern} names shards twice: {_listed(twice)}", HELP)
    return paths


def _classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read: {error}", "It has one class a line, in the order of their numbers."
        ) from error


def _stated(paths: Sequence[Path]) -> tuple[int, ...] | None:
    """What files beside the shards say of their numbers of samples; None where they do not say it of all."""
    found: dict[Path, int] = {}
    wrong = []
    for folder in {path.parent for path in paths}:
        for name in (SIZES, COUNTS):
            if (folder / name).is_file():
                found |= {folder / shard: count for shard, (count, _) in _read_counts(folder / name).items()}
        if (folder / COUNTS).is_file():
            lengths = {folder / shard: length for shard, (_, length) in _read_counts(folder / COUNTS).items()}
            wrong += [
                f"{path} has {path.stat().st_size:,} bytes, {COUNTS} says {lengths[path]:,}"
                for path in paths
                if lengths.get(path) not in (None, path.stat().st_size)
            ]
    if wrong:
        raise BadInput(
            f"{len(wrong)} shards were cut off or changed after they were written\n  " + _listed(wrong),
            f"Write them again, or remove {COUNTS}, so that they are counted.",
        )
    return tuple(found[path] for path in paths) if all(path in found for path in paths) else None


def _read_counts(path: Path) -> dict[str, tuple[int, int | None]]:
    """By shard: samples, and bytes where they are given."""
    counts: dict[str, tuple[int, int | None]]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == SIZES:
            counts = {str(name): (count, None) for name, count in content.items()}
        else:
            rows = content["shardlist"]
            counts = {PurePosixPath(row["url"]).name: (row["nsamples"], row.get("filesize")) for row in rows}
        if not all(type(count) is int and count > 0 and type(n) in (int, type(None)) for count, n in counts.values()):
            raise ValueError("samples and bytes are whole numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} does not say how many samples the shards have ({error!r})", "Remove it.") from error
    return counts


def _listed(names: Sequence[str], most: int = 5) -> str:
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")
