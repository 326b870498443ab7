"""What the process of a cell is told, and what it answers line by line."""

from dataclasses import dataclass, field, replace

from edgekit.types import ArtifactProfile, Cell, CellResult, SweepPlan

MAKE, MEASURE = ("export", "evaluate"), ("profile",)


@dataclass(frozen=True, kw_only=True)
class Job:
    """`steps` of a cell, in the folder `artifacts`: there the artifact is, or is to be, in a folder of its own."""

    cell: Cell
    plan: SweepPlan
    artifacts: str
    steps: tuple[str, ...] = (*MAKE, *MEASURE)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one cell. `timeout` in seconds; `max_memory` in MiB of all its processes, 0 for the usual three quarters."""

    timeout: float = 1800.0
    max_memory: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of a cell's process: what is new. `step` is what it does now; `finished` that all steps are done."""

    step: str = ""
    artifact: str | None = None
    size_bytes: int | None = None
    parity: dict[str, float | None] | None = None
    accuracy: dict[str, float | None] | None = None
    profile: ArtifactProfile | None = None
    slow_causes: tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None
    error: str = ""
    hint: str = ""
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that the answers of one process came to."""

    values: Answer = field(default_factory=Answer)

    def add(self, answer: Answer) -> "Found":
        changed = {k: v for k, v in vars(answer).items() if v not in (None, "", False) and k != "step"}
        return Found(values=replace(self.values, **changed))

    def result(self, result: CellResult) -> CellResult:
        """`result` with what was found."""
        names = ("artifact", "size_bytes", "parity", "accuracy", "profile", "slow_causes", "notes")
        known = {name: getattr(self.values, name) for name in names}
        return replace(result, **{k: v for k, v in known.items() if v is not None})
