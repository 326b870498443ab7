"""Concatenations as XNNPACK takes them: not one tensor with itself."""

import torch
from torch.export import ExportedProgram

from edgekit.graph._edit import Editor, argument, shape

_aten = torch.ops.aten


def distinct_cats(program: ExportedProgram) -> ExportedProgram:
    """cat(x, x) = cat(x, x[:h], x[h:]): XNNPACK's partitioner counts different tensors and wants two."""
    editor = Editor(program)
    for node in editor.nodes(_aten.cat.default):
        parts = list(argument(node, 0, "tensors"))
        whole = shape(node)
        if len(parts) < 2 or len(set(parts)) > 1 or whole is None:
            continue
        dim = argument(node, 1, "dim", 0) % len(whole)
        size = whole[dim] // len(parts)
        if size < 2:
            continue
        halves = [
            editor.call(node, _aten.slice.Tensor, parts[0], dim, *ends) for ends in ((0, size // 2), (size // 2, size))
        ]
        editor.replace(node, editor.call(node, _aten.cat.default, [*parts[1:], *halves], dim))
    return editor.finish()
