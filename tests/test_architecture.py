"""The house rules, checked: who imports whom, what an import costs, how large a file may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgekit

PACKAGE = Path(edgekit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Each room may import from the rows above it, and from itself.
LAYERS = (
    {"errors"},
    {"types"},
    {"registry"},
    {"models", "data"},
    {"graph", "compression"},
    {"quantization"},
    {"low_bit"},
    {"programs", "user_code"},
    {"loading"},
    {"calibration"},
    {"data_free"},
    {"targets"},
    {"artifacts"},
    {"golden"},
    {"devices"},
    {"parity"},
    {"verification"},
    {"profiling"},
    {"prediction"},
    {"evaluation"},
    {"accuracy_control"},
    {"few_bits"},
    {"quantizing", "compressing", "weights"},
    {"pipeline"},
    {"inspection", "training", "recipes", "benchmarking", "reporting", "apps", "app_checks"},
    {"cli"},
    {"__main__"},
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}

# Rooms that may import torch when they are imported; `edgekit --help` reaches none of them.
LEAN = {"errors", "types", "registry", "cli"}


def room(path: Path) -> str:
    """The room of a file: the folder below edgekit/, or the file's own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The edgekit rooms that a file imports, and whether at module level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        modules: list[str] = []
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{path} imports relatively"
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [f"{node.module}.{a.name}" for a in node.names] if node.module == "edgekit" else [node.module]
        elif isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "edgekit" and len(parts) > 1:
                yield parts[1], id(node) in top


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_the_layers_only(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return  # the public names, each imported on first use
    for there, _ in imports(path):
        assert there == here or RANK[there] < RANK[here], f"{here} must not import {there}"


def test_every_room_has_a_layer() -> None:
    assert {room(p) for p in FILES} - {"__init__"} == set(RANK)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in LEAN], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_lean_rooms_import_only_lean_rooms_at_module_level(path: Path) -> None:
    assert {there for there, top in imports(path) if top} <= LEAN


@pytest.mark.parametrize(
    "statement", ["import edgekit", "import edgekit.cli", "import edgekit.types, edgekit.registry"]
)
def test_import_is_lean(statement: str) -> None:
    heavy = "{'torch', 'numpy', 'executorch', 'coremltools', 'litert_torch', 'onnx', 'onnxruntime', 'sklearn', 'PIL'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", edgekit.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(edgekit, name).__name__ == name


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = edgekit.nothing_of_the_kind  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "split it along a seam"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # Of the body: `export` has a parameter for each option of the contract.
            length = (node.end_lineno or 0) - node.body[0].lineno
            assert length <= 60, f"{node.name} has {length} lines"
            # Only a call in a graph has keywords that are not ours to list: they are the op's own.
            assert node.args.kwarg is None or path.name == "_edit.py", f"{node.name} passes keywords through"
