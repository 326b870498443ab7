"""LayerNorm over one dimension as matrix products with a row of 1/C, where a runtime has no LayerNorm of its own.

With e = (1/C, ..., 1/C)::

    c = x - e x            centred
    v = e (c * c) + eps    the variance, from centred values: safe in half precision; eps is the product's bias
    y = c * rsqrt(v) (* gamma + beta)        RMSNorm the same with c = x

In float16 the square of 256 is infinite and an eps below 2^-24 is 0, which makes NaN of a constant row. There::

    v = e/s^2 ((s c) * (s c)) + max(eps, 2^-24)    s the power of two next to C^-1/2: s c is exact

so that one channel may be as far out as the variance allows, whose own limit is that of float16 (a deviation of 255).

Over the last dimension e is a linear layer. Where the norm sits between permutes that only bring channels to the end
of (B, C, H, W) and back, e is a 1x1 convolution and both permutes go. XNNPACK takes every one of these operations.
"""

import math

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, permutation, value

_aten = torch.ops.aten
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def layer_norm(program: ExportedProgram) -> ExportedProgram:
    """Write every LayerNorm over the last dimension out; others stay."""
    editor = Editor(program)
    for node in editor.nodes(_aten.layer_norm.default):
        x, normalized = node.args[0], list(node.args[1])  # type: ignore[arg-type]
        val = value(x)
        if val is None or not isinstance(x, Node) or len(normalized) != 1 or val.dim() < 2:
            continue
        gain, shift = argument(node, 2, "weight"), argument(node, 3, "bias")
        eps = float(argument(node, 4, "eps", 1e-5))
        source = x.args[0] if permutation(x) == _TO_LAST else None
        if isinstance(source, Node) and all(permutation(user) == _TO_FIRST for user in node.users):
            result = _normalized(editor, node, source, 1, normalized[0], eps, gain, shift)
            for user in list(node.users):
                editor.replace(user, result)
        else:
            editor.replace(node, _normalized(editor, node, x, -1, normalized[0], eps, gain, shift))
    return editor.finish()


def rms_norm(program: ExportedProgram) -> ExportedProgram:
    """Write every RMSNorm over the last dimension out; others stay."""
    editor = Editor(program)
    for node in editor.nodes(_aten.rms_norm.default):
        x, normalized, val = node.args[0], list(node.args[1]), value(node.args[0])  # type: ignore[arg-type]
        if val is None or not isinstance(x, Node) or len(normalized) != 1 or val.dim() < 2:
            continue
        gain, eps = argument(node, 2, "weight"), argument(node, 3, "eps")
        eps = torch.finfo(val.dtype).eps if eps is None else float(eps)
        editor.replace(node, _normalized(editor, node, x, -1, normalized[0], eps, gain, None, centre=False))
    return editor.finish()


def _normalized(
    editor: Editor,
    node: Node,
    x: Node,
    dim: int,
    size: int,
    eps: float,
    gain: Node | None,
    shift: Node | None,
    centre: bool = True,
) -> Node:
    """The nodes of the module's equation over dimension `dim` (1 of four, or the last)."""
    val = value(x)
    assert val is not None
    dtype, device = val.dtype, val.device
    row_shape = (1, size, 1, 1) if dim == 1 else (1, size)
    product = _aten.conv2d.default if dim == 1 else _aten.linear.default
    half = dtype is torch.float16
    scale = 2.0 ** -round(math.log2(size) / 2) if half else 1.0
    eps = max(eps, 2.0**-24) if half else eps

    def mean_row(share: float) -> Node:
        return editor.constant(torch.full(row_shape, share, dtype=dtype, device=device), (row_shape, share, dtype))

    # Not shared between the two products: ExecuTorch stores a convolution's bias in float32, a linear's in float16.
    epsilon = editor.constant(torch.full((1,), eps, dtype=dtype, device=device), ("eps", dim, eps, dtype))
    centred = x
    if centre:
        centred = editor.call(node, _aten.sub.Tensor, x, editor.call(node, product, x, mean_row(1 / size)))
    scaled = centred
    if scale != 1:  # a tensor: a number would be one of float32 and a cast, which XNNPACK does not take
        factor = editor.constant(torch.tensor([scale], dtype=dtype, device=device), ("scale", scale, dtype))
        scaled = editor.call(node, _aten.mul.Tensor, centred, factor)
    square = editor.call(node, _aten.mul.Tensor, scaled, scaled)
    variance = editor.call(node, product, square, mean_row(1 / size / scale**2), epsilon)
    result = editor.call(node, _aten.mul.Tensor, centred, editor.call(node, _aten.rsqrt.default, variance))
    for target, operand in ((_aten.mul.Tensor, gain), (_aten.add.Tensor, shift)):
        if operand is not None:
            result = editor.call(node, target, result, _along(editor, node, operand, dim, size))
    return result


def _along(editor: Editor, node: Node, operand: Node, dim: int, size: int) -> Node:
    """A per-channel vector in a shape that broadcasts over `dim`; a constant becomes another constant."""
    if dim != 1:
        return operand
    tensor = editor.constant_value(operand)
    if tensor is not None:
        return editor.constant(tensor.detach().reshape(1, size, 1, 1), ("channels", operand.name))
    return editor.call(node, _aten.reshape.default, operand, [1, size, 1, 1])
