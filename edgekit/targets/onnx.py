"""ONNX, run by ONNX Runtime."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from edgekit.graph import rewrite
from edgekit.graph.half import to_half
from edgekit.quantization.weight_only import EVERY, LINEAR, WeightScheme
from edgekit.targets import onnx_compression, onnx_int8, onnx_sources
from edgekit.targets._base import Arrays, Runner, Target, need
from edgekit.targets._diagnosis import explain
from edgekit.targets._graph import sample_inputs
from edgekit.types import Delegation, OpCount, TensorSpec


@final
class Onnx(Target):
    name = "onnx"
    title = "ONNX"
    suffix = ".onnx"
    extra = "onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    modules = ("onnx", "onnxscript")
    runtime_modules = ("onnxruntime",)
    precisions: Mapping[str, str] = {
        "fp32": "float32 weights and compute",
        "fp16": "float16 weights and ops, float32 input and output; ONNX Runtime's CPU computes some ops in float32",
        "int8": "8-bit weights and activations, computed in integers; float32 input and output",
        "int8-dynamic": "8-bit weights; matrix products quantize what they multiply as they run, the rest is float32",
        "int8-weight": "8-bit weights, which become float32 when ONNX Runtime loads them",
        "int4-weight": "4-bit weights of matrix products, 8-bit ones of convolutions, computed in float32",
    }

    schemes: Mapping[str, WeightScheme] = {
        "int8-dynamic": WeightScheme(int8=EVERY),
        "int8-weight": WeightScheme(int8=EVERY),
        "int4-weight": WeightScheme(int8=EVERY, int4=frozenset({LINEAR})),
    }

    @property
    def runtime(self) -> str:
        return f"ONNX Runtime {version('onnxruntime')}"

    def lower(
        self,
        program: ExportedProgram,
        precision: str,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Delegation:
        onnx = need("onnx", self)
        if precision == "fp16":
            program = to_half(program, sample_inputs(program))
        program = rewrite(program, self.name)
        try:
            exported = torch.onnx.export(
                program,
                input_names=[s.name for s in inputs],
                output_names=[s.name for s in outputs],
                dynamo=True,
                verbose=False,
            )
            assert exported is not None
            model = exported.model_proto
            if precision == "int8":
                onnx_int8.fuse(onnx, model)
            sources = onnx_sources.noted(model)
            _strip(model)
            if precision in onnx_compression.PRECISIONS:
                onnx_compression.compress(onnx, model, precision)
            ops = onnx_sources.file_ops(model, sources)
            onnx.checker.check_model(model)
        except Exception as error:  # torch.onnx wraps what it meets in several types, the cause last
            raise explain(self, program, error) from error
        path.write_bytes(model.SerializeToString(deterministic=True))
        return Delegation(backend="ONNX Runtime CPU", delegated=len(model.graph.node), ops=ops)

    def runner(
        self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], threads: int = 0
    ) -> Runner:
        ort = need("onnxruntime", self)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [s.name for s in outputs]

        def run(arrays: Sequence[NDArray[Any]]) -> Arrays:
            feed = {spec.name: array for spec, array in zip(inputs, arrays, strict=True)}
            return list(session.run(names, feed))

        return run

    def inspect(self, path: Path) -> tuple[OpCount, ...]:
        model = need("onnx", self).load(str(path))
        counts = Counter(node.op_type for node in model.graph.node)
        return tuple(OpCount(op=op, count=n, delegated=True) for op, n in counts.most_common())


def _strip(model: Any) -> None:
    """Remove what the exporter notes about the machine: paths in stack traces, and intermediate shapes."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
