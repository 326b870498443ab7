"""LiteRT in int8: what its converter is told, and float32 again where it leaves int8 that nothing gains from."""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.export import ExportedProgram

from edgekit.graph._edit import Editor
from edgekit.quantization._ops import DEQUANTIZE
from edgekit.quantization.ranges import QParams
from edgekit.targets._base import Target, need

# What the XNNPACK delegate takes in int8; it runs other kinds in float, if they come so.
_INT8 = frozenset((
    "ADD", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEQUANTIZE", "FULLY_CONNECTED", "MAX_POOL_2D", "MEAN",
    "MUL", "PAD", "QUANTIZE", "RESHAPE", "SLICE", "STRIDED_SLICE", "SUB", "TRANSPOSE",
))  # fmt: skip
_TABLE_READERS = ("ADD", "SUB", "MUL")
_TABLE_BYTES = 4096 * 4


def static(target: Target) -> Any:
    """What tells the converter that a graph's quantize nodes are meant for int8 kernels."""
    quantizer = need("litert_torch.quantize.pt2e_quantizer", target)
    config = quantizer.get_symmetric_quantization_config(is_per_channel=True)
    return need("litert_torch.quantize.quant_config", target).QuantConfig(
        pt2e_quantizer=quantizer.PT2EQuantizer().set_global(config)
    )


def tables(program: ExportedProgram) -> set[QParams]:
    """The scales and zero points of constants that a Q/DQ program stores in int8, weights aside."""
    editor = Editor(program)
    found = [n for n in editor.nodes(DEQUANTIZE) if editor.constant_value(n.args[0]) is not None]
    return {QParams(*node.args[1:3]) for node in found}  # type: ignore[arg-type]


def float_islands(target: Target, content: bytes, scales: Collection[QParams] = ()) -> bytes:
    """The model with float32 inputs and outputs, and with float32 around each op that has no int8 kernel in XNNPACK.

    The converter takes a model's first and last quantization off, and turns every op between a dequantize and a
    quantize node into one of int8. Both come back as QUANTIZE and DEQUANTIZE. Constants that float ops read come back
    as int8 too, if they are whole steps of one of `scales`.
    """
    tools = need("ai_edge_litert.tools.flatbuffer_utils", target)
    model = tools.read_model_from_bytearray(bytearray(content))
    schema = need("ai_edge_litert.schema_py_generated", target)
    for number, graph in enumerate(model.subgraphs):
        casts = _Casts(schema, model, graph)
        written: list[Any] = []
        for op in graph.operators:
            name = tools.opcode_to_name(model, op.opcodeIndex)
            if name in _TABLE_READERS:
                written += casts.stored_tables(op, scales)
            if name in _INT8:
                written.append(op)
            else:
                written += casts.around(op)
        graph.operators = casts.ends(written)
        for signature in model.signatureDefs or ():
            if signature.subgraphIndex == number:
                for entry in (*signature.inputs, *signature.outputs):
                    entry.tensorIndex = casts.outer.get(entry.tensorIndex, entry.tensorIndex)
    return bytes(tools.convert_object_to_bytearray(model))


class _Casts:
    """Float tensors beside the int8 ones of a graph, and the ops that make one of the other."""

    def __init__(self, schema: Any, model: Any, graph: Any) -> None:
        self.schema, self.model, self.graph = schema, model, graph
        self.outer: dict[int, int] = {}
        """The float tensors that stand for int8 inputs and outputs of the graph."""
        self.tables: dict[int, int] = {}
        """The same for constants that are stored in int8."""

    def ends(self, operators: list[Any]) -> list[Any]:
        """`operators` between float inputs and outputs of the graph."""
        kinds, first, last = self.schema.BuiltinOperator, [], []
        for indices in (self.graph.inputs, self.graph.outputs):
            for place, index in enumerate(indices):
                if not self._is_int8(int(index)):
                    continue
                # The name is the model's interface.
                name = self.graph.tensors[index].name
                self.graph.tensors[index].name = name + b"_int8"
                self.outer[int(index)] = self._float(int(index), name)
                indices[place] = self.outer[int(index)]
                if indices is self.graph.inputs:
                    first.append(self._op(kinds.QUANTIZE, self.outer[int(index)], int(index)))
                else:
                    last.append(self._op(kinds.DEQUANTIZE, int(index), self.outer[int(index)]))
        return [*first, *operators, *last]

    def around(self, op: Any) -> list[Any]:
        """`op` in float, between the ops that make its int8 operands float and its results int8."""
        kinds, before, behind = self.schema.BuiltinOperator, [], []
        for place, index in enumerate(map(int, op.inputs)):
            if index >= 0 and self._is_int8(index):
                op.inputs[place] = self._float(index, self.graph.tensors[index].name + b"_float")
                before.append(self._op(kinds.DEQUANTIZE, index, int(op.inputs[place])))
        for place, index in enumerate(map(int, op.outputs)):
            if self._is_int8(index):
                op.outputs[place] = self._float(index, self.graph.tensors[index].name + b"_float")
                behind.append(self._op(kinds.QUANTIZE, int(op.outputs[place]), index))
        return [*before, op, *behind]

    def stored_tables(self, op: Any, scales: Collection[QParams]) -> list[Any]:
        """The ops that read constants of `op` from int8, which they are from now on."""
        before = []
        for place, index in enumerate(map(int, op.inputs)):
            if index in self.tables:
                op.inputs[place] = self.tables[index]
                continue
            tensor = self.graph.tensors[index]
            data = self.model.buffers[tensor.buffer].data
            if tensor.type != self.schema.TensorType.FLOAT32 or data is None or len(data) < _TABLE_BYTES:
                continue
            values = np.frombuffer(bytes(data), np.float32)
            for known in scales:
                scale, zero = np.float32(known.scale), known.zero_point
                steps = np.clip(np.round(values / scale) + zero, -128, 127).astype(np.int8)
                if np.array_equal((steps.astype(np.float32) - zero) * scale, values):
                    self.tables[index] = op.inputs[place] = self._float(index, tensor.name + b"_float")
                    self._make_int8(tensor, steps, known)
                    before.append(self._op(self.schema.BuiltinOperator.DEQUANTIZE, index, int(op.inputs[place])))
                    break
        return before

    def _make_int8(self, tensor: Any, steps: NDArray[np.int8], qparams: QParams) -> None:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(steps.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        old = tensor.buffer
        tensor.buffer, tensor.type = len(self.model.buffers) - 1, self.schema.TensorType.INT8
        tensor.quantization = self.schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [qparams.scale], [qparams.zero_point]
        if all(other.buffer != old for graph in self.model.subgraphs for other in graph.tensors):
            self.model.buffers[old].data = None

    def _is_int8(self, index: int) -> bool:
        return bool(self.graph.tensors[index].type == self.schema.TensorType.INT8)

    def _float(self, index: int, name: bytes) -> int:
        """A new float32 tensor of the shape of another."""
        like, fresh = self.graph.tensors[index], self.schema.TensorT()
        fresh.name, fresh.shape, fresh.shapeSignature = name, like.shape, like.shapeSignature
        fresh.type, fresh.buffer = self.schema.TensorType.FLOAT32, 0
        self.graph.tensors.append(fresh)
        return len(self.graph.tensors) - 1

    def _op(self, kind: int, source: int, result: int) -> Any:
        op = self.schema.OperatorT()
        op.opcodeIndex = self._code(kind)
        op.inputs, op.outputs = np.array([source], np.int32), np.array([result], np.int32)
        return op

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
