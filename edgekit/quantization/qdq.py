"""Writing quantize and dequantize nodes into a graph: one scale a tensor, whoever reads it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.graph._edit import Editor
from edgekit.quantization._ops import (
    CAT,
    CLAMPS,
    COMPUTE,
    DEQUANTIZE,
    DEQUANTIZE_WEIGHT,
    MOVES,
    QMAX,
    QMIN,
    QUANTIZE,
    WEIGHT_QMAX,
    tensor_operands,
    weight_of,
)
from edgekit.quantization.placement import Unit
from edgekit.quantization.ranges import QParams, weight_scales

# XNNPACK refuses a ratio of scales outside of [2^-10, 2^8) in an addition, and requantizes by less than 2^8.
_LEAST_RATIO, _MOST_RATIO = 2.0**-10, 2.0**7
# What a bias may reach in int32, and the finest weight scale, in steps of the result, that requantization resolves.
_BIAS_LIMIT = 2.0**29
_FINEST = 2.0**-24


def activations(editor: Editor, unit: Unit) -> list[Node]:
    """The operands of a unit that are quantized per tensor: all but the weight and bias of a compute node."""
    if unit.node.target in COMPUTE:
        return [unit.node.args[0]]  # type: ignore[list-item]
    return tensor_operands(unit.node)


def groups(editor: Editor, units: Sequence[Unit]) -> list[set[Node]]:
    """The tensors that int8 units read and write, in sets that share one scale."""
    parent: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        while parent.setdefault(node, node) is not node:
            node = parent[node]
        return node

    for unit in units:
        tensors = [*activations(editor, unit), unit.result]
        for tensor in tensors:
            root(tensor)
        if unit.node.target in (*MOVES, *CLAMPS, CAT):
            for tensor in tensors[:-1]:
                parent[root(tensor)] = root(unit.result)
    found: dict[Node, set[Node]] = {}
    for node in parent:
        found.setdefault(root(node), set()).add(node)
    return list(found.values())


def compatible(editor: Editor, units: Sequence[Unit], qparams: Mapping[Node, QParams]) -> dict[Node, QParams]:
    """`qparams` with the scales widened that a runtime's requantization could not represent."""
    fixed = dict(qparams)
    members = {node: group for group in groups(editor, units) for node in group}

    def widen(node: Node, scale: float) -> bool:
        if fixed[node].scale >= scale:
            return False
        for member in members[node]:
            fixed[member] = QParams(scale, fixed[member].zero_point)
        return True

    for _ in range(16):
        changed = False
        for unit in units:
            operands = [fixed[n].scale for n in activations(editor, unit)]
            if unit.node.target in COMPUTE:
                weight = weight_of(editor, unit.node)
                assert weight is not None
                product = operands[0] * float(weight_scales(weight).max())
                changed |= widen(unit.result, product / _MOST_RATIO)
            elif unit.node.target is torch.ops.aten.mul.Tensor:
                changed |= widen(unit.result, operands[0] * operands[-1] / _MOST_RATIO)
            elif unit.node.target not in (*MOVES, *CLAMPS, CAT):
                changed |= widen(unit.result, max(operands) / _MOST_RATIO)
                for operand in activations(editor, unit):
                    changed |= widen(operand, fixed[unit.result].scale * _LEAST_RATIO * 1.01)
        if not changed:
            break
    return fixed


def insert(editor: Editor, units: Sequence[Unit], qparams: Mapping[Node, QParams]) -> None:
    """Quantize every tensor that a unit reads or writes, once, and dequantize it for each reader."""
    inside = {unit.node for unit in units} | {unit.result for unit in units}
    results = {unit.result for unit in units}
    for unit in units:
        if unit.node.target in COMPUTE:
            _quantize_weight(editor, unit, qparams)
    for tensor, q in qparams.items():
        readers = [user for user in tensor.users if user in inside or tensor in results]
        constant = editor.constant_value(tensor)
        arguments = (q.scale, q.zero_point, QMIN, QMAX, torch.int8)
        if constant is not None:
            quantized = editor.constant(torch.ops.quantized_decomposed.quantize_per_tensor(constant, *arguments))
        else:
            quantized = _after(editor, tensor, lambda at, t=tensor, a=arguments: editor.call(at, QUANTIZE, t, *a))
        for reader in readers:
            if reader is not quantized:
                fresh = editor.call(reader, DEQUANTIZE, quantized, *arguments)
                reader.replace_input_with(tensor, fresh)
                _rename_output(editor, reader, tensor, fresh)
    editor.fired += bool(units)


def _after(editor: Editor, tensor: Node, make: Callable[[Node], Node]) -> Node:
    """A node made right behind `tensor`; behind all inputs where it is one."""
    following = tensor.next
    while following.op == "placeholder":
        following = following.next
    return make(following)


def _rename_output(editor: Editor, reader: Node, old: Node, new: Node) -> None:
    if reader.op == "output":
        editor.rename_output(old, new)


def _quantize_weight(editor: Editor, unit: Unit, qparams: Mapping[Node, QParams]) -> None:
    node = unit.node
    weight = weight_of(editor, node)
    assert weight is not None
    arguments: list[Any] = list(node.args)
    bias = editor.constant_value(arguments[2]) if len(arguments) > 2 else None
    source, result = qparams[node.args[0]], qparams[unit.result]  # type: ignore[index]
    scales = safe_scales(weight, bias, source.scale, result.scale)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    q = torch.ops.quantized_decomposed.quantize_per_channel(
        weight.detach(), scales, zeros, 0, -WEIGHT_QMAX, WEIGHT_QMAX, torch.int8
    )
    fresh = editor.call(
        node, DEQUANTIZE_WEIGHT, editor.constant(q), editor.constant(scales), editor.constant(zeros),
        0, -WEIGHT_QMAX, WEIGHT_QMAX, torch.int8,
    )  # fmt: skip
    arguments[1] = fresh
    node.args = tuple(arguments)


def safe_scales(weight: Tensor, bias: Tensor | None, source: float, result: float) -> Tensor:
    """Scales of a weight that leave room for its bias in int32 and for its requantization.

    Only nearly dead channels are changed: ones whose weights are far below one step of the result.
    """
    scales = weight_scales(weight)
    scales = scales.clamp(min=result / source * _FINEST)
    if bias is not None:
        scales = torch.maximum(scales, bias.detach().abs() / (source * _BIAS_LIMIT))
    return scales
