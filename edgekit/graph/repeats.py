"""A layer that is applied twice to the same input is applied once.

    f(x, w) and f(x, w) again = one node          for linear layers and convolutions of the same tensors

Queries, keys and values of low rank have one first factor in common, which each of them calls. No runtime but ONNX
Runtime finds that by itself.
"""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor

_aten = torch.ops.aten
_LAYERS = (_aten.linear.default, _aten.conv2d.default)


def drop_repeats(program: ExportedProgram) -> ExportedProgram:
    """Let users of a repeated layer read the first one's result."""
    editor = Editor(program)
    first: dict[str, Node] = {}
    for node in editor.nodes(*_LAYERS):
        # Arguments are nodes, whose names are unique, numbers and lists of numbers.
        earlier = first.setdefault(f"{node.target} {node.args} {sorted(node.kwargs.items())}", node)
        if earlier is not node:
            editor.replace(node, earlier)
    return editor.finish()
