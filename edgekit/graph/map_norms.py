"""Normalization over whole maps by means over maps, where a runtime has no GroupNorm of its own.

    m = P mean(x, (-2, -1)),   c = x - m,   v = P mean(c * c, (-2, -1)),   y = c * rsqrt(v + eps) (* gamma + beta)

with P of (C, C) the mean over the channels of a group, a 1x1 convolution of C numbers; the identity for InstanceNorm,
1/C throughout for a LayerNorm over (C, H, W).
"""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, value

_aten = torch.ops.aten


def map_norms(program: ExportedProgram) -> ExportedProgram:
    """GroupNorm, InstanceNorm and LayerNorm over (C, H, W) of float32 maps; others stay."""
    editor = Editor(program)
    for node in editor.nodes(_aten.group_norm.default, _aten.instance_norm.default, _aten.layer_norm.default):
        val = value(node.args[0])
        if val is None or val.dim() != 4 or 0 in val.shape:
            continue
        if val.dtype is not torch.float32:
            editor.refuse(node, "squares of what is not float32 may overflow")
            continue
        channels = val.shape[1]
        gain, shift = argument(node, 2, "weight"), argument(node, 3, "bias")
        if node.target is _aten.layer_norm.default:
            if list(node.args[1]) == list(val.shape[1:]):  # type: ignore[arg-type]
                eps = float(argument(node, 4, "eps", 1e-5))
                editor.replace(node, _normalized(editor, node, channels, 1, eps, gain, shift))
            continue
        if node.target is _aten.group_norm.default:
            groups, eps = argument(node, 1, "num_groups"), float(argument(node, 4, "eps", 1e-5))
        elif argument(node, 5, "use_input_stats"):
            groups, eps = channels, float(argument(node, 7, "eps"))
            gain, shift = argument(node, 1, "weight"), argument(node, 2, "bias")
        else:
            continue
        gain, shift = (
            None if n is None else editor.call(node, _aten.reshape.default, n, [1, channels, 1, 1])
            for n in (gain, shift)
        )
        editor.replace(node, _normalized(editor, node, channels, groups, eps, gain, shift))
    return editor.finish()


def _normalized(
    editor: Editor, node: Node, channels: int, groups: int, eps: float, gain: Node | None, shift: Node | None
) -> Node:
    """The nodes of the module's equation."""
    x = node.args[0]
    centred = editor.call(node, _aten.sub.Tensor, x, _mean(editor, node, x, channels, groups))
    square = editor.call(node, _aten.mul.Tensor, centred, centred)
    variance = editor.call(node, _aten.add.Tensor, _mean(editor, node, square, channels, groups), eps)
    result = editor.call(node, _aten.mul.Tensor, centred, editor.call(node, _aten.rsqrt.default, variance))
    for target, operand in ((_aten.mul.Tensor, gain), (_aten.add.Tensor, shift)):
        if operand is not None:
            result = editor.call(node, target, result, operand)
    return result


def _mean(editor: Editor, node: Node, x: object, channels: int, groups: int) -> Node:
    pooled = editor.call(node, _aten.mean.dim, x, [-1, -2], True)
    if groups == channels:
        return pooled
    size = channels // groups
    mean = torch.block_diag(*[torch.full((size, size), 1 / size)] * groups).reshape(channels, channels, 1, 1)
    return editor.call(node, _aten.conv2d.default, pooled, editor.constant(mean, ("groups", channels, groups)))
