"""Results of measurements as one HTML file, with plots; from JSON alone."""

from collections.abc import Sequence
from pathlib import Path

from edgekit.artifacts import write_file
from edgekit.errors import BadInput
from edgekit.reporting.page import render
from edgekit.reporting.read import read_results
from edgekit.reporting.svg import require_plots
from edgekit.types import Report


def report(
    results: Sequence[str | Path], out: str | Path = "report.html", *, title: str = "", force: bool = False
) -> Report:
    """One self-contained HTML file of everything in `results`, written whole or not at all.

    `results` are files of `profile`, folders of `benchmark`, and what adds to them: files of `evaluate --json`, by the
    name of the artifact that was evaluated, and artifacts' folders (parity, reasons). A file that is there is replaced
    only with `force`. Raises `BadInput` for what cannot be read or written, `MissingDependency` without matplotlib.
    """
    destination = Path(out)
    if destination.is_dir():
        raise BadInput(f"{out} is a folder", "Give the name of a file with -o.")
    if destination.exists() and not force:
        raise BadInput(f"{out} exists already", "Replace it with --force, or give another file with -o.")
    require_plots()
    found = read_results(results)
    write_file(destination, render(found, title))
    return Report(
        path=destination,
        artifacts=len(found.measured),
        failed=len(found.failures),
        warnings=sum(len(row.warnings) for row in found.rows),
    )
