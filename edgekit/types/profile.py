"""Latencies that were measured, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How latencies were taken; `warmup_runs`, `num_runs` and `min_secs` are the least that was asked for.

    `mode` is "usual" or "mlperf" (single stream: at least 1024 runs and 60 s, whose p90 is quoted). All artifacts take
    turns, A B C A B C: `rounds` turns each, of `runs_per_round` recorded runs.
    """

    warmup_runs: int
    num_runs: int
    min_secs: float
    rounds: int
    runs_per_round: int
    clock: str
    input: str = "golden sample 0"
    mode: str = "usual"


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """One step of the runtime: mean microseconds of an inference, whether a delegate ran it, and where it came from.

    `name` is the runtime's own, `op` its kind. `source` is "file.py:12 blocks.3.conv", the line and the module of the
    model, or the part that is known; "" where the runtime does not tell.
    """

    name: str
    op: str
    us: float
    delegated: bool
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Operators:
    """Every operator of an artifact, in the order that they run; `whole_us` is the mean of the profiled inferences."""

    whole_us: float
    operators: tuple[OperatorTime, ...]

    @property
    def sum_us(self) -> float:
        return sum(o.us for o in self.operators)

    @property
    def outside_share(self) -> float:
        """The share of the operators' time that is spent outside the delegate."""
        return sum(o.us for o in self.operators if not o.delegated) / (self.sum_us or 1)


@dataclass(frozen=True, kw_only=True)
class SustainedPoint:
    """The median latency of one stretch of a long run that began `secs` seconds after its start."""

    secs: float
    p50_ms: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class DelegationShare:
    """What the manifest of the artifact says of its delegate: so many ops inside, the others by name."""

    backend: str
    delegated: int
    partitions: int
    fallback: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ArtifactProfile:
    """Latency and memory of one artifact, run alone in a process of its own.

    `latency_us` are the recorded runs in order, `runs_per_round` to a turn; the percentiles interpolate linearly, `cv`
    is `std_ms / mean_ms`. `peak_memory_mib` is the most the process held since it began to load the model,
    `model_memory_mib` how much of that came after; None where the system does not tell. A tool that prints no raw
    samples leaves `latency_us` empty and the figures that it does not print None. `instructions` (of one inference) is
    what an emulator counts instead of a latency: it has none. `state` is what the device said of its heat, battery and
    clocks "before" and "after". `measured_at` is when it began, by the clock of this machine: ISO 8601, UTC, to the
    second.
    """

    artifact: str
    sha256: str
    name: str
    target: str
    precision: str
    runtime: str
    device: Mapping[str, str]
    threads: int
    protocol: Protocol
    load_ms: float | None
    first_ms: float | None
    latency_us: tuple[float, ...]
    mean_ms: float | None
    std_ms: float | None
    cv: float | None
    min_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    peak_memory_mib: float | None
    model_memory_mib: float | None
    size_bytes: int = 0
    runs: int = 0
    instructions: int | None = None
    delegation: DelegationShare | None = None
    per_op: tuple[OperatorTime, ...] = ()
    per_op_whole_us: float | None = None
    sustained: tuple[SustainedPoint, ...] = ()
    state: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    measured_at: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The median latency of artifact `b` over that of `a` (below 1, `b` is faster), with a bootstrap 95 % interval.

    `of` is what the ratio is of: "latency", or "instructions" on an emulator (whose interval is a point).
    """

    a: str
    b: str
    ratio: float
    ci95: tuple[float, float]
    of: str = "latency"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Artifacts measured in turns on one device, and each pair of them compared."""

    results: tuple[ArtifactProfile, ...]
    comparisons: tuple[Comparison, ...]
    schema: int = 1
