"""The operations of a captured graph as quantization sees them, and the nodes that a Q/DQ program is made of."""

import fnmatch

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, value

_aten = torch.ops.aten
_qd = torch.ops.quantized_decomposed

QUANTIZE = _qd.quantize_per_tensor.default
DEQUANTIZE = _qd.dequantize_per_tensor.default
DEQUANTIZE_WEIGHT = _qd.dequantize_per_channel.default
QMIN, QMAX = -128, 127
WEIGHT_QMAX = 127

# Multiply by constant weights: what int8 is for.
COMPUTE = (_aten.conv2d.default, _aten.linear.default)
# A kernel clamps its result for nothing.
CLAMPS = (
    _aten.relu.default, _aten.relu_.default, _aten.relu6.default, _aten.hardtanh.default, _aten.hardtanh_.default,
    _aten.clamp.default,
)  # fmt: skip
ARITHMETIC = (_aten.add.Tensor, _aten.mul.Tensor, _aten.sub.Tensor)
MEANS = (_aten.mean.dim,)
CAT = _aten.cat.default
# Values move or are chosen, none is computed: the result has the scale of the operand.
MOVES = (
    _aten.reshape.default, _aten.view.default, _aten.permute.default, _aten.transpose.int, _aten.slice.Tensor,
    _aten.flatten.using_ints, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.max_pool2d.default,
    _aten.constant_pad_nd.default, _aten.pad.default, _aten.maximum.default, _aten.minimum.default,
)  # fmt: skip


def tensor_operands(node: Node) -> list[Node]:
    """The operands of `node` that hold activations or constants of float type."""
    return [n for n in node.all_input_nodes if (v := value(n)) is not None and v.dtype == torch.float32]


def weight_of(editor: Editor, node: Node) -> torch.Tensor | None:
    """The constant weight of a convolution of maps or a linear; None where it or the bias is computed, or elsewhere."""
    if node.target not in COMPUTE:
        return None
    weight, bias = editor.constant_value(node.args[1]), argument(node, 2, "bias")
    rank = 4 if node.target is _aten.conv2d.default else 2
    source = value(node.args[0])
    if weight is None or weight.dim() != rank or (rank == 4 and (source is None or source.dim() != 4)):
        return None
    return None if bias is not None and editor.constant_value(bias) is None else weight.detach()


def bias_of(editor: Editor, node: Node) -> torch.Tensor | None:
    """The constant bias of a convolution or linear, or None."""
    bias = editor.constant_value(argument(node, 2, "bias"))
    return None if bias is None else bias.detach()


def module_path(node: Node) -> str:
    """The path of the innermost module that a node came from: "blocks.3.conv"."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def op_name(node: Node) -> str:
    """What tells an operation from the others of its module: "blocks.3:conv2d_7"."""
    return f"{module_path(node)}:{node.name}"


def matches(node: Node, patterns: tuple[str, ...]) -> bool:
    """Whether the node, its module or one around it is named by a pattern of the shell."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [op_name(node), *(str(path) for path, _ in stack.values() if path)]
    return any(fnmatch.fnmatchcase(name, p) for name in names for p in patterns)
