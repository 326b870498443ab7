"""Rules for runtimes that fuse Q/DQ pairs into integer kernels: what needs no float is written on the integers.

quantize(x, s, z)                      = quantize(x, s, z + 128) - 128             unsigned activations
quantize(clamp(x, a, b))               = clamp(quantize(x), quantize(a), quantize(b))
quantize(move(dequantize(q, s, z)))    = move(q)                                   one s and z
b                                      = dequantize(round(b / (s_x s_w)), s_x s_w)
linear(x)                              = reshape(linear(reshape(x, (-1, n))))
"""

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from edgekit.graph._edit import Editor, argument, shape, value
from edgekit.graph.quantized import clamp_ends, quantized_end

_aten = torch.ops.aten
_qd = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = _qd.quantize_per_tensor.default, _qd.dequantize_per_tensor.default
DEQUANTIZE_WEIGHT = _qd.dequantize_per_channel.default
_COMPUTE = (_aten.conv2d.default, _aten.linear.default)
# The values of the result are values of the operands, wherever they stand.
_MOVES = (
    _aten.reshape.default, _aten.view.default, _aten.permute.default, _aten.transpose.int, _aten.slice.Tensor,
    _aten.flatten.using_ints, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.cat.default, _aten.select.int,
    _aten.expand.default, _aten.maximum.default, _aten.minimum.default,
)  # fmt: skip
_PADS = (_aten.constant_pad_nd.default, _aten.pad.default)
_SHIFT = 128


def integer_clamps(program: ExportedProgram) -> ExportedProgram:
    """What is clamped, then quantized, is quantized first: a clamp between would keep a kernel in float."""
    editor = Editor(program)
    for node in editor.nodes(QUANTIZE):
        clamp = node.args[0]
        ends = clamp_ends(clamp)
        if ends is None or not isinstance(clamp, Node) or len(clamp.users) != 1:
            continue
        source: Node = clamp.args[0]  # type: ignore[assignment]
        scale, zero_point, lowest, highest = node.args[1:5]
        steps = [quantized_end(end, scale, zero_point) for end in ends]  # type: ignore[arg-type]
        low, high = (int(min(max(n, lowest), highest)) for n in steps)  # type: ignore[type-var, arg-type]
        same = source.target is DEQUANTIZE and source.args[1:] == node.args[1:]
        quantized = source.args[0] if same else editor.call(node, QUANTIZE, source, *node.args[1:])
        editor.replace(node, editor.call(node, _aten.clamp.default, quantized, low, high))
    return editor.finish()


def unsigned_activations(program: ExportedProgram) -> ExportedProgram:
    """Activations in 0 … 255 for those in -128 … 127: ONNX Runtime's x86 kernels multiply unsigned by signed."""
    editor = Editor(program)
    for node in editor.nodes(QUANTIZE):
        if _is_signed(node):
            editor.replace(node, editor.call(node, QUANTIZE, node.args[0], *_unsigned(node)))
    for node in editor.nodes(DEQUANTIZE):
        if not _is_signed(node):
            continue
        source = node.args[0]
        stored = editor.constant_value(source)
        if stored is not None:
            source = editor.constant((stored.to(torch.int16) + _SHIFT).to(torch.uint8), ("unsigned", source))
        if value(source) is not None and value(source).dtype == torch.uint8:  # type: ignore[union-attr]
            editor.replace(node, editor.call(node, DEQUANTIZE, source, *_unsigned(node)))
    return editor.finish()


def _is_signed(node: Node) -> bool:
    return tuple(node.args[3:6]) == (-128, 127, torch.int8)


def _unsigned(node: Node) -> tuple[object, ...]:
    return node.args[1], node.args[2] + _SHIFT, 0, 255, torch.uint8  # type: ignore[operator]


def integer_moves(program: ExportedProgram) -> ExportedProgram:
    """What only moves values, between two quantizations that are the same, moves the integers."""
    editor = Editor(program)
    for node in editor.nodes(QUANTIZE):
        move = node.args[0]
        if not isinstance(move, Node) or move.target not in (*_MOVES, *_PADS):
            continue
        sources = move.all_input_nodes
        if any(s.target is not DEQUANTIZE or s.args[1:] != node.args[1:] for s in sources):
            continue
        args, kwargs = map_arg((move.args, move.kwargs), lambda n: n.args[0])
        if move.target in _PADS:
            at = 3 if move.target is _aten.pad.default else 2
            if (at == 3 and argument(move, 2, "mode", "constant") != "constant") or argument(move, at, "value", 0):
                continue
            call = editor.call(node, _aten.constant_pad_nd.default, args[0], args[1], node.args[2])
        else:
            call = editor.call(node, move.target, *args, **kwargs)
        call.meta.update({k: v for k, v in move.meta.items() if k in ("stack_trace", "nn_module_stack")})
        editor.replace(node, call)
    return editor.finish()


def integer_biases(program: ExportedProgram) -> ExportedProgram:
    """The bias of a layer in int8 as int32 in steps of input scale times weight scale."""
    editor = Editor(program)
    low, high = -(2**31), 2**31 - 1
    for node in editor.nodes(*_COMPUTE):
        source, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
        stored = editor.constant_value(bias)
        if stored is None or not isinstance(source, Node) or not isinstance(weight, Node):
            continue
        if source.target is not DEQUANTIZE or weight.target is not DEQUANTIZE_WEIGHT:
            continue
        scales = editor.constant_value(weight.args[1])
        if scales is None:
            continue
        step = scales * float(source.args[1])  # type: ignore[arg-type]
        steps = (stored.detach() / step).double().round().clamp(low, high).to(torch.int32)
        fresh = editor.call(
            node, DEQUANTIZE_WEIGHT, editor.constant(steps), editor.constant(step), weight.args[2],
            0, low, high, torch.int32,
        )  # fmt: skip
        node.replace_input_with(bias, fresh)
        editor.fired += 1
    return editor.finish()


def flat_linears(program: ExportedProgram) -> ExportedProgram:
    """A quantized linear on more than two dimensions as one on a matrix: that is what takes a bias in integers."""
    editor = Editor(program)
    for node in editor.nodes(_aten.linear.default):
        source, size, result = node.args[0], shape(node.args[0]), shape(node)
        if size is None or result is None or len(size) == 2 or not isinstance(source, Node):
            continue
        if source.target is not DEQUANTIZE or len(node.users) != 1:
            continue
        (after,) = node.users
        if after.target is not QUANTIZE:
            continue
        flat = editor.call(node, _aten.reshape.default, source.args[0], [-1, size[-1]])
        linear = editor.call(
            node, node.target, editor.call(node, DEQUANTIZE, flat, *source.args[1:]), *node.args[1:], **node.kwargs
        )
        quantized = editor.call(after, QUANTIZE, linear, *after.args[1:])
        editor.replace(after, editor.call(after, _aten.reshape.default, quantized, list(result)))
    return editor.finish()
