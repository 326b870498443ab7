"""Measurements that outlive the process that made them."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.artifacts import disk_errors, write_file
from edgekit.errors import BadInput


class Journal:
    """A file with one measurement a line, each on the disk before the next is begun.

    It starts with `key`, which names everything that the measurements depend on; those under another key are forgotten.
    Raises `BadInput` for a file of something else.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._made = [folder for folder in path.parents if not folder.exists()]
        found_key, self._values = _read(path)
        if found_key != key:
            self._values = {}
        self.recalled = len(self._values)
        # Whole lines only: the last one may have been cut off.
        lines = [{"key": key}, *({"name": n, "value": v} for n, v in self._values.items())]
        write_file(path, b"".join(_line(entry) for entry in lines))

    def recall(self, name: str, measure: Callable[[], Any]) -> Any:
        """What was measured under this name, or what `measure` gives now: plain values of JSON."""
        if name not in self._values:
            value = measure()
            with disk_errors(self._path.parent), self._path.open("ab") as file:
                file.write(_line({"name": name, "value": value}))
                file.flush()
                os.fsync(file.fileno())
            self._values[name] = value
        return self._values[name]

    def remove(self) -> None:
        """Delete the file, and the folders that it was the first to need."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else lies there by now
            for folder in self._made:
                folder.rmdir()


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.exists():
        return "", {}
    try:
        first, *lines = path.read_bytes().split(b"\n")
        key, values = str(json.loads(first)["key"]), {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is needed for measurements, and is a file of something else", "Move it away, or choose another -o."
        ) from error
    with contextlib.suppress(ValueError):  # a line that was cut off is the last one
        for line in filter(None, lines):
            entry = json.loads(line)
            values[entry["name"]] = entry["value"]
    return key, values
