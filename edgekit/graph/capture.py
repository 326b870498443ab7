"""nn.Module → ExportedProgram, and what the graph remembers of the user's source."""

import linecache
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.errors import CaptureFailed

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
# Frames below these folders are machinery: the line that a user can change is above them.
_MACHINERY = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<eval_with_key>", "<string>")


def capture(module: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    """The graph of `module` in eval mode for these input shapes.

    Raises `CaptureFailed` with the user's source line that `torch.export` stops at.
    """
    try:
        with torch.no_grad():
            return torch.export.export(module.eval(), tuple(inputs), strict=False)
    except Exception as error:  # torch.export raises two dozen types, from TypeError to GuardOnDataDependentSymNode
        source = _user_line(error.__traceback__)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CaptureFailed(
            f"torch.export cannot capture {type(module).__name__}: {reason}" + (f"\n  at {source}" if source else ""),
            "A deployable model has no branches or shapes that depend on values: "
            "replace `if tensor…`, `.item()` and Python loops over data by tensor ops (torch.where, masks).",
        ) from error


def source_line(node: Node) -> str:
    """`file.py:12: x = …` for the innermost user frame that a node came from, or ""."""
    trace = node.meta.get("stack_trace") or ""
    frames = [(m["file"], int(m["line"])) for m in _FRAME.finditer(trace)]
    for file, line in reversed(frames):
        if not file.startswith(_MACHINERY):
            return _describe(file, line)
    return ""


def _user_line(tb: TracebackType | None) -> str:
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(tb)]
    for file, line in reversed(frames):
        if not file.startswith(_MACHINERY):
            return _describe(file, line)
    return ""


def _describe(file: str, line: int) -> str:
    text = linecache.getline(file, line).strip()
    # The folder is left out: an artifact made twice, in two places, is the same artifact.
    return f"{Path(file).name}:{line}" + (f": {text}" if text else "")
