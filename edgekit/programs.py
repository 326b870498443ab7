"""`.pt2` files: ExportedPrograms, read without running anything that is inside them."""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgekit.errors import BadInput


def read_program(path: Path) -> ExportedProgram:
    """The ExportedProgram of a `.pt2` file, read without unpickling code. Raises `BadInput`."""
    if not path.is_file():
        raise BadInput(f"there is no program {path}", "Check the path after -m.")
    _check(path)
    try:
        with _no_unpickling():
            program = torch.export.load(path)
    except Exception as error:  # a damaged archive fails in many ways, all of them the file's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{path} cannot be loaded: {reason}", "Save it again with torch.export.save and this version of torch."
        ) from error
    program._guards_code = []  # Python source, which `program.module()` would run; shapes are static here
    return program


def _check(path: Path) -> None:
    """Refuse what would run code. Beside tensors and a graph, a `.pt2` file may hold pickles and native libraries;
    torch evaluates symbolic shapes as Python, and writes the graph's names into Python source that it runs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            texts = {n: archive.read(n) for n in names if n.endswith(".json")}
        documents = [json.loads(text) for text in texts.values()]
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BadInput(
            f"{path} is not a .pt2 file ({error})", "Make one with torch.export.save(program, 'model.pt2')."
        ) from error
    foreign = [n for n in names if not _ENTRY.fullmatch(n)]
    if foreign or len(set(names)) != len(names) or len({n.split("/")[0] for n in names}) != 1:
        raise BadInput(
            f"{path} holds more than tensors and a graph ({', '.join(foreign[:3]) or 'a file twice'}), "
            "which edgekit does not load",
            "Save plain tensors with this torch: torch.export.save(torch.export.export(...), 'model.pt2').",
        )
    strings = list(_strings(documents))
    if any(key in ("as_expr", "expr_str") for key, _ in strings):
        raise BadInput(f"{path} has dynamic shapes; edgekit exports static ones", "Export it without dynamic_shapes.")
    if code := next((text for key, text in strings if key not in _FREE_TEXT and _CODE.search(text)), None):
        raise BadInput(f"{path} has a name that is Python code: {code[:80]!r}", "Do not use this file.")


# What torch.export.save writes; weights and constants by number, so that no name leads elsewhere.
_ENTRY = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|\.\w+|\.data/\w+|extra/.+|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json))"
)
# No call without a parenthesis, no statement without a new line.
_CODE = re.compile(r"[(\n\r;]")
# Never becomes source, or only as a quoted literal.
_FREE_TEXT = ("metadata", "as_string", "as_strings", "guards_code")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a JSON value with the key that it is under, and every key with itself."""
    if isinstance(value, dict):
        for k, v in value.items():
            yield k, k
            yield from _strings(v, key if key in _FREE_TEXT else k)
    elif isinstance(value, list):
        for v in value:
            yield from _strings(v, key)
    elif isinstance(value, str):
        yield key, value


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
