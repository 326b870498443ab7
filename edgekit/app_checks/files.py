"""The files of a folder or of an archive, read with limits and never unpacked."""

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgekit.errors import BadInput

MOST_FILES = 200_000
TEXT_LIMIT = 1 << 18
"""Of what people write; Xcode's projects and edgekit's manifests are larger."""
LARGE_TEXT = 1 << 25
SCAN_LIMIT = 1 << 30
CHUNK = 1 << 20
# Made by builds, or not the user's own: what is in them is checked in the archive that is built.
SKIPPED = {"build", "node_modules", "DerivedData", "Pods", "xcuserdata"}
_DAMAGED = (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, MemoryError)


class Unreadable(Exception):
    """A file that is damaged, encrypted or larger than what is read of such a file; the text says which."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file: `path` below the folder or in the archive, bytes, and how an archive stores it.

    `offset` is where its bytes begin in the archive; None in a folder.
    """

    path: str
    size: int
    compressed: bool = False
    packed: int = 0
    offset: int | None = None

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix.lower()

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Files:
    """What is to be checked: `root` is a folder or an archive, `entries` its files by path, in order."""

    root: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    archive: bool = False

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __contains__(self, path: str) -> bool:
        return path in self.entries

    def shown(self, path: str) -> str:
        """`path` as a person finds it: below the folder, or after the archive's name."""
        if not self.archive:
            return path
        return f"{self.root.name}!{path}" if path else self.root.name

    @contextmanager
    def _open(self, path: str) -> Iterator[io.BufferedIOBase]:
        try:
            if self.archive:
                with zipfile.ZipFile(self.root) as archive, archive.open(path) as stream:
                    yield stream  # type: ignore[misc]
            else:
                with (self.root / path).open("rb") as stream:
                    yield stream
        except (*_DAMAGED, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            raise Unreadable(f"cannot be read ({type(error).__name__}: {error})") from error

    def start(self, path: str, length: int) -> bytes:
        """At most the first `length` bytes; raises `Unreadable`."""
        with self._open(path) as stream:
            return stream.read(length)

    def text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        """A text file; raises `Unreadable` where it is none, or larger than `limit` bytes."""
        content = self.start(path, limit + 1)
        if len(content) > limit:
            raise Unreadable(f"is larger than {limit >> 10} KB")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unreadable("is no UTF-8 text") from error

    def chunks(self, path: str, limit: int = SCAN_LIMIT) -> Iterator[bytes]:
        """All bytes, a piece at a time; raises `Unreadable` beyond `limit`: what an entry says of its size may lie."""
        read = 0
        with self._open(path) as stream:
            while piece := stream.read(CHUNK):
                read += len(piece)
                if read > limit:
                    raise Unreadable(f"is larger than the {limit} bytes that are read of it")
                yield piece


def files_of(path: Path) -> Files:
    """The files of a folder, or of an APK, AAB, AAR or IPA; raises `BadInput` for anything else."""
    if path.is_dir():
        return Files(path, dict(sorted(_walk(path))))
    if not path.exists():
        raise BadInput(f"{path} does not exist", "Give the folder of an app or a module, or a built archive.")
    return Files(path, dict(_members(path)), archive=True)


def _walk(root: Path) -> Iterator[tuple[str, Entry]]:
    """Links are not followed: they may lead out of the folder, or around in it."""
    found = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in SKIPPED and not f.startswith("."))
        for name in names:
            file = Path(folder) / name
            if file.is_symlink() or not file.is_file():
                continue
            found += 1
            if found > MOST_FILES:
                raise BadInput(f"{root} holds more than {MOST_FILES} files", "Give the folder of one app or module.")
            relative = file.relative_to(root).as_posix()
            yield relative, Entry(path=relative, size=file.stat().st_size)


def _members(path: Path) -> Iterator[tuple[str, Entry]]:
    what = "Build it again: it is damaged, or no APK, AAB or AAR."
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            members = archive.infolist()
            if len(members) > MOST_FILES:
                raise BadInput(f"{path} holds more than {MOST_FILES} files", what)
            for member in members:
                name = PurePosixPath(member.filename)
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
                    raise BadInput(f"{path} holds a file outside of itself: {member.filename!r}", "Do not use it.")
                if not member.is_dir():
                    yield (
                        member.filename,
                        Entry(
                            path=member.filename,
                            size=member.file_size,
                            compressed=member.compress_type != zipfile.ZIP_STORED,
                            packed=member.compress_size,
                            offset=_data_offset(raw, member.header_offset),
                        ),
                    )
    except _DAMAGED as error:
        raise BadInput(f"{path} cannot be read as an archive: {error}", what) from error


def _data_offset(raw: io.BufferedReader, header: int) -> int:
    """Behind the entry's own header, whose extra field differs from that of the directory."""
    raw.seek(header)
    fixed = raw.read(30)
    if len(fixed) < 30 or fixed[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("an entry's header is not where the directory says")
    return header + 30 + int.from_bytes(fixed[26:28], "little") + int.from_bytes(fixed[28:30], "little")
