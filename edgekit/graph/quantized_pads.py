"""Pads of Q/DQ graphs in the layout of LiteRT: its converter moves no transpose across a scale.

quantize(pad(dequantize(quantize(x)))) = permute⁻¹(quantize(pad(dequantize(quantize(permute(x))))))
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


def channels_last_pads(program: ExportedProgram) -> ExportedProgram:
    """Spatial int8 pads of maps between two permutes, which merge with those that the converter writes around them."""
    editor = Editor(program)
    for node in editor.nodes(_aten.pad.default, _aten.constant_pad_nd.default):
        entry, padding = node.args[0], list(node.args[1])  # type: ignore[arg-type]
        leave = next(iter(node.users)) if len(node.users) == 1 else None
        if not _is(entry, _DEQUANTIZE) or leave is None or not _is(leave, _QUANTIZE):
            continue
        if len(shape(node) or ()) != 4 or len(padding) > 4 or not _is(entry.args[0], _QUANTIZE):
            continue
        fill = argument(node, 2, "value", 0) if node.target is _aten.constant_pad_nd.default else 0
        source = entry.args[0].args[0]
        x = editor.call(node, _aten.permute.default, source, _TO_LAST)
        x = editor.call(node, _QUANTIZE, x, *entry.args[0].args[1:])
        x = editor.call(node, _DEQUANTIZE, x, *entry.args[1:])
        x = editor.call(node, _aten.constant_pad_nd.default, x, [0, 0, *padding], fill)
        x = editor.call(node, _QUANTIZE, x, *leave.args[1:])
        for read in list(leave.users):
            if _is(read, _DEQUANTIZE):
                y = editor.call(read, _DEQUANTIZE, x, *read.args[1:])
                editor.replace(read, editor.call(read, _aten.permute.default, y, _TO_FIRST))
    return editor.finish()


def _is(node: object, target: object) -> bool:
    return isinstance(node, Node) and node.target is target
