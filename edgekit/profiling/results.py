"""From what sessions answered to figures, with their warnings."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np

from edgekit.artifacts import model_sha256
from edgekit.devices import Burst, Device, Figures
from edgekit.profiling.causes import not_faster
from edgekit.profiling.measuring import Plan, Run
from edgekit.profiling.statistics import MAX_TAIL, Summary, bootstrap_medians, drift, merged, ratio_interval, summary
from edgekit.types import Artifact, ArtifactProfile, Comparison, DelegationShare, Profile, Protocol

THROTTLED = 1.10
"""The last tenth of a sustained run over its first, beyond which the device is said to throttle."""

State = Mapping[str, Mapping[str, str]]


def results(
    runs: Sequence[Run],
    device: Device,
    plan: Plan,
    state: State,
    began: str,
    warnings: tuple[str, ...] = (),
) -> Profile:
    """Everything measured since `began`; `warnings` are the device's own and stand with each artifact."""
    pairs = comparisons(runs)
    slow = _not_faster(runs, pairs)
    facts = device.facts()
    made = []
    for n, run in enumerate(runs):
        seen = (_unstable(run, plan, state), _throttled(run), slow.get(n, ""), *run.warnings, *warnings)
        made.append(_result(run, device, facts, plan, state, began, tuple(filter(None, seen))))
    return Profile(results=tuple(made), comparisons=tuple(pairs.values()))


def comparisons(runs: Sequence[Run]) -> dict[tuple[int, int], Comparison]:
    """Each pair in the order given: ratios of median latencies, or of instructions where those were counted."""
    pairs = list(combinations(range(len(runs)), 2))
    names = [str(run.artifact.path) for run in runs]
    counted = [run.instructions for run in runs]
    made = {}
    if all(counted) and counted:
        for i, j in pairs:
            ratio = (counted[j] or 0) / (counted[i] or 1)
            made[i, j] = Comparison(a=names[i], b=names[j], ratio=ratio, ci95=(ratio, ratio), of="instructions")
        return made
    # A tool that keeps no samples gives a figure a round.
    samples = [r.samples if r.samples.size else np.array([[_typical_us(b)] for b in r.bursts]) for r in runs]
    draws = bootstrap_medians(samples)
    for i, j in pairs:
        ratio = float(np.median(samples[j]) / np.median(samples[i]))
        made[i, j] = Comparison(a=names[i], b=names[j], ratio=ratio, ci95=ratio_interval(draws[i], draws[j]))
    return made


def _typical_us(burst: Burst) -> float:
    figures = _burst_figures(burst)
    return 1e3 * (figures.mean_ms if figures.p50_ms is None else figures.p50_ms)


def _burst_figures(burst: Burst) -> Figures:
    """What a turn's tool has printed, or would have, had it not given each run."""
    if burst.figures is not None:
        return burst.figures
    us = np.array(burst.us)
    deviation = float(us.std(ddof=1)) / 1e3 if us.size > 1 else 0.0
    low, high, middle = (float(f(us)) / 1e3 for f in (np.min, np.max, np.median))
    mean = float(us.mean()) / 1e3
    return Figures(runs=us.size, mean_ms=mean, std_ms=deviation, min_ms=low, p50_ms=middle, max_ms=high)


def _result(
    run: Run,
    device: Device,
    facts: Mapping[str, str],
    plan: Plan,
    state: State,
    began: str,
    warnings: tuple[str, ...],
) -> ArtifactProfile:
    manifest, peak, before = run.artifact.manifest, run.memory.peak_mib, run.memory.before_mib
    figures = _figures(run)
    samples = run.samples
    return ArtifactProfile(
        artifact=str(run.artifact.path),
        sha256=model_sha256(manifest.files),
        name=manifest.name,
        target=manifest.target,
        precision=manifest.precision,
        runtime=run.loaded.runtime,
        device=facts,
        measured_at=began,
        threads=plan.threads,
        protocol=Protocol(
            warmup_runs=plan.warmup_runs,
            num_runs=plan.num_runs,
            min_secs=plan.min_secs,
            rounds=len(run.bursts),
            runs_per_round=samples.shape[1] if samples.size else run.burst,
            clock=device.clock,
            input=run.input,
            mode=plan.mode,
        ),
        # An emulator has no latency.
        load_ms=None if device.counts_instructions else run.loaded.load_ms,
        first_ms=None if device.counts_instructions else run.loaded.first_ms,
        latency_us=tuple(samples.ravel().tolist()),
        peak_memory_mib=peak or None,
        model_memory_mib=max(0.0, peak - before) if peak and before else None,
        size_bytes=run.artifact.size_bytes,
        runs=sum(b.figures.runs if b.figures else len(b.us) for b in run.bursts),
        instructions=run.instructions,
        delegation=DelegationShare(
            backend=manifest.delegation.backend,
            delegated=manifest.delegation.delegated,
            partitions=manifest.delegation.partitions,
            fallback=_fallback(run.artifact),
        ),
        per_op=run.operators.operators if run.operators else (),
        per_op_whole_us=run.operators.whole_us if run.operators else None,
        sustained=tuple(run.sustained),
        state=state,
        warnings=warnings,
        **asdict(figures),
    )


def _fallback(artifact: Artifact) -> dict[str, int]:
    """How many ops of each kind run outside the delegate; one kind may be refused for several reasons."""
    counts: Counter[str] = Counter()
    for op in artifact.manifest.delegation.fallback:
        counts[op.op] += op.count
    return dict(counts)


def _figures(run: Run) -> Summary:
    if run.samples.size:
        return summary(run.samples)
    return merged([_burst_figures(b) for b in run.bursts])


def _unstable(run: Run, plan: Plan, state: State) -> str:
    figures = _figures(run)
    if figures.stable:
        return ""
    said = []
    if figures.cv is not None:
        said.append(f"the coefficient of variation is {figures.cv:.0%}")
    if figures.p99_ms and figures.p50_ms:
        said.append(f"p99 is {figures.p99_ms / figures.p50_ms:.1f} x p50")
    return f"unstable: {', '.join(said)}: {_cause(run, plan, state)}"


def _cause(run: Run, plan: Plan, state: State) -> str:
    """The likeliest reason for an unsteady latency, by what was seen while it was taken."""
    samples, measured_secs = run.samples, run.measured_secs
    stolen, preempted = sum(b.stolen_secs for b in run.bursts), sum(b.preempted for b in run.bursts)
    if stolen > 0.02 * measured_secs:
        return f"the virtual machine waited {stolen:.1f} s for a real core"
    if not samples.size:
        return "the tool keeps no single latencies, which would tell more"
    outliers = np.count_nonzero(samples > MAX_TAIL * np.median(samples))
    # With more threads than one, this one also waits for the others.
    waited = plan.threads == 1 and sum(b.waited_secs for b in run.bursts) > 0.02 * measured_secs
    if preempted and (waited or preempted >= outliers / 2):
        load = state.get("after", {}).get("load", "")
        said = f", the load is {load}" if load else ""
        return f"other processes took the core {preempted} times{said}; close them, or measure when it is idle"
    moved = drift(samples)
    if abs(moved) > 0.1:
        return f"it ended {moved:+.0%} from where it began: clock frequency or heat; let the device rest, then repeat"
    if plan.threads > 1:
        return "threads wait for each other; with --threads 1 they cannot"
    if np.median(samples) < 100:
        return "the runs are so short that the clock and interrupts show"
    return "no other process and no drift was seen: interrupts, clock frequency, or neighbours in the cache"


def _throttled(run: Run) -> str:
    points = run.sustained
    part = max(1, math.ceil(len(points) / 10))
    if len(points) < 2:
        return ""
    first = float(np.median([p.p50_ms for p in points[:part]]))
    last = float(np.median([p.p50_ms for p in points[-part:]]))
    if last <= THROTTLED * first:
        return ""
    return f"throttles under sustained load: from {first:.3f} ms to {last:.3f} ms ({last / first:.2f} x)"


def _not_faster(runs: Sequence[Run], pairs: Mapping[tuple[int, int], Comparison]) -> dict[int, str]:
    """By its place, the warning for each int8 artifact that is not faster than the same model in fp32 beside it."""
    found: dict[int, str] = {}
    for (i, j), c in pairs.items():
        a, b = runs[i].artifact.manifest, runs[j].artifact.manifest
        # By its name: one that was quantized first has another `model`, its .pt2.
        if c.of != "latency" or (a.name, a.target) != (b.name, b.target):
            continue
        if (a.precision, b.precision) == ("int8", "fp32"):
            i, j, c = j, i, Comparison(a=c.b, b=c.a, ratio=1 / c.ratio, ci95=(1 / c.ci95[1], 1 / c.ci95[0]))
        elif (a.precision, b.precision) != ("fp32", "int8"):
            continue
        if text := not_faster(runs[j].artifact, c):
            found[j] = text
    return found
