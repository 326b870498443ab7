"""A published checkpoint as one safetensors file under the zoo's own names: converted, checked and written whole."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from edgekit.artifacts import write_file
from edgekit.errors import BadInput
from edgekit.models import ZOO, create_model, load_weights
from edgekit.models._weights import OWNER, check_owner, read_checkpoint
from edgekit.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ImportedWeights:
    """A file that `--weights` takes for `model`; `parameters` are the model's, `notes` what a person should know."""

    model: str
    path: Path
    tensors: int
    parameters: int
    bytes: int
    sha256: str
    notes: tuple[str, ...] = ()


def import_weights(
    model: str,
    source: str | Path,
    destination: str | Path,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    entry: str | None = None,
    force: bool = False,
) -> ImportedWeights:
    """Write the weights of a zoo model in `source` to the `.safetensors` file `destination`.

    `source` is a `.safetensors`, `.npz` or torch.save file, or a TensorFlow checkpoint; `entry` names what to take
    from a file with several models. `num_classes` and `image_size` are those of the source's classifier and of the
    images the file is to be used with. Raises `UnknownName`, `BadInput`, `WeightsMismatch` (a key or a shape that does
    not fit) or `EnvironmentProblem`; nothing is written then, and nothing overwritten without `force`.
    """
    spec = ZOO[model]
    source, destination = Path(source), Path(destination)
    _check_destination(source, destination, force)
    module = create_model(spec.name, num_classes=num_classes, image_size=image_size)
    check_owner(source, spec.name)
    checkpoint = read_checkpoint(source, entry)
    state = _load(spec, module, checkpoint.tensors, source)
    written = {k: v.contiguous().clone() for k, v in _weights(module).items()}
    content = save(written, {OWNER: spec.name})
    # Read as `--weights` will: what the converter made, it must leave as it is.
    _load(spec, module, load(content), destination)
    if not all(torch.equal(v, written[k]) for k, v in _weights(module).items()):
        raise RuntimeError(f"the converter of {spec.name} changes weights under its own names")
    write_file(destination, content)
    return ImportedWeights(
        model=spec.name,
        path=destination,
        tensors=len(written),
        parameters=sum(p.numel() for p in module.parameters()),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        notes=(*checkpoint.notes, *_rounding(state)),
    )


def _load(spec: ModelSpec, module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Load published or own tensors as `create_model` does; the state that was loaded."""
    state = spec.convert_state(tensors)
    if spec.fit_state:
        state = spec.fit_state(state, module)
    load_weights(module, spec.name, state, str(source))
    return state


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}


def _rounding(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    others = sorted(
        {str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point()} - {"float32"}
    )
    return (f"{' and '.join(others)} values were written as float32",) if others else ()


def _check_destination(source: Path, destination: Path, force: bool) -> None:
    if destination.suffix != ".safetensors":
        raise BadInput(
            f"-o {destination} is no name of a safetensors file",
            f"Type: -o {destination.stem or 'weights'}.safetensors",
        )
    if destination.is_dir():
        raise BadInput(f"-o {destination} is a folder", "Give the name of a file.")
    if destination.exists() and source.exists() and destination.samefile(source):
        raise BadInput(
            f"--from and -o are the same file, {source}", "Give another name with -o: what was read is kept."
        )
    if destination.exists() and not force:
        raise BadInput(f"{destination} is there already", "Give another name with -o, or --force to replace it.")
