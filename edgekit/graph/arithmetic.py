"""Numbers and powers in forms that stay in a delegate.

x + 2       = x + 2.0                 a whole number becomes an int64 tensor and a cast, which XNNPACK does not take
x + 0.1     = x + [0.1]               float16 only: a number becomes a float32 tensor and a cast
1 / x       = [1] / x                 XNNPACK has no reciprocal
x^2, x^3    = x * x, (x * x) * x;   x^0.5 = sqrt(x);   x^-0.5 = rsqrt(x);   x^-1 = [1] / x
x * 1       = x
"""

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, value

_aten = torch.ops.aten
_SCALED = (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor)


def plain_powers(program: ExportedProgram) -> ExportedProgram:
    """Reciprocals and powers 3, 2, 1/2, -1/2 and -1; other powers stay."""
    editor = Editor(program)
    for node in editor.nodes(_aten.reciprocal.default, _aten.pow.Tensor_Scalar):
        x, val = node.args[0], value(node.args[0])
        power = -1 if node.target is _aten.reciprocal.default else node.args[1]
        if val is None or not isinstance(x, Node) or not val.dtype.is_floating_point:
            continue
        result = _power(editor, node, x, float(power))  # type: ignore[arg-type]
        if result is not None:
            editor.replace(node, result)
    return editor.finish()


def _power(editor: Editor, node: Node, x: Node, power: float) -> Node | None:
    if power in (2, 3):
        square = editor.call(node, _aten.mul.Tensor, x, x)
        return square if power == 2 else editor.call(node, _aten.mul.Tensor, square, x)
    if abs(power) == 0.5:
        return editor.call(node, _aten.sqrt.default if power > 0 else _aten.rsqrt.default, x)
    if power == -1:
        return editor.call(node, _aten.div.Tensor, _number(editor, x, 1.0), x)
    return None


def typed_numbers(program: ExportedProgram) -> ExportedProgram:
    """Numbers beside floating-point tensors in the tensor's type; a product with 1 is its operand."""
    editor = Editor(program)
    for node in editor.nodes(*_SCALED, _aten.rsub.Scalar):
        x: Any = node.args[0]
        number: Any = node.args[1]
        val = value(x)
        if val is None or type(number) not in (int, float) or not val.dtype.is_floating_point:
            continue
        if argument(node, 2, "alpha", 1) != 1 or node.kwargs.get("rounding_mode"):
            continue
        half = val.dtype is torch.float16 and val.dim() > 0
        if number == 1 and node.target in (_aten.mul.Tensor, _aten.div.Tensor):
            editor.replace(node, x)
        elif node.target is _aten.rsub.Scalar:
            typed = _number(editor, x, float(number))
            editor.replace(node, editor.call(node, _aten.sub.Tensor, typed, x))
        elif half or isinstance(number, int):
            given = _number(editor, x, float(number)) if half else float(number)
            editor.replace(node, editor.call(node, node.target, x, given))
    return editor.finish()


def _number(editor: Editor, like: Any, number: float) -> Node:
    """A number as a tensor of one element, which every operand with dimensions broadcasts."""
    val = value(like)
    assert val is not None
    size = (1,) if val.dim() else ()
    return editor.constant(torch.full(size, number, dtype=val.dtype), ("number", number, val.dtype, size))
