"""Results from files: profiles, the cells of benchmarks, and what evaluations and manifests add to them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.artifacts import model_sha256
from edgekit.errors import BadInput
from edgekit.reporting.rows import DONE, Accuracy, Pair, Results, Row, device_name, numbered
from edgekit.reporting.schema import HINT, check_comparison, check_profile, damaged, read_json, structure
from edgekit.types import ArtifactProfile, Delegation, DelegationShare, FileRecord, Profile
from edgekit.types.benchmark import CellResult

CELLS, SWEEP, MANIFEST = "cells", "benchmark.json", "edgekit.json"


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    """What `evaluate --json` says; `artifact` and `sha256` where it tells of what."""

    top1: float
    n: int
    top5: float | None = None
    drop: float | None = None
    artifact: str = ""
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class _Verified:
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """What of an artifact's manifest a report shows."""

    files: Mapping[str, FileRecord]
    delegation: Delegation
    verification: tuple[_Verified, ...] = ()

    @property
    def sha256(self) -> str:
        """As a profile has it."""
        return model_sha256(self.files)

    @property
    def size_bytes(self) -> int:
        return sum(r.bytes for name, r in self.files.items() if name.startswith("model."))


@dataclass(frozen=True, kw_only=True)
class _SweepWarning:
    cell: str
    text: str


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """What `benchmark.json` says beside the cells; `finished` and `warnings` only once the sweep has ended."""

    finished: str = ""
    warnings: tuple[_SweepWarning, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Found:
    """What has been read so far; `pairs` name places in `rows`."""

    rows: list[Row] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    sweeps: list[tuple[Path, _Sweep]] = field(default_factory=list)
    manifests: list[tuple[Path, _Manifest]] = field(default_factory=list)
    evaluations: list[tuple[Path, _Evaluation]] = field(default_factory=list)


def read_results(paths: Sequence[str | Path]) -> Results:
    """Everything in `paths`: files of `profile -o`, folders of `benchmark -o`, `evaluate --json`, artifacts' folders.

    A file that is given twice counts once. Raises `BadInput`, which names the file, for one that is missing, damaged,
    or of an unknown kind, for an evaluation of what was not measured, and where nothing was measured at all.
    """
    if not paths:
        raise BadInput("no results were given", HINT)
    found = _Found()
    files = list(dict.fromkeys(file for path in paths for file in _files(Path(path))))
    for file in files:
        _read(file, found)
    if not found.rows:
        raise BadInput(f"{', '.join(map(str, paths))}: nothing was measured", HINT)
    rows = [_with_manifest(_with_sweep(row, found.sweeps), found.manifests) for row in found.rows]
    for path, evaluation in found.evaluations:
        rows = _with_evaluation(rows, path, evaluation)
    return Results(
        rows=numbered(_with_hosts(rows)),
        pairs=tuple(found.pairs),
        files=tuple(str(p) for p in paths),
        notes=tuple(note for path, sweep in found.sweeps for note in _notes(path, sweep)),
    )


def _files(path: Path) -> list[Path]:
    """The JSON files of one argument, in order."""
    if path.name == SWEEP and (path.parent / CELLS).is_dir():
        return _files(path.parent)
    if not path.is_dir():
        return [path]
    if (path / MANIFEST).is_file():
        return [path / MANIFEST]
    cells = sorted((path / CELLS).glob("*.json"))
    sweep = [path / SWEEP] if (path / SWEEP).is_file() else []
    if not cells:
        what = "no cell of its benchmark is done yet" if sweep else "no benchmark was written there"
        raise BadInput(f"{path} holds no results: {what}", HINT)
    return [*sweep, *cells]


def _read(path: Path, found: _Found) -> None:
    values = read_json(path)
    if {"results", "comparisons"} <= set(values):
        _add_profile(structure(values, Profile, path), path, found)
    elif {"cell", "status"} <= set(values):
        found.rows.append(_cell(structure(values, CellResult, path), path))
    elif "plan" in values:
        found.sweeps.append((path, structure(values, _Sweep, path)))
    elif {"files", "delegation"} <= set(values):
        found.manifests.append((path, structure(values, _Manifest, path)))
    elif {"top1", "n"} <= set(values):
        found.evaluations.append((path, _evaluation(values, path)))
    else:
        raise BadInput(f"{path} is neither a profile, a benchmark's cell, an evaluation nor a manifest", HINT)


def _add_profile(profile: Profile, path: Path, found: _Found) -> None:
    # Artifacts are told apart by path, and the same one may have been measured twice: the last of it is `b`.
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for result in profile.results:
        check_profile(result, path)
        found.rows.append(_row(result, path))
        first.setdefault(result.artifact, len(found.rows))
        last[result.artifact] = len(found.rows)
    for c in profile.comparisons:
        check_comparison(c, path)
        if c.a not in first or c.b not in last:
            raise damaged(path, f"it compares {c.a[:80]} with {c.b[:80]}, which it has not measured")
        found.pairs.append(Pair(a=first[c.a], b=last[c.b], ratio=c.ratio, ci95=c.ci95, of=c.of))


def _row(p: ArtifactProfile, path: Path, asked: str = "") -> Row:
    return Row(
        file=str(path),
        model=p.name,
        target=p.target,
        precision=p.precision,
        device=device_name(p.device, asked),
        artifact=p.artifact,
        size_bytes=p.size_bytes,
        profile=p,
        delegation=p.delegation,
    )


def _cell(result: CellResult, path: Path) -> Row:
    cell, profile = result.cell, result.profile
    if result.status == DONE and profile is None:
        raise damaged(path, "it is done but holds no profile")
    if profile:
        check_profile(profile, path)
        row = _row(profile, path, cell.device)
    else:
        row = Row(file=str(path), model="", target="", precision="", device=cell.device)
    return replace(
        row,
        model=cell.model,
        target=cell.target,
        precision=cell.precision,
        artifact=result.artifact or row.artifact,
        status=result.status,
        error=result.error,
        hint=result.hint,
        host=result.host,
        size_bytes=result.size_bytes or row.size_bytes,
        sqnr_db=(result.parity or {}).get("sqnr_db"),
        accuracy=_accuracy(result.accuracy or {}, path),
    )


def _accuracy(values: Mapping[str, float | None], path: Path) -> Accuracy | None:
    top1, n = values.get("top1"), values.get("n")
    if top1 is None:
        return None
    return _possible(
        Accuracy(top1=top1, top5=values.get("top5"), n=None if n is None else int(n), drop=values.get("drop")), path
    )


def _possible(accuracy: Accuracy, path: Path) -> Accuracy:
    shares = all(0 <= share <= 100 for share in (accuracy.top1, accuracy.top5 or 0))
    if not shares or (accuracy.n is not None and accuracy.n < 1):
        raise damaged(path, f"{accuracy.top1} % of {accuracy.n} images is no accuracy")
    return accuracy


def _evaluation(values: dict[str, Any], path: Path) -> _Evaluation:
    evaluation = structure(values, _Evaluation, path)
    _possible(Accuracy(top1=evaluation.top1, top5=evaluation.top5, n=evaluation.n), path)
    return evaluation


def _notes(path: Path, sweep: _Sweep) -> tuple[str, ...]:
    unfinished = () if sweep.finished else (f"The sweep in {path.parent} has not ended: cells may be missing.",)
    return (*unfinished, *sweep.notes)


def _with_sweep(row: Row, sweeps: Iterable[tuple[Path, _Sweep]]) -> Row:
    """The row with what its sweep warns of."""
    said = tuple(
        w.text for path, s in sweeps for w in s.warnings if str(path.parent / CELLS / f"{w.cell}.json") == row.file
    )
    return replace(row, remarks=said) if said else row


def _with_hosts(rows: Sequence[Row]) -> list[Row]:
    """The rows; where several machines were called "host", each with its name."""
    ours = {r.host for r in rows if r.device.startswith("host") and r.host}
    if len(ours) < 2:
        return list(rows)
    return [replace(r, device=f"{r.device} of {r.host}") if r.device.startswith("host") and r.host else r for r in rows]


def _with_manifest(row: Row, manifests: Iterable[tuple[Path, _Manifest]]) -> Row:
    """The row with what the manifest of its artifact knows: parity, size, and why ops are outside the delegate."""
    if row.profile is None:
        return row
    for _, manifest in manifests:
        if manifest.sha256 != row.profile.sha256:
            continue
        d = manifest.delegation
        outside = Counter[str]()
        for f in d.fallback:
            outside[f.op] += f.count
        share = DelegationShare(
            backend=d.backend,
            delegated=d.delegated,
            partitions=d.partitions,
            fallback=dict(outside),
        )
        sqnr = min((v.sqnr_db for v in manifest.verification), default=None)
        return replace(
            row,
            sqnr_db=sqnr if row.sqnr_db is None else row.sqnr_db,
            size_bytes=row.size_bytes or manifest.size_bytes,
            delegation=row.delegation or share,
            fallback=d.fallback,
        )
    return row


def _with_evaluation(rows: Sequence[Row], path: Path, e: _Evaluation) -> list[Row]:
    """The rows with the accuracy of the artifact that was evaluated: by its hash, its folder, or the file's name."""
    named = Path(e.artifact).name or path.stem

    def fits(row: Row) -> bool:
        if e.sha256 and row.profile:
            return row.profile.sha256 == e.sha256
        return Path(row.artifact).name == named

    if not any(map(fits, rows)):
        raise BadInput(
            f"{path} is an evaluation of {named}, which none of the results has measured",
            f"Name the file as the artifact's folder, such as {Path(rows[0].artifact).name or 'lvt-onnx-int8'}.json.",
        )
    accuracy = Accuracy(top1=e.top1, top5=e.top5, n=e.n, drop=e.drop)
    return [replace(row, accuracy=accuracy) if fits(row) else row for row in rows]
