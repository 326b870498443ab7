"""What LiteRT's converter must not take for int8 in a Q/DQ graph.

It gives operations that keep the scale of their operands one scale for all of them, whether or not they lie between
quantize and dequantize nodes: cat(dequantize(x), ones) becomes one of int8, with ones at the scale of x. A product
with a number next to one is what its propagation of scales stops at, and no rewriting removes:

op(dequantize(x), y)                   = op(dequantize(x) (1 + 2^-23), y)
"""

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, value

_aten = torch.ops.aten
_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_NEXT_TO_ONE = 1 + 2.0**-23

# Scales go through these in both directions, and the values are the same before and behind.
_MOVES = (
    _aten.reshape.default, _aten.view.default, _aten.permute.default, _aten.transpose.int, _aten.slice.Tensor,
    _aten.select.int, _aten.flatten.using_ints, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.squeeze.dims,
    _aten.expand.default, _aten.max_pool2d.default, _aten.upsample_nearest2d.vec,
)  # fmt: skip
_CHOICES = (
    _aten.cat.default, _aten.stack.default, _aten.maximum.default, _aten.minimum.default, _aten.pad.default,
    _aten.constant_pad_nd.default,
)  # fmt: skip
_CLAMPS = (_aten.clamp.default, _aten.clamp.Tensor, _aten.hardtanh.default)
# Their results lie between the values of their operands: rounding those first gives another result.
_MIXTURES = (
    _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default, _aten.upsample_bilinear2d.vec,
    _aten.upsample_bilinear2d.default, _aten.where.self,
)  # fmt: skip
_Scale = tuple[float, int]


def guard_float_ops(program: ExportedProgram) -> ExportedProgram:
    """Operations that LiteRT's converter would compute in int8, and the graph in float or at other scales."""
    editor = Editor(program)
    if not editor.nodes(_QUANTIZE):
        return program
    for node in editor.nodes(*_CHOICES, *_CLAMPS, *_MIXTURES):
        operands = [n for n in node.all_input_nodes if (v := value(n)) is not None and v.is_floating_point()]
        sources = [_scale_of(n) for n in operands]
        results = [scale for user in node.users for scale in _scales_behind(user)]
        known = {scale for scale in (*sources, *results) if scale is not None}
        # Of integers of one scale, what only moves them is itself one of integers.
        if not known or (len(known) == 1 and None not in sources and not _computes(node)):
            continue
        for operand, scale in zip(operands, sources, strict=True):
            if scale is not None:
                node.replace_input_with(operand, editor.call(node, _aten.mul.Tensor, operand, _NEXT_TO_ONE))
                editor.fired += 1
        shared = any(len(operand.users) > 1 for operand in node.all_input_nodes)
        if any(scale is not None for scale in results) and (node.target in _MIXTURES or shared):
            _guard_result(editor, node)
    return editor.finish()


def _guard_result(editor: Editor, node: Node) -> None:
    users = list(node.users)
    guarded = editor.call(node.next, _aten.mul.Tensor, node, _NEXT_TO_ONE)
    for user in users:
        user.replace_input_with(node, guarded)
    editor.fired += 1


def _scale_of(node: Node) -> _Scale | None:
    """The scale and zero point that a tensor comes with from integers, through moves; None for a float one."""
    while node.target in _MOVES:
        node = node.all_input_nodes[0]
    return node.args[1:3] if node.target is _DEQUANTIZE else None  # type: ignore[return-value]


def _scales_behind(user: Node) -> list[_Scale | None]:
    """The scales at which a reader, or those behind the move it is, make integers of a tensor; None for a float one."""
    if user.target is _QUANTIZE:
        return [user.args[1:3]]  # type: ignore[list-item]
    if user.target in _MOVES:
        return [scale for behind in user.users for scale in _scales_behind(behind)]
    return [None]


def _computes(node: Node) -> bool:
    """Whether a result may lie between the integers of the operands' scale."""
    if node.target in (_aten.pad.default, _aten.constant_pad_nd.default):
        return bool(argument(node, 3 if node.target is _aten.pad.default else 2, "value", 0))
    return node.target in (*_CLAMPS, *_MIXTURES)
