"""What a model file still knows of the model it came from."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FileOp:
    """One op of a model file: its name there, its kind, and the line and module of the model that it came from.

    `source` is "file.py:12 blocks.3.conv", either part alone, or "" where the exporter made the op by itself. `inside`
    are the ops of a delegate call.
    """

    name: str
    op: str
    source: str = ""
    inside: tuple["FileOp", ...] = ()
