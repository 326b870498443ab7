"""The folder of a sweep: its plan, one file a cell, and a summary; each written whole or not at all."""

import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cattrs

from edgekit.artifacts import write_file
from edgekit.benchmarking.isolation import Outcome
from edgekit.errors import BadInput
from edgekit.types import Benchmark, Cell, CellResult, SweepPlan

PLAN, TABLE, LOCK = "benchmark.json", "benchmark.csv", ".lock"
CELLS, ARTIFACTS, LOGS = "cells", "artifacts", "logs"
OWN = frozenset((PLAN, TABLE, CELLS, ARTIFACTS, LOGS))
SCHEMA = 1
HEAD = ("schema", "edgekit", "created", "host", "plan")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
COLUMNS = (
    *("model", "target", "precision", "device", "status", "size_bytes", "sqnr_db", "max_abs_error", "top1_agreement"),
    *("top1", "top5", "n", "drop", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "cv", "load_ms", "peak_memory_mib"),
    *("instructions", "ratio_to_fp32", "seconds", "host", "artifact", "error"),
)
_CONVERTER = cattrs.Converter()


class Store:
    """The folder of one sweep. Raises `BadInput` where a file in it is not what it should be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifacts = folder / ARTIFACTS

    def plan(self) -> SweepPlan | None:
        """The plan of the sweep that is there; None where there is none."""
        path = self.folder / PLAN
        if not path.exists():
            return None
        values = self._read(path)
        if values.get("schema") != SCHEMA:
            raise BadInput(
                f"{path} has schema {values.get('schema')!r}; this edgekit reads {SCHEMA}", "Use another -o."
            )
        return self._structure(path, values.get("plan"), SweepPlan)

    def begin(self, plan: SweepPlan, host: Mapping[str, str]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        head = {"schema": SCHEMA, "edgekit": plan.edgekit, "created": now, "host": dict(host)}
        write_file(self.folder / PLAN, _json({**head, "plan": asdict(plan)}))

    def go_on(self) -> None:
        """Take back the summary of an earlier end: cells will be done that are not in it."""
        values = self._read(self.folder / PLAN)
        write_file(self.folder / PLAN, _json({k: values[k] for k in HEAD if k in values}))

    def results(self, cells: Iterable[Cell]) -> dict[str, CellResult]:
        """What came of the cells that have a file, by their names; one that a power cut has damaged has none."""
        found = {}
        for cell in cells:
            path = self._of(cell)
            if path.exists():
                with suppress(BadInput):
                    found[cell.name] = self._structure(path, self._read(path), CellResult)
        return found

    def write(self, outcome: Outcome) -> None:
        """The result of a cell at once, whole; of a red one also what its process said."""
        cell = outcome.result.cell
        log = self.folder / LOGS / f"{cell.name}.log"
        if outcome.result.status != "done" and outcome.log:
            write_file(log, outcome.log.encode(errors="backslashreplace"))
        else:
            log.unlink(missing_ok=True)
        write_file(self._of(cell), _json(asdict(outcome.result)))

    def finish(self, benchmark: Benchmark) -> None:
        """Add the summary to the plan's file, and write it as a table."""
        values = self._read(self.folder / PLAN)
        summary = rows(benchmark)
        counts = {"cells": len(benchmark.results), "done": len(benchmark.results) - len(benchmark.failed)}
        warnings = [{"cell": r.cell.name, "text": r.warning} for r in benchmark.ratios if r.warning]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        more = {"finished": now, "counts": counts, "summary": summary, "warnings": warnings}
        write_file(self.folder / PLAN, _json({**values, **more, "notes": list(benchmark.notes)}))
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows({k: "" if v is None else v for k, v in row.items()} for row in summary)
        write_file(self.folder / TABLE, text.getvalue().encode())

    def clear(self) -> None:
        """Remove what came of a sweep, and nothing else that may lie beside it; its plan is for `begin` to replace."""
        (self.folder / TABLE).unlink(missing_ok=True)
        for name in (CELLS, ARTIFACTS, LOGS):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def sweep_up(self) -> None:
        """Remove the temporary files of a run that was killed: unfinished ones, whose names begin with a dot."""
        for place in (self.folder, self.folder / CELLS, self.folder / LOGS):
            for path in place.glob(".*"):
                if TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        for path in (*self.artifacts.glob("*/.*"), *self.artifacts.glob(".*")):
            shutil.rmtree(path, ignore_errors=True)

    def _of(self, cell: Cell) -> Path:
        return self.folder / CELLS / f"{cell.name}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(path) from error
        if not isinstance(values, dict):
            raise self._damaged(path)
        return values

    def _structure(self, path: Path, values: object, kind: type[Any]) -> Any:
        try:
            return _CONVERTER.structure(values, kind)
        except (cattrs.BaseValidationError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(path) from error

    def _damaged(self, path: Path) -> BadInput:
        return BadInput(f"{path} is not what a sweep writes", "Remove that file, or begin anew with --force.")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's alone. Raises `BadInput` where another sweep runs in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w", encoding="ascii")
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror}", "Give another folder with -o.") from error
    with file:
        if sys.platform != "win32":
            import fcntl

            try:
                # The kernel lets go of it with the process, however that ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BadInput(f"another sweep is running in {folder}", "Wait for it, or use another -o.") from error
        yield


def rows(benchmark: Benchmark) -> list[dict[str, Any]]:
    """One row a cell, with the columns `COLUMNS`; None where something was not found out."""
    ratios = {r.cell.name: r.ratio for r in benchmark.ratios}
    return [_row(result, ratios) for result in benchmark.results]


def _row(result: CellResult, ratios: Mapping[str, float]) -> dict[str, Any]:
    p = result.profile
    values = {
        **(result.parity or {}),
        **(result.accuracy or {}),
        **({k: getattr(p, k) for k in COLUMNS if hasattr(p, k)} if p else {}),
        **{k: getattr(result, k) for k in ("status", "size_bytes", "seconds", "host", "artifact", "error")},
        "ratio_to_fp32": ratios.get(result.cell.name),
    }
    values |= asdict(result.cell)  # of a profile, `device` is a description
    return {name: values.get(name) for name in COLUMNS}


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def names(folder: Path) -> Sequence[str]:
    """What is in a folder beside hidden files."""
    return sorted(p.name for p in folder.glob("*") if not p.name.startswith(".")) if folder.is_dir() else ()
