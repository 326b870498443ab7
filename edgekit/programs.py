"""`.pt2` files: ExportedPrograms, read without running anything that is inside them."""

import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers the operations of Q/DQ programs
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_structure

from edgekit.errors import BadInput
from edgekit.types import Quantized


def read_program(path: Path) -> ExportedProgram:
    """The ExportedProgram of a `.pt2` file, read without unpickling code. Raises `BadInput`."""
    if not path.is_file():
        raise BadInput(f"there is no program {path}", "Check the path after -m.")
    checked = _archive({name: content for name, content in _checked(path).items() if not name.startswith("extra/")})
    try:
        with _no_unpickling():
            program = torch.export.load(checked)
    except Exception as error:  # a damaged archive fails in many ways, all of them the file's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{path} cannot be loaded: {reason}", "Save it again with torch.export.save and this version of torch."
        ) from error
    program._guards_code = []  # Python source, which `program.module()` would run; shapes are static here
    return program


QUANTIZED, FLOAT = "extra/edgekit.json", "extra/float.safetensors"
Outputs = tuple[tuple[NDArray[Any], ...], ...]


def quantized_bytes(program: ExportedProgram, quantized: Quantized, float_outputs: Outputs) -> bytes:
    """A `.pt2` file: an int8 program, how it was made, and the float model's answers to its golden inputs."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        entries = {i.filename.partition("/")[2]: archive.read(i) for i in archive.infolist()}
    entries[QUANTIZED] = json.dumps(cattrs.unstructure(quantized)).encode()
    arrays = {f"{n}.{m}": np.ascontiguousarray(y) for n, ys in enumerate(float_outputs) for m, y in enumerate(ys)}
    entries[FLOAT] = save(arrays)
    return _archive(entries).getvalue()


def read_quantized(path: Path) -> tuple[Quantized, Outputs] | None:
    """How the int8 program at `path` was made, and its float model's answers; None for a float program.

    Raises `BadInput` for what is damaged.
    """
    entries = _checked(path)
    if QUANTIZED not in entries:
        return None
    try:
        values = json.loads(entries[QUANTIZED])
        quantized = cattrs.Converter().structure(values, Quantized)
        if quantized.schema != 1:
            raise ValueError(f"schema {quantized.schema}")
        arrays = load(entries[FLOAT])
        places = sorted(tuple(map(int, name.split("."))) for name in arrays)
        samples = [[arrays[f"{n}.{m}"] for n, m in places if n == sample] for sample in sorted({n for n, _ in places})]
    except (ValueError, KeyError, TypeError, AttributeError, cattrs.BaseValidationError, SafetensorError) as error:
        raise BadInput(
            f"{path} says nothing readable about how it was quantized", "Make it again with `edgekit quantize`."
        ) from error
    return quantized, tuple(map(tuple, samples))


def _archive(entries: Mapping[str, bytes]) -> io.BytesIO:
    """A `.pt2` file of these entries. torch gets this and never the user's file, whose bytes it may read otherwise
    than Python does: where two archives lie in one file, each finds another one.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(f"program/{name}"), content)
    buffer.seek(0)
    return buffer


def _checked(path: Path) -> dict[str, bytes]:
    """The entries of a `.pt2` file, below its one folder, after refusing what would run code.

    Beside tensors and a graph, such a file may hold pickles and native libraries; torch evaluates symbolic shapes as
    Python, writes the graph's names into Python source that it runs, and imports the modules that a pytree names.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if sum(i.file_size for i in infos) > path.stat().st_size:
                raise ValueError("it is compressed, which torch.export.save never does")
            names = [i.filename for i in infos]
            contents = {i.filename.partition("/")[2]: archive.read(i) for i in infos}
        # What lies in extra/ is never given to torch.
        graph = {n: text for n, text in contents.items() if n.endswith(".json") and not n.startswith("extra/")}
        documents = {n: json.loads(text.decode("utf-8")) for n, text in graph.items()}
        strings = list(_strings(list(documents.values())))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
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
    if any(key in ("as_expr", "expr_str") for key, _ in strings):
        raise BadInput(f"{path} has dynamic shapes; edgekit exports static ones", "Export it without dynamic_shapes.")
    if code := next((text for key, text in strings if key not in _FREE_TEXT and _CODE.search(text)), None):
        raise BadInput(f"{path} has a name that is Python code: {code[:80]!r}", "Do not use this file.")
    if spec := next((text for key, text in strings if key in _SPECS and key != text and not _is_plain(text)), None):
        raise BadInput(
            f"{path} has inputs or outputs that are no tuples, lists or dicts: {spec[:200]}",
            "Export a module that takes and returns tensors, or tuples, lists and dicts of them.",
        )
    return {**contents, **{n: json.dumps(document).encode() for n, document in documents.items()}}


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
# JSON in a string: how inputs and outputs nest. Keys of dicts become source, which is why they are plain words.
_SPECS = ("in_spec", "out_spec")
_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_WORD = re.compile(r"[\w.-]*")


def _is_plain(text: str) -> bool:
    """Whether a pytree in JSON is made of Python's own containers alone."""
    try:
        protocol, spec = json.loads(text)
        return bool(protocol == 1) and _is_plain_node(spec)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_plain_node(spec: Any) -> bool:
    if spec["type"] is None:
        return spec["context"] is None and not spec["children_spec"]
    context = json.loads(spec["context"])
    words = [] if context is None else context
    return (
        spec["type"] in _CONTAINERS
        and isinstance(words, list)
        and all(_WORD.fullmatch(w) if isinstance(w, str) else w is None or isinstance(w, int | float) for w in words)
        and all(_is_plain_node(child) for child in spec["children_spec"])
    )


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a JSON value with the key that it is under, and every key with itself."""
    if isinstance(value, dict):
        for k, v in value.items():
            yield k, k
            yield from _strings(v, key if key in _FREE_TEXT and k not in _SPECS else k)
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


def user_inputs(program: ExportedProgram) -> tuple[Any, ...]:
    """What stands for each input of the user in the graph: a fake tensor, or a constant of Python."""
    names = set(program.graph_signature.user_inputs)
    return tuple(n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in names)


def example_inputs(program: ExportedProgram, seed: int) -> tuple[Tensor, ...]:
    """The inputs that a program was captured with, or seeded normal numbers of their shapes.

    Raises `BadInput` for a program that takes anything but tensors, one after the other.
    """
    values = user_inputs(program)
    flat = tree_structure(((0,) * len(values), {}))
    if not values or program.call_spec.in_spec != flat or not all(isinstance(v, Tensor) for v in values):
        raise BadInput(
            "the program takes no tensors, or takes them by keyword or in a structure; edgekit exports what takes "
            "a flat tuple of tensors",
            "Wrap it in a module with forward(self, x, y, …) and export that: torch.export.export(module, (x, y)).",
        )
    given = tuple(program.example_inputs[0]) if program.example_inputs else ()
    if [_kind(v) for v in given] == [_kind(v) for v in values]:
        return given
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(v.shape, generator=generator).to(v.dtype) for v in values)


def _kind(value: Any) -> object:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None
