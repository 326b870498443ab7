"""Fewer permutes: permute(permute(x, a), b) = permute(x, a[b]), and nothing where that is the identity.

Blocks that hand over (B, H, W, C) and work in (B, C, H, W) leave such pairs at every border.
"""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import PERMUTES, Editor, permutation
from edgekit.graph.views import merge_reshapes

_aten = torch.ops.aten


def merge_permutes(program: ExportedProgram) -> ExportedProgram:
    """Compose each permute or transpose of a permute; drop identities."""
    editor = Editor(program)
    for node in editor.nodes(*PERMUTES):
        order = permutation(node)
        if order is None:
            continue
        source = node.args[0]
        inner = permutation(source)
        if inner is not None:
            order = tuple(inner[d] for d in order)
        identity = order == tuple(range(len(order)))
        if inner is None and not identity:
            continue
        assert isinstance(source, Node)
        root = source if inner is None else source.args[0]
        assert isinstance(root, Node)
        editor.replace(node, root if identity else editor.call(node, _aten.permute.default, root, list(order)))
    return editor.finish()


def merge_layouts(program: ExportedProgram) -> ExportedProgram:
    """`merge_permutes` and `merge_reshapes` by turns until neither fires: chains of both unwind from inside."""
    while True:
        merged = merge_reshapes(merge_permutes(program))
        if merged is program:
            return program
        program = merged
