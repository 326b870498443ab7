"""Writing quantize and dequantize nodes into a graph: one scale a tensor, whoever reads it."""

from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.errors import Unsupported
from edgekit.graph._edit import Editor
from edgekit.quantization._ops import (
    ARITHMETIC,
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
    bias_of,
    matches,
    module_path,
    op_name,
    tensor_operands,
    weight_of,
)
from edgekit.quantization.placement import Unit
from edgekit.quantization.ranges import QParams, Range, float32, qparams_of, weight_scales
from edgekit.quantization.rounding import ROUNDINGS

# XNNPACK refuses a ratio of operand to result outside of [2^-10, 2^8) in an addition, of [2^-8, 2^8) in a mean, of
# [2^-16, 2^8) in a product. An operand so small that this widens its scale does not reach one step of the result.
_LEAST_RATIO, _MOST_RATIO, _LEAST_PRODUCT = 2.0**-8, 2.0**7, 2.0**-16
# Float32 rounds: what is widened lands on the right side.
_MARGIN = 1.01
# Each round reaches one operation further back, and what is asked for shrinks 256-fold: scales lie within 1e-20, 1e13.
_ROUNDS = 32
_LARGEST = 1e15
# What a bias may reach in int32, and the finest weight scale, in steps of the result, that requantization resolves.
_BIAS_LIMIT = 2.0**29
_FINEST = 2.0**-24
# Below these many elements a constant is no table worth another node.
_TABLE = 4096
_LEAST_STEPS = 32


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
    """`qparams` with the scales widened that a runtime's requantization could not represent.

    Raises `Unsupported` where no scales are left that it could.
    """
    fixed = dict(qparams)
    members = {node: group for group in groups(editor, units) for node in group}

    def widen(node: Node, scale: float) -> bool:
        if fixed[node].scale >= scale:
            return False
        for member in members[node]:
            fixed[member] = QParams(float32(scale * _MARGIN), fixed[member].zero_point)
        return True

    for _ in range(_ROUNDS):
        changed = None
        for unit in units:
            for node, scale in list(_least_scales(editor, unit, fixed)):
                changed = unit if widen(node, scale) else changed
        if changed is None:
            return fixed
        if not all(q.scale < _LARGEST for q in fixed.values()):
            break
    assert changed is not None
    raise Unsupported(
        f"int8 has no scales for {changed.node.name} in {module_path(changed.node)}: its values outgrow those it reads",
        f"Leave it in float: --keep-float '{escape(op_name(changed.node))}'",
    )


def _least_scales(editor: Editor, unit: Unit, qparams: Mapping[Node, QParams]) -> Iterator[tuple[Node, float]]:
    """Tensors of a unit, each with the least scale that the others allow it."""
    sources = activations(editor, unit)
    operands, result = [qparams[n].scale for n in sources], qparams[unit.result].scale
    if unit.node.target in COMPUTE:
        weight = weight_of(editor, unit.node)
        assert weight is not None
        bias = bias_of(editor, unit.node)
        offset = 0.0 if bias is None else float(bias.abs().max()) / _BIAS_LIMIT
        yield unit.result, max(operands[0] * float(weight_scales(weight).max()), offset) / _MOST_RATIO
    elif unit.node.target is torch.ops.aten.mul.Tensor:
        yield unit.result, operands[0] * operands[-1] / _MOST_RATIO
        yield sources[0], result * _LEAST_PRODUCT / operands[-1]
    elif unit.node.target not in (*MOVES, *CLAMPS, CAT):
        yield unit.result, max(operands) / _MOST_RATIO
        yield from ((source, result * _LEAST_RATIO) for source in sources)


def insert(editor: Editor, units: Sequence[Unit], qparams: Mapping[Node, QParams], rounding: str = "nearest") -> None:
    """Quantize every tensor that a unit reads or writes, once, and dequantize it for each reader."""
    inside = {unit.node for unit in units}
    results = {unit.result for unit in units}
    for unit in units:
        if unit.node.target in COMPUTE:
            _quantize_weight(editor, unit, qparams, rounding)
    for tensor, q in qparams.items():
        readers = [user for user in tensor.users if user in inside or tensor in results]
        constant = editor.constant_value(tensor)
        arguments = (q.scale, q.zero_point, QMIN, QMAX, torch.int8)
        if constant is not None:
            quantized = editor.constant(torch.ops.quantized_decomposed.quantize_per_tensor(constant, *arguments))
        else:
            quantized = editor.call(behind(tensor), QUANTIZE, tensor, *arguments)
        for reader in readers:
            if reader.target in COMPUTE and reader.args[0] is not tensor:
                continue  # it is its bias
            fresh = editor.call(reader, DEQUANTIZE, quantized, *arguments)
            reader.replace_input_with(tensor, fresh)
            if reader.op == "output":
                editor.rename_output(tensor, fresh)
    editor.fired += bool(units)


def layer_of_constants(program: ExportedProgram) -> dict[str, str]:
    """The path of the module that reads each constant of a Q/DQ program, by the constant's name."""
    names = {s.arg.name: s.target for s in program.graph_signature.input_specs if s.target is not None}
    found = {}
    for node in program.graph.nodes:
        reader = next(iter(node.users), None) if node.name in names else None
        while reader is not None and reader.target in (DEQUANTIZE, DEQUANTIZE_WEIGHT):
            reader = next(iter(reader.users), None)
        if reader is not None:
            found[names[node.name]] = module_path(reader)
    return found


def store_tables(editor: Editor, keep_float: tuple[str, ...]) -> None:
    """Store what float operations add and multiply by, such as the position biases of attention, in int8 too.

    Where one of them is named by `keep_float`, what it reads stays float.
    """
    for table in [n for n in editor.graph.nodes if n.op == "placeholder"]:
        constant, readers = editor.constant_value(table), list(table.users)
        if constant is None or constant.dtype != torch.float32 or constant.numel() < _TABLE:
            continue
        if any(reader.target not in ARITHMETIC or matches(reader, keep_float) for reader in readers):
            continue
        if not constant.isfinite().all():
            continue
        constant = constant.detach()
        q = qparams_of(Range(min(0.0, float(constant.min())), max(0.0, float(constant.max()))))
        arguments = (q.scale, q.zero_point, QMIN, QMAX, torch.int8)
        steps = torch.ops.quantized_decomposed.quantize_per_tensor(constant, *arguments)
        # A mask of -10,000 in the same table leaves no steps for what it is added to.
        if len(steps.unique()) < min(_LEAST_STEPS, len(constant.unique())):
            continue
        quantized = editor.constant(steps)
        for reader in readers:
            reader.replace_input_with(table, editor.call(reader, DEQUANTIZE, quantized, *arguments))
        editor.fired += 1


def behind(tensor: Node) -> Node:
    """The node that follows `tensor`; that follows all inputs where it is one."""
    following = tensor.next
    while following.op == "placeholder":
        following = following.next
    return following


def _quantize_weight(editor: Editor, unit: Unit, qparams: Mapping[Node, QParams], rounding: str) -> None:
    node = unit.node
    weight = weight_of(editor, node)
    assert weight is not None
    arguments: list[Any] = list(node.args)
    bias = editor.constant_value(arguments[2]) if len(arguments) > 2 else None
    source, result = qparams[node.args[0]], qparams[unit.result]  # type: ignore[index]
    scales = safe_scales(weight, bias, source.scale, result.scale)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    q = ROUNDINGS[rounding](weight.detach(), scales)
    stored = [editor.constant(t) for t in (q, scales, zeros)]
    fresh = editor.call(node, DEQUANTIZE_WEIGHT, *stored, 0, -WEIGHT_QMAX, WEIGHT_QMAX, torch.int8)
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
