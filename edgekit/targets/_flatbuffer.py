"""Reading a flatbuffer without its generated code: tables by the numbers of their fields."""

import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table of a flatbuffer; fields are numbered in the order of the schema, a union takes two numbers.

    Every method raises `struct.error` or `IndexError` where the buffer is damaged.
    """

    buffer: bytes
    position: int

    def scalar(self, field: int, kind: str, default: Any = 0) -> Any:
        """A number, `kind` as in `struct`."""
        place = self._place(field)
        return default if place is None else struct.unpack_from("<" + kind, self.buffer, place)[0]

    def table(self, field: int) -> "Table | None":
        place = self._place(field)
        return None if place is None else Table(self.buffer, self._follow(place))

    def tables(self, field: int) -> "list[Table]":
        """A vector of tables; empty where there is none."""
        place = self._place(field)
        if place is None:
            return []
        start = self._follow(place)
        (count,) = struct.unpack_from("<I", self.buffer, start)
        if count > len(self.buffer) // 4:
            raise IndexError(f"a vector of {count} tables is larger than the file")
        return [Table(self.buffer, self._follow(start + 4 * n)) for n in range(1, count + 1)]

    def text(self, field: int) -> str:
        place = self._place(field)
        if place is None:
            return ""
        start = self._follow(place)
        (size,) = struct.unpack_from("<I", self.buffer, start)
        return self.buffer[start + 4 : start + 4 + size].decode("utf-8", "replace")

    def _place(self, field: int) -> int | None:
        (back,) = struct.unpack_from("<i", self.buffer, self.position)
        directory = self.position - back
        (size,) = struct.unpack_from("<H", self.buffer, directory)
        if 4 + 2 * field >= size:
            return None
        (offset,) = struct.unpack_from("<H", self.buffer, directory + 4 + 2 * field)
        return self.position + offset if offset else None

    def _follow(self, place: int) -> int:
        return int(place + struct.unpack_from("<I", self.buffer, place)[0])


def root(buffer: bytes, start: int = 0) -> Table:
    """The table that a flatbuffer which begins at byte `start` is about."""
    return Table(buffer, start + struct.unpack_from("<I", buffer, start)[0])
