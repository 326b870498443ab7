"""How a native library wants to be laid in memory: the alignment of its loadable segments."""

import struct

from edgekit.app_checks.files import Unreadable

PAGE = 16384
HEAD = 1 << 16
"""Bytes that are read of a library: linkers put the table of segments at its start."""
_LOAD = 1


def load_alignments(head: bytes) -> tuple[bool, tuple[int, ...]]:
    """Whether a library is of 64 bits, and the alignment in bytes of each loadable segment.

    `head` is the start of the file, as in the ELF specification (System V ABI, chapter 4). Raises `Unreadable` for
    what is no ELF file, or is cut off.
    """
    if head[:4] != b"\x7fELF" or len(head) < 52:
        raise Unreadable("is no ELF library, or is cut off")
    bits, order = head[4], {1: "<", 2: ">"}.get(head[5])
    if bits not in (1, 2) or order is None:
        raise Unreadable("is an ELF file of no known kind")
    wide = bits == 2
    try:
        (table,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
        size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        if size < (56 if wide else 32):
            raise Unreadable("has a table of segments that cannot be right")
        alignments = []
        for n in range(count):
            at = table + n * size
            (kind,) = struct.unpack_from(order + "I", head, at)
            (alignment,) = struct.unpack_from(order + ("Q" if wide else "I"), head, at + (48 if wide else 28))
            if kind == _LOAD:
                alignments.append(alignment)
    except (struct.error, OverflowError) as error:
        raise Unreadable("is cut off before its table of segments ends") from error
    if not alignments:
        raise Unreadable("has no segment to load")
    return wide, tuple(alignments)
