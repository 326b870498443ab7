"""Core ML, run by Core ML on a Mac and by the program evaluator elsewhere."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from numpy.typing import NDArray
from torch.export import ExportedProgram

from edgekit.graph import rewrite
from edgekit.quantization.weight_only import EVERY, LINEAR, WeightScheme
from edgekit.targets import mil
from edgekit.targets._base import Arrays, Runner, Target
from edgekit.targets.coreml_package import convert, package_runner
from edgekit.types import Delegation, OpCount, TensorSpec


@final
class CoreML(Target):
    name = "coreml"
    title = "Core ML"
    suffix = ".mlpackage"
    extra = "coreml"
    packages = ("coremltools",)
    modules = ("coremltools",)
    runtime_modules = ("coremltools",) if sys.platform == "darwin" else ("google.protobuf",)
    dtypes: Mapping[str, str] = dict.fromkeys(("bool", "uint8", "int8", "int16", "int64"), "int32")
    kernels = "exact"
    precisions: Mapping[str, str] = {
        "fp32": "float32 weights and compute",
        "fp16": "float16 weights and compute, float32 input and output",
        "int8": "8-bit weights and activations; iOS 17; the rest in float32",
        "int8-weight": "8-bit weights, the rest as in fp16; iOS 17",
        "int4-weight": "4-bit weights of linears, 8-bit ones of convolutions, the rest as in fp16; iOS 18",
    }

    schemes: Mapping[str, WeightScheme] = {
        "int8-weight": WeightScheme(int8=EVERY),
        "int4-weight": WeightScheme(int8=EVERY, int4=frozenset({LINEAR})),
    }

    @property
    def runtime(self) -> str:
        return "Core ML" if sys.platform == "darwin" else "the Core ML program, evaluated op by op in torch"

    def lower(
        self,
        program: ExportedProgram,
        precision: str,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Delegation:
        program = rewrite(program, self.name)
        convert(program, precision, path, [s.name for s in inputs], [s.name for s in outputs])
        return Delegation(backend="Core ML", delegated=sum(o.count for o in self.inspect(path)))

    def runner(
        self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], threads: int = 0
    ) -> Runner:
        run_named = package_runner(path)

        def run(arrays: Sequence[NDArray[Any]]) -> Arrays:
            results = run_named({spec.name: array for spec, array in zip(inputs, arrays, strict=True)})
            return [results[spec.name] for spec in outputs]

        return run

    def inspect(self, path: Path) -> tuple[OpCount, ...]:
        counts = mil.load(path).ops()
        return tuple(OpCount(op=op, count=n, delegated=True) for op, n in sorted(counts.items(), key=lambda c: -c[1]))
