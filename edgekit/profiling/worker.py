"""The process that runs one artifact: `python -m edgekit.profiling.worker ARTIFACT THREADS CPU,CPU…`.

It takes one JSON request a line on stdin and answers each with one JSON line on stdout:

    {"do": "load"}                          load_ms, first_ms, runtime
    {"do": "run", "runs": 10, "secs": 0.5}  us: the latencies of at least so many runs and seconds; preempted: how
                                            often it lost its core; waited_secs: how long the thread did not run
    {"do": "memory"}                        peak_mib, before_mib

or {"error", "hint", "code"}. It ends when stdin does, and with the process that started it.

Inside the clock is one call of the target's runner: the arrays are handed to the runtime, the model runs, its outputs
come back as arrays. Reading photos and preprocessing are outside.
"""

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from edgekit.artifacts import load_artifact, read_golden
from edgekit.errors import EdgekitError
from edgekit.targets import TARGETS

KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main(arguments: Sequence[str]) -> None:
    """Serve requests until stdin ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(KILL_WITH_PARENT, signal.SIGKILL)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what the runtimes print is not an answer
        path, threads, cpus = arguments
        _pin([int(c) for c in cpus.split(",") if c])
        try:
            _serve(_Session(path, int(threads)), answers)
        except EdgekitError as error:
            _answer(answers, {"error": error.message, "hint": error.hint, "code": error.exit_code})
        except Exception as error:  # each runtime raises its own types for a file that it cannot read or run
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            _answer(answers, {"error": text, "hint": "", "code": 2})


def _serve(session: "_Session", answers: TextIO) -> None:
    _answer(answers, {})
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "load":
            _answer(answers, session.load())
        elif request["do"] == "run":
            _answer(answers, session.run(request["runs"], request["secs"]))
        else:
            _answer(answers, session.memory())


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    print(json.dumps(values), file=answers, flush=True)


class _Session:
    """One artifact and its first golden sample, in this process."""

    def __init__(self, path: str, threads: int) -> None:
        self.artifact, self.threads = load_artifact(path), threads
        self.target = TARGETS[self.artifact.manifest.target]
        self.target.require_runtime()  # imports are not loading
        self.sample = read_golden(self.artifact)[0][0]
        self.call: Callable[..., Any] | None = None
        self.before = 0.0

    def load(self) -> dict[str, Any]:
        manifest = self.artifact.manifest
        gc.collect()
        _forget_peak()
        self.before = _status_mib("VmRSS")
        start = time.perf_counter_ns()
        self.call = self.target.runner(
            self.artifact.model_path, manifest.inputs, manifest.outputs, threads=self.threads
        )
        loaded = time.perf_counter_ns()
        self.call(self.sample)
        first = time.perf_counter_ns()
        return {
            "load_ms": (loaded - start) / 1e6,
            "first_ms": (first - loaded) / 1e6,
            "runtime": self.target.runtime,
        }

    def run(self, runs: int, secs: float) -> dict[str, Any]:
        assert self.call is not None, "load first"
        call, sample, clock = self.call, self.sample, time.perf_counter_ns
        call(sample)  # the caches were another's: not recorded
        taken: list[float] = []
        gc.disable()
        preempted, busy, began = _preemptions(), time.thread_time_ns(), clock()
        while len(taken) < runs or (clock() - began) < secs * 1e9:
            start = clock()
            outputs = call(sample)
            taken.append((clock() - start) / 1e3)
            del outputs
        waited = (clock() - began) - (time.thread_time_ns() - busy)
        preempted = _preemptions() - preempted
        gc.enable()
        return {"us": taken, "preempted": preempted, "waited_secs": max(0, waited) / 1e9}

    def memory(self) -> dict[str, Any]:
        return {"peak_mib": _status_mib("VmHWM"), "before_mib": self.before}


def _pin(cpus: Sequence[int]) -> None:
    """Bind every thread of this process to `cpus`; those that libraries made at import are there already."""
    if cpus and sys.platform == "linux":
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cpus)


def _preemptions() -> int:
    """How often this process lost its core while it had work to do."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _status_mib(field: str) -> float:
    """A field of /proc/self/status in MiB; on a Mac the peak, whatever the field, and 0 where neither is told."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        if sys.platform != "darwin" or field != "VmHWM":
            return 0.0
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


def _forget_peak() -> None:
    """Let the peak begin again at what is held now, where the system can: importing may have held more."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
