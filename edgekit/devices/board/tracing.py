"""A runtime's own profile of each operator, in its own format: an ETDump, a Chrome trace, our JSON of LiteRT's events.

The file may begin with the profile of runs that were no more than a warm-up: who reads it takes the last ones.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, List, Sequence

import numpy as np

from edgekit.devices.board.runtimes import Failure

Array = Any
WARMUP_RUNS = (3, 30)
WARMUP_SECS = 0.3
ATTEMPTS, CALM = 4, 1.2
"""How often the runs are repeated while their mean is more than so much above the fastest: another had the core."""


def trace(target: str, model: Path, arrays: Sequence[Array], threads: int, runs: int, file: Path) -> float:
    """Write the profile of `runs` runs to `file`; the mean microseconds of those runs, timed around the call.

    Raises `Failure` where the runtime of this machine has no profiler that we know.
    """
    return _TRACERS[target](model, arrays, threads, runs, file)


def _warm_up(call: Callable[[], object]) -> None:
    least, most = WARMUP_RUNS
    began = time.perf_counter()
    for n in range(most):
        if n >= least and time.perf_counter() - began > WARMUP_SECS:
            return
        call()


def _timed(call: Callable[[], object], runs: int) -> List[float]:
    """Microseconds of each of `runs` calls."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - start) / 1e3)
    return taken


def _calm(measure: Callable[[], List[float]]) -> float:
    """The mean of what `measure` gave last, as soon as that was undisturbed."""
    for _ in range(ATTEMPTS):
        taken = measure()
        mean = sum(taken) / len(taken)
        if mean <= CALM * min(taken):
            break
    return mean


def _onnx(model: Path, arrays: Sequence[Array], threads: int, runs: int, file: Path) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    if threads:
        options.intra_op_num_threads = threads
    folder = tempfile.mkdtemp(dir=str(file.parent))
    try:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        feed = dict(zip([i.name for i in session.get_inputs()], arrays))
        _warm_up(lambda: session.run(None, feed))
        whole_us = _calm(lambda: _timed(lambda: session.run(None, feed), runs))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    file.write_text(json.dumps(_compact(events, runs), separators=(",", ":")), encoding="utf-8")
    return whole_us


def _compact(events: Sequence[dict[str, Any]], runs: int) -> list[dict[str, Any]]:
    """The events of the last `runs` runs without what nothing reads, which is most of a file of many megabytes."""
    ends = [n for n, event in enumerate(events) if event.get("name") == "model_run"]
    first = ends[-runs - 1] + 1 if len(ends) > runs else 0
    kept = []
    for event in events[first:]:
        args = {key: event["args"][key] for key in ("op_name", "node_index", "provider") if key in event["args"]}
        kept.append({**{key: event[key] for key in ("cat", "ph", "pid", "tid", "ts", "dur", "name")}, "args": args})
    return kept


def _executorch(model: Path, arrays: Sequence[Array], threads: int, runs: int, file: Path) -> float:
    import torch
    from executorch.extension.pybindings import portable_lib

    if threads and portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    module = portable_lib._load_for_executorch(str(model), enable_etdump=True)
    if not module.has_etdump():
        raise Failure(
            "this ExecuTorch was built without ETDump: it has no times of operators", "Type: pip install executorch", 3
        )
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]

    def call() -> None:
        module.run_method("forward", tensors, clone_outputs=False)

    _warm_up(call)
    whole_us = _calm(lambda: _timed(call, runs))
    module.write_etdump_result_to_file(str(file))
    return whole_us


def _tflite(model: Path, arrays: Sequence[Array], threads: int, runs: int, file: Path) -> float:
    from edgekit.devices.board.litert_profiler import Profiler

    with Profiler(model, arrays, threads) as profiler:
        events: List[Any] = []
        _warm_up(profiler.run)
        profiler.start()
        profiler.run()
        # What the runtime keeps at a time has a limit.
        size = max(1, 50_000 // max(1, len(profiler.stop())))

        def measure() -> List[float]:
            events.clear()
            taken: List[float] = []
            while len(taken) < runs:
                profiler.start()
                taken += _timed(profiler.run, min(size, runs - len(taken)))
                events.extend(profiler.stop())
            return taken

        whole_us = _calm(measure)
        values = {"runtime": profiler.name, "events": events}
    file.write_text(json.dumps(values, separators=(",", ":")), encoding="utf-8")
    return whole_us


_TRACERS: dict[str, Callable[[Path, Sequence[Array], int, int, Path], float]] = {
    "onnx": _onnx,
    "executorch": _executorch,
    "tflite": _tflite,
}
