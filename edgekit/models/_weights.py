"""Reading weight files without ever unpickling code, and loading them strictly."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.errors import BadInput, WeightsMismatch

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pth`/`.pt` one read with `weights_only=True`.

    A checkpoint's wrapping ("state_dict", "model", "module.") is taken off. Raises `BadInput`.
    """
    if not path.is_file():
        raise BadInput(f"there is no weights file {path}", "Check the path after --weights.")
    if path.suffix not in SUFFIXES:
        raise BadInput(f"{path} is not a weights file that edgekit reads", f"It reads {', '.join(SUFFIXES)}.")
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # torch.load raises a dozen types for what it cannot read, IndexError among them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(
            f"{path} cannot be read as weights: {reason}",
            "Save it as safetensors, or as state_dict with torch.save: files that need code to load are refused.",
        ) from error
    bare = {k.removeprefix("module."): v for k, v in state.items()}
    if len(bare) != len(state):
        twice = next(k for k in state if f"module.{k}" in state)
        raise BadInput(
            f"{path} has both {twice} and module.{twice}", "Save one of the two models that it seems to hold."
        )
    return bare


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(content, dict) and (
        inner := next((content[k] for k in ("state_dict", "model") if k in content), None)
    ):
        content = inner
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError("it holds no state_dict (a mapping of names to tensors)")
    return content


def load_weights(model: nn.Module, name: str, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `model`, every key and shape accounted for; raises `WeightsMismatch` otherwise."""
    # num_batches_tracked counts training steps: no function of the model depends on it.
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - given.keys())
    unexpected = sorted(given.keys() - own.keys())
    misshapen = [
        f"{k} is {tuple(given[k].shape)}, not {tuple(own[k].shape)}"
        for k in sorted(own.keys() & given.keys())
        if given[k].shape != own[k].shape
    ]
    if missing or unexpected or misshapen:
        raise WeightsMismatch(name, source, missing, unexpected, misshapen)
    model.load_state_dict(dict(given), strict=False)
