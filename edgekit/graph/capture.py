"""nn.Module → ExportedProgram, and what the graph remembers of the user's source."""

import importlib
import linecache
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.errors import CaptureFailed

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_PACKAGE = Path(__file__).parent.parent
_TORCH, _IMPORTLIB = (str(Path(m.__file__ or "").parent) for m in (torch, importlib))


def capture(module: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    """The graph of `module` in eval mode for these input shapes.

    Raises `CaptureFailed` with the user's source line that `torch.export` stops at.
    """
    try:
        with torch.no_grad():
            return torch.export.export(module.eval(), tuple(inputs), strict=False)
    except Exception as error:  # torch.export raises two dozen types, from TypeError to GuardOnDataDependentSymNode
        source = user_line(error)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CaptureFailed(
            f"torch.export cannot capture {type(module).__name__}: {reason}" + (f"\n  at {source}" if source else ""),
            "A deployable model has no branches or shapes that depend on values: "
            "replace `if tensor…`, `.item()` and Python loops over data by tensor ops (torch.where, masks).",
        ) from error


def source_line(node: Node) -> str:
    """`file.py:12: x = …` for the innermost user frame that a node came from, or ""."""
    frame = _user_frame(node.meta.get("stack_trace") or "")
    return _describe(*frame) if frame else ""


def source_place(trace: str) -> str:
    """`file.py:12` for the innermost user frame of a stack trace as torch writes it, or ""."""
    frame = _user_frame(trace)
    return f"{Path(frame[0]).name}:{frame[1]}" if frame else ""


def _user_frame(trace: str) -> tuple[str, int] | None:
    frames = [(m["file"], int(m["line"])) for m in _FRAME.finditer(trace)]
    return next((frame for frame in reversed(frames) if not _is_machinery(frame[0])), None)


def user_line(error: BaseException) -> str:
    """`file.py:12: x = …` for the innermost line outside torch and edgekit that an error passed through, or ""."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    for file, line in reversed(frames):
        if not _is_machinery(file):
            return _describe(file, line)
    return ""


def _is_machinery(file: str) -> bool:
    """Whether a frame is torch's, Python's or edgekit's own: the line that a user can change is above it."""
    ours = Path(file).is_relative_to(_PACKAGE) and not Path(file).is_relative_to(_PACKAGE / "models")
    return ours or file.startswith((_TORCH, _IMPORTLIB, "<"))


def _describe(file: str, line: int) -> str:
    text = linecache.getline(file, line).strip()
    # The folder is left out: an artifact made twice, in two places, is the same artifact.
    return f"{Path(file).name}:{line}" + (f": {text}" if text else "")
