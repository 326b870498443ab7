"""Why an int8 artifact is not faster than the same model in fp32, as far as its file and its manifest tell."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgekit.errors import MissingDependency
from edgekit.targets import TARGETS
from edgekit.types import Artifact, Comparison

# How each format calls them. In a .pte only those outside the delegate can be counted: the delegate keeps its own.
QUANTIZE = re.compile(r"(quantized_decomposed::)?quantize(linear|_per_.*)?", re.IGNORECASE)
DEQUANTIZE = re.compile(r"(quantized_decomposed::)?dequantize(linear|_per_.*)?", re.IGNORECASE)

ACTIVATIONS = frozenset(
    ("Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "QuickGelu", "Relu", "Sigmoid", "Tanh")
)
PRODUCTS = frozenset(("Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"))


def not_faster(int8: Artifact, comparison: Comparison) -> str:
    """A warning with the causes where `comparison`, of fp32 (a) with `int8` (b), shows no sure gain, else ""."""
    low, high = comparison.ci95
    if high < 1:
        return ""
    what = "slower than" if low > 1 else "not measurably faster than"
    head = f"int8 is {what} fp32: it takes {comparison.ratio:.2f} ({low:.2f}-{high:.2f}) of the time of {comparison.a}"
    try:
        causes = slow_causes(int8) or ("its file shows no cause: this runtime's int8 kernels gain nothing here",)
    except MissingDependency as error:  # to run a model needs less than to read it
        causes = (f"the cause is not known: {error.message}",)
    return "\n".join((head, *(f"  {cause}" for cause in causes)))


def slow_causes(artifact: Artifact) -> tuple[str, ...]:
    """What in a quantized artifact costs time that int8 should have saved; () where nothing was found.

    Ops outside the delegate and the times it is entered (from the manifest); quantize and dequantize ops that the
    runtime does not fuse away, activations that they enclose and products that are still computed in float (from the
    model file; for ONNX Runtime from the graph it has optimized). Raises `MissingDependency` where it is not installed.
    """
    manifest = artifact.manifest
    delegation = manifest.delegation
    causes = [f"{f.count} x {f.op} runs outside {delegation.backend}: {f.reason}" for f in delegation.fallback]
    if delegation.partitions > 1:
        causes.append(f"{delegation.backend} is entered {delegation.partitions} times in a run, each with copies")
    if manifest.target == "onnx":
        return (*causes, *_onnx_causes(artifact))
    counts: Counter[str] = Counter()
    for op in TARGETS[manifest.target].inspect(artifact.model_path):
        counts[op.op] += op.count
    return (*causes, *_boundary_causes(artifact, counts))


def _boundary_causes(artifact: Artifact, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Quantize and dequantize ops beyond the ones that float32 inputs and outputs need."""
    manifest = artifact.manifest
    quantizes = sum(n for op, n in counts.items() if QUANTIZE.fullmatch(op)) - len(manifest.inputs)
    dequantizes = sum(n for op, n in counts.items() if DEQUANTIZE.fullmatch(op)) - len(manifest.outputs)
    if quantizes <= 0 and dequantizes <= 0:
        return ()
    return (
        f"{max(quantizes, 0)} quantize and {max(dequantizes, 0)} dequantize ops are left inside the model, "
        "beside those of its inputs and outputs: values change between int8 and float on the way",
    )


def _onnx_causes(artifact: Artifact) -> tuple[str, ...]:
    TARGETS["onnx"].require()
    graph = _optimized(artifact.model_path).graph
    counts = Counter(node.op_type for node in graph.node)
    maker = {name: node for node in graph.node for name in node.output}
    causes = list(_boundary_causes(artifact, counts))
    enclosed = Counter(
        node.op_type
        for node in graph.node
        if node.op_type in ACTIVATIONS
        and any(DEQUANTIZE.fullmatch(maker[name].op_type) for name in node.input if name in maker)
    )
    for op, n in enclosed.most_common():
        causes.append(f"{n} x {op} is computed in float between a dequantize and a quantize: not fused")
    floats = Counter(node.op_type for node in graph.node if node.op_type in PRODUCTS)
    for op, n in floats.most_common():
        causes.append(f"{n} x {op} is still computed in float")
    return tuple(causes)


def _optimized(path: Path) -> Any:
    """The graph that ONNX Runtime makes of a model file on this machine and runs."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        saved = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(saved)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(saved))
