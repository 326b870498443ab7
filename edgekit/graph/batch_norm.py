"""Batch norm in eval mode folded into the convolution in front of it.

    BN(W x + b) = (W s) x + (b - mean) s + beta      with s = gamma / sqrt(var + eps), one number a channel

In the graph it does not matter how a module came to call the two: a `Sequential`, `self.bn1(self.conv1(x))` and a
function all leave the same pair. What happens between them (an activation, a tap, a weight computed in `forward`) is
there to be seen too, and then the pair stays.
"""

import operator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument

_aten = torch.ops.aten
_NATIVE = _aten._native_batch_norm_legit_no_training.default
_CONVOLUTIONS = (
    _aten.conv2d.default, _aten.conv2d.padding, _aten.conv1d.default, _aten.conv1d.padding, _aten.convolution.default,
)  # fmt: skip


def fold_batch_norms(program: ExportedProgram) -> ExportedProgram:
    """Fold each norm of constants whose operand is a convolution of constants that nothing else reads."""
    editor = Editor(program)
    for node in editor.nodes(_aten.batch_norm.default, _NATIVE):
        conv = node.args[0]
        if not isinstance(conv, Node) or not _folds(conv) or (results := _results(node)) is None:
            continue
        folded = _folded(editor, conv, node)
        if folded is None:
            continue
        kept = {k: v for k, v in conv.kwargs.items() if k not in ("input", "weight", "bias")}
        new = editor.call(conv, conv.target, argument(conv, 0, "input"), *folded, *conv.args[3:], **kept)
        for result in results:
            editor.replace(result, new)
    return editor.finish()


def _folds(conv: Node) -> bool:
    """Whether a node is a convolution, not a transposed one, that only one other node reads."""
    turned = conv.target is _aten.convolution.default and bool(argument(conv, 6, "transposed"))
    return conv.target in _CONVOLUTIONS and len(conv.users) == 1 and not turned


def _results(norm: Node) -> list[Node] | None:
    """The nodes that hold a norm's result; None where it depends on the batch or its statistics are read too."""
    if norm.target is not _NATIVE:
        return None if argument(norm, 5, "training") else [norm]
    users = list(norm.users)
    plain = all(u.target is operator.getitem and u.args[1] == 0 for u in users)
    return users if plain and users else None


def _folded(editor: Editor, conv: Node, norm: Node) -> tuple[Node, Node] | None:
    """The convolution's new weight and bias; None where an operand is no constant."""
    given = [argument(conv, 1, "weight"), argument(conv, 2, "bias")]
    given += [argument(norm, i, name) for i, name in ((1, "weight"), (2, "bias"))]
    given += [argument(norm, i, name) for i, name in ((3, "running_mean"), (4, "running_var"))]
    values = [None if node is None else editor.constant_value(node) for node in given]
    if any(tensor is None and node is not None for tensor, node in zip(values, given, strict=True)):
        return None
    weight, bias, gain, shift, mean, variance = values
    if weight is None or mean is None or variance is None or not weight.dtype.is_floating_point:
        return None
    eps = float(argument(norm, 7 if norm.target is not _NATIVE else 6, "eps"))
    new = _fold(weight, bias, gain, shift, mean, variance, eps)
    if not all(bool(tensor.isfinite().all()) for tensor in new):
        return None
    # A block that a model runs twice has its weights once.
    key: tuple[Any, ...] = (*(node.name if isinstance(node, Node) else None for node in given), eps)
    return editor.constant(new[0], ("folded weight", *key)), editor.constant(new[1], ("folded bias", *key))


def _fold(
    weight: Tensor, bias: Tensor | None, gain: Tensor | None, shift: Tensor | None, mean: Tensor, variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The module's equation in float64, rounded once."""
    with torch.no_grad():
        scale = torch.rsqrt(variance.double() + eps)
        if gain is not None:
            scale = scale * gain.double()
        new_bias = ((0.0 if bias is None else bias.double()) - mean.double()) * scale
        if shift is not None:
            new_bias = new_bias + shift.double()
        new_weight = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
        return new_weight.to(weight.dtype), new_bias.to(weight.dtype)
