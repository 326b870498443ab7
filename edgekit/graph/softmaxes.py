"""Softmax over the short rows a linear layer computes, along the dimension in which a runtime can vectorize.

For logits reshape(x W^T + b) in rows of J, with N the rows of x and W of K J rows::

    z = reshape(W x^T + b, (K, J, N)),   e = exp(z - max_j z),   softmax = transpose(e / sum_j e)

ONNX Runtime's Softmax takes one row at a time: rows of nine elements cost several times what five operations along N
and a transpose do. Turning the product around saves the other transpose.

For XNNPACK, whose softmax is over the last dimension::

    softmax(x, d) = reshape(permute(softmax(permute(reshape(x, (outer, n, inner)), 0 2 1), -1), 0 2 1))

Three dimensions also where d is the last of four: a map that lies in memory as convolutions leave it (NHWC) ExecuTorch
1.5 hands to that softmax as it lies, which then runs over the channels.
"""

import math

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape, value

_aten = torch.ops.aten
_SHORT, _LONG = 16, 256
_REORDERED = (_aten.reshape.default, _aten.bmm.default, _aten.matmul.default)
_MAPS = (_aten.conv2d.default, _aten.convolution.default)


def short_softmaxes(program: ExportedProgram) -> ExportedProgram:
    """Softmax over at most 16 of the numbers a linear layer gives for each of at least 256 rows; others stay."""
    editor = Editor(program)
    for node in editor.nodes(_aten.softmax.int):
        linear, result = _behind_reshapes(node.args[0]), shape(node)
        if result is None or linear is None or argument(node, 2, "dtype") is not None:
            continue
        size, weight, source = result[-1], shape(linear.args[1]), shape(linear.args[0])
        if argument(node, 1, "dim") % len(result) != len(result) - 1 or weight is None or source is None:
            continue
        count = math.prod(source[:-1])
        if size > _SHORT or weight[0] % size or count < _LONG:
            continue
        rows = editor.call(node, _aten.reshape.default, linear.args[0], [count, source[-1]])
        columns = editor.call(node, _aten.permute.default, rows, [1, 0])
        bias = argument(linear, 2, "bias")
        if bias is None:
            logits = editor.call(node, _aten.mm.default, linear.args[1], columns)
        else:
            bias = editor.call(node, _aten.reshape.default, bias, [weight[0], 1])
            logits = editor.call(node, _aten.addmm.default, bias, linear.args[1], columns)
        z = editor.call(node, _aten.reshape.default, logits, [weight[0] // size, size, count])
        highest = editor.call(node, _aten.amax.default, z, [1], True)
        powers = editor.call(node, _aten.exp.default, editor.call(node, _aten.sub.Tensor, z, highest))
        total = editor.call(node, _aten.sum.dim_IntList, powers, [1], True)
        shares = editor.call(node, _aten.div.Tensor, powers, total)
        flat = editor.call(node, _aten.reshape.default, shares, [weight[0], count])
        turned = editor.call(node, _aten.permute.default, flat, [1, 0])
        editor.replace(node, editor.call(node, _aten.reshape.default, turned, list(result)))
    return editor.finish()


def last_softmaxes(program: ExportedProgram) -> ExportedProgram:
    """Softmax over another dimension than the last, or of four that may lie as NHWC, in at most three dimensions."""
    editor = Editor(program)
    for node in editor.nodes(_aten.softmax.int):
        size, x = shape(node.args[0]), node.args[0]
        if size is None or not size or not isinstance(x, Node):
            continue
        dim = argument(node, 1, "dim") % len(size)
        last = dim == len(size) - 1
        if last and not (len(size) == 4 and _may_be_channels_last(editor, x)):
            continue
        outer, inner = math.prod(size[:dim]), math.prod(size[dim + 1 :])
        x = editor.call(node, _aten.reshape.default, x, [outer, size[dim]] if last else [outer, size[dim], inner])
        x = x if last else editor.call(node, _aten.permute.default, x, [0, 2, 1])
        x = editor.call(node, _aten.softmax.int, x, -1, *node.args[2:], **node.kwargs)
        x = x if last else editor.call(node, _aten.permute.default, x, [0, 2, 1])
        editor.replace(node, editor.call(node, _aten.reshape.default, x, list(size)))
    return editor.finish()


def _may_be_channels_last(editor: Editor, node: Node) -> bool:
    """Whether the order in memory that a convolution or an input has can reach a node: reshapes and products end it."""
    open_nodes, seen = [node], set()
    while open_nodes:
        node = open_nodes.pop()
        if node in seen or node.target in _REORDERED or len(shape(node) or ()) != 4:
            continue
        if node.target in _MAPS or (node.op == "placeholder" and editor.constant_value(node) is None):
            return True
        seen.add(node)
        open_nodes += node.all_input_nodes
    return False


def _behind_reshapes(node: object) -> Node | None:
    """The linear layer that reaches `node` through reshapes alone and nothing else."""
    while isinstance(node, Node) and node.target is _aten.reshape.default and len(node.users) == 1:
        node = node.args[0]
    if not isinstance(node, Node) or node.target is not _aten.linear.default or len(node.users) != 1:
        return None
    return None if value(node) is None else node
