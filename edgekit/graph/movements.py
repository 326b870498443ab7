"""Movements of values along axes, by whatever op, as slices, reshapes, permutes and products with 1.

roll, flip, gathers with constant indices, every second element, reflecting pads, repeats and nearest upsampling all
give y[i, j, ...] = x[p(i), q(j), ...] with constant p, q, .... What p and q are is found by moving positions in place
of values. Then, for one axis of n of a tensor reshaped to (outer, n, inner)::

    p = (0 ... n-1)                         x
    p = runs of consecutive numbers         cat(slice, slice, ...)           roll, reflecting pads, orders of groups
    p = (q0, q0, q1, q1, ...)               reshape(reshape(q) * (1, 1))     expand, nearest upsampling
    p = (q0, q1, ..., q0, q1, ...)          reshape(reshape(q) * (1, 1))     repeat
    p = (s, s + k, s + 2k, ...)             slice of reshape(x, (n/k, k))    space to depth, focus
    p = transposed (a, b) table             reshape(permute(reshape))        channel shuffle
    p = b q(i) + r(j)                       q, then r, of reshape(x, (a, b)) shifts of and within groups

x * 1 is exact, infinities included. XNNPACK has none of the left-hand ops except slices of stride 1.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from edgekit.graph._edit import Editor, argument, shape, value

_aten = torch.ops.aten
_GATHERS = (
    _aten.roll.default, _aten.flip.default, _aten.index.Tensor, _aten.index_select.default, _aten.slice.Tensor,
)  # fmt: skip
_REPEATS = (
    _aten.pad.default, _aten.reflection_pad1d.default, _aten.reflection_pad2d.default, _aten.replication_pad1d.default,
    _aten.replication_pad2d.default, _aten.upsample_nearest2d.vec, _aten.upsample_nearest2d.default,
    _aten.upsample_nearest1d.vec, _aten.repeat.default, _aten.tile.default, _aten.repeat_interleave.self_int,
    _aten.expand.default, _aten.expand_as.default, _aten.channel_shuffle.default,
)  # fmt: skip
_BROADCASTS = (
    _aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.maximum.default,
    _aten.minimum.default, _aten.max.other, _aten.min.other,
)  # fmt: skip
# What a delegate takes in one `cat`; elements whose positions are followed.
_PARTS, _MOST = 4, 1 << 22


def drop_expands(program: ExportedProgram) -> ExportedProgram:
    """f(expand(x), y) = f(x, y) where f broadcasts to the same shape."""
    editor = Editor(program)
    if editor.reads_strides:
        return program
    for node in editor.nodes(_aten.expand.default, _aten.expand_as.default):
        source, small = node.args[0], shape(node.args[0])
        for user in list(node.users):
            given = [small if operand is node else shape(operand) for operand in user.args]
            sizes = [size for size in given if size is not None]
            if user.target not in _BROADCASTS or len(sizes) != 2 or small is None or not isinstance(source, Node):
                continue
            if torch.broadcast_shapes(*sizes) == shape(user):
                user.replace_input_with(node, source)
                editor.fired += 1
    return editor.finish()


def explicit_gathers(program: ExportedProgram) -> ExportedProgram:
    """roll, flip, strided slices and gathers with constant indices that have one of the forms above; others stay."""
    return _explicit(program, _GATHERS)


def explicit_movements(program: ExportedProgram) -> ExportedProgram:
    """Gathers, repeats, expands and nearest upsampling that have one of the forms above; others stay."""
    return _explicit(program, (*_GATHERS, *_REPEATS))


def _explicit(program: ExportedProgram, movements: tuple[object, ...]) -> ExportedProgram:
    editor = Editor(program)
    for node in editor.nodes(*movements):
        source, result = value(node.args[0]), value(node)
        if source is None or result is None or not source.dtype.is_floating_point or _is_plain(node):
            continue
        if 0 in (source.numel(), result.numel()):
            continue
        sizes = _sizes(editor, node, tuple(source.shape), tuple(result.shape))
        orders = None if sizes is None else _orders(editor, node, *sizes)
        if sizes is None or orders is None:
            editor.refuse(node, "it does not move single axes by constants")
            continue
        plans = [form(order, n) for order, n in zip(orders, sizes[0], strict=True)]
        if any(steps is None for steps in plans):
            editor.refuse(node, "its order is not a few slices and reshapes")
            continue
        x: Any = _reshape(editor, node, node.args[0], sizes[0])
        # What makes the tensor smaller first.
        for dim in sorted(range(len(plans)), key=lambda d: len(orders[d]) / sizes[0][d]):
            x = _moved(editor, node, x, dim, plans[dim] or [])
        editor.replace(node, _reshape(editor, node, x, tuple(result.shape)))
    return editor.finish()


def _is_plain(node: Node) -> bool:
    """Whether a node is one of the ops that others are written in: a slice of stride 1, a pad with a number."""
    if node.target is _aten.slice.Tensor:
        return bool(argument(node, 4, "step", 1) == 1)
    return node.target is _aten.pad.default and argument(node, 2, "mode", "constant") == "constant"


def _sizes(
    editor: Editor, node: Node, source: tuple[int, ...], result: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Source and result in shapes of equal rank: axes indexed together as one, new ones of repeats as 1s in front."""
    if node.target is not _aten.index.Tensor:
        return ((1,) * (len(result) - len(source)) + source, result) if len(result) >= len(source) else None
    indices = [None if i is None else editor.constant_value(i) for i in argument(node, 1, "indices")]
    given = [i for i, index in enumerate(argument(node, 1, "indices")) if index is not None]
    first, last = given[0], given[-1] + 1
    found = [index for index in indices[first:last] if index is not None and index.dtype is torch.int64]
    if len(found) != last - first:
        return None
    count = math.prod(torch.broadcast_shapes(*(tuple(index.shape) for index in found)))
    head, tail = source[:first], source[last:]
    return (*head, math.prod(source[first:last]), *tail), (*head, count, *tail)


def _orders(editor: Editor, node: Node, size: tuple[int, ...], moved: tuple[int, ...]) -> list[list[int]] | None:
    """p for each axis, found by moving positions; None where the axes do not move independently."""
    val, operands = node.args[0].meta["val"], node.all_input_nodes  # type: ignore[union-attr]
    if max(math.prod(size), math.prod(moved)) > _MOST:
        return None
    known: dict[Node, Tensor] = {}
    for operand in operands:
        constant = editor.constant_value(operand)
        if operand is node.args[0]:
            known[operand] = torch.arange(val.numel(), dtype=torch.float64).reshape(val.shape)
        elif node.target is _aten.expand_as.default and (other := value(operand)) is not None:
            known[operand] = torch.zeros(()).expand(other.shape)
        elif constant is not None:
            known[operand] = constant
        else:
            return None
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: known[n])
    positions = node.target(*args, **kwargs).long().reshape(moved)  # type: ignore[operator]
    orders, rebuilt, stride = [], torch.zeros_like(positions), math.prod(size)
    for dim, n in enumerate(size):
        stride //= n
        line = positions[tuple(slice(None) if d == dim else 0 for d in range(len(size)))] // stride % n
        orders.append(line.tolist())
        rebuilt += (line * stride).reshape([-1 if d == dim else 1 for d in range(len(size))])
    return orders if torch.equal(rebuilt, positions) else None


Step = tuple[str, Any]


def form(order: list[int], n: int) -> list[Step] | None:
    """The steps that take x[order] along an axis of `n`, cheapest first; None where it has none of the forms."""
    count = len(order)
    if order == list(range(n)):
        return []
    starts = [i for i in range(count) if i == 0 or order[i] != order[i - 1] + 1]
    runs = [(order[a], order[b - 1] + 1) for a, b in zip(starts, [*starts[1:], count], strict=True)]
    if len(runs) == 1:
        return [("runs", runs)]
    stride = order[1] - order[0]
    if stride > 1 and order == list(range(order[0], order[-1] + 1, stride)):
        return [("every", (order[0], stride, count))]
    for r in (d for d in range(count, 1, -1) if count % d == 0):
        if all(order[i] == order[i - i % r] for i in range(count)):
            inner = form(order[::r], n)
            return None if inner is None else [*inner, ("each", r)]
    for r in (d for d in range(count, 1, -1) if count % d == 0):
        if order == order[: count // r] * r:
            inner = form(order[: count // r], n)
            return None if inner is None else [*inner, ("tile", r)]
    if len(runs) <= _PARTS or (len(runs) <= _PARTS**2 and _table(order, n) is None):
        return [("runs", runs)]
    return _table(order, n)


def _table(order: list[int], n: int) -> list[Step] | None:
    """The forms of an axis seen as an (a, b) table."""
    for b in (d for d in range(2, n) if n % d == 0):
        a = n // b
        if order == [i * b + j for j in range(b) for i in range(a)]:
            return [("transpose", (a, b))]
        if len(order) % b:
            continue
        outer, inner = [i // b for i in order[::b]], [i % b for i in order[:b]]
        if order == [i * b + j for i in outer for j in inner]:
            forms = form(outer, a), form(inner, b)
            if forms[0] is not None and forms[1] is not None:
                return [("table", (a, b, len(outer), *forms))]
    return None


def _moved(editor: Editor, node: Node, x: Node, dim: int, steps: list[Step]) -> Node:
    """x[..., order, ...] along `dim` by the steps of `form`."""
    for kind, given in steps:
        size = shape(x)
        assert size is not None
        head, n, tail = size[:dim], size[dim], size[dim + 1 :]
        outer, inner = math.prod(head), math.prod(tail)
        if kind == "runs":
            parts = [editor.call(node, _aten.slice.Tensor, x, dim, *run) for run in given]
            while len(parts) > 1:
                groups = [parts[i : i + _PARTS] for i in range(0, len(parts), _PARTS)]
                parts = [g[0] if len(g) == 1 else editor.call(node, _aten.cat.default, g, dim) for g in groups]
            x = parts[0]
            continue
        if kind in ("each", "tile"):
            ones = (1, 1, given, 1) if kind == "each" else (1, given, 1, 1)
            flat = (outer, n, 1, inner) if kind == "each" else (outer, 1, n, inner)
            dtype = x.meta["val"].dtype
            factor = editor.constant(torch.ones(ones, dtype=dtype), ("ones", ones, dtype))
            x = editor.call(node, _aten.mul.Tensor, _reshape(editor, node, x, flat), factor)
            x = _reshape(editor, node, x, (*head, n * given, *tail))
        elif kind == "every":
            x = _every(editor, node, x, dim, *given)
        elif kind == "transpose":
            table = _reshape(editor, node, x, (outer, *given, inner))
            x = _reshape(editor, node, editor.call(node, _aten.permute.default, table, [0, 2, 1, 3]), size)
        else:
            a, b, rows, outers, inners = given
            x = _moved(editor, node, _reshape(editor, node, x, (outer, a, b, inner)), 1, outers)
            x = _reshape(editor, node, _moved(editor, node, x, 2, inners), (*head, rows * b, *tail))
    return x


def _every(editor: Editor, node: Node, x: Node, dim: int, start: int, step: int, count: int) -> Node:
    """x[start::step], `count` elements: a window of count * step as a table with `step` columns, of which one."""
    size = shape(x)
    assert size is not None
    first = max(0, min(start, size[dim] - count * step))
    if (missing := first + count * step - size[dim]) > 0:
        x = editor.call(node, _aten.constant_pad_nd.default, x, [0, 0] * (len(size) - 1 - dim) + [0, missing])
    window = editor.call(node, _aten.slice.Tensor, x, dim, first, first + count * step)
    head, tail = size[:dim], size[dim + 1 :]
    table = _reshape(editor, node, window, (math.prod(head), count, step, math.prod(tail)))
    column = editor.call(node, _aten.slice.Tensor, table, 2, start - first, start - first + 1)
    return _reshape(editor, node, column, (*head, count, *tail))


def _reshape(editor: Editor, node: Node, x: Any, size: Sequence[int]) -> Node:
    return x if shape(x) == tuple(size) else editor.call(node, _aten.reshape.default, x, list(size))
