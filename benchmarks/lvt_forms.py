"""How much LVT's deploy form and the graph rewrites buy, in one process.

    python benchmarks/lvt_forms.py [--model lvt|lvt-gap] [--rounds 20] [--threads 2]

Latency of the train form (unfold/fold) as torch.onnx exports it, in ONNX Runtime, the only runtime that takes it,
against the deploy form as edgekit exports it to ExecuTorch, LiteRT and ONNX. Every output is checked against the train
form in torch first. Runtimes take turns, so that a busy machine slows all of them: the ratios are the result, the
milliseconds are this machine's. ExecuTorch sizes its own thread pool.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from _measure import interleaved, save, summary

from edgekit.graph.capture import capture
from edgekit.models import create_model, deploy
from edgekit.targets import TARGETS
from edgekit.types import TensorSpec

BASELINE = "ONNX Runtime, train form"


def plain_onnx(module: torch.nn.Module, image: torch.Tensor, path: Path, threads: int) -> Callable[[], np.ndarray]:
    """The module in ONNX Runtime, exported by torch.onnx alone."""
    exported = torch.onnx.export(module, (image,), dynamo=True, verbose=False)
    assert exported is not None
    exported.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)[0]


def exported(
    module: torch.nn.Module, image: torch.Tensor, target: str, folder: Path, threads: int
) -> tuple[Callable[[], np.ndarray], str]:
    """The deploy form as edgekit lowers it, and how much of it the delegate takes."""
    chosen = TARGETS[target]
    inputs = chosen.io((TensorSpec(name="image", shape=tuple(image.shape), layout="NCHW"),))
    outputs = (TensorSpec(name="logits", shape=(1, 1000)),)
    path = folder / f"deploy{chosen.suffix}"
    delegation = chosen.lower(capture(deploy(module), [image]), "fp32", path, inputs, outputs)
    run = chosen.runner(path, inputs, outputs, threads)
    array = image.permute(0, 2, 3, 1).contiguous().numpy() if inputs[0].layout == "NHWC" else image.numpy()
    said = f"{delegation.partitions} delegate(s), {delegation.fallback_count} op(s) outside"
    return (lambda: run([array])[0]), said


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("lvt", "lvt-gap"), default="lvt")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()

    module, image = create_model(asked.model), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        reference = module(image).numpy()
    delegations = {}
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        runs = {BASELINE: plain_onnx(module, image, folder / "train.onnx", asked.threads)}
        for target in ("onnx", "tflite", "executorch"):
            form = f"{TARGETS[target].title}, deploy form"
            runs[form], delegations[form] = exported(module, image, target, folder, asked.threads)
        for form, run in runs.items():
            assert np.linalg.norm(run() - reference) / np.linalg.norm(reference) < 1e-5, form
        # A runtime's threads keep spinning for a while after its turn: the first calls of a turn are not counted.
        times = interleaved(runs, rounds=asked.rounds, calls=8, unmeasured=8)
    results = {form: summary(t) for form, t in times.items()}
    print(f"{asked.model}, fp32, 224x224, batch 1, {asked.threads} threads, {asked.rounds} turns of 8 calls each")
    for form, r in results.items():
        ratios = {key: results[BASELINE][key] / r[key] for key in ("min_ms", "median_ms")}
        print(
            f"{form:<26} min {r['min_ms']:6.2f} ms ({ratios['min_ms']:.2f}x)   median {r['median_ms']:6.2f} ms"
            f" ({ratios['median_ms']:.2f}x)   {delegations.get(form, '')}"
        )
    save("lvt_forms", {"model": asked.model, "threads": asked.threads, "results": results, "delegation": delegations})
