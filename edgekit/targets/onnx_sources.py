"""ONNX: what the exporter notes at each node, kept as source lines where the notes themselves are removed."""

import ast
from collections.abc import Mapping
from typing import Any

from edgekit.targets._sources import describe, of_the_next
from edgekit.types import FileOp

_TRACE, _SCOPES = "pkg.torch.onnx.stack_trace", "pkg.torch.onnx.name_scopes"


def noted(model: Any) -> dict[str, str]:
    """The source of each value that a node of `model` makes, by its name."""
    return {name: _source(node) for node in model.graph.node for name in node.output}


def file_ops(model: Any, sources: Mapping[str, str]) -> tuple[FileOp, ...]:
    """Each node of `model`, which gets the name of its first output: the runtime names what it fuses by either."""
    ops = []
    for node in model.graph.node:
        node.name = node.output[0]
        source = next((sources[name] for name in node.output if sources.get(name)), "")
        ops.append(FileOp(name=node.name, op=node.op_type, source=source))
    return of_the_next(ops)


def _source(node: Any) -> str:
    notes = {note.key: note.value for note in node.metadata_props}
    try:
        # The modules from the outermost to the innermost, and last the call.
        scopes = ast.literal_eval(notes.get(_SCOPES, "[]"))[:-1]
    except (ValueError, SyntaxError):
        scopes = []
    return describe(notes.get(_TRACE, ""), str(scopes[-1]) if scopes else "")
