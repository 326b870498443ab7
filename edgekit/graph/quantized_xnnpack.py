"""Q/DQ graphs in the forms that XNNPACK has int8 kernels for, with the same integers.

quantize(max(p, q)) = quantize(q + dequantize(quantize(relu(p - q))))        one scale for all: exact
quantize(min(p, q)) = quantize(q - dequantize(quantize(relu(q - p))))
quantize(pad(x))    = permute⁻¹(quantize(pad(permute(x))))                   LiteRT's converter moves no transpose
                                                                            across a scale
"""

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape

_aten = torch.ops.aten
_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def maxima_as_sums(program: ExportedProgram) -> ExportedProgram:
    """int8 maxima and minima of two tensors of one scale as a difference, clamped at zero, and a sum."""
    editor = Editor(program)
    for node in editor.nodes(_aten.maximum.default, _aten.minimum.default):
        leave = _only_user(node)
        if leave is None or not _is(leave, _QUANTIZE) or not all(_is(n, _DEQUANTIZE) for n in node.args):
            continue
        p, q = node.args
        if len({n.args[1:3] for n in (p, q, leave)}) != 1:  # type: ignore[union-attr]
            continue
        largest = node.target is _aten.maximum.default
        apart = editor.call(node, _aten.sub.Tensor, *((p, q) if largest else (q, p)))
        scale, _, low, *rest = leave.args[1:]
        clamped = editor.call(node, _QUANTIZE, editor.call(node, _aten.relu.default, apart), scale, low, low, *rest)
        gap = editor.call(node, _DEQUANTIZE, clamped, scale, low, low, *rest)
        # The quantize node behind reads q again: a delegate wants a dequantize node of its own for each reader.
        again = editor.call(node, _DEQUANTIZE, *q.args)  # type: ignore[union-attr]
        editor.replace(node, editor.call(node, _aten.add.Tensor if largest else _aten.sub.Tensor, again, gap))
    return editor.finish()


def channels_last_pads(program: ExportedProgram) -> ExportedProgram:
    """Spatial int8 pads of maps between two permutes, which merge with those that LiteRT's converter writes."""
    editor = Editor(program)
    for node in editor.nodes(_aten.pad.default, _aten.constant_pad_nd.default):
        entry, leave, padding = node.args[0], _only_user(node), list(node.args[1])  # type: ignore[arg-type]
        if not _is(entry, _DEQUANTIZE) or leave is None or not _is(leave, _QUANTIZE):
            continue
        if node.target is _aten.pad.default and argument(node, 2, "mode", "constant") != "constant":
            continue
        if len(shape(node) or ()) != 4 or len(padding) > 4 or not _is(entry.args[0], _QUANTIZE):  # type: ignore[union-attr]
            continue
        fill = argument(node, 3 if node.target is _aten.pad.default else 2, "value", 0) or 0
        source, *scale = entry.args[0].args  # type: ignore[union-attr]
        x = editor.call(node, _aten.permute.default, source, _TO_LAST)
        x = editor.call(node, _QUANTIZE, x, *scale)
        x = editor.call(node, _DEQUANTIZE, x, *scale)
        x = editor.call(node, _aten.constant_pad_nd.default, x, [0, 0, *padding], fill)
        x = editor.call(node, _QUANTIZE, x, *leave.args[1:])
        for read in list(leave.users):
            if _is(read, _DEQUANTIZE):
                y = editor.call(read, _DEQUANTIZE, x, *read.args[1:])
                editor.replace(read, editor.call(read, _aten.permute.default, y, _TO_FIRST))
    return editor.finish()


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is(node: object, target: object) -> bool:
    return isinstance(node, Node) and node.target is target
