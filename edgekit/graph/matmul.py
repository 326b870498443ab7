"""Matrix products and attention on batches as three-dimensional `bmm`.

matmul(A, B) of equal leading dimensions n1, n2, ...  =  reshape(bmm(reshape(A, (n1 n2 ..., M, K)), reshape(B, ...)))

Left alone, such a matmul is decomposed into two `expand`s, two views and a bmm; XNNPACK takes no expand, which breaks
an attention block into a delegate for each product. `scaled_dot_product_attention` becomes scale, product, softmax,
product for the same reason::

    SDPA(q, k, v, mask) = softmax((q s) k^T + mask) v     with s = scale, or d^-1/2

Where a runtime's product reads transposed operands for free (ONNX Runtime fuses them), a transposed result is worth
turning inside out: (A B)^T = B^T A^T.
"""

import math

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import PERMUTES, Editor, argument, permutation, shape, value

_aten = torch.ops.aten


def batched_matmul(program: ExportedProgram) -> ExportedProgram:
    """Every matmul of two tensors with the same leading dimensions as one bmm; broadcasting ones stay."""
    editor = Editor(program)
    for node in editor.nodes(_aten.matmul.default):
        left, right = shape(node.args[0]), shape(node.args[1])
        if left is None or right is None or len(left) < 3 or left[:-2] != right[:-2]:
            continue
        editor.replace(node, _product(editor, node, node.args[0], node.args[1]))
    return editor.finish()


def attention(program: ExportedProgram) -> ExportedProgram:
    """Scaled dot-product attention written out: no dropout, no grouped heads, mask constant or absent."""
    editor = Editor(program)
    for node in editor.nodes(_aten.scaled_dot_product_attention.default):
        q, k, v = node.args[:3]
        mask = argument(node, 3, "attn_mask")
        causal = bool(argument(node, 5, "is_causal", False))
        q_shape, k_shape, v_shape = shape(q), shape(k), shape(v)
        if (
            q_shape is None or k_shape is None or v_shape is None or len(q_shape) < 3
            or not (q_shape[:-2] == k_shape[:-2] == v_shape[:-2])
            or argument(node, 4, "dropout_p", 0.0) or node.kwargs.get("enable_gqa")
        ):  # fmt: skip
            continue
        added = _mask(editor, mask, causal, q_shape[-2], k_shape[-2], value(q))
        if added is None and (mask is not None or causal):
            continue
        scale = node.kwargs.get("scale")
        scaled = editor.call(node, _aten.mul.Tensor, q, q_shape[-1] ** -0.5 if scale is None else scale)
        logits = _product(editor, node, scaled, editor.call(node, _aten.transpose.int, k, -2, -1))
        if added is not None:
            logits = editor.call(node, _aten.add.Tensor, logits, added)
        weights = editor.call(node, _aten.softmax.int, logits, -1)
        editor.replace(node, _product(editor, node, weights, v))
    return editor.finish()


def transposed_products(program: ExportedProgram) -> ExportedProgram:
    """(A B^T)^T as B A^T: one explicit transpose less for each product whose only use is its transpose."""
    editor = Editor(program)
    for node in editor.nodes(*PERMUTES):
        product = node.args[0]
        if not isinstance(product, Node) or product.target not in (_aten.matmul.default, _aten.bmm.default):
            continue
        left, right = product.args[:2]
        if len(product.users) != 1 or not _swaps_last(node) or not _swaps_last(right):
            continue
        if len(shape(left) or ()) < 2:
            continue
        assert isinstance(right, Node)
        flipped = editor.call(node, _aten.transpose.int, left, -2, -1)
        editor.replace(node, editor.call(node, product.target, right.args[0], flipped))
    return editor.finish()


def _swaps_last(node: object) -> bool:
    """Whether a node exchanges the last two dimensions and nothing else."""
    order = permutation(node)
    if order is None:
        return False
    rank = len(order)
    return order == (*range(rank - 2), rank - 1, rank - 2)


def _mask(
    editor: Editor, mask: object, causal: bool, queries: int, keys: int, like: torch.Tensor | None
) -> object | None:
    """What is added to the logits: a float mask as it is, a constant boolean or causal one as 0 and -inf."""
    assert like is not None
    if causal and mask is None:
        allowed, name = torch.ones(queries, keys, dtype=torch.bool).tril(), "causal"
    else:
        given = value(mask)
        if causal or given is None:
            return None
        constant = editor.constant_value(mask)
        if given.dtype.is_floating_point:
            return None if constant is not None and bool((constant == -torch.inf).all(-1).any()) else mask
        # A query that may attend to nothing gets zeros from SDPA, but the mean of all values from a softmax.
        if constant is None or not bool(constant.bool().any(-1).all()):
            return None
        assert isinstance(mask, Node)
        allowed, name = constant.bool(), mask.name
    # The dtype's lowest finite value, not -inf: a runtime's softmax may compute inf - inf in a fully masked row.
    floor = torch.finfo(like.dtype).min
    key = ("mask", name, queries, keys, like.dtype)
    return editor.constant(torch.zeros(allowed.shape, dtype=like.dtype).masked_fill(~allowed, floor), key)


def _product(editor: Editor, node: Node, left: object, right: object) -> Node:
    """left @ right with equal leading dimensions, as bmm between reshapes where there is more than one of them."""
    left_shape, right_shape = shape(left), shape(right)
    assert left_shape is not None
    assert right_shape is not None
    lead = left_shape[:-2]
    if len(lead) == 1:
        return editor.call(node, _aten.bmm.default, left, right)
    count = math.prod(lead)
    flat = [
        editor.call(node, _aten.reshape.default, operand, [count, *sizes[-2:]])
        for operand, sizes in ((left, left_shape), (right, right_shape))
    ]
    result = editor.call(node, _aten.bmm.default, *flat)
    return editor.call(node, _aten.reshape.default, result, [*lead, left_shape[-2], right_shape[-1]])
