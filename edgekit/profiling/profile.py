"""`profile`: artifacts measured on a device, with the protocol that was asked for."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from edgekit.artifacts import load_artifact
from edgekit.devices import Device, Session, open_device
from edgekit.errors import BadInput, EdgekitError
from edgekit.profiling.measuring import Plan, Run, measure, sustain
from edgekit.profiling.operators import check_operators, read_operators
from edgekit.profiling.results import results
from edgekit.types import Artifact, Comparison, Profile, Step

PROTOCOLS = {"usual": (50, 1.0), "mlperf": (1024, 60.0)}
"""The least runs and seconds of each mode."""
TRACED_RUNS = 50


def profile(
    artifacts: Sequence[str | Path | Artifact],
    *,
    device: str | Device = "host",
    mode: str = "usual",
    threads: int = 1,
    num_runs: int | None = None,
    warmup_runs: int = 10,
    min_secs: float | None = None,
    sustained: float = 0.0,
    per_op: bool = False,
    on_step: Step | None = None,
) -> Profile:
    """Latency and memory of artifacts on a device, and the ratios of their medians with 95 % intervals.

    Each artifact runs in a process of its own with `threads` threads, all on the same `threads` cores (where the
    system can bind a process to cores), one at a time: a turn of each, A B C A B C, until each has at least `num_runs`
    recorded runs and `min_secs` seconds of them (50 and 1; 1024 and 60 in mode "mlperf"). Before that each runs
    `warmup_runs` times and half a second, and each turn begins with a run that is not recorded, for the caches. The
    input is the first golden sample. After it, with `sustained`, each runs alone for so many seconds; with `per_op`
    its runtime tells what each operator takes. An emulator counts instructions instead, once.

    Raises `BadInput`, `ArtifactDamaged` for a model that its runtime refuses, `EnvironmentProblem` for one that has
    no runtime there, `DeviceError` for a process or device that dies or hangs; an error's `partial` is what was
    measured until then, if anything. No process is left.
    """
    plan = _plan(mode, threads, num_runs, warmup_runs, min_secs, sustained)
    if not artifacts:
        raise BadInput("no artifact was given", "Name one or more folders: edgekit profile ARTIFACT…")
    loaded = [a if isinstance(a, Artifact) else load_artifact(a) for a in artifacts]
    used = open_device(device) if isinstance(device, str) else device
    for artifact in loaded:
        used.check(artifact)
    if per_op:
        for artifact in loaded:
            check_operators(artifact)
    if used.counts_instructions and (sustained or per_op or mode != "usual"):
        raise BadInput(
            f"{used.name} counts instructions: it has no latency to sustain, to share out or to quote",
            "Leave out --sustained, --per-op and --mode, or name a real device.",
        )
    report = on_step or (lambda what, done, total: None)
    used.prepare(loaded, report)
    report("starting the runtimes", 0, 1)
    runs: list[Run] = []
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with used.sessions(loaded, threads) as sessions:
        warnings, state = used.gate(report), {"before": used.state()}
        try:
            measure(sessions, used, plan, runs, report)
            if sustained:
                sustain(sessions, runs, plan, report)
            if per_op:
                _trace(sessions, runs, report)
            state["after"] = used.state()
        except EdgekitError as error:
            complete = [run for run in runs if run.bursts or run.instructions is not None]
            if complete:
                seen = (*warnings, f"cut short: {error.message}")
                error.partial = results(complete, used, plan, state, began, seen)
            raise
        worse = tuple(f"afterwards: {text}" for text in used.unfit(state["after"]))
        kept = {k: v for k, v in state.items() if v}
        return results(runs, used, plan, kept, began, (*warnings, *worse))


def compare(fp32: Artifact, int8: Artifact, *, threads: int = 1, seconds: float = 2.0) -> Comparison:
    """`int8` against `fp32` in about `seconds` seconds of runs; see `profile`. `not_faster` puts it into words.

    Two processes import their runtimes for this, which takes longer than the runs.
    """
    return profile([fp32, int8], threads=threads, min_secs=seconds / 2).comparisons[0]


def _plan(
    mode: str, threads: int, num_runs: int | None, warmup_runs: int, min_secs: float | None, sustained: float
) -> Plan:
    if mode not in PROTOCOLS:
        raise BadInput(f"there is no mode {mode!r}", f"Type --mode {' or --mode '.join(PROTOCOLS)}.")
    least_runs, least_secs = PROTOCOLS[mode]
    runs = least_runs if num_runs is None else num_runs
    secs = least_secs if min_secs is None else min_secs
    if runs < 1 or warmup_runs < 0 or not 0 <= secs < math.inf or not 0 <= sustained < math.inf:
        raise BadInput(
            f"{runs} runs, {warmup_runs} warm-up runs, {secs} seconds and {sustained} sustained are no measurement",
            "Give at least 1 run, and numbers of warm-up runs and seconds that are not negative.",
        )
    if mode == "mlperf" and (runs < least_runs or secs < least_secs):
        raise BadInput(
            f"{runs} runs and {secs} s are not MLPerf's protocol: it takes {least_runs} runs and {least_secs:.0f} s",
            "Leave out --num-runs and --min-secs, or leave out --mode mlperf.",
        )
    return Plan(mode=mode, threads=threads, num_runs=runs, warmup_runs=warmup_runs, min_secs=secs, sustained=sustained)


def _trace(sessions: Sequence[Session], runs: Sequence[Run], report: Step) -> None:
    """The operators of each run, as the runtimes tell them."""
    for n, (session, run) in enumerate(zip(sessions, runs, strict=True)):
        report(f"profiling the operators of {session.artifact.path.name}", n, len(sessions))
        trace, whole_us = session.trace(TRACED_RUNS)
        run.operators = read_operators(session.artifact, trace, whole_us, TRACED_RUNS)
