"""ExecuTorch: weights that lie on a grid, stored as its integers, where XNNPACK multiplies integers by integers.

    x is quantized as it comes, one scale an image for convolutions and one a row for linears
    weights: 8 bits with one scale an output channel, or 4 bits with one a block of 32 input channels (linears alone)

XNNPACK has no such depthwise convolution, and no product of float activations and integer weights.
"""

import operator

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape
from edgekit.quantization.weight_only import BLOCK, Grid, on_grid

PRECISIONS = ("int8-dynamic", "int4-weight")
_aten, _quantized = torch.ops.aten, torch.ops.quantized_decomposed
_PRODUCTS = (_aten.linear.default, _aten.conv2d.default, _aten.conv2d.padding, _aten.convolution.default)
# PyTorch's own least step of a dynamic scale.
_EPS = torch.finfo(torch.float32).eps


def integer_products(program: ExportedProgram, convolutions: bool = True) -> ExportedProgram:
    """`program` with dynamically quantized inputs and integer weights where a weight lies on a grid.

    Of linears alone unless `convolutions`.
    """
    editor = Editor(program)
    for node in editor.nodes(*(_PRODUCTS if convolutions else _PRODUCTS[:1])):
        weight = argument(node, 1, "weight")
        value = editor.constant_value(weight)
        grid = None if value is None or not _has_kernel(node, value) else on_grid(value, 4) or on_grid(value, 8)
        if value is None or grid is None or (grid.bits == 4 and node.target is not _aten.linear.default):
            continue
        node.replace_input_with(weight, _weight(editor, node, weight, grid, value))
        given = argument(node, 0, "input")
        node.replace_input_with(given, _dynamic(editor, node, given))
        editor.fired += 1
    editor.drop_unused()
    return editor.finish()


def _has_kernel(node: Node, weight: Tensor) -> bool:
    if node.target is _aten.linear.default:
        return True
    given = argument(node, 0, "input")
    channels = shape(given)
    if channels is None or weight.dim() != 4 or (weight.shape[1] == 1 and channels[1] > 1):
        return False
    # Its delegate moves padding into the convolution, which then refuses to run.
    padded = isinstance(given, Node) and given.target in (_aten.pad.default, _aten.constant_pad_nd.default)
    turned = node.target is _aten.convolution.default and bool(argument(node, 6, "transposed"))
    return not padded and not turned


def _dynamic(editor: Editor, node: Node, given: Node) -> Node:
    chosen = editor.call(node, _quantized.choose_qparams.tensor, given, -128, 127, _EPS, torch.int8)
    scale, zero = (editor.call(node, operator.getitem, chosen, n) for n in (0, 1))
    ints = editor.call(node, _quantized.quantize_per_tensor.tensor, given, scale, zero, -128, 127, torch.int8)
    return editor.call(node, _quantized.dequantize_per_tensor.tensor, ints, scale, zero, -128, 127, torch.int8)


def _weight(editor: Editor, node: Node, weight: Node, grid: Grid, value: Tensor) -> Node:
    scales = grid.scale[..., 0] if grid.bits == 4 else grid.scale.flatten()
    constants = (
        editor.constant(grid.ints.reshape(value.shape).contiguous(), ("integers", weight.name)),
        editor.constant(scales.contiguous(), ("scale", weight.name)),
        editor.constant(
            torch.zeros(scales.shape, dtype=torch.int32 if grid.bits == 4 else torch.int64), ("zero", weight.name)
        ),
    )
    if grid.bits == 4:
        return editor.call(
            node, _quantized.dequantize_per_channel_group.default, *constants, -8, 7, torch.int8, BLOCK, torch.float32
        )
    return editor.call(node, _quantized.dequantize_per_channel.default, *constants, 0, -127, 127, torch.int8)
