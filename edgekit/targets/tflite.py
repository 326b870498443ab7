"""LiteRT (TFLite), run by ai_edge_litert. Images go in as NHWC, as its tools and camera frames have them."""

import importlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from edgekit.errors import MissingDependency
from edgekit.graph import rewrite
from edgekit.graph.quantized import float_weights
from edgekit.quantization.weight_only import EVERY, LINEAR, WeightScheme
from edgekit.targets import tflite_compression, tflite_int8, tflite_sources
from edgekit.targets._base import Arrays, Runner, Target, need
from edgekit.targets._diagnosis import explain
from edgekit.targets._graph import sample_inputs
from edgekit.types import Delegation, FallbackOp, OpCount, TensorSpec

# On a device either of the older runtimes may be what is there; they read the same files.
RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")


class _ChannelsLast(nn.Module):
    """Takes images as NHWC and gives them to a program that was captured for NCHW."""

    def __init__(self, inner: GraphModule, images: tuple[bool, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.images = images

    def train(self, mode: bool = True) -> "_ChannelsLast":
        return self  # the program is already the eval graph, and refuses to be told

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        moved = [x.permute(0, 3, 1, 2) if image else x for x, image in zip(inputs, self.images, strict=True)]
        # A flat tuple: the converter would give the values of a dictionary in the order of their names.
        return tuple(tree_leaves(tflite_sources.call(self.inner, moved)))


@final
class Tflite(Target):
    name = "tflite"
    title = "LiteRT"
    suffix = ".tflite"
    extra = "tflite"
    packages = ("litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer")
    modules = ("litert_torch", "ai_edge_litert")
    runtime_modules = ()  # any of RUNTIMES will do
    dtypes: Mapping[str, str] = {"int64": "int32"}
    precisions: Mapping[str, str] = {
        "fp32": "float32 weights and compute",
        "fp16": "float16 weights, computed in float32 on a CPU and in float16 on a GPU; float32 input and output",
        "int8": "8-bit weights and activations, computed in integers; float32 input and output",
        "int8-dynamic": "8-bit weights; linears and convolutions but depthwise ones quantize their input as they run",
        "int8-weight": "8-bit weights, computed in float32",
        "int4-weight": "as int8-dynamic, with 4-bit weights of linears",
    }

    schemes: Mapping[str, WeightScheme] = {
        "int8-dynamic": WeightScheme(int8=EVERY),
        "int8-weight": WeightScheme(int8=EVERY),
        "int4-weight": WeightScheme(int8=EVERY, int4=frozenset({LINEAR})),
    }

    def require_runtime(self) -> None:
        _runtime(self)

    def io(self, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(s, shape=(s.shape[0], *s.shape[2:], s.shape[1]), layout="NHWC") if s.layout == "NCHW" else s
            for s in super().io(specs)
        )

    @property
    def runtime(self) -> str:
        return f"LiteRT {version('ai-edge-litert')}"

    def lower(
        self,
        program: ExportedProgram,
        precision: str,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Delegation:
        litert_torch = need("litert_torch", self)
        program = rewrite(program, self.name)
        images = tuple(s.layout == "NHWC" for s in inputs)
        samples = tuple(
            x.permute(0, 2, 3, 1).contiguous() if image else x
            for x, image in zip(sample_inputs(program), images, strict=True)
        )
        config = None
        if precision == "int8":
            scales = tflite_int8.tables(program)
            program, config = float_weights(program), tflite_int8.static(self)
        module = program.module()
        numbered = tflite_sources.number(module)
        try:
            converted = litert_torch.convert(
                _ChannelsLast(module, images), samples, quant_config=config
            ).model_content()
        except Exception as error:  # the converter raises plain RuntimeError and MLIR errors
            raise explain(self, program, error) from error
        if precision == "int8":
            converted = tflite_int8.float_islands(self, converted, scales)
        if precision in tflite_compression.PRECISIONS:
            converted = tflite_compression.compress(self, converted, precision)
        path.write_bytes(converted)  # its own writer ends the process on a full disk
        if precision == "fp16":
            _halve_weights(self, path)
        try:
            self.runner(path, inputs, outputs)
        except (RuntimeError, ValueError) as error:
            # An op that the converter writes and the runtime has no kernel for.
            raise explain(self, program, error) from error
        return replace(self._delegation(path), ops=tflite_sources.file_ops(_interpreter(self, path, 0), numbered))

    def runner(
        self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], threads: int = 0
    ) -> Runner:
        interpreter = _interpreter(self, path, threads)
        interpreter.allocate_tensors()
        signature = interpreter.get_signature_runner()
        # args_0 … args_10: the converter's names, in the order of their numbers.
        taken = sorted(signature.get_input_details(), key=_number)
        given = sorted(signature.get_output_details(), key=_number)

        def run(arrays: Sequence[NDArray[Any]]) -> Arrays:
            results = signature(**dict(zip(taken, arrays, strict=True)))
            return [np.array(results[name]) for name in given]

        return run

    def inspect(self, path: Path) -> tuple[OpCount, ...]:
        interpreter = _interpreter(self, path, 0)
        interpreter.allocate_tensors()
        counts = Counter((d["op_name"], inside) for d, inside in _ops(interpreter))
        return tuple(OpCount(op=op, count=n, delegated=inside) for (op, inside), n in counts.most_common())

    def _delegation(self, path: Path) -> Delegation:
        interpreter = _interpreter(self, path, 0)
        interpreter.allocate_tensors()
        partitions = sum(d["op_name"] == "DELEGATE" for d in interpreter._get_ops_details())
        outside = Counter(d["op_name"] for d, inside in _ops(interpreter) if not inside)
        return Delegation(
            backend="XNNPACK",
            delegated=sum(inside for _, inside in _ops(interpreter)),
            partitions=partitions,
            fallback=tuple(
                FallbackOp(
                    op=op,
                    count=n,
                    reason=f"LiteRT's XNNPACK delegate does not take this {op}; its built-in kernel runs it",
                )
                for op, n in outside.most_common()
            ),
        )


def _interpreter(target: Target, path: Path, threads: int) -> Any:
    return _runtime(target).Interpreter(model_path=str(path), num_threads=threads or None)


def _runtime(target: Target) -> ModuleType:
    for name in RUNTIMES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingDependency("ai-edge-litert", f"target {target.name}", target.extra)


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"(\d+)$", name)
    return (int(digits[1]) if digits else 0, name)


def _ops(interpreter: Any) -> list[tuple[dict[str, Any], bool]]:
    """Every op of the file, and whether a delegate has taken it.

    The interpreter lists the ops that a delegate replaced beside the delegate itself: those are found by
    walking back from the delegate's outputs to its inputs.
    """
    details = interpreter._get_ops_details()
    ops = [d for d in details if d["op_name"] != "DELEGATE"]
    producer = {int(t): d for d in ops for t in d["outputs"]}
    taken: set[int] = set()
    for delegate in (d for d in details if d["op_name"] == "DELEGATE"):
        stop, open_tensors = set(map(int, delegate["inputs"])), list(map(int, delegate["outputs"]))
        while open_tensors:
            op = producer.get(open_tensors.pop())
            if op is not None and op["index"] not in taken:
                taken.add(op["index"])
                open_tensors += [t for t in map(int, op["inputs"]) if t not in stop]
    return [(d, d["index"] in taken) for d in ops]


def _halve_weights(target: Target, path: Path) -> None:
    """Store the weights of convolutions and linears as float16; a runtime that computes in float32 widens them."""
    quantizer = need("ai_edge_quantizer", target).quantizer.Quantizer(str(path))
    types = need("ai_edge_quantizer.qtyping", target)
    quantizer.update_quantization_recipe(
        regex=".*",
        operation_name=types.TFLOperationName.ALL_SUPPORTED,
        op_config=types.OpQuantizationConfig(
            weight_tensor_config=types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT),
            compute_precision=types.ComputePrecision.FLOAT,
        ),
        algorithm_key=need("ai_edge_quantizer.algorithm_manager", target).AlgorithmName.FLOAT_CASTING,
    )
    path.write_bytes(quantizer.quantize().quantized_model)
