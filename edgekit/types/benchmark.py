"""A sweep over models, targets, precisions and devices, and what came of each of its cells."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.types.profile import ArtifactProfile

_LONGEST = 150


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination that is measured. `name` is unique in a sweep and safe as a file's name."""

    model: str
    target: str
    precision: str
    device: str

    @property
    def name(self) -> str:
        return _file_name(f"{self.model}-{self.target}-{self.precision}-{self.device}")

    @property
    def artifact(self) -> str:
        """The same of what is measured: cells of several devices share it."""
        return _file_name(f"{self.model}-{self.target}-{self.precision}")


def _file_name(text: str) -> str:
    """`text` as it is where that is a file's name; else with a hash of it, so that no two become one."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in text)
    if safe == text.replace(":", "_") and len(safe) <= _LONGEST and not safe.startswith("."):
        return safe
    return f"{safe.lstrip('._')[-_LONGEST:]}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What came of a cell: `status` is "done", "failed", "timeout", "memory", "crashed" or "lost" (its machine went).

    `error` and `hint` say why it is not "done"; what was found out before that is kept. `parity` is of the export:
    sqnr_db, max_abs_error, top1_agreement; `accuracy` of the evaluation where there was data: top1, top5, n, drop.
    `slow_causes` are of an int8 artifact: what in it costs time that int8 should have saved. `artifact` is relative to
    the folder of the sweep, `host` the machine that measured, `attempts` how often the cell was begun in this run.
    """

    cell: Cell
    status: str
    seconds: float
    error: str = ""
    hint: str = ""
    artifact: str = ""
    size_bytes: int = 0
    parity: Mapping[str, float | None] | None = None
    accuracy: Mapping[str, float | None] | None = None
    profile: ArtifactProfile | None = None
    slow_causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    host: str = ""
    attempts: int = 1
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep measures, and how: a sweep is resumed only with the same plan.

    `files` are the hashes of the files that it names: models, weights and runners. `weights` are by model; `runners`,
    the user's tools for devices that take one, by target; `python` is the interpreter of boards.
    """

    models: tuple[str, ...]
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    devices: tuple[str, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    image_size: int | None = None
    calibration: str | None = None
    data: str | None = None
    limit: int | None = None
    threads: int = 1
    num_runs: int = 50
    warmup_runs: int = 10
    min_secs: float = 1.0
    runners: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    edgekit: str = ""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median latency (instructions, on an emulator) of a cell over that of the same model in fp32 there.

    They are from separate runs. `warning` says why int8 is not faster, where it is not.
    """

    cell: Cell
    ratio: float
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A sweep: each cell in the order of the plan, and the ratios to fp32. `reused` cells were done before this run."""

    folder: str
    plan: SweepPlan
    results: tuple[CellResult, ...]
    ratios: tuple[Ratio, ...]
    reused: int = 0
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[CellResult, ...]:
        return tuple(r for r in self.results if r.status != "done")


@dataclass(frozen=True, kw_only=True)
class SweepEvent:
    """What happened in a running sweep: `cell` is at `step` now ("export", "profile: measuring in turns"), or ended.

    The first event has no cell: `cells` are all that the sweep has and `results` those that were done before.
    """

    cell: Cell | None = None
    step: str = ""
    host: str = ""
    result: CellResult | None = None
    cells: tuple[Cell, ...] = ()
    results: tuple[CellResult, ...] = ()


OnSweep = Callable[[SweepEvent], Any]
