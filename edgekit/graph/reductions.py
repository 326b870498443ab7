"""Sums, means, maxima, norms and variances over any dimensions as products and pools.

    sum(x, (2, 3))      = H W mean(x, (-2, -1), keepdim)                     x of (B, C, H, W)
    sum(x, D)           = (x with D last, flattened) (1, ..., 1)^T            as a linear layer of one row
    mean(x, D)          = the same with 1/n
    sum(x, d)           = x_0 + x_1 + ...                                    of a few slices; max, min alike
    max(x, d)           = max_pool(x with d last, (1, n));  min(x, d) = -max(-x, d)
    |x|_2 over D        = sqrt(sum(x * x, D));  |x|_1 = sum(abs(x), D)
    var(x, D)           = sum((x - mean(x, D))^2, D) / (n - correction);  std = sqrt(var)

XNNPACK has a mean over the last two dimensions of four, and no sum, no norm and no variance.
"""

import math
import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, dims, shape, value

_aten = torch.ops.aten
_FEW = 4
_SUMS = (_aten.sum.dim_IntList, _aten.sum.default)
_MEANS = (_aten.mean.dim, _aten.mean.default)
_NORMS = (_aten.linalg_vector_norm.default, _aten.norm.ScalarOpt_dim)
_SPREADS = (_aten.var.correction, _aten.std.correction)
_OLD_SPREADS = (_aten.var.dim, _aten.std.dim)


def plain_norms(program: ExportedProgram) -> ExportedProgram:
    """Vector norms of order 1 and 2, variances and standard deviations written out."""
    editor = Editor(program)
    for node in editor.nodes(*_NORMS):
        x, val = node.args[0], value(node.args[0])
        order = argument(node, 1, "ord" if node.target is _NORMS[0] else "p", 2)
        if val is None or not val.dtype.is_floating_point or order not in (1, 2, None) or node.kwargs.get("dtype"):
            continue
        over, keep = dims(argument(node, 2, "dim"), val.dim()), bool(argument(node, 3, "keepdim", False))
        size = editor.call(node, _aten.abs.default, x) if order == 1 else editor.call(node, _aten.mul.Tensor, x, x)
        total = editor.call(node, _aten.sum.dim_IntList, size, list(over), keep)
        editor.replace(node, total if order == 1 else editor.call(node, _aten.sqrt.default, total))
    for node in editor.nodes(*_SPREADS, *_OLD_SPREADS):
        if (spread := _spread(editor, node)) is not None:
            editor.replace(node, spread)
    return editor.finish()


def _spread(editor: Editor, node: Node) -> Node | None:
    """A variance or standard deviation from the centred values."""
    x, val = node.args[0], value(node.args[0])
    if val is None or not val.dtype.is_floating_point:
        return None
    new = node.target in _SPREADS
    correction: Any = node.kwargs.get("correction", 1) if new else int(argument(node, 2, "unbiased", True))
    keep = bool(node.kwargs.get("keepdim", False) if new else argument(node, 3, "keepdim", False))
    over = dims(argument(node, 1, "dim"), val.dim())
    count = math.prod(val.shape[d] for d in over)
    rest = count - (1 if correction is None else correction)
    if rest <= 0:
        return None
    centred = editor.call(node, _aten.sub.Tensor, x, editor.call(node, _aten.mean.dim, x, list(over), True))
    square = editor.call(node, _aten.mul.Tensor, centred, centred)
    result = editor.call(node, _aten.mean.dim, square, list(over), keep)
    if rest != count:
        result = editor.call(node, _aten.mul.Tensor, result, count / rest)
    root = node.target in (_aten.std.correction, _aten.std.dim)
    return editor.call(node, _aten.sqrt.default, result) if root else result


def line_sums(program: ExportedProgram) -> ExportedProgram:
    """Sum and mean over any dimensions of floating-point tensors, but for means over a map."""
    editor = Editor(program)
    for node in editor.nodes(_aten.adaptive_avg_pool1d.default):
        if list(node.args[1]) == [1]:  # type: ignore[arg-type]
            editor.replace(node, editor.call(node, _aten.mean.dim, node.args[0], [-1], True))
    for node in editor.nodes(*_SUMS, *_MEANS):
        x, val, result = node.args[0], value(node.args[0]), shape(node)
        if val is None or result is None or not isinstance(x, Node) or not val.dtype.is_floating_point:
            continue
        whole = node.target in (_aten.sum.default, _aten.mean.default)
        over = dims(None if whole else argument(node, 1, "dim"), val.dim())
        typed = node.kwargs.get("dtype") or argument(node, 1 if whole else 3, "dtype")
        is_map = val.dim() == 4 and over == (2, 3)
        mean = node.target in _MEANS
        if val.dim() < 2 or typed not in (None, val.dtype) or 0 in val.shape or (mean and is_map):
            continue
        count = math.prod(val.shape[d] for d in over)
        if is_map:
            pooled = editor.call(node, _aten.mean.dim, x, [-1, -2], True)
            total = editor.call(node, _aten.mul.Tensor, pooled, float(count))
        elif len(over) == 1 and count <= _FEW and over[0] != val.dim() - 1:
            total = _pairwise(editor, node, _aten.add.Tensor, x, over[0])
            total = editor.call(node, _aten.mul.Tensor, total, 1 / count) if mean else total
        else:
            share = 1 / count if mean else 1.0
            row = editor.constant(torch.full((1, count), share, dtype=val.dtype), ("row", count, share, val.dtype))
            total = editor.call(node, _aten.linear.default, _last(editor, node, x, over), row)
        editor.replace(node, _shaped(editor, node, total, result))
    return editor.finish()


def line_maxima(program: ExportedProgram) -> ExportedProgram:
    """Maximum and minimum over one dimension, where only the values are read."""
    editor = Editor(program)
    for node in editor.nodes(_aten.amax.default, _aten.amin.default, _aten.max.dim, _aten.min.dim):
        x, val = node.args[0], value(node.args[0])
        pair = node.target in (_aten.max.dim, _aten.min.dim)
        users = [u for u in node.users if u.users] if pair else [node]
        if val is None or not isinstance(x, Node) or not val.dtype.is_floating_point or val.dim() < 2 or 0 in val.shape:
            continue
        if pair and any(u.target is not operator.getitem or u.args[1] != 0 for u in users):
            continue
        over = dims(argument(node, 1, "dim", ()), val.dim())
        if len(over) != 1 or not users:
            continue
        low = node.target in (_aten.amin.default, _aten.min.dim)
        count = val.shape[over[0]]
        if count <= _FEW:
            best = _pairwise(editor, node, _aten.minimum.default if low else _aten.maximum.default, x, over[0])
        else:
            rows = _last(editor, node, editor.call(node, _aten.neg.default, x) if low else x, over)
            flat = editor.call(node, _aten.reshape.default, rows, [1, 1, val.numel() // count, count])
            best = editor.call(node, _aten.max_pool2d.default, flat, [1, count])
            best = editor.call(node, _aten.neg.default, best) if low else best
        for user in users:
            editor.replace(user, _shaped(editor, node, best, shape(user) or ()))
    return editor.finish()


def _pairwise(editor: Editor, node: Node, operation: Any, x: Node, dim: int) -> Node:
    """x_0 o x_1 o ... of the slices along `dim`, which stays with one element."""
    size = shape(x)
    assert size is not None
    parts = [editor.call(node, _aten.slice.Tensor, x, dim, i, i + 1) for i in range(size[dim])]
    result = parts[0]
    for part in parts[1:]:
        result = editor.call(node, operation, result, part)
    return result


def _last(editor: Editor, node: Node, x: Node, over: tuple[int, ...]) -> Node:
    """x with the dimensions `over` as one, the last."""
    size = shape(x)
    assert size is not None
    rest = [d for d in range(len(size)) if d not in over]
    order = [*rest, *over]
    if order != list(range(len(size))):
        x = editor.call(node, _aten.permute.default, x, order)
    if len(over) == 1 and rest:
        return x
    flat = [*(size[d] for d in rest), math.prod(size[d] for d in over)]
    return editor.call(node, _aten.reshape.default, x, flat)


def _shaped(editor: Editor, node: Node, x: Node, result: tuple[int, ...]) -> Node:
    return x if shape(x) == result else editor.call(node, _aten.reshape.default, x, list(result))
