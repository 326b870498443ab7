"""Which line and which module of the model an op came from."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch.fx import Node

from edgekit.graph.capture import source_place
from edgekit.quantization._ops import module_path
from edgekit.types import FileOp


def source(node: Node) -> str:
    """`file.py:12 blocks.3.conv`, either part alone, or ""."""
    return describe(node.meta.get("stack_trace") or "", module_path(node))


def describe(trace: str, module: str) -> str:
    """The same from a stack trace as torch writes it and the path of a module."""
    # Without the text of the line: a model of a thousand ops has it a thousand times.
    return " ".join(part for part in (source_place(trace), module) if part)


def of_the_next(ops: Sequence[FileOp]) -> tuple[FileOp, ...]:
    """Ops that an exporter made by itself get the source of the op they were made for: the next, or else the last."""
    known, filled = "", []
    for op in reversed(ops):
        known = op.source or known
        filled.append(replace(op, source=known))
    return tuple(_of_the_last(reversed(filled)))


def _of_the_last(ops: Iterable[FileOp]) -> Iterable[FileOp]:
    known = ""
    for op in ops:
        known = op.source or known
        yield replace(op, source=known)
