"""Activations written out where a runtime's own decomposition costs more.

    silu(x) = x * sigmoid(x)
    hardsigmoid(x) = clamp(x + 3, 0, 6) * (1/6)

The decomposition of `silu` computes in float32 around a half-precision graph, that of `hardsigmoid` adds a whole
number: casts each, which XNNPACK does not take.

    gelu(x) = x Phi(x) = max(x, -5) sigmoid(t (a + b t^2 + c t^4)) +- 2.6e-5,  t = x clamped to [-5, 5]  float16 only

XNNPACK has no GELU in float16, and one portable op a block breaks the delegate. The coefficients minimize the largest
error over all x; 2.6e-5 is the spacing of float16 numbers near 0.04, where GELU's results begin to matter. In float32
GELU stays exact.
"""

import torch
from torch.export import ExportedProgram

from edgekit.graph._edit import Editor, argument, value

_aten = torch.ops.aten
_FIT = (1.59500523, 0.0740208836, -7.04591420e-4)
_CLAMP = 5.0


def plain_sigmoids(program: ExportedProgram) -> ExportedProgram:
    """silu as a product with the sigmoid, hardsigmoid as a clamp; GLU as a product of its halves."""
    editor = Editor(program)
    for node in editor.nodes(_aten.hardsigmoid.default):
        moved = editor.call(node, _aten.add.Tensor, node.args[0], 3.0)
        clamped = editor.call(node, _aten.clamp.default, moved, 0.0, 6.0)
        editor.replace(node, editor.call(node, _aten.mul.Tensor, clamped, 1 / 6))
    for node in editor.nodes(_aten.glu.default):
        val, dim = value(node.args[0]), argument(node, 1, "dim", -1)
        if val is None:
            continue
        half = val.shape[dim] // 2
        parts = [editor.call(node, _aten.slice.Tensor, node.args[0], dim, a, a + half) for a in (0, half)]
        gate = editor.call(node, _aten.sigmoid.default, parts[1])
        editor.replace(node, editor.call(node, _aten.mul.Tensor, parts[0], gate))
    for node in editor.nodes(_aten.silu.default):
        x = node.args[0]
        editor.replace(node, editor.call(node, _aten.mul.Tensor, x, editor.call(node, _aten.sigmoid.default, x)))
    return editor.finish()


def half_gelu(program: ExportedProgram) -> ExportedProgram:
    """Exact GELU of float16 tensors by the sigmoid fit; the tanh form and other dtypes stay."""
    editor = Editor(program)
    for node in editor.nodes(_aten.gelu.default):
        x, val = node.args[0], value(node.args[0])
        if val is None or val.dtype is not torch.float16 or node.kwargs.get("approximate", "none") != "none":
            continue
        a, b, c = (
            editor.constant(torch.tensor([term], dtype=val.dtype), ("gelu", index)) for index, term in enumerate(_FIT)
        )
        mul, add = _aten.mul.Tensor, _aten.add.Tensor
        t = editor.call(node, _aten.clamp.default, x, -_CLAMP, _CLAMP)
        square = editor.call(node, mul, t, t)
        series = editor.call(node, add, editor.call(node, mul, square, c), b)
        series = editor.call(node, add, editor.call(node, mul, square, series), a)
        phi = editor.call(node, _aten.sigmoid.default, editor.call(node, mul, t, series))
        # Without the lower clamp a very negative x would multiply the smallest Phi that float16 has.
        floored = editor.call(node, _aten.clamp.default, x, -_CLAMP)
        editor.replace(node, editor.call(node, mul, floored, phi))
    return editor.finish()
