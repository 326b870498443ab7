"""What runs on a machine of the farm: one job under its guard, in a folder of its own that goes with it."""

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from platform import node

from edgekit.artifacts import atomic_folder, load_artifact
from edgekit.benchmarking._job import MAKE, Job, Limits
from edgekit.benchmarking.isolation import Outcome, run_job
from edgekit.loading import sha256
from edgekit.types import CellResult

PREFIX = "edgekit-cell-"
PATHS = "Each path must lead to the same file on every machine of the cluster: use a folder that they share."


@dataclass(frozen=True, kw_only=True)
class Order:
    """A job for any machine; `folder` is where the user is, and paths begin."""

    job: Job
    limits: Limits
    folder: str


def work(order: Order, artifact: bytes | None) -> tuple[Outcome, bytes | None]:
    """The outcome of an order with the artifact of an earlier one, packed; where it makes one, that too."""
    problem = _problem(order)
    if problem:
        return Outcome(result=_failed(order, *problem)), None
    with _workspace() as folder:
        artifacts = folder / "artifacts"
        if artifact is not None:
            unpack(artifact, artifacts / order.job.cell.artifact)
        job = replace(order.job, artifacts=str(artifacts))
        place = order.folder if os.path.isdir(order.folder) else str(folder)
        outcome = run_job(job, order.limits, lambda step: None, place)
        made = folder / outcome.result.artifact if outcome.result.artifact and job.steps == MAKE else None
        return outcome, None if made is None else pack(made)


def pack(artifact: Path) -> bytes:
    """An artifact's folder as the bytes of a tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(artifact, arcname=artifact.name)
    return stream.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Write a packed artifact into `folder`, whole or not at all; raises `ArtifactDamaged` if it is not as it was."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar, atomic_folder(folder) as temporary:
        tar.extractall(temporary, filter="data")
        for path in temporary.iterdir():
            load_artifact(path)  # hashes every file


def _problem(order: Order) -> tuple[str, str] | None:
    """Why this machine would not do what the sweep asks for: the error and the hint."""
    job = order.job
    here = version("edgekit")
    if here != job.plan.edgekit:
        same = f"Type there: pip install 'edgekit=={job.plan.edgekit}'"
        return f"{node()} has edgekit {here}, and the sweep is of {job.plan.edgekit}", same
    for name, hash_ in job.plan.files.items():
        if name != job.plan.weights.get(job.cell.model) and not job.cell.model.startswith(name):
            continue
        path = Path(order.folder) / name
        if not path.is_file():
            return f"{name} is not at {path} on {node()}", PATHS
        if sha256(path) != hash_:
            return f"{path} on {node()} is another file than where the sweep was started", PATHS
    for name in filter(None, (job.plan.data, job.plan.calibration)):
        if name != "synthetic" and not (Path(order.folder) / name).exists():
            return f"{name} is not on {node()}", PATHS
    return None


def _failed(order: Order, error: str, hint: str) -> CellResult:
    return CellResult(cell=order.job.cell, status="failed", seconds=0.0, error=error, hint=hint, host=node())


@contextmanager
def _workspace() -> Iterator[Path]:
    """A temporary folder; those of workers that were killed are removed on the way."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = old.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        yield Path(folder)


def _alive(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
