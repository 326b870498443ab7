"""The cells of a sweep on this machine, one after the other: no measurement has another for company."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgekit.benchmarking._job import Job, Limits
from edgekit.benchmarking.isolation import Outcome, run_job
from edgekit.devices import open_device
from edgekit.errors import BadInput
from edgekit.types import Cell, SweepPlan

Run = Callable[[Sequence[Cell], Path, Limits, "OnStep"], Generator[Outcome, None, None]]
"""(cells, the folder of the artifacts, limits of each cell, whom to tell) -> the outcome of each cell, as it comes."""
OnStep = Callable[[Cell, str, str], None]
"""Called with a cell, what it does now, and on which machine, where that is another."""


@contextmanager
def local_engine(plan: SweepPlan, address: str | None) -> Iterator[Run]:
    """What runs cells here. Raises `UnknownName` or `BadInput` for a device that cannot be."""
    if address is not None:
        raise BadInput(f"--ray-address {address} is for --engine ray", "Add --engine ray, or leave it out.")
    for name in plan.devices:
        open_device(name)
    yield partial(_run, plan)


def _run(
    plan: SweepPlan, cells: Sequence[Cell], artifacts: Path, limits: Limits, on_step: OnStep
) -> Generator[Outcome, None, None]:
    """The outcome of each cell as soon as there is one.

    An artifact that cannot be made is not tried again for another device.
    """
    failed: dict[str, Outcome] = {}
    for cell in cells:
        before = failed.get(cell.artifact)
        if before is not None:
            yield replace(before, result=replace(before.result, cell=cell, seconds=0.0, attempts=0))
            continue
        job = Job(cell=cell, plan=plan, artifacts=str(artifacts))
        outcome = run_job(job, limits, partial(_say, on_step, cell))
        if outcome.result.status != "done" and not outcome.result.artifact:
            failed[cell.artifact] = outcome
        yield outcome


def _say(on_step: OnStep, cell: Cell, step: str) -> None:
    on_step(cell, step, "")
