"""Rules for Q/DQ graphs: the same integers from the kernels of ONNX Runtime that are fast (its MLAS `ConvSym`).

Those take channels by 16 (depthwise), or by 4 in and 16 out (3x3 and larger); others cost two to fifteen times as much.
A channel of zeros with weights of zeros adds nothing:

conv(x, w)                             = slice(conv(pad(x), pad(w)))
grouped conv(x, w)                     = conv(x, w with zeros between its groups)
avg_pool(x, k)                         = depthwise conv(x, 1 / k²)
x s    (s one number a channel)        = x expand(s, width)        long runs for the kernel that multiplies
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape
from edgekit.graph.quantized_integers import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE

_aten = torch.ops.aten
_CONV, _PAD = _aten.conv2d.default, _aten.constant_pad_nd.default
_OUTPUTS, _INPUTS = 16, 4
# Input channels that make no groups at all, and those of one group that takes in its neighbours.
_DENSE, _GROUP = 32, 16
# Fewer channels are too short a run for the kernel that multiplies; on fewer pixels, making them longer costs more.
_CHANNELS, _PIXELS = 128, 512


def _is_quantized(editor: Editor, conv: object) -> bool:
    """Whether a node is a convolution of integers by constant integers whose only user quantizes it."""
    if not isinstance(conv, Node) or conv.target is not _CONV or len(conv.users) != 1:
        return False
    source, weight = conv.args[:2]
    return (
        isinstance(source, Node)
        and isinstance(weight, Node)
        and source.target is DEQUANTIZE
        and weight.target is DEQUANTIZE_WEIGHT
        and all(editor.constant_value(n) is not None for n in weight.args[:3])
        and (argument(conv, 2, "bias") is None or editor.constant_value(argument(conv, 2, "bias")) is not None)
        and next(iter(conv.users)).target is QUANTIZE
    )


def _settings(conv: Node) -> tuple[list[int], list[int], list[int], int]:
    """Strides, pads, dilations and groups."""
    lists = [
        list(given if len(given) == 2 else given * 2)
        for given in (argument(conv, 3, "stride", (1, 1)), argument(conv, 4, "padding", (0, 0)),
                      argument(conv, 5, "dilation", (1, 1)))
    ]  # fmt: skip
    return lists[0], lists[1], lists[2], argument(conv, 6, "groups", 1)


def _with_weight(
    editor: Editor, conv: Node, weight: Tensor, groups: int, extra: int = 0, source: Node | None = None
) -> Node:
    """`conv` with another int8 weight, which has `extra` output channels of zeros more, in front of it."""
    old: Node = conv.args[1]  # type: ignore[assignment]
    _, scales, zeros = (editor.constant_value(n) for n in old.args[:3])
    bias = editor.constant_value(argument(conv, 2, "bias"))
    assert scales is not None
    assert zeros is not None
    fresh = editor.call(
        conv, DEQUANTIZE_WEIGHT, editor.constant(weight), editor.constant(F.pad(scales, (0, extra), value=1.0)),
        editor.constant(F.pad(zeros, (0, extra))), *old.args[3:],
    )  # fmt: skip
    added = None if bias is None else editor.constant(F.pad(bias.detach(), (0, extra)))
    strides, pads, dilations, _ = _settings(conv)
    return editor.call(conv, _CONV, source or conv.args[0], fresh, added, strides, pads, dilations, groups)


def dense_groups(program: ExportedProgram) -> ExportedProgram:
    """A quantized convolution of many small groups as one of few: each group costs a call of the matrix product."""
    editor = Editor(program)
    for conv in editor.nodes(_CONV):
        if not _is_quantized(editor, conv):
            continue
        weight = editor.constant_value(conv.args[1].args[0])  # type: ignore[union-attr]
        groups = _settings(conv)[3]
        assert weight is not None
        outputs, width = weight.shape[:2]
        inputs = groups * width
        if groups == 1 or (width == 1 and outputs == inputs):
            continue
        wide = inputs if inputs <= _DENSE else math.gcd(inputs, max(_GROUP, width))
        if wide <= width or wide % width:
            continue
        merged = wide // width
        spread = weight.new_zeros(outputs, wide, *weight.shape[2:])
        each = outputs // groups
        for group in range(groups):
            rows, at = slice(group * each, (group + 1) * each), group % merged * width
            spread[rows, at : at + width] = weight[rows]
        editor.replace(conv, _with_weight(editor, conv, spread, groups // merged))
    return editor.finish()


def aligned_channels(program: ExportedProgram) -> ExportedProgram:
    """Channels of zeros up to the numbers that the fast kernels take; where two such layers meet, none between them."""
    editor = Editor(program)
    whole: dict[Node, Node] = {}
    for conv in editor.nodes(_CONV):
        if not _is_quantized(editor, conv):
            continue
        weight = editor.constant_value(conv.args[1].args[0])  # type: ignore[union-attr]
        groups = _settings(conv)[3]
        assert weight is not None
        outputs, width = weight.shape[:2]
        depthwise = groups > 1 and width == 1 and outputs == groups
        if (groups > 1 and not depthwise) or weight[0, 0].numel() == 1:
            continue
        more_in = -groups % _OUTPUTS if depthwise else -width % _INPUTS
        more_out = more_in if depthwise else -outputs % _OUTPUTS
        if not more_in:
            continue
        padded = F.pad(weight, (0, 0, 0, 0, 0, 0 if depthwise else more_in, 0, more_out))
        source = _padded(editor, conv, more_in, whole)
        wide = _with_weight(editor, conv, padded, groups + more_in if depthwise else 1, more_out, source)
        (quantize,) = conv.users
        result = editor.call(quantize, QUANTIZE, wide, *quantize.args[1:])
        if more_out:
            part = editor.call(quantize, _aten.slice.Tensor, result, 1, 0, outputs)
            whole[part], result = result, part
        editor.replace(quantize, result)
        editor.graph.erase_node(conv)
    return editor.finish()


def _padded(editor: Editor, conv: Node, extra: int, whole: Mapping[Node, Node]) -> Node:
    """The input of `conv` with `extra` channels that mean zero; `whole` has what was cut, by what is left."""
    dequantize: Node = conv.args[0]  # type: ignore[assignment]
    source: Node = dequantize.args[0]  # type: ignore[assignment]
    if source in whole and (shape(whole[source]) or ())[1:2] == ((shape(source) or ())[1] + extra,):
        return editor.call(conv, DEQUANTIZE, whole[source], *dequantize.args[1:])
    pads = [0, 0, 0, 0, 0, extra]
    given = list(source.args[1]) if source.target is _PAD else []  # type: ignore[arg-type]
    if given and len(given) <= len(pads) and argument(source, 2, "value", 0) == dequantize.args[2]:
        pads = [a + b for a, b in zip(pads, given + [0] * (6 - len(given)), strict=True)]
        source = source.args[0]  # type: ignore[assignment]
    wide = editor.call(conv, _PAD, source, pads, dequantize.args[2])
    return editor.call(conv, DEQUANTIZE, wide, *dequantize.args[1:])


def merge_alignments(program: ExportedProgram) -> ExportedProgram:
    """Channels of zeros made by the layer before, and read by the layer behind, for those padded and cut between."""
    editor = Editor(program)
    for pad in editor.nodes(_PAD):
        _made_before(editor, pad)
    for cut in editor.nodes(_aten.slice.Tensor):
        _read_behind(editor, cut)
    return editor.finish()


def _made_before(editor: Editor, pad: Node) -> None:
    quantize, pads, value = pad.args[0], list(pad.args[1]), argument(pad, 2, "value", 0)  # type: ignore[arg-type]
    if not isinstance(quantize, Node) or quantize.target is not QUANTIZE or len(quantize.users) != 1:
        return
    conv = quantize.args[0]
    if pads[:5] != [0] * 5 or len(pads) != 6 or value != quantize.args[2] or not _is_quantized(editor, conv):
        return
    if _settings(conv)[3] != 1:  # type: ignore[arg-type]
        return
    weight = editor.constant_value(conv.args[1].args[0])  # type: ignore[union-attr]
    assert weight is not None
    padded = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, pads[5]))
    wide = _with_weight(editor, conv, padded, 1, pads[5])  # type: ignore[arg-type]
    editor.replace(pad, editor.call(quantize, QUANTIZE, wide, *quantize.args[1:]))
    editor.graph.erase_node(quantize)
    editor.graph.erase_node(conv)  # type: ignore[arg-type]


def _read_behind(editor: Editor, cut: Node) -> None:
    source, size, cut_size = cut.args[0], shape(cut.args[0]), shape(cut)
    if size is None or cut_size is None or len(size) != 4 or cut.args[1:3] != (1, 0) or size[2:] != cut_size[2:]:
        return
    for dequantize in list(cut.users):
        readers = list(dequantize.users)
        if dequantize.target is not DEQUANTIZE or len(readers) != 1 or not _is_quantized(editor, readers[0]):
            continue
        (conv,) = readers
        if conv.args[0] is not dequantize or _settings(conv)[3] != 1:
            continue
        weight = editor.constant_value(conv.args[1].args[0])  # type: ignore[union-attr]
        assert weight is not None
        padded = F.pad(weight, (0, 0, 0, 0, 0, size[1] - cut_size[1]))
        fresh = editor.call(conv, DEQUANTIZE, source, *dequantize.args[1:])
        editor.replace(conv, _with_weight(editor, conv, padded, 1, 0, fresh))


def pools_as_convs(program: ExportedProgram) -> ExportedProgram:
    """Average pools between the same integers as depthwise convolutions, which have a fast kernel."""
    editor = Editor(program)
    for pool in editor.nodes(_aten.avg_pool2d.default):
        size, source = shape(pool.args[0]), pool.args[0]
        kernel, stride, padding, ceil, _, divisor = (
            argument(pool, i + 1, name, default)
            for i, (name, default) in enumerate(
                (("kernel_size", None), ("stride", ()), ("padding", (0, 0)), ("ceil_mode", False),
                 ("count_include_pad", True), ("divisor_override", None))
            )
        )  # fmt: skip
        if size is None or len(size) != 4 or not isinstance(source, Node) or ceil or divisor or any(padding):
            continue
        if source.target is not DEQUANTIZE or len(pool.users) != 1 or next(iter(pool.users)).target is not QUANTIZE:
            continue
        height, width = kernel if len(kernel) == 2 else kernel * 2
        channels = size[1]
        ones = editor.constant(torch.ones(channels, 1, height, width, dtype=torch.int8))
        scales = editor.constant(torch.full((channels,), 1 / (height * width)))
        zeros = editor.constant(torch.zeros(channels, dtype=torch.int64))
        weight = editor.call(pool, DEQUANTIZE_WEIGHT, ones, scales, zeros, 0, -127, 127, torch.int8)
        conv = editor.call(pool, _CONV, source, weight, None, list(stride or kernel), [0, 0], [1, 1], channels)
        editor.replace(pool, conv)
    return editor.finish()


def long_runs(program: ExportedProgram) -> ExportedProgram:
    """The scales of few channels repeated along the width of the map that they multiply."""
    editor = Editor(program)
    for node in editor.nodes(_aten.mul.Tensor):
        size = shape(node)
        if size is None or len(size) != 4 or size[1] >= _CHANNELS or size[2] * size[3] < _PIXELS:
            continue
        if any(not isinstance(n, Node) or n.target is not DEQUANTIZE for n in node.args[:2]):
            continue
        if any(user.target is not QUANTIZE for user in node.users):
            continue
        for operand in [n for n in node.all_input_nodes if shape(n) == (*size[:2], 1, 1)]:
            wide = editor.call(node, _aten.expand.default, operand.args[0], [*size[:2], 1, size[3]])
            node.replace_input_with(operand, editor.call(node, DEQUANTIZE, wide, *operand.args[1:]))
            editor.fired += 1
    return editor.finish()
