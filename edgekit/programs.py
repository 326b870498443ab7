"""`.pt2` files: ExportedPrograms, read without running anything that is inside them."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgekit.errors import BadInput


def read_program(path: Path) -> ExportedProgram:
    """The ExportedProgram of a `.pt2` file, read without unpickling code. Raises `BadInput`."""
    if not path.is_file():
        raise BadInput(f"there is no program {path}", "Check the path after -m.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            graphs = [archive.read(n) for n in names if "/models/" in n and n.endswith(".json")]
    except (zipfile.BadZipFile, OSError) as error:
        raise BadInput(
            f"{path} is not a .pt2 file ({error})", "Make one with torch.export.save(program, 'model.pt2')."
        ) from error
    # Pickled objects run code when loaded, and symbolic shapes are evaluated as Python: neither is needed here.
    if not graphs or any(Path(n).name.startswith(("custom_obj", "opaque_obj")) for n in names):
        raise BadInput(
            f"{path} is of an old format or holds pickled Python objects, which edgekit does not load",
            "Save plain tensors with this torch: torch.export.save(torch.export.export(...), 'model.pt2').",
        )
    if any(b'"as_expr"' in g or b"expr_str" in g for g in graphs):
        raise BadInput(f"{path} has dynamic shapes; edgekit exports static ones", "Export it without dynamic_shapes.")
    try:
        with _no_unpickling():
            return torch.export.load(path)
    except Exception as error:  # a damaged archive fails in many ways, all of them the file's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{path} cannot be loaded: {reason}", "Save it again with torch.export.save and this version of torch."
        ) from error


@contextmanager
def _no_unpickling() -> Iterator[None]:
    """torch.export.load asks torch.load for weights_only=False; this variable is torch's own way to refuse that."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def example_inputs(program: ExportedProgram, seed: int) -> tuple[Tensor, ...]:
    """The inputs that a program was captured with, or seeded normal numbers of their shapes."""
    if program.example_inputs:
        return tuple(program.example_inputs[0])
    generator = torch.Generator().manual_seed(seed)
    names = set(program.graph_signature.user_inputs)
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    return tuple(torch.randn(v.shape, generator=generator).to(v.dtype) for v in values)
