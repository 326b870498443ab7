"""Rules for Q/DQ graphs: what a quantize node makes superfluous, and the form that each converter reads.

quantize(clamp(x, a, b))               = quantize(x)             where a and b quantize to the ends of int8
dequantize(w_q, s)                     = dequantize(quantize(w_q s, s), s)
"""

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument

_aten = torch.ops.aten
_qd = torch.ops.quantized_decomposed
_RELU6 = (0.0, 6.0)


def drop_clamps(program: ExportedProgram) -> ExportedProgram:
    """A clamp whose result is quantized to a range that lies within its own is the quantization's already."""
    editor = Editor(program)
    for node in editor.nodes(_qd.quantize_per_tensor.default):
        clamp = node.args[0]
        ends = clamp_ends(clamp)
        if ends is None or not isinstance(clamp, Node) or len(clamp.users) != 1:
            continue
        scale, zero_point, low, high = node.args[1:5]
        steps = [quantized_end(end, scale, zero_point) for end in ends]  # type: ignore[arg-type]
        if steps[0] <= low and steps[1] >= high:  # type: ignore[operator]
            editor.replace(clamp, clamp.args[0])  # type: ignore[arg-type]
    return editor.finish()


def quantized_end(end: float, scale: float, zero_point: int) -> float:
    """The end of a clamp in steps of a quantization; infinite where it is."""
    return float(torch.tensor(end / scale).round() + zero_point)


def clamp_ends(node: object) -> tuple[float, float] | None:
    """The ends between which a call clamps its operand; None for anything else."""
    if not isinstance(node, Node):
        return None
    if node.target in (_aten.relu.default, _aten.relu_.default):
        return 0.0, float("inf")
    if node.target is _aten.relu6.default:
        return _RELU6
    if node.target in (_aten.hardtanh.default, _aten.hardtanh_.default):
        return argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    if node.target is _aten.clamp.default:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
        return -float("inf") if low is None else low, float("inf") if high is None else high
    return None


def float_weights(program: ExportedProgram) -> ExportedProgram:
    """Weights stored as floats that are quantized in the graph: LiteRT's converter folds them itself, and no others."""
    editor = Editor(program)
    for node in editor.nodes(_qd.dequantize_per_channel.default):
        stored, scales, zeros = (editor.constant_value(n) for n in node.args[:3])
        if stored is None or scales is None or zeros is None:
            continue
        rest = node.args[3:]
        weight = editor.constant(_qd.dequantize_per_channel(stored, scales, zeros, *rest))
        quantized = editor.call(node, _qd.quantize_per_channel.default, weight, *node.args[1:3], *rest)
        node.replace_input_with(node.args[0], quantized)  # type: ignore[arg-type]
        editor.fired += 1
    for node in editor.nodes(_qd.dequantize_per_tensor.default):
        stored = editor.constant_value(node.args[0])
        if stored is None:
            continue
        value = editor.constant(_qd.dequantize_per_tensor(stored, *node.args[1:]))
        quantized = editor.call(node, _qd.quantize_per_tensor.default, value, *node.args[1:])
        node.replace_input_with(node.args[0], quantized)  # type: ignore[arg-type]
        editor.fired += 1
    return editor.finish()
