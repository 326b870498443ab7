"""Constant folding: what depends on no input is computed once, here.

    f(c1, c2, ...) = c          for parameters, buffers and ranges that the program does not change

Relative position biases (a table indexed by a table), attention masks, standardized weights and repeated class tokens
are of this kind. Each costs a runtime several ops a call and breaks a delegate's partition in two.
"""

import hashlib
import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from edgekit.graph._edit import STRIDES, Editor, shape

_aten = torch.ops.aten
# Bytes: what one result may store, what is too little to count, how often an operand may be repeated beyond that, what
# all of a program's results may store where its own weights are not more; and what may be held on the way to a result.
_MOST, _LITTLE, _GROWTH, _ALL = 1 << 22, 1 << 16, 4, 1 << 24
_HELD = 1 << 26
# Read nothing of their operand but its shape and dtype.
_OF_SHAPE = (
    _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default, _aten.new_zeros.default,
    _aten.new_ones.default, _aten.new_full.default,
)  # fmt: skip
_REPEATS = (_aten.expand.default, _aten.repeat.default, _aten.tile.default, _aten.repeat_interleave.self_int)


def fold_constants(program: ExportedProgram) -> ExportedProgram:
    """Store the results that only constants lead to: up to 4 MiB each, or what their operands take."""
    editor = Editor(program)
    values = {} if editor.writes else _values(editor)
    budget = max(_ALL, editor.stored)
    for node in reversed([n for n in values if n.op == "call_function"]):
        tensor = values[node]
        if not isinstance(tensor, Tensor) or all(user in values for user in node.users):
            continue
        new = max(0, _bytes(tensor) - sum(_bytes(values[n]) for n in node.all_input_nodes if n in values))
        if new > min(_MOST, budget) or _repeats(node, tensor) or any(user.target in STRIDES for user in node.users):
            # It stays an op: its operands have a user in the graph now.
            del values[node]
            continue
        budget -= new
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        editor.replace(node, editor.constant(tensor, _content(tensor)))
    return editor.finish()


def drop_unused(program: ExportedProgram) -> ExportedProgram:
    """Parameters and buffers that nothing reads, as a head's whose features alone are returned, are left out."""
    editor = Editor(program)
    editor.drop_unused()
    return editor.finish()


def _values(editor: Editor) -> dict[Node, Any]:
    """What each node computes that depends on no input, in graph order; constants themselves included."""
    known: dict[Node, Any] = {}
    for node in editor.graph.nodes:
        if node.op == "placeholder" and (constant := editor.constant_value(node)) is not None:
            known[node] = constant
        elif node.op == "call_function" and _is_pure(node):
            of_shape = node.target in _OF_SHAPE and shape(node.args[0]) is not None
            if of_shape or all(n in known for n in node.all_input_nodes):
                result = _computed(node, known, of_shape)
                if result is not None:
                    known[node] = result
    return known


def _is_pure(node: Node) -> bool:
    """Whether a call gives the same at every run, and nothing but a result."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    if node.target.namespace == "quantized_decomposed":
        return False  # an int8 constant is stored as it is, with the operation that widens it
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return not random and "empty" not in node.target._schema.name


def _computed(node: Node, known: dict[Node, Any], of_shape: bool) -> Any:
    """The value of a call on known operands; None where that is no tensor, or too much to hold meanwhile."""
    expected = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    if not expected or any(not isinstance(n, int) for v in expected for n in v.shape):
        return None
    if sum(map(_bytes, expected)) > max(_HELD, *(_bytes(known.get(n)) for n in node.all_input_nodes), 0):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: known.get(n))
    if of_shape:
        like = node.args[0].meta["val"]  # type: ignore[union-attr]
        args = (torch.zeros((), dtype=like.dtype).expand(like.shape), *args[1:])
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _bytes(value: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(value) if isinstance(t, Tensor))


def _repeats(node: Node, tensor: Tensor) -> bool:
    """Whether storing a result is storing its operand many times over."""
    size = math.prod(shape(node.args[0]) or ()) if node.target in _REPEATS else tensor.numel()
    return _bytes(tensor) > _LITTLE and tensor.numel() > _GROWTH * size


def _content(tensor: Tensor) -> tuple[Any, ...]:
    """A key that equal tensors share: a mask that each block computes for itself is stored once."""
    data = tensor.reshape(-1).view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)
    return ("content", tensor.dtype, tuple(tensor.shape), hashlib.sha256(data.numpy().tobytes()).digest())
