"""The process that runs one artifact: `python -m edgekit.devices.board.serve FOLDER THREADS CPU,CPU…`.

FOLDER is the working directory of `devices._base`: `board.json` names the model file, its runtime and the shapes and
dtypes of inputs and outputs; `input.SAMPLE.N.bin` are raw arrays. Requests and answers are those of `devices._base`.

Inside the clock is one call of the runtime's Python API: arrays are handed over, the model runs, its outputs come back
as arrays.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Sequence, TextIO

import numpy as np

from edgekit.devices.board.runtimes import Call, Failure, Runtime, runtime_of

KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG
LINUX = sys.platform.startswith("linux")
Make = Callable[[Path, "dict[str, Any]"], Runtime]


def main(arguments: Sequence[str], make: Make = runtime_of) -> None:
    """Serve requests until stdin ends; `make` gives the runtime of a model file."""
    if LINUX:
        # A libc without it (an old musl, say) leaves a process behind only where its parent is killed.
        getattr(ctypes.CDLL(None), "prctl", lambda *_: 0)(KILL_WITH_PARENT, signal.SIGKILL)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what the runtimes print is not an answer
        folder, threads, cpus = arguments
        try:
            _pin([int(c) for c in cpus.split(",") if c])
            _serve(_Session(Path(folder), int(threads), make), answers)
        except Failure as failure:
            _answer(answers, {"error": failure.message, "hint": failure.hint, "code": failure.code})
        except MemoryError:
            _answer(answers, {"error": "there is not enough memory here for this model", "hint": "", "code": 1})
        except Exception as error:  # each runtime raises its own types for a file that it cannot read or run
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            _answer(answers, {"error": text, "hint": "", "code": 2})


def _serve(session: _Session, answers: TextIO) -> None:
    _answer(answers, {"pid": os.getpid()})
    for line in sys.stdin:
        what, *words = line.split()
        if what == "load":
            _answer(answers, session.load())
        elif what == "run":
            _answer(answers, session.run(int(words[0]), float(words[1])))
        elif what == "memory":
            _answer(answers, session.memory())
        elif what == "infer":
            _answer(answers, session.infer(words[0]))
        elif what == "trace":
            _answer(answers, session.trace(int(words[0])))
        elif what == "count":
            _answer(answers, session.count())
        else:
            raise Failure("this is no request: " + line.strip(), "The two ends are of different versions.", 1)


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    print(json.dumps(values), file=answers, flush=True)


class _Session:
    """One model file and its first sample, in this process."""

    def __init__(self, folder: Path, threads: int, make: Make) -> None:
        self.folder, self.threads = folder, threads
        self.facts = json.loads((folder / "board.json").read_text(encoding="utf-8"))
        self.runtime = make(folder, self.facts)  # imports are not loading
        self.sample = self._read("0")
        self.call: Call | None = None
        self.before = 0.0

    def _read(self, sample: str) -> list[np.ndarray[Any, Any]]:
        arrays = []
        for n, spec in enumerate(self.facts["inputs"]):
            values = np.fromfile(str(self.folder / f"input.{sample}.{n}.bin"), dtype=spec["dtype"])
            arrays.append(values.reshape(spec["shape"]))
        return arrays

    def load(self) -> dict[str, Any]:
        gc.collect()
        _forget_peak()
        self.before = _status_mib("VmRSS")
        start = time.perf_counter_ns()
        self.call = self.runtime.load(self.threads)
        loaded = time.perf_counter_ns()
        self.call(self.sample)
        first = time.perf_counter_ns()
        return {
            "load_ms": (loaded - start) / 1e6,
            "first_ms": (first - loaded) / 1e6,
            "runtime": self.runtime.name,
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

    def infer(self, sample: str) -> dict[str, Any]:
        assert self.call is not None, "load first"
        for n, array in enumerate(self.call(self._read(sample))):
            np.ascontiguousarray(array).tofile(str(self.folder / f"output.{sample}.{n}.bin"))
        return {}

    def trace(self, runs: int) -> dict[str, Any]:
        from edgekit.devices.board.tracing import trace

        self.call = None  # one model in memory is enough
        file = self.folder / "trace.bin"
        target, model = self.facts["target"], self.folder / self.facts["model"]
        whole_us = trace(target, model, self.sample, self.threads, runs, file)
        self.call = self.runtime.load(self.threads)
        return {"file": file.name, "whole_us": whole_us}

    def count(self) -> dict[str, Any]:
        """Runs between two marks that only an emulator's plugin sees; it counts what is executed between them."""
        assert self.call is not None, "load first"
        mark = _marker()
        self.call(self.sample)
        gc.disable()
        mark()
        self.call(self.sample)
        mark()
        gc.enable()
        return {}


MARK = 0x65646765
"""A number that no system call has: the kernel refuses it, a plugin knows it."""


def _marker() -> Callable[[], None]:
    system_call = ctypes.CDLL(None).syscall
    return lambda: system_call(ctypes.c_long(MARK)) and None


def _pin(cpus: Sequence[int]) -> None:
    """Bind every thread of this process to `cpus`; those that libraries made at import are there already."""
    if cpus and LINUX:
        try:
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), cpus)
        except OSError as error:
            raise Failure(
                f"cannot bind to the cores {list(cpus)}: {error.strerror}", "Is one of them off?", 1
            ) from None


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
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":")), 0.0)


def _forget_peak() -> None:
    """Let the peak begin again at what is held now, where the system can: importing may have held more."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
