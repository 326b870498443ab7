"""The state of a run, whole in one file, so that a killed run goes on to the same bits."""

import io
from pathlib import Path
from typing import Any

import torch

from edgekit.artifacts import write_file
from edgekit.errors import BadInput

CHECKPOINT = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(folder / CHECKPOINT, buffer.getvalue())


def read(folder: Path) -> dict[str, Any] | None:
    """The last state saved there, never unpickled; None where there is none. Raises `BadInput` for a damaged one."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        assert isinstance(state["step"], int)
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise damaged(folder, error) from error
    return state


def damaged(folder: Path, error: Exception) -> BadInput:
    return BadInput(f"{folder / CHECKPOINT} is no checkpoint of this run ({error})", "Start again with --force.")
