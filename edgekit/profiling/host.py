"""Artifacts on this machine: each in a process of its own, on the same cores, in turns."""

import hashlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifacts import load_artifact
from edgekit.errors import BadInput, EnvironmentProblem
from edgekit.profiling.causes import not_faster
from edgekit.profiling.machine import choose_cpus, facts, stolen_seconds
from edgekit.profiling.processes import START_SECS, Worker, workers
from edgekit.profiling.statistics import MAX_TAIL, Samples, Summary, bootstrap_medians, drift, ratio_interval, summary
from edgekit.types import Artifact, ArtifactProfile, Comparison, Profile, Protocol, Step

ROUNDS = 20
"""Turns of each artifact, at least where it is to run as often: a bootstrap over fewer says little."""
WARMUP_SECS = 0.5
CLOCK = "one call of the runtime's Python API: arrays in, the model, arrays out; no preprocessing"


def profile(
    artifacts: Sequence[str | Path | Artifact],
    *,
    threads: int = 1,
    num_runs: int = 50,
    warmup_runs: int = 10,
    min_secs: float = 1.0,
    on_step: Step | None = None,
) -> Profile:
    """Latency and memory of artifacts on this machine, and the ratios of their medians with 95 % intervals.

    Each artifact runs in a process of its own with `threads` threads, all on the same `threads` cores (where the
    system can bind a process to cores), one at a time: a turn of each, A B C A B C, until each has at least `num_runs`
    recorded runs and `min_secs` seconds of them. Before that each runs `warmup_runs` times and half a second, and each
    turn begins with a run that is not recorded, for the caches. The input is the first golden sample.
    Raises `BadInput`, `ArtifactDamaged` for a model that its runtime refuses, `EnvironmentProblem` for one that has
    no runtime here, `EdgekitError` for a process that dies or hangs; no process is left.
    """
    if not artifacts:
        raise BadInput("no artifact was given", "Name one or more folders: edgekit profile ARTIFACT…")
    if num_runs < 1 or warmup_runs < 0 or not 0 <= min_secs < math.inf:
        raise BadInput(
            f"{num_runs} runs, {warmup_runs} warm-up runs and {min_secs} seconds are no measurement",
            "Give at least 1 run, and numbers of warm-up runs and seconds that are not negative.",
        )
    loaded = [a if isinstance(a, Artifact) else load_artifact(a) for a in artifacts]
    for artifact in loaded:
        _check_runtime(artifact)
    cpus = choose_cpus(threads)
    plan = _Plan(threads=threads, num_runs=num_runs, warmup_runs=warmup_runs, min_secs=min_secs, cpus=cpus)
    report = on_step or (lambda what, done, total: None)
    report("starting the runtimes", 0, 2 * len(loaded) + ROUNDS)
    with workers(loaded, threads, cpus) as processes:
        runs = _measure(processes, plan, report)
    draws = bootstrap_medians([r.samples for r in runs])
    pairs = {
        (i, j): Comparison(
            a=str(loaded[i].path),
            b=str(loaded[j].path),
            ratio=float(np.median(runs[j].samples) / np.median(runs[i].samples)),
            ci95=ratio_interval(draws[i], draws[j]),
        )
        for i, j in combinations(range(len(loaded)), 2)
    }
    slow = _not_faster(runs, pairs)
    results = tuple(_result(run, plan, slow.get(n, "")) for n, run in enumerate(runs))
    return Profile(results=results, comparisons=tuple(pairs.values()))


def compare(fp32: Artifact, int8: Artifact, *, threads: int = 1, seconds: float = 2.0) -> Comparison:
    """`int8` against `fp32` in about `seconds` seconds of runs; see `profile`. `not_faster` puts it into words.

    Two processes import their runtimes for this, which takes longer than the runs.
    """
    return profile([fp32, int8], threads=threads, min_secs=seconds / 2).comparisons[0]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    threads: int
    num_runs: int
    warmup_runs: int
    min_secs: float
    cpus: tuple[int, ...]


@dataclass(kw_only=True)
class _Run:
    """What one worker has answered so far."""

    artifact: Artifact
    loaded: dict[str, Any]
    wanted: int
    burst: int
    rounds: list[list[float]] = field(default_factory=list)
    preempted: int = 0
    waited_secs: float = 0.0
    stolen: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def samples(self) -> Samples:
        return np.array(self.rounds)

    def done(self, plan: _Plan) -> bool:
        return len(self.rounds) * self.burst >= self.wanted and sum(map(sum, self.rounds)) >= plan.min_secs * 1e6


def _check_runtime(artifact: Artifact) -> None:
    if artifact.manifest.target == "coreml" and sys.platform != "darwin":
        raise EnvironmentProblem(
            f"{artifact.path} is for Core ML, which this machine does not have",
            "Its latency is measured on a Mac or a phone. Here it is only evaluated op by op, which tells nothing.",
        )


def _measure(processes: Sequence[Worker], plan: _Plan, report: Step) -> list[_Run]:
    total = 2 * len(processes) + ROUNDS
    runs = []
    for n, worker in enumerate(processes):
        name = worker.artifact.path.name
        report(f"loading {name}", 2 * n, total)
        loaded = worker.ask("loading", START_SECS, {"do": "load"})
        report(f"warming up {name}", 2 * n + 1, total)
        one = loaded["first_ms"] / 1e3
        expected = max(WARMUP_SECS, plan.warmup_runs * one) + one
        warm = worker.ask("warming up", expected, {"do": "run", "runs": plan.warmup_runs, "secs": WARMUP_SECS})
        wanted = max(plan.num_runs, math.ceil(plan.min_secs * 1e6 / float(np.median(warm["us"]))))
        runs.append(_Run(artifact=worker.artifact, loaded=loaded, wanted=wanted, burst=max(1, wanted // ROUNDS)))
    rounds = 0
    while not all(run.done(plan) for run in runs):
        report("measuring in turns", total - ROUNDS + min(rounds, ROUNDS - 1), total)
        for worker, run in zip(processes, runs, strict=True):
            stolen = stolen_seconds(plan.cpus)
            one = run.rounds[-1][0] / 1e6 if run.rounds else run.loaded["first_ms"] / 1e3
            answer = worker.ask("being measured", one * (run.burst + 1), {"do": "run", "runs": run.burst, "secs": 0})
            run.rounds.append(answer["us"])
            run.preempted += answer["preempted"]
            run.waited_secs += answer["waited_secs"]
            run.stolen += stolen_seconds(plan.cpus) - stolen
        rounds += 1
    for worker, run in zip(processes, runs, strict=True):
        run.memory = worker.ask("being measured", 1.0, {"do": "memory"})
    report("done", total, total)
    return runs


def _result(run: _Run, plan: _Plan, slow: str) -> ArtifactProfile:
    manifest, samples = run.artifact.manifest, run.samples
    figures = summary(samples)
    peak, before = run.memory["peak_mib"], run.memory["before_mib"]
    unstable = "" if figures.stable else f"unstable: {_spread(figures)}: {_cause(run, plan)}"
    return ArtifactProfile(
        artifact=str(run.artifact.path),
        sha256=_sha256(run.artifact),
        name=manifest.name,
        target=manifest.target,
        precision=manifest.precision,
        runtime=run.loaded["runtime"],
        device=facts(plan.cpus),
        threads=plan.threads,
        protocol=Protocol(
            warmup_runs=plan.warmup_runs,
            num_runs=plan.num_runs,
            min_secs=plan.min_secs,
            rounds=len(samples),
            runs_per_round=run.burst,
            clock=CLOCK,
        ),
        load_ms=run.loaded["load_ms"],
        first_ms=run.loaded["first_ms"],
        latency_us=tuple(samples.ravel().tolist()),
        peak_memory_mib=peak or None,
        model_memory_mib=max(0.0, peak - before) if peak and before else None,
        warnings=tuple(filter(None, (unstable, slow))),
        **asdict(figures),
    )


def _sha256(artifact: Artifact) -> str:
    """Of the model file; of a model that is a folder, of its files' names and hashes."""
    hashes = {name: r.sha256 for name, r in artifact.manifest.files.items() if name.startswith("model.")}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{h}  {name}\n" for name, h in sorted(hashes.items())).encode()).hexdigest()


def _spread(figures: Summary) -> str:
    return f"the coefficient of variation is {figures.cv:.0%}, p99 is {figures.p99_ms / figures.p50_ms:.1f} x p50"


def _cause(run: _Run, plan: _Plan) -> str:
    """The likeliest reason for an unsteady latency, by what was seen while it was taken."""
    samples = run.samples
    moved, measured_secs = drift(samples), samples.sum() / 1e6
    if run.stolen > 0.02 * measured_secs:
        return f"the virtual machine waited {run.stolen:.1f} s for a real core"
    outliers = np.count_nonzero(samples > MAX_TAIL * np.median(samples))
    # With more threads than one, this one also waits for the others.
    waited = plan.threads == 1 and run.waited_secs > 0.02 * measured_secs
    if run.preempted and (waited or run.preempted >= outliers / 2):
        load = f", the load is {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        return f"other processes took the core {run.preempted} times{load}; close them, or measure when it is idle"
    if abs(moved) > 0.1:
        return f"it ended {moved:+.0%} from where it began: clock frequency or heat; let the machine rest, then repeat"
    if plan.threads > 1:
        return "threads wait for each other; with --threads 1 they cannot"
    if np.median(samples) < 100:
        return "the runs are so short that the clock and interrupts show"
    return "no other process and no drift was seen: interrupts, clock frequency, or neighbours in the cache"


def _not_faster(runs: Sequence[_Run], pairs: Mapping[tuple[int, int], Comparison]) -> dict[int, str]:
    """By its place, the warning for each int8 artifact that is not faster than the same model in fp32 beside it."""
    found: dict[int, str] = {}
    for (i, j), c in pairs.items():
        a, b = runs[i].artifact.manifest, runs[j].artifact.manifest
        if (a.model, a.name, a.target) != (b.model, b.name, b.target):
            continue
        if (a.precision, b.precision) == ("int8", "fp32"):
            i, j, c = j, i, Comparison(a=c.b, b=c.a, ratio=1 / c.ratio, ci95=(1 / c.ci95[1], 1 / c.ci95[0]))
        elif (a.precision, b.precision) != ("fp32", "int8"):
            continue
        if text := not_faster(runs[j].artifact, c):
            found[j] = text
    return found
