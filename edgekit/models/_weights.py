"""Reading weight files without ever unpickling code, and loading them strictly.

One file: `.safetensors`, `.npz`, or what torch.save wrote. Several: a TensorFlow checkpoint, named by its prefix
(`model.ckpt` for `model.ckpt.index` and `model.ckpt.data-00000-of-00001`) or by one of its files.
"""

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.errors import BadInput, EdgekitError, EnvironmentProblem, WeightsMismatch
from edgekit.models._low_rank import adapt

# What torch.save writes is named in many ways.
TORCH = (".pth", ".pt", ".tar", ".th", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH, ".npz")
# The metadata entry of an imported file that names its model.
OWNER = "edgekit_model"
WRAPPERS = ("state_dict", "model")
AVERAGES = ("state_dict_ema", "model_ema", "ema")
# A compressed file may say that it holds far more than fits in memory; trained weights hardly compress.
_EXPANSION, _ALWAYS = 100, 64 << 20


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file by name, and what should be said of how they were read."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of one weights file: `.safetensors`, `.npz`, or `.pth`/`.pt` read with `weights_only=True`.

    A checkpoint's wrapping ("state_dict", "model", "module.") is taken off. Raises `BadInput`.
    """
    if prefix := _tensorflow_prefix(path):
        raise BadInput(
            f"{prefix} is a TensorFlow checkpoint, and of several files",
            f"Make one file of it: edgekit weights import -m MODEL --from {prefix} -o weights.safetensors",
        )
    return read_checkpoint(path).tensors


def read_checkpoint(path: Path, entry: str | None = None) -> Checkpoint:
    """As `read_state`, of TensorFlow checkpoints too; `entry` names what to take from a file with several models.

    Raises `BadInput`, or `EnvironmentProblem` where a TensorFlow checkpoint is to be read without TensorFlow.
    """
    prefix = _tensorflow_prefix(path)
    if prefix is None:
        _check_file(path)
    if entry is not None and (prefix or path.suffix not in TORCH):
        raise BadInput(f"{path} holds one set of tensors and no entry {entry!r}", "Leave --entry out.")
    try:
        if prefix:
            checkpoint = _read_tensorflow(prefix)
        elif path.suffix in TORCH:
            checkpoint = _read_torch(path, entry)
        else:
            checkpoint = Checkpoint(_read_safetensors(path)) if path.suffix == ".safetensors" else _read_npz(path)
    except EdgekitError:
        raise
    except Exception as error:  # torch.load raises a dozen types for what it cannot read, IndexError among them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(
            f"{path} cannot be read as weights: {reason}",
            "Save it as safetensors, or as state_dict with torch.save: files that need code to load are refused.",
        ) from error
    state = checkpoint.tensors
    bare = {k.removeprefix("module."): v for k, v in state.items()}
    if len(bare) != len(state):
        twice = next(k for k in state if f"module.{k}" in state)
        raise BadInput(
            f"{path} has both {twice} and module.{twice}", "Save one of the two models that it seems to hold."
        )
    return Checkpoint(bare, checkpoint.notes)


def _check_file(path: Path) -> None:
    known = f"It reads {', '.join(SUFFIXES)}, and `edgekit weights import` TensorFlow checkpoints."
    if path.is_dir():
        raise BadInput(
            f"{path} is a folder, not a weights file",
            f"Name the file in it; of a TensorFlow checkpoint the file that ends in .index. {known}",
        )
    if not path.is_file():
        raise BadInput(f"there is no weights file {path}", f"Check the path. {known}")
    if path.suffix not in SUFFIXES:
        raise BadInput(f"{path} is not a weights file that edgekit reads", known)


def check_owner(path: Path, model: str) -> None:
    """Raises `BadInput` where `edgekit weights import` wrote `path` for another model; names and shapes may agree."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        return
    try:
        with safe_open(path, framework="pt") as file:
            owner = (file.metadata() or {}).get(OWNER, model)
    except (SafetensorError, OSError):
        return  # reading its tensors says what is wrong
    if owner != model:
        raise BadInput(
            f"{path} holds weights of {owner!r}, not of {model!r}", f"Type -m {owner}, or give weights of {model!r}."
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_torch(path: Path, entry: str | None) -> Checkpoint:
    content = torch.load(path, map_location="cpu", weights_only=True)
    notes: tuple[str, ...] = ()
    if entry is not None:
        if not isinstance(content, dict) or entry not in content:
            held = ", ".join(map(str, list(content)[:12])) if isinstance(content, dict) else type(content).__name__
            raise BadInput(f"{path} has no entry {entry!r}", f"It has {held}.")
        content = content[entry]
    while isinstance(content, dict) and (inner := next((k for k in WRAPPERS if _holds(content, k)), None)):
        if average := next((k for k in AVERAGES if _holds(content, k)), None):
            notes = (f"{path.name} has {inner} and the averaged {average}; {inner} was taken. See --entry.",)
        content = content[inner]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError("it holds no state_dict (a mapping of names to tensors)")
    return Checkpoint(content, notes)


def _holds(content: dict[Any, Any], key: str) -> bool:
    return isinstance(content.get(key), dict) and bool(content[key])


def _read_npz(path: Path) -> Checkpoint:
    with zipfile.ZipFile(path) as members:
        size = sum(member.file_size for member in members.infolist())
    if size > max(_ALWAYS, _EXPANSION * path.stat().st_size):
        raise ValueError(f"it would unpack to {size:,} bytes, {size // path.stat().st_size} times its size")
    with np.load(path, allow_pickle=False) as arrays:
        names, notes = _variables(arrays.files)
        return Checkpoint({name: _tensor(arrays[stored]) for name, stored in names.items()}, notes)


def _tensor(array: Any) -> Tensor:
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":  # a type of ml_dtypes, which torch does not take
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


_PARTS = re.compile(r"(?P<prefix>.+)\.(index|meta|data-\d+-of-\d+)")


def _tensorflow_prefix(path: Path) -> str | None:
    """What TensorFlow calls a checkpoint, where `path` is that, or one of its files."""
    match = _PARTS.fullmatch(str(path))
    if match is None and path.exists():
        return None
    prefix = match["prefix"] if match else str(path)
    return prefix if Path(f"{prefix}.index").is_file() else None


def _read_tensorflow(prefix: str) -> Checkpoint:
    try:
        import tensorflow
    except ImportError as error:
        raise EnvironmentProblem(
            f"reading the TensorFlow checkpoint {prefix} needs the package 'tensorflow'",
            "Type: pip install tensorflow. Or, where TensorFlow is, save its variables as .npz and give that: "
            "c = tf.train.load_checkpoint(PREFIX); "
            "np.savez('w.npz', **{n: c.get_tensor(n) for n in c.get_variable_to_shape_map()})",
        ) from error
    reader = tensorflow.train.load_checkpoint(prefix)
    names, notes = _variables(reader.get_variable_to_shape_map())
    return Checkpoint({name: _tensor(reader.get_tensor(stored)) for name, stored in names.items()}, notes)


_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_COUNTERS = {"_CHECKPOINTABLE_OBJECT_GRAPH", "global_step", "save_counter", "beta1_power", "beta2_power"}
_SLOT = re.compile(r"(?P<variable>.+)/(Adam|Adam_1|Momentum|RMSProp|RMSProp_1|Adagrad)")


def _variables(stored: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """A model's variables as TensorFlow's Python calls them -> as they are stored, and what was left out.

    ":0" is the number of an op's output, `_VALUE` the path from a tracked object to its number. The training's own
    are left out: counters, the optimizer's slots, the graph of tracked objects.
    """
    names = {_unescaped(name).removesuffix(":0"): name for name in sorted(stored)}
    left = [name for name in names if _is_of_training(name, names)]
    if len(left) == len(names):
        raise ValueError("it holds no variables of a model")
    said = f"left out what belongs to training: {', '.join(left[:3])}{f' and {len(left) - 3} more' * (len(left) > 3)}"
    return {name: full for name, full in names.items() if name not in left}, (said,) if left else ()


def _unescaped(name: str) -> str:
    """In a path of tracked objects "." is stored as ".." and "/" as ".S"."""
    if not name.endswith(_VALUE):
        return name
    return re.sub(r"\.[.S]", lambda found: "." if found[0] == ".." else "/", name.removesuffix(_VALUE))


def _is_of_training(name: str, names: Mapping[str, str]) -> bool:
    slot = _SLOT.fullmatch(name)
    return (
        name in _COUNTERS
        or name.startswith(("optimizer/", "_optimizer/"))
        or "/.OPTIMIZER_SLOT/" in name
        or (slot is not None and slot["variable"] in names)
    )


def same_names(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state whose names are ours, less the counters of training steps: `convert_state` of most families."""
    return {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}


def load_weights(model: nn.Module, name: str, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `model`, every key and shape accounted for; raises `WeightsMismatch` otherwise.

    Layers that are pairs of low rank in `state` become that in `model`.
    """
    adapt(model, state)
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
    for key, value in own.items():
        if value.is_floating_point():  # the rest are counters
            _check_values(key, given[key], source)
    model.load_state_dict(dict(given), strict=False)


def load_body(model: nn.Module, name: str, state: Mapping[str, Tensor], source: str) -> tuple[str, ...]:
    """`load_weights` where the head may be of another number of classes: it stays as it is. The names that did.

    A tensor belongs to the head where it differs from the model's in its first dimension alone.
    """
    own = model.state_dict()
    head = tuple(
        key for key, value in state.items()
        if key in own and value.shape != own[key].shape and value.dim() and value.shape[1:] == own[key].shape[1:]
    )  # fmt: skip
    sizes = {(state[key].shape[0], own[key].shape[0]) for key in head}
    # More than one pair of sizes is another architecture, which the strict comparison tells apart.
    kept = {key: own[key] for key in head} if len(sizes) == 1 else {}
    load_weights(model, name, {**state, **kept}, source)
    return tuple(kept)


def _check_values(name: str, value: Tensor, source: str) -> None:
    """A weight is a number: no quantized integer, no infinity, nothing that is not a number."""
    if not value.is_floating_point():
        raise BadInput(
            f"{source} holds {name} as {value.dtype}: integers, not weights of a float model",
            "Give the float weights that they were made from.",
        )
    if not value.isfinite().all():
        raise BadInput(
            f"{source} holds {int((~value.isfinite()).sum())} values in {name} that are infinite or no numbers",
            "The training that wrote it has diverged: give an earlier checkpoint.",
        )
