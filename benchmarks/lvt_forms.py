"""How much LVT's deploy form and the graph rewrites buy, in one process.

    python benchmarks/lvt_forms.py [--model lvt|lvt-gap] [--size 224] [--rounds 20] [--threads 2]

Latency of the train form (unfold/fold) in ONNX Runtime, the only runtime that takes it, against the deploy form in
ExecuTorch (XNNPACK), LiteRT and ONNX Runtime; weights are seeded, every output is checked against the train form in
torch first. Runtimes take turns, so that a busy machine slows all of them: the ratios are the result, the milliseconds
are this machine's. ExecuTorch sizes its own thread pool.
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.graph import rewrite
from edgekit.models._deploy import deploy
from edgekit.models.lvt import lvt, lvt_gap

Run = Callable[[Tensor], Tensor]
RUNS_PER_TURN, UNMEASURED = 8, 8


def onnx_runtime(program: ExportedProgram, folder: Path, name: str, threads: int) -> Run:
    """The program in ONNX Runtime's CPU provider."""
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):
        exported = torch.onnx.export(program, dynamo=True)
    assert exported is not None
    path = folder / f"{name}.onnx"
    exported.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {feed: x.numpy()})[0])


def executorch(program: ExportedProgram, folder: Path) -> Run:
    """The program in ExecuTorch with the XNNPACK delegate; prints what was delegated."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    names = [str(n.target) for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    portable = Counter(n for n in names if "call_delegate" not in n and "getitem" not in n)
    delegates = sum("call_delegate" in n for n in names)
    print(f"ExecuTorch: {delegates} delegate(s), {portable.total()} portable op(s) {dict(portable) or ''}")
    path = folder / "deploy.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None
    return lambda x: method.execute([x])[0]


def litert(program: ExportedProgram, image: Tensor, folder: Path, threads: int) -> Run:
    """The program in LiteRT with its XNNPACK delegate."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    path = folder / "deploy.tflite"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        litert_torch.convert(program.module(), (image,)).export(str(path))
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(x: Tensor) -> Tensor:
        interpreter.set_tensor(source, x.numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(result))

    return run


def take_turns(runs: dict[str, Run], image: Tensor, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every run. A turn starts with unmeasured calls: the pool before it spins for a while."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(UNMEASURED):
                run(image)
            for _ in range(RUNS_PER_TURN):
                start = time.perf_counter()
                run(image)
                samples[name].append((time.perf_counter() - start) * 1e3)
    return samples


def quiet() -> None:
    """Exporters narrate; the result is what this program is for."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=("lvt", "lvt-gap"), default="lvt")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    quiet()

    torch.manual_seed(0)
    model: nn.Module = (lvt() if options.model == "lvt" else lvt_gap()).eval()
    image = torch.randn(1, 3, options.size, options.size)
    with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train = torch.export.export(model, (image,))
        plain = torch.export.export(deploy(model), (image,))
        baseline = "ONNX Runtime, train form"
        runs = {
            baseline: onnx_runtime(train, folder, "train", options.threads),
            "ONNX Runtime, deploy form": onnx_runtime(rewrite(plain, "onnx"), folder, "deploy", options.threads),
            "LiteRT, deploy form": litert(rewrite(plain, "tflite"), image, folder, options.threads),
            "ExecuTorch, deploy form": executorch(rewrite(plain, "executorch"), folder),
        }
        reference = model(image)
        for name, run in runs.items():
            error = float((run(image) - reference).norm() / reference.norm())
            if error > 1e-4:
                raise SystemExit(f"{name} is wrong: relative error {error:.1e}")
        samples = take_turns(runs, image, options.rounds)

    best, middle = min(samples[baseline]), statistics.median(samples[baseline])
    print(f"{options.model} {options.size}, fp32, batch 1, {options.threads} threads, {options.rounds} turns each")
    for name, times in samples.items():
        low, median = min(times), statistics.median(times)
        print(f"{name:26s} min {low:6.2f} ms ({best / low:.2f}x)   median {median:6.2f} ms ({middle / median:.2f}x)")


if __name__ == "__main__":
    main()
