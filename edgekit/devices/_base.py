"""The contract that every device keeps, and the words that are exchanged with what runs on it.

Whatever runs an artifact there (a Python of ours, a C++ runner) reads one request a line on stdin and answers each with
one JSON line on stdout; its working directory holds the model and the golden inputs as raw arrays:

    load               load_ms, first_ms (of sample 0), runtime
    run RUNS SECS      us: the latencies of at least so many runs and seconds; preempted: how often it lost its core;
                       waited_secs: how long the thread did not run
    memory             peak_mib, before_mib (0 where the system does not tell)
    infer SAMPLE       {}: input.SAMPLE.N.bin of the working directory become output.SAMPLE.N.bin
    trace RUNS         file, whole_us: the runtime's own profile of so many runs, in its own format, in that file
    count              instructions: of one inference; an emulator's alone

or {"error", "hint", "code"}: code 3 where something is missing there, 2 for a model that cannot be run, else 1. The
first line it prints is {"pid"} (or {}): it is ready. It ends when stdin does.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekit.types import Artifact, Step

Arrays = list[NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class LoadTimes:
    """`load_ms` is None where a tool does not say it."""

    load_ms: float | None
    first_ms: float
    runtime: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a tool prints of `runs` latencies instead of the latencies, in milliseconds; None where it does not."""

    runs: int
    mean_ms: float
    std_ms: float | None = None
    min_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Burst:
    """Latencies of consecutive runs in microseconds, and what disturbed them; `stolen_secs` from a virtual machine.

    A tool that keeps no raw samples gives `figures` and no `us`.
    """

    us: tuple[float, ...]
    preempted: int = 0
    waited_secs: float = 0.0
    stolen_secs: float = 0.0
    figures: Figures | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """MiB: the most the process has held since it began to load, and what it held before that; 0 where not told."""

    peak_mib: float
    before_mib: float


class Session(ABC):
    """One artifact in one process of a device. Every method raises `EdgekitError` where the process dies or hangs."""

    artifact: Artifact
    input: str = "golden sample 0"
    """What it is run on."""
    restarts: bool = False
    """Whether each `run` starts a tool anew, which loads the model and warms up every time: few long turns, then."""

    @abstractmethod
    def load(self) -> LoadTimes:
        """Load the model and run it once; before anything else."""

    @abstractmethod
    def run(self, runs: int, secs: float, expected_secs: float) -> Burst:
        """At least `runs` runs and `secs` seconds; `expected_secs` is what that should take, for the time-out."""

    @abstractmethod
    def memory(self) -> Memory: ...

    @abstractmethod
    def outputs(self, samples: Sequence[Sequence[NDArray[Any]]]) -> list[Arrays]:
        """What the model makes of each sample there."""

    @abstractmethod
    def trace(self, runs: int) -> tuple[Path, float]:
        """The runtime's own profile of `runs` runs, as a local file, and the mean of those runs in microseconds.

        The file is an ETDump (ExecuTorch), a Chrome trace (ONNX Runtime) or our JSON (LiteRT).
        """

    def warnings(self) -> tuple[str, ...]:
        """What a reader of the figures has to know, such as a delegate that did not take the model; at the end."""
        return ()

    def instructions(self) -> int:
        """Of one inference. Only an emulator counts them."""
        raise NotImplementedError


class Device(ABC):
    """Somewhere to run artifacts. `name` is as the user typed it: "host", "adb:SERIAL", "ssh:USER@HOST"."""

    name: str
    counts_instructions: bool = False
    clock: str = "one call of the runtime: arrays in, the model, arrays out; no preprocessing"
    """What is inside the clock."""

    @abstractmethod
    def check(self, artifact: Artifact) -> None:
        """Raises `EnvironmentProblem` or `Unsupported`, with what to type, where the artifact cannot run there."""

    def prepare(self, artifacts: Sequence[Artifact], on_step: Step) -> None:
        """Build or fetch now what `sessions` would make on its first use, in sight of the user."""
        return None

    @abstractmethod
    def sessions(self, artifacts: Sequence[Artifact], threads: int) -> AbstractContextManager[list[Session]]:
        """A process for each artifact, all ready; all gone, with every file that was pushed, when the block ends."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """What a latency must be quoted with: kind, model, system, cpu, cores, pinned_to; after `sessions` began."""

    def state(self) -> Mapping[str, str]:
        """Heat, battery, clocks and load now, within `sessions`; {} where the device does not tell."""
        return {}

    def gate(self, on_step: Step) -> tuple[str, ...]:
        """Wait, within `sessions`, until the device is fit to be measured; warnings where it does not become so."""
        return ()

    def unfit(self, state: Mapping[str, str]) -> tuple[str, ...]:
        """Why a device in this state does not show what it can do: heat, most of all."""
        return ()
