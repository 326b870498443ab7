"""What a report is made of: one row for each artifact on each device, and the pairs that were compared."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.types import ArtifactProfile, DelegationShare, FallbackOp

DONE = "done"
MAX_CV, MAX_TAIL = 0.10, 1.5
"""Beyond these a latency is unstable: those of `edgekit.profiling.statistics`, which imports torch."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 and top-5 in percent on `n` images; `drop` in points against the float model. None where not told."""

    top1: float
    top5: float | None = None
    n: int | None = None
    drop: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One artifact on one device. `status` is "done", or says how it failed; `error` and `hint` then say why.

    `file` is where it was read. `number` is unique in a report, `twin` where all else that names it is the same.
    """

    file: str
    model: str
    target: str
    precision: str
    device: str
    artifact: str = ""
    status: str = DONE
    error: str = ""
    hint: str = ""
    host: str = ""
    size_bytes: int = 0
    sqnr_db: float | None = None
    accuracy: Accuracy | None = None
    profile: ArtifactProfile | None = None
    delegation: DelegationShare | None = None
    fallback: tuple[FallbackOp, ...] = ()
    remarks: tuple[str, ...] = ()
    number: int = 0
    twin: int = 0

    @property
    def label(self) -> str:
        """Its name among rows of one device."""
        return f"{self.model} · {self.variant}"

    @property
    def variant(self) -> str:
        return f"{self.target} {self.precision}" + (f" ({self.twin})" if self.twin else "")

    @property
    def failed(self) -> bool:
        return self.status != DONE

    @property
    def p50_ms(self) -> float | None:
        """None also where an emulator counted instructions: it has no latency."""
        return self.profile.p50_ms if self.profile and self.profile.instructions is None else None

    @property
    def unstable(self) -> str:
        """The warning that says so, or ""; a tool's figures that come without one are judged here."""
        told = next((w for w in self.warnings if w.startswith("unstable")), "")
        p = self.profile
        if told or p is None or self.p50_ms is None:
            return told
        wide = (p.cv or 0) > MAX_CV or (p.p99_ms or 0) > MAX_TAIL * self.p50_ms
        return "unstable: the cause was not looked for" if wide else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the measurement, and of the sweep that it was part of."""
        return (*(self.profile.warnings if self.profile else ()), *self.remarks)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """`b` took `ratio` of the time (or instructions) of `a`; both are numbers of rows."""

    a: int
    b: int
    ratio: float
    ci95: tuple[float, float]
    of: str = "latency"


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that was read: rows in order, pairs that were measured in turns, and where each came from."""

    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...] = ()
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[Row, ...]:
        return tuple(r for r in self.rows if not r.failed)

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(r for r in self.rows if r.failed)

    def row(self, number: int) -> Row:
        return self.rows[number - 1]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows whose latencies may be compared: of one device, with as many threads."""

    device: str
    threads: int
    rows: tuple[Row, ...] = field(default=())

    @property
    def name(self) -> str:
        return f"{self.device}, {self.threads} thread{'s' if self.threads != 1 else ''}"


def device_name(facts: Mapping[str, str], asked: str = "") -> str:
    """How a device is called on the page: as it was asked for, and what it is."""
    kind = facts.get("address") or asked or facts.get("kind") or "device"
    what = next((facts[k] for k in ("model", "cpu", "soc", "machine") if facts.get(k)), "")
    return f"{kind} ({what})" if what else kind


def numbered(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows with their numbers from 1, and with a second number where two would have the same name."""
    listed = list(rows)
    names = [(r.device, _threads(r), r.label) for r in listed]
    often, seen = Counter(names), Counter[tuple[str, int, str]]()
    result = []
    for number, (row, name) in enumerate(zip(listed, names, strict=True), 1):
        seen[name] += 1
        result.append(replace(row, number=number, twin=seen[name] if often[name] > 1 else 0))
    return tuple(result)


def groups(rows: Sequence[Row]) -> tuple[Group, ...]:
    """Rows that have a latency, by device and threads, in the order that they came."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.p50_ms is not None:
            found.setdefault((row.device, _threads(row)), []).append(row)
    return tuple(Group(device=d, threads=t, rows=tuple(members)) for (d, t), members in found.items())


def _threads(row: Row) -> int:
    return row.profile.threads if row.profile else 0
