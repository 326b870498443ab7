"""The cells of a sweep on the machines of a Ray cluster, whose devices are one pool.

Exports and evaluations are tasks for any machine; a device is a custom resource of the machine that it is attached to,
"device:adb:SERIAL", and a cell that measures on it takes it whole. A cell of the device "host" takes all CPUs of a
machine, so that nothing of ours runs there beside it; all those of a model go to one machine. Artifacts travel as
bytes. The driver alone writes the folder of the sweep, and decides what is tried again after a machine is lost.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekit.artifacts import load_artifact
from edgekit.benchmarking._job import MAKE, MEASURE, Job, Limits
from edgekit.benchmarking.isolation import Outcome
from edgekit.benchmarking.local import OnStep, Run
from edgekit.benchmarking.node import Order, pack, unpack, work
from edgekit.benchmarking.pool import Pool, needs_resource, resource_of
from edgekit.errors import EnvironmentProblem, MissingDependency, UsageError
from edgekit.types import Cell, CellResult, SweepPlan

ATTEMPTS = 3
"""How often a cell is begun whose machine is lost each time."""
POLL_SECS = 1.0
REACH_SECS = 10.0
GRACE_SECS = 60.0
"""How long a device may be gone from the cluster before its cells are given up."""
MAKE_CPUS = 2
"""Of a machine for an export: no more of them beside each other than memory allows."""


@contextmanager
def ray_engine(plan: SweepPlan, address: str | None) -> Iterator[Run]:
    """What runs cells on a Ray cluster: the one at `address`, the one of this machine, or else a new one.

    Raises `MissingDependency` without Ray, `EnvironmentProblem` without a cluster at `address` or a device in it.
    """
    with _connected(address) as ray:

        def run(
            cells: Sequence[Cell], artifacts: Path, limits: Limits, on_step: OnStep
        ) -> Generator[Outcome, None, None]:
            farm = _Farm(ray, plan, artifacts, limits, on_step)
            try:
                yield from farm.run(cells)
            finally:
                farm.cancel()

        Pool(ray).check_devices(plan.devices)
        yield run


@contextmanager
def _connected(address: str | None) -> Iterator[ModuleType]:
    # It is read at import. No word of anybody's sweep goes anywhere.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingDependency("ray", "--engine ray", "farm", str(error)) from error
    if ray.is_initialized():
        yield ray
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        _reach(address)
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"there is no Ray cluster at {address or 'this machine'}: {str(error).splitlines()[0]}",
            "Start one: ray start --head; on the other machines: ray start --address=HEAD:6379. "
            "This machine must be one of them. Without --ray-address one is started here.",
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which ends without a word
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Raises `OSError` where nothing listens at HOST:PORT: Ray would try for seven minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECS).close()


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is running: the cells that wait for it, the attempt it is, and what was found before."""

    cells: tuple[Cell, ...]
    steps: tuple[str, ...]
    attempt: int
    node: str = ""
    avoid: frozenset[str] = frozenset()
    made: CellResult | None = None
    artifact: Any = None
    missing_since: float | None = None


class _Farm:
    def __init__(self, ray: ModuleType, plan: SweepPlan, artifacts: Path, limits: Limits, on_step: OnStep) -> None:
        self._ray, self._plan, self._artifacts, self._limits, self._on_step = ray, plan, artifacts, limits, on_step
        self._pool = Pool(ray)
        self._work = ray.remote(work)
        self._running: dict[Any, _Task] = {}
        self._waiting: list[_Task] = []
        self._homes: dict[str, str] = {}

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(cell.artifact, []).append(cell)
        for group in groups.values():
            self._start(_Task(cells=tuple(group), steps=MAKE, attempt=1, artifact=self._before(group[0])))
        while self._running or self._waiting:
            waiting, self._waiting = self._waiting, []
            for task in waiting:
                self._start(task)
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=POLL_SECS)
            for reference in ready:
                yield from self._ended(reference)
            if not ready:
                yield from self._given_up()

    def cancel(self) -> None:
        """End what runs: a worker that is killed takes its guard's cell with it."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._waiting.clear()

    def _before(self, cell: Cell) -> bytes | None:
        """The artifact of an earlier run, packed; whether it is the right one is seen where it is used."""
        for path in sorted((self._artifacts / cell.artifact).glob("*/edgekit.json")):
            with suppress(UsageError):  # a damaged one is made again
                return pack(load_artifact(path).path)
        return None

    def _start(self, task: _Task) -> None:
        """Give a task to Ray. One that wants a whole machine waits here for the one before it: one is lost, not all."""
        cpus, resources, node = self._place(task)
        if node and any(other.node == node for other in self._running.values()):
            self._waiting.append(task)
            return
        job = Job(cell=task.cells[0], plan=self._plan, artifacts="", steps=task.steps)
        strategy = None
        if node:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        spent = task.made.seconds if task.made else 0.0
        limits = replace(self._limits, timeout=max(1.0, self._limits.timeout - spent))
        order = Order(job=job, limits=limits, folder=os.getcwd())
        options = self._work.options(
            num_cpus=cpus, resources=resources, scheduling_strategy=strategy, max_retries=0, num_returns=1
        )
        self._running[options.remote(order, task.artifact)] = replace(task, node=node)
        for each in task.cells:
            self._on_step(each, f"{task.steps[0]}, or waiting for it", "the cluster")

    def _place(self, task: _Task) -> tuple[float, dict[str, float] | None, str]:
        """CPUs, custom resources and machine that a task must have."""
        if task.steps == MAKE:
            most = max((n["Resources"].get("CPU", 0.0) for n in self._pool.nodes()), default=1.0)
            return min(MAKE_CPUS, most), None, ""
        cell = task.cells[0]
        name = resource_of(cell.device)
        offered = {name: 1.0} if self._pool.offering(name) else None
        if cell.device != "host":
            return 1.0, {name: 1.0} if needs_resource(cell.device) else offered, ""
        home = self._home(cell.model, task.avoid)
        cpus = next((n["Resources"]["CPU"] for n in self._pool.nodes() if n["NodeID"] == home), 1.0)
        return cpus, offered, home

    def _home(self, model: str, avoid: frozenset[str]) -> str:
        """The machine that measures a model: another one for each, and the next where it is lost."""
        able = sorted(n["NodeID"] for n in self._pool.offering(resource_of("host")) or self._pool.nodes())
        nodes = [n for n in able if n not in avoid] or able
        if self._homes.get(model) not in nodes and nodes:
            used = list(self._homes.values())
            self._homes[model] = min(nodes, key=lambda n: (used.count(n), n))
        return self._homes.get(model, "")

    def _ended(self, reference: Any) -> Iterator[Outcome]:
        task = self._running.pop(reference)
        errors = self._ray.exceptions
        try:
            outcome, packed = self._ray.get(reference)
        except errors.RayTaskError as error:  # our own code failed there: it will again
            yield from self._red(task, "failed", str(error).strip().splitlines()[-1], "Is edgekit installed there?")
            return
        except errors.RayError as error:  # the worker, its machine, or what it had to say
            yield from self._again(task, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
            return
        if task.steps == MEASURE:
            yield self._merged(task, outcome)
        elif outcome.result.status != "done":
            for cell in task.cells:
                yield replace(outcome, result=self._here(replace(outcome.result, cell=cell, attempts=task.attempt)))
        else:
            self._keep(task.cells[0], packed)
            shared = self._ray.put(packed)
            for cell in task.cells:
                self._start(_Task(cells=(cell,), steps=MEASURE, attempt=1, made=outcome.result, artifact=shared))

    def _keep(self, cell: Cell, packed: bytes) -> None:
        unpack(packed, self._artifacts / cell.artifact)

    def _merged(self, task: _Task, outcome: Outcome) -> Outcome:
        """What was measured, with what was found when the artifact was made."""
        made, measured = task.made, outcome.result
        assert made is not None
        result = replace(
            measured,
            seconds=made.seconds + measured.seconds,
            artifact=made.artifact,
            size_bytes=made.size_bytes,
            parity=made.parity,
            accuracy=made.accuracy,
            notes=made.notes,
            attempts=task.attempt,
        )
        return replace(outcome, result=self._here(result))

    def _here(self, result: CellResult) -> CellResult:
        """With the artifact's path on this machine in place of the one where it was measured."""
        path = str(self._artifacts.parent / result.artifact)
        return replace(result, profile=replace(result.profile, artifact=path)) if result.profile else result

    def _again(self, task: _Task, why: str) -> Iterator[Outcome]:
        if task.attempt < ATTEMPTS and self._pool.nodes():
            # Ray may name a machine that is gone for some seconds yet.
            self._start(replace(task, attempt=task.attempt + 1, avoid=task.avoid | {task.node}))
        else:
            yield from self._red(task, "lost", f"its machine was lost {task.attempt} times: {why}", "Type --resume.")

    def _red(self, task: _Task, status: str, error: str, hint: str) -> Iterator[Outcome]:
        for cell in task.cells:
            empty = CellResult(cell=cell, status=status, seconds=0.0)
            result = replace(
                task.made or empty, cell=cell, status=status, error=error, hint=hint, attempts=task.attempt
            )
            yield Outcome(result=self._here(result))

    def _given_up(self) -> Iterator[Outcome]:
        """Cells that wait for a device, or a machine, that is no longer in the cluster."""
        alive = {n["NodeID"] for n in self._pool.nodes()}
        now = time.monotonic()
        for reference, task in list(self._running.items()):
            device = task.cells[0].device
            gone = not alive
            if task.steps == MEASURE and needs_resource(device):
                gone = gone or not self._pool.offering(resource_of(device))
            if not gone:
                self._running[reference] = replace(task, missing_since=None)
            elif task.missing_since is None:
                self._running[reference] = replace(task, missing_since=now)
            elif now - task.missing_since > GRACE_SECS:
                self._ray.cancel(reference, force=True)
                del self._running[reference]
                yield from self._red(task, "lost", f"no machine with {device} is left in the cluster", "Type --resume.")
