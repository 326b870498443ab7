"""What edgekit's forms buy over the bare library calls, for one model of every family, on every runtime of this host.

    python benchmarks/naive_vs_edgekit.py [--models lvt,tiny-moat-0] [--rounds 12] [--threads 2]

The naive form is the train form, as a paper's code has it, given to torch.onnx.export, ExecuTorch's XNNPACK
partitioner or litert_torch.convert and nothing else. The other is the same model as `edgekit export` lowers it. Every
output is checked against torch first; a form that the library or its runtime refuses is reported with its words.
All forms of a model run in one process and take turns, so that a busy machine slows all of them: the ratios are the
result, the milliseconds are this machine's. ExecuTorch sizes its own thread pool. fp32, the model's own image
size, batch 1.
"""

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from _measure import interleaved, save, saved, summary
from numpy.typing import NDArray

from edgekit.graph.capture import capture
from edgekit.models import ZOO, create_model, deploy
from edgekit.targets import TARGETS
from edgekit.types import TensorSpec

MODELS = (
    "lvt", "tiny-moat-0", "mobile-former-26m", "mobile-former-294m", "micronet-m0", "micronet-m3", "slab-deit-tiny",
    "slab-pvt-tiny", "slab-pvtv2-b0", "slab-swin-tiny", "swin-tiny-prepbn", "mobilenet-v1-025", "mobilenet-v2",
    "mobilenet-v3-small", "resnet20-cifar",
)  # fmt: skip
RUNTIMES = ("executorch", "tflite", "onnx")
Run = Callable[[], NDArray[Any]]


def naive(module: torch.nn.Module, image: torch.Tensor, target: str, path: Path, threads: int) -> tuple[Run, str]:
    """The train form through the library's own calls, and how much of it the delegate takes."""
    array = image.numpy()
    if target == "onnx":
        exported = torch.onnx.export(module, (image,), dynamo=True, verbose=False)
        assert exported is not None
        exported.save(path, external_data=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: array}
        return (lambda: session.run(None, feed)[0]), ""
    if target == "executorch":
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        edge = to_edge_transform_and_lower(torch.export.export(module, (image,)), partitioner=[XnnpackPartitioner()])
        calls = [str(n.target) for n in edge.exported_program().graph.nodes if n.op == "call_function"]
        inside = sum("call_delegate" in c for c in calls)
        outside = sum("call_delegate" not in c and "getitem" not in c for c in calls)
        path.write_bytes(edge.to_executorch().buffer)
        said = f"{inside} / {outside}"
    else:
        import litert_torch

        path.write_bytes(litert_torch.convert(module, (image,)).model_content())
        said = ""
    spec = TensorSpec(name="image", shape=tuple(image.shape))
    run = TARGETS[target].runner(path, (spec,), (TensorSpec(name="logits", shape=(1, 1)),), threads)
    return (lambda: run([array])[0]), said


def ours(module: torch.nn.Module, image: torch.Tensor, target: str, path: Path, threads: int) -> tuple[Run, str]:
    """The deploy form as edgekit lowers it, and how much of it the delegate takes."""
    chosen = TARGETS[target]
    inputs = chosen.io((TensorSpec(name="image", shape=tuple(image.shape), layout="NCHW"),))
    outputs = (TensorSpec(name="logits", shape=tuple(module(image).shape)),)
    delegation = chosen.lower(capture(deploy(module), [image]), "fp32", path, inputs, outputs)
    run = chosen.runner(path, inputs, outputs, threads)
    array = image.permute(0, 2, 3, 1).contiguous().numpy() if inputs[0].layout == "NHWC" else image.numpy()
    return (lambda: run([array])[0]), f"{delegation.partitions} / {delegation.fallback_count}"


def forms(name: str, folder: Path, threads: int) -> tuple[dict[str, Run], dict[str, dict[str, Any]]]:
    """The forms of a model that run, by "target form", and the facts of each."""
    module = create_model(name)
    image = torch.randn(1, *ZOO[name].input, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = module(image).numpy()
    runs: dict[str, Run] = {}
    facts: dict[str, dict[str, Any]] = {}
    for target in RUNTIMES:
        for form, make in (("naive", naive), ("edgekit", ours)):
            key, path = f"{target} {form}", folder / f"{form}{TARGETS[target].suffix}"
            try:
                run, delegation = make(module, image, target, path, threads)
                error = float(np.linalg.norm(run() - reference) / np.linalg.norm(reference))
                assert error < 1e-4, f"its output is wrong by {error:.1e}"
            except Exception as refusal:  # each library raises its own types
                if form == "edgekit":
                    raise
                facts[key] = {"fails": (str(refusal).strip().splitlines() or [type(refusal).__name__])[0][:160]}
                continue
            runs[key] = run
            facts[key] = {"delegates / outside": delegation, "bytes": path.stat().st_size, "relative_error": error}
    return runs, facts


def measured(name: str, rounds: int, threads: int) -> dict[str, dict[str, Any]]:
    """Facts and times of every form of a model."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()):
            runs, facts = forms(name, Path(folder), threads)
        # A runtime's threads keep spinning for a while after its turn: the first calls of a turn are not counted.
        times = interleaved(runs, rounds=rounds, calls=6, unmeasured=4)
    return {key: fact | (summary(times[key]) if key in times else {}) for key, fact in facts.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="measured anew; others stay as they were saved")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    results = saved("naive_vs_edgekit").get("results", {})
    for name in asked.models.split(","):
        results[name] = measured(name, asked.rounds, asked.threads)
        print(name)
        for key, r in results[name].items():
            time = (
                f"{r['min_ms']:7.2f} ms  median {r['median_ms']:7.2f}  {r['delegates / outside']}"
                if "min_ms" in r
                else r["fails"]
            )
            print(f"  {key:<20} {time}", flush=True)
        ordered = {n: results[n] for n in [*MODELS, *results] if n in results}
        save("naive_vs_edgekit", {"threads": asked.threads, "results": ordered})
