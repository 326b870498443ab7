"""ONNX: weights that lie on a grid, stored as its integers, in the forms that ONNX Runtime runs well.

int8              Mul(Cast(q), s): folded when a session starts, where a DequantizeLinear is computed at every run
int8, dynamic     s_x s MatMulInteger(q_x, q) with (q_x, s_x, z_x) = DynamicQuantizeLinear(x); not ConvInteger,
                  which takes ten times as long as the float convolution
int4              MatMulNBits, which multiplies by the packed integers
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.quantization.weight_only import BLOCK, Grid, on_grid

PRECISIONS = ("int8", "int8-weight", "int8-dynamic", "int4-weight")
_CONTRIB = "com.microsoft"


def compress(onnx: Any, model: Any, precision: str) -> None:
    """Store each weight of `model` that lies on a grid as integers and scales; `onnx` is the package of that name."""
    writer = _Writer(onnx, model, precision)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        writer.write(node)
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


class _Writer:
    """Writes the nodes of a graph anew, those with a weight on a grid in the form of their precision."""

    def __init__(self, onnx: Any, model: Any, precision: str) -> None:
        self.onnx, self.model, self.graph = onnx, model, model.graph
        self.dynamic = precision == "int8-dynamic"
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made: dict[tuple[str, ...], list[str]] = {}

    def write(self, node: Any) -> None:
        weight = self.stored.get(node.input[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _given(node, "transB", 0))
        grid = None if weight is None else _grid(self.onnx.numpy_helper.to_array(weight), turned)
        product = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _given(node, "transA", 0))
        if grid is None:
            self.graph.node.append(node)
        elif grid.bits == 4 and product:
            self._add_bias(node, self._packed_product(node, grid))
        elif grid.bits == 8 and product and self.dynamic:
            self._add_bias(node, self._integer_product(node, grid))
        else:
            node.input[1] = self._weight(node.input[1], grid, turned)
            self.graph.node.append(node)

    def _weight(self, name: str, grid: Grid, turned: bool) -> str:
        """The weight as a float of the shape it had, computed from its integers."""
        if ("weight", name, str(turned)) not in self.made:
            shape = tuple(self.stored[name].dims)
            outputs_first = grid.ints.flatten(1).numpy()
            scale = grid.scale.expand(grid.ints.shape).flatten(1).numpy() if grid.bits == 4 else grid.scale[..., 0]
            ints = outputs_first.T if turned else outputs_first.reshape(shape)
            scales = scale.T if turned else np.asarray(scale).reshape(-1, *[1] * (len(shape) - 1))
            cast = self._node("Cast", [self._constant(f"{name}_integers", ints)], f"{name}_cast", to=1)
            self.made["weight", name, str(turned)] = [
                self._node("Mul", [cast, self._constant(f"{name}_scale", np.asarray(scales))], f"{name}_float")
            ]
        return self.made["weight", name, str(turned)][0]

    def _integer_product(self, node: Any, grid: Grid) -> str:
        given, name, output = node.input[0], node.input[1], node.output[0]
        if ("quantized", given) not in self.made:
            self.made["quantized", given] = [f"{given}_{what}" for what in ("quantized", "step", "zero")]
            self.graph.node.append(
                self.onnx.helper.make_node("DynamicQuantizeLinear", [given], self.made["quantized", given])
            )
        quantized, step, zero = self.made["quantized", given]
        ints = self._constant(f"{name}_integers", grid.ints.flatten(1).T.numpy())
        scale = self._constant(f"{name}_scale", grid.scale.flatten().numpy())
        total = self._node("MatMulInteger", [quantized, ints, zero], f"{output}_integers")
        steps = self._node("Mul", [step, scale], f"{output}_step")
        return self._node("Mul", [self._node("Cast", [total], f"{output}_cast", to=1), steps], f"{output}_product")

    def _packed_product(self, node: Any, grid: Grid) -> str:
        name = node.input[1]
        outputs, blocks, _ = grid.ints.shape
        codes = (grid.ints + 8).to(torch.uint8).reshape(outputs, blocks, BLOCK // 2, 2)
        packed = self._constant(f"{name}_integers", (codes[..., 0] | codes[..., 1] << 4).numpy())
        scale = self._constant(f"{name}_scale", grid.scale.reshape(-1).numpy())
        if not any(known.domain == _CONTRIB for known in self.model.opset_import):
            self.model.opset_import.append(self.onnx.helper.make_opsetid(_CONTRIB, 1))
        self.graph.node.append(
            self.onnx.helper.make_node(
                "MatMulNBits",
                [node.input[0], packed, scale],
                [f"{node.output[0]}_product"],
                domain=_CONTRIB,
                K=blocks * BLOCK,
                N=outputs,
                bits=4,
                block_size=BLOCK,
            )
        )
        return f"{node.output[0]}_product"

    def _add_bias(self, node: Any, product: str) -> None:
        """The last node of what stands for a Gemm or MatMul: it writes that node's output."""
        has = len(node.input) > 2 and bool(node.input[2])
        self._node("Add" if has else "Identity", [product, node.input[2]] if has else [product], node.output[0])

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        if ("constant", name) not in self.made:
            self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
            self.made["constant", name] = [name]
        return name

    def _node(self, kind: str, inputs: list[str], output: str, to: int | None = None) -> str:
        attributes = {} if to is None else {"to": to}
        self.graph.node.append(self.onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output


def _given(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _grid(weight: NDArray[Any], turned: bool) -> Grid | None:
    """The grid of a weight, given with its outputs last where `turned`."""
    if weight.dtype != np.float32 or (turned and weight.ndim != 2):
        return None
    tensor = torch.from_numpy(weight.T.copy() if turned else weight.copy())
    return on_grid(tensor, 4) or on_grid(tensor, 8)
