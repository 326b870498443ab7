"""Artifacts on one device, in turns: the one protocol, whatever the device is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.devices import Burst, Device, LoadTimes, Memory, Session
from edgekit.profiling.statistics import Samples
from edgekit.types import Artifact, Operators, Step, SustainedPoint

ROUNDS = 20
"""Turns of each artifact, at least where it is to run as often: a bootstrap over fewer says little."""
RESTARTS = 5
"""Turns of a tool that loads and warms up anew in each."""
WARMUP_SECS = 0.5
POINTS = 60
"""Stretches of a sustained run, none of them shorter than a second."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for; see `profile`."""

    mode: str
    threads: int
    num_runs: int
    warmup_runs: int
    min_secs: float
    sustained: float


@dataclass(kw_only=True)
class Run:
    """What one session has answered so far."""

    artifact: Artifact
    loaded: LoadTimes
    input: str
    wanted: int = 0
    burst: int = 0
    bursts: list[Burst] = field(default_factory=list)
    memory: Memory = field(default_factory=lambda: Memory(peak_mib=0, before_mib=0))
    instructions: int | None = None
    sustained: list[SustainedPoint] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    operators: Operators | None = None

    @property
    def samples(self) -> Samples:
        """Shape (rounds, runs in a round); (rounds, 0) of a tool that keeps none, or not of every turn as many."""
        rounds = [b.us for b in self.bursts]
        if len({len(us) for us in rounds}) != 1:
            return np.empty((len(rounds), 0))
        return np.array(rounds, dtype=np.float64)

    @property
    def measured_secs(self) -> float:
        return sum(_secs(b) for b in self.bursts)

    def done(self, plan: Plan) -> bool:
        return len(self.bursts) * self.burst >= self.wanted and self.measured_secs >= plan.min_secs


def measure(sessions: Sequence[Session], device: Device, plan: Plan, runs: list[Run], report: Step) -> None:
    """Fill `runs`, one for each session, as the answers come: what is in there stays when a device is lost."""
    total = 2 * len(sessions) + ROUNDS
    for n, session in enumerate(sessions):
        name = session.artifact.path.name
        report(f"loading {name}", 2 * n, total)
        run = Run(artifact=session.artifact, loaded=session.load(), input=session.input)
        runs.append(run)
        report(f"warming up {name}", 2 * n + 1, total)
        if device.counts_instructions:
            run.instructions = session.instructions()
        else:
            _warm_up(session, run, plan)
    if not device.counts_instructions:
        _take_turns(sessions, runs, plan, report, total)
    for session, run in zip(sessions, runs, strict=True):
        run.memory = session.memory()
    report("done", total, total)


def _warm_up(session: Session, run: Run, plan: Plan) -> None:
    if session.restarts:
        run.wanted, run.burst = plan.num_runs, math.ceil(plan.num_runs / RESTARTS)
        return
    one = run.loaded.first_ms / 1e3
    warm = session.run(plan.warmup_runs, WARMUP_SECS, max(WARMUP_SECS, plan.warmup_runs * one) + one)
    run.wanted = max(plan.num_runs, math.ceil(plan.min_secs * 1e6 / float(np.median(warm.us))))
    run.burst = max(1, run.wanted // ROUNDS)


def _take_turns(sessions: Sequence[Session], runs: Sequence[Run], plan: Plan, report: Step, total: int) -> None:
    rounds = 0
    while not all(run.done(plan) for run in runs):
        report("measuring in turns", total - ROUNDS + min(rounds, ROUNDS - 1), total)
        bursts = []
        for session, run in zip(sessions, runs, strict=True):
            one = _secs(run.bursts[-1]) / run.burst if run.bursts else run.loaded.first_ms / 1e3
            secs = plan.min_secs / RESTARTS if session.restarts else 0.0
            bursts.append(session.run(run.burst, secs, max(secs, one * (run.burst + 1))))
        # A round counts for all of them or for none: intervals are paired by round.
        for session, run, burst in zip(sessions, runs, bursts, strict=True):
            run.bursts.append(burst)
            run.warnings = session.warnings()
        rounds += 1


def sustain(sessions: Sequence[Session], runs: Sequence[Run], plan: Plan, report: Step) -> None:
    """Each artifact alone, without a pause, for `plan.sustained` seconds: what heat and a governor make of it."""
    stretch = max(1.0, plan.sustained / POINTS)
    for session, run in zip(sessions, runs, strict=True):
        secs = 0.0
        while secs < plan.sustained:
            report(f"sustained load of {run.artifact.path.name}", round(secs), math.ceil(plan.sustained))
            burst = session.run(1, stretch, stretch)
            median = burst.figures.p50_ms if burst.figures else float(np.median(burst.us)) / 1e3
            count = burst.figures.runs if burst.figures else len(burst.us)
            if median is not None:
                run.sustained.append(SustainedPoint(secs=secs, p50_ms=median, runs=count))
            secs += max(_secs(burst), stretch)


def _secs(burst: Burst) -> float:
    if burst.figures is not None:
        return burst.figures.mean_ms * burst.figures.runs / 1e3
    return sum(burst.us) / 1e6
