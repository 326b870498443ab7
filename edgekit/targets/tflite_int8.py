"""LiteRT in int8: what its converter is told, and float32 where it would leave int8 at the ends of a model."""

from typing import Any

import numpy as np

from edgekit.targets._base import Target, need


def static(target: Target) -> Any:
    """What tells the converter that a graph's quantize nodes are meant for int8 kernels."""
    quantizer = need("litert_torch.quantize.pt2e_quantizer", target)
    config = quantizer.get_symmetric_quantization_config(is_per_channel=True)
    return need("litert_torch.quantize.quant_config", target).QuantConfig(
        pt2e_quantizer=quantizer.PT2EQuantizer().set_global(config)
    )


def float_ends(target: Target, content: bytes) -> bytes:
    """The model with float32 inputs and outputs: the converter takes the first and last quantization off.

    Its int8 inputs and outputs become inner tensors behind QUANTIZE and before DEQUANTIZE.
    """
    tools = need("ai_edge_litert.tools.flatbuffer_utils", target)
    schema = need("ai_edge_litert.schema_py_generated", target)
    model = tools.read_model_from_bytearray(bytearray(content))
    for number, graph in enumerate(model.subgraphs):
        ends = _Ends(schema, model, graph)
        graph.inputs = np.array([ends.moved(int(t), schema.BuiltinOperator.QUANTIZE) for t in graph.inputs], np.int32)
        graph.outputs = np.array(
            [ends.moved(int(t), schema.BuiltinOperator.DEQUANTIZE) for t in graph.outputs], np.int32
        )
        graph.operators = [*ends.first, *graph.operators, *ends.last]
        for signature in model.signatureDefs or ():
            if signature.subgraphIndex == number:
                for entry in (*signature.inputs, *signature.outputs):
                    entry.tensorIndex = ends.replaced.get(entry.tensorIndex, entry.tensorIndex)
    return bytes(tools.convert_object_to_bytearray(model))


class _Ends:
    """The float tensors that stand for the int8 inputs and outputs of a graph, and the ops that make one of the other."""

    def __init__(self, schema: Any, model: Any, graph: Any) -> None:
        self.schema, self.model, self.graph = schema, model, graph
        self.replaced: dict[int, int] = {}
        self.first: list[Any] = []
        self.last: list[Any] = []

    def moved(self, index: int, kind: int) -> int:
        """The tensor outside: a new one of float32 where that of `index` is int8."""
        inner = self.graph.tensors[index]
        if inner.type != self.schema.TensorType.INT8:
            return index
        outer = self.schema.TensorT()
        outer.name, outer.shape, outer.shapeSignature = inner.name, inner.shape, inner.shapeSignature
        outer.type, outer.buffer = self.schema.TensorType.FLOAT32, 0
        inner.name = inner.name + b"_int8"
        self.graph.tensors.append(outer)
        self.replaced[index] = len(self.graph.tensors) - 1
        ends = [index, self.replaced[index]]
        incoming = kind == self.schema.BuiltinOperator.QUANTIZE
        op = self.schema.OperatorT()
        op.opcodeIndex = self._code(kind)
        op.inputs, op.outputs = (np.array([end], np.int32) for end in (ends[::-1] if incoming else ends))
        (self.first if incoming else self.last).append(op)
        return self.replaced[index]

    def _code(self, kind: int) -> int:
        codes = [code.builtinCode for code in self.model.operatorCodes]
        if kind not in codes:
            code = self.schema.OperatorCodeT()
            # Old readers look for the first, which has room for both.
            code.builtinCode = code.deprecatedBuiltinCode = kind
            code.version = 2  # of QUANTIZE and DEQUANTIZE: the first with int8
            self.model.operatorCodes.append(code)
            codes.append(kind)
        return codes.index(kind)
