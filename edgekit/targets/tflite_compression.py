"""LiteRT: weights that lie on a grid, stored as its integers.

A convolution or linear that reads an integer weight quantizes what comes in as it runs (dynamic range); one that is to
compute in float reads it through a DEQUANTIZE, which LiteRT computes once.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.quantization.weight_only import BLOCK, Grid, on_grid
from edgekit.targets._base import Target, need

PRECISIONS = ("int8", "int8-weight", "int8-dynamic", "int4-weight")
_DYNAMIC = ("int8-dynamic", "int4-weight")
# Where the outputs lie in the weight of each op.
_OUTPUTS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}


def compress(target: Target, content: bytes, precision: str) -> bytes:
    """The model with each weight on a grid as integers and scales."""
    tools = need("ai_edge_litert.tools.flatbuffer_utils", target)
    model = tools.read_model_from_bytearray(bytearray(content))
    writer = _Writer(need("ai_edge_quantizer.qtyping", target), model, precision in _DYNAMIC)
    for graph in model.subgraphs:
        written = [writer.ops(graph, op, tools.opcode_to_name(model, op.opcodeIndex)) for op in graph.operators]
        graph.operators = [op for ops in written for op in ops]
    return bytes(tools.convert_object_to_bytearray(model))


class _Writer:
    def __init__(self, schema: Any, model: Any, dynamic: bool) -> None:
        self.schema, self.model, self.dynamic = schema, model, dynamic
        self.stored: dict[int, int] = {}

    def ops(self, graph: Any, op: Any, kind: str) -> list[Any]:
        """`op` with what has to run before it."""
        if kind not in _OUTPUTS:
            return [op]
        weight, ahead = int(op.inputs[1]), []
        if weight not in self.stored:
            tensor = graph.tensors[weight]
            grid = _grid(tensor, self.model.buffers[tensor.buffer].data, _OUTPUTS[kind])
            if grid is None:
                return [op]
            self._store(graph, tensor, grid, _OUTPUTS[kind])
            self.stored[weight] = weight
            if not self.dynamic or kind == "DEPTHWISE_CONV_2D":
                ahead.append(self._dequantize(graph, weight))
                self.stored[weight] = len(graph.tensors) - 1
        op.inputs[1] = self.stored[weight]
        return [*ahead, op]

    def _dequantize(self, graph: Any, weight: int) -> Any:
        """The op that makes a float of a weight; its result is the graph's last tensor."""
        codes = [code.builtinCode for code in self.model.operatorCodes]
        if self.schema.BuiltinOperator.DEQUANTIZE not in codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = self.schema.BuiltinOperator.DEQUANTIZE
            code.version = 2
            self.model.operatorCodes.append(code)
            codes.append(code.builtinCode)
        result = self.schema.TensorT()
        result.name, result.shape = graph.tensors[weight].name + b"_float", graph.tensors[weight].shape
        result.type, result.buffer = self.schema.TensorType.FLOAT32, 0
        graph.tensors.append(result)
        op = self.schema.OperatorT()
        op.opcodeIndex = codes.index(self.schema.BuiltinOperator.DEQUANTIZE)
        op.inputs, op.outputs = np.array([weight], np.int32), np.array([len(graph.tensors) - 1], np.int32)
        return op

    def _store(self, graph: Any, tensor: Any, grid: Grid, axis: int) -> None:
        ints = grid.ints.flatten(1).numpy()
        if axis == 0:
            ints = ints.reshape(tuple(tensor.shape))
        else:
            ints = np.moveaxis(ints.reshape(ints.shape[0], *tensor.shape[:-1]), 0, -1)
        buffer = self.model.buffers[tensor.buffer]
        quantization = self.schema.QuantizationParametersT()
        if grid.bits == 8:
            tensor.type = self.schema.TensorType.INT8
            buffer.data = np.frombuffer(np.ascontiguousarray(ints).tobytes(), np.uint8)
            quantization.scale = grid.scale.flatten().numpy()
            quantization.zeroPoint = np.zeros(len(quantization.scale), np.int64)
            quantization.quantizedDimension = axis
        else:
            tensor.type = self.schema.TensorType.INT4
            low, high = (ints.reshape(-1, 2) & 15).astype(np.uint8).T
            buffer.data = low | high << 4
            quantization.detailsType = self.schema.QuantizationDetails.BlockwiseQuantization
            details = self.schema.BlockwiseQuantizationT()
            details.scales = self._add(graph, tensor.name + b"_scale", grid.scale[..., 0].numpy().astype(np.float16))
            details.zeroPoints = -1
            details.blockSize = BLOCK
            quantization.details = details
        tensor.quantization = quantization

    def _add(self, graph: Any, name: bytes, value: NDArray[np.float16]) -> int:
        buffer, tensor = self.schema.BufferT(), self.schema.TensorT()
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.name, tensor.shape, tensor.type = name, np.array(value.shape, np.int32), self.schema.TensorType.FLOAT16
        tensor.buffer = len(self.model.buffers) - 1
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1


def _grid(tensor: Any, data: Any, axis: int) -> Grid | None:
    if tensor.type != 0 or data is None or not len(data):
        return None
    weight = np.frombuffer(bytes(data), np.float32).reshape(tuple(tensor.shape))
    outputs_first = torch.from_numpy(np.ascontiguousarray(np.moveaxis(weight, axis, 0)).copy())
    return on_grid(outputs_first, 4) or on_grid(outputs_first, 8)
