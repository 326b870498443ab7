"""The sweep: which cells are to be done, by which engine, and what is kept of each."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

from edgekit.benchmarking._job import Limits
from edgekit.benchmarking.farm import ray_engine
from edgekit.benchmarking.isolation import Outcome
from edgekit.benchmarking.local import Run, local_engine
from edgekit.benchmarking.plan import Asked, cells_of, check_same, plan_of
from edgekit.benchmarking.ratios import ratios_to_fp32
from edgekit.benchmarking.results import OWN, PLAN, Store, locked, names
from edgekit.errors import BadInput, UnknownName
from edgekit.types import Benchmark, Cell, CellResult, OnSweep, SweepEvent, SweepPlan

ENGINES = MappingProxyType({"local": local_engine, "ray": ray_engine})


def benchmark(
    models: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    *,
    out: str | Path,
    weights: Mapping[str, str] | None = None,
    image_size: int | None = None,
    calibration: str | Path | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    threads: int | None = None,
    num_runs: int | None = None,
    warmup_runs: int | None = None,
    min_secs: float | None = None,
    runners: Mapping[str, str] | None = None,
    python: str | None = None,
    timeout: float = 1800.0,
    max_memory: float = 0.0,
    engine: str = "local",
    ray_address: str | None = None,
    resume: bool = False,
    force: bool = False,
    on_event: OnSweep | None = None,
) -> Benchmark:
    """Export, evaluate (where there is `data`) and profile every combination, each in a process of its own.

    None means the usual: small models of the zoo, the targets that work here, fp32 and int8 (fp16 without
    `calibration`), this machine; with `resume`, what the sweep in `out` was begun with. A cell that crashes, takes more
    than `timeout` seconds or more than `max_memory` MiB (0: three quarters of the machine's) is a red one in the
    result, and the others go on. Each result is in `out` at once, whole: `resume` does only the cells that have none or
    a red one. `force` begins anew. `runners` are tools of the user's by target, for the devices that take one, and
    `python` is the interpreter of boards; see `open_device`. With `engine` "ray" the cells run on the machines of a
    Ray cluster.
    Raises `BadInput` for another sweep in `out`, `MissingDependency` without Ray, `EnvironmentProblem` where no machine
    of the cluster has a device.
    """
    if engine not in ENGINES:
        raise UnknownName("engine", engine, ENGINES)
    if not timeout > 0 or not max_memory >= 0:
        raise BadInput(
            f"a limit of {timeout} s and {max_memory} MiB is none", "Give --timeout and --max-memory above 0."
        )
    asked = Asked(
        models=models,
        targets=targets,
        precisions=precisions,
        devices=devices,
        weights=weights,
        image_size=image_size,
        calibration=None if calibration is None else str(calibration),
        data=None if data is None else str(data),
        limit=limit,
        threads=threads,
        num_runs=num_runs,
        warmup_runs=warmup_runs,
        min_secs=min_secs,
        runners=runners,
        python=python,
    )
    limits = Limits(timeout=timeout, max_memory=max_memory)
    on = on_event or (lambda event: None)
    store = Store(Path(out))
    plan = _plan(store, asked, resume, force)
    cells, notes = cells_of(plan)
    with ENGINES[engine](plan, ray_address) as run, locked(store.folder):
        if force or store.plan() is None:
            store.clear()
            store.begin(plan, _host())
        store.sweep_up()
        return _run(run, store, plan, limits, on, cells, notes)


def _host() -> dict[str, str]:
    system = f"{platform.system()} {platform.release()}"
    cores = str(os.cpu_count())
    return {"name": platform.node(), "system": system, "machine": platform.machine(), "cores": cores}


def _plan(store: Store, asked: Asked, resume: bool, force: bool) -> SweepPlan:
    """The plan to follow; nothing is written yet."""
    there = names(store.folder)
    if resume and force:
        raise BadInput("--resume goes on with a sweep and --force begins anew", "Leave one of them out.")
    before = store.plan() if resume else None
    if before is not None:
        check_same(asked, before)
        return before
    if there and PLAN not in there and (not force or OWN & set(there)):
        some = ", ".join(there[:3]) + (", …" if len(there) > 3 else "")
        raise BadInput(f"{store.folder} is not empty and holds no sweep: {some}", "Give another folder with -o.")
    if there and not force:
        raise BadInput(
            f"{store.folder} holds a sweep already",
            "Go on with it: --resume. Begin anew: --force. Or give another folder with -o.",
        )
    return plan_of(asked)


def _run(
    run: Run, store: Store, plan: SweepPlan, limits: Limits, on: OnSweep, cells: tuple[Cell, ...], notes: Sequence[str]
) -> Benchmark:
    """Do the cells that are not done, and sum up all of them."""
    found = store.results(cells)
    done = {name: result for name, result in found.items() if result.status == "done"}
    todo = [cell for cell in cells if cell.name not in done]
    on(SweepEvent(cells=cells, results=tuple(done.values())))
    if todo:
        store.go_on()

    def on_step(cell: Cell, step: str, host: str) -> None:
        on(SweepEvent(cell=cell, step=step, host=host))

    with closing(run(todo, store.artifacts, limits, on_step)) as outcomes:
        results = done | _kept(outcomes, store, on)
    ordered = tuple(results[cell.name] for cell in cells)
    result = Benchmark(
        folder=str(store.folder),
        plan=plan,
        results=ordered,
        ratios=ratios_to_fp32(ordered),
        reused=len(done),
        notes=(*notes, *_common_notes(ordered)),
    )
    store.finish(result)
    return result


def _kept(outcomes: Iterator[Outcome], store: Store, on: OnSweep) -> dict[str, CellResult]:
    """Each outcome written as it comes."""
    results = {}
    for outcome in outcomes:
        store.write(outcome)
        results[outcome.result.cell.name] = outcome.result
        on(SweepEvent(cell=outcome.result.cell, result=outcome.result))
    return results


def _common_notes(results: Sequence[CellResult]) -> tuple[str, ...]:
    """What the exports said, each once, with the models that it is about where these are not all."""
    about: dict[str, dict[str, None]] = {}
    for result in results:
        for note in result.notes:
            about.setdefault(note, {})[result.cell.model] = None
    every = {r.cell.model for r in results}
    return tuple(n if set(models) == every else f"{', '.join(models)}: {n}" for n, models in about.items())
