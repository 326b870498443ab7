"""Piecewise linear gates as sums, products and clamps that have int8 kernels, with no factor of their own.

    hardswish(W x + b)   = z min(max(z + 3 / √6, 0), √6)         with z = (W x + b) / √6
    hardsigmoid(W x + b) = min(max(z + 1/2, 0), 1)               with z = (W x + b) / 6

The factor goes into the weights, where a scale a channel takes it up; the clamp is what a quantized result does anyway.
"""

import math

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape

_aten = torch.ops.aten
_LINEAR = (_aten.conv2d.default, _aten.linear.default)
_ROOT = math.sqrt(6)


def hard_activations(program: ExportedProgram) -> ExportedProgram:
    """hardswish of a convolution, hardsigmoid of a convolution or linear, of constants, that nothing else reads.

    Others stay: behind a linear, on one token, nothing is gained.
    """
    editor = Editor(program)
    for node in editor.nodes(_aten.hardswish.default):
        z = _scaled(editor, node.args[0], 1 / _ROOT) if len(shape(node) or ()) == 4 else None
        if z is not None:
            ones = (1,) * len(shape(z) or ())
            offset = editor.constant(torch.full(ones, 3 / _ROOT), ("hardswish offset", ones))
            moved = editor.call(node, _aten.add.Tensor, z, offset)
            clamped = editor.call(node, _aten.clamp.default, moved, 0.0, _ROOT)
            editor.replace(node, editor.call(node, _aten.mul.Tensor, z, clamped))
    for node in editor.nodes(_aten.hardsigmoid.default):
        z = _scaled(editor, node.args[0], 1 / 6, 0.5)
        if z is not None:
            editor.replace(node, editor.call(node, _aten.clamp.default, z, 0.0, 1.0))
    return editor.finish()


def _scaled(editor: Editor, node: object, factor: float, offset: float = 0.0) -> Node | None:
    """`node` * factor + offset, as a convolution or linear with other constants; None where there is none to change."""
    if not isinstance(node, Node) or node.target not in _LINEAR or len(node.users) != 1 or node.kwargs:
        return None
    given = argument(node, 2, "bias")
    weight, bias = editor.constant_value(node.args[1]), editor.constant_value(given)
    if weight is None or weight.dtype is not torch.float32 or (given is not None and bias is None):
        return None
    moved = (torch.zeros(weight.shape[0]) if bias is None else bias.detach()) * factor + offset
    return editor.call(
        node, node.target, node.args[0], editor.constant(weight.detach() * factor), editor.constant(moved),
        *node.args[3:],
    )  # fmt: skip
