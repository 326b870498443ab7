"""The table of a sweep: growing on a terminal while it runs, and whole at its end."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgekit.cli._render import size
from edgekit.types import Cell, CellResult, OnSweep, Ratio, SweepEvent

if TYPE_CHECKING:
    from rich.table import Table

    from edgekit.cli._terminal import Terminal

REASON_WIDTH = 60
FRAME_LINES = 6
"""Of the terminal's height, what is not a row of the table."""


def status_of(result: CellResult) -> str:
    """One line: done, or what else and why."""
    if result.status == "done":
        return "done"
    reason = result.error.strip().splitlines()[0] if result.error.strip() else ""
    text = reason if result.status == "failed" else f"{result.status}: {reason}"
    return text if len(text) <= REASON_WIDTH else text[: REASON_WIDTH - 1] + "…"


def table(results: Iterable[CellResult], ratios: Iterable[Ratio], running: Mapping[Cell, str]) -> "Table":
    """One row a cell, finished or running; columns that no cell has anything for are left out."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    of = {r.cell.name: r.ratio for r in ratios}
    rows = [(_figures(r, of), Text(status_of(r), "green" if r.status == "done" else "red")) for r in results]
    rows += [(_names(cell), Text(step, "yellow")) for cell, step in running.items()]
    made = Table(box=box.SIMPLE, pad_edge=False)
    used = [name for name in COLUMNS if any(figures.get(name) for figures, _ in rows)]
    for name in used:
        left = name in COLUMNS[:4]
        made.add_column(name, justify="left" if left else "right", overflow="fold" if left else "ellipsis")
    made.add_column("status", overflow="fold")
    for figures, status in rows:
        made.add_row(*(figures.get(name, "") for name in used), status)
    return made


COLUMNS = (
    *("model", "target", "precision", "device", "size", "SQNR dB", "top-1 %", "mean ms", "p50 ms", "p90 ms"),
    *("instructions", "peak MiB", "to fp32"),
)


def _names(cell: Cell) -> dict[str, str]:
    return {"model": cell.model, "target": cell.target, "precision": cell.precision, "device": cell.device}


def _figures(result: CellResult, ratios: Mapping[str, float]) -> dict[str, str]:
    p = result.profile
    return {
        **_names(result.cell),
        "size": size(result.size_bytes) if result.size_bytes else "",
        "SQNR dB": _number((result.parity or {}).get("sqnr_db"), 1),
        "top-1 %": _number((result.accuracy or {}).get("top1"), 2),
        "mean ms": _number(p.mean_ms if p and p.p50_ms is None else None, 3),  # of tools that tell no median
        "p50 ms": _number(p.p50_ms if p else None, 3),
        "p90 ms": _number(p.p90_ms if p else None, 3),
        "instructions": f"{p.instructions:,}" if p and p.instructions else "",
        "peak MiB": _number(p.peak_memory_mib if p else None, 0),
        "to fp32": _number(ratios.get(result.cell.name), 2),
    }


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


@contextmanager
def watched(screen: "Terminal") -> Iterator[OnSweep]:
    """Shows a sweep on stderr: as a table that grows on a terminal, else a line for each cell that ends."""
    if not screen.err.isatty():
        yield _Lines(screen)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=screen.err)
    picture = _Picture(lambda: console.height)
    # `redirect_*` would make rich print what the libraries write.
    with Live(
        console=console,
        get_renderable=picture.render,
        refresh_per_second=2,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield picture


class _Lines:
    def __init__(self, screen: "Terminal") -> None:
        self._screen, self._ended, self._all = screen, 0, 0

    def __call__(self, event: SweepEvent) -> None:
        if event.cells:
            self._all, self._ended = len(event.cells), len(event.results)
            if event.results:
                self._write(f"{len(event.results)} of {self._all} cells were done before")
        elif event.result is not None:
            self._ended += 1
            c, r = event.result.cell, event.result
            figures = _figures(r, {})
            shown = [f"p50 {figures['p50 ms']} ms" if figures["p50 ms"] else "", figures["size"], f"{r.seconds:.0f} s"]
            words = ", ".join(filter(None, (status_of(r), *shown)))
            self._write(f"[{self._ended}/{self._all}] {c.model} {c.target} {c.precision} {c.device}: {words}")

    def _write(self, text: str) -> None:
        print(text, file=self._screen.err, flush=True)


class _Picture:
    """What is running, and above it the rows that ended last, as many as the terminal has room for."""

    def __init__(self, height: Any) -> None:
        self._height = height
        self._started = time.monotonic()
        self._cells = 0
        self._ended: list[CellResult] = []
        self._running: dict[Cell, str] = {}

    def __call__(self, event: SweepEvent) -> None:
        if event.cells:
            self._cells, self._ended = len(event.cells), list(event.results)
        elif event.result is not None:
            self._running.pop(event.result.cell, None)
            self._ended.append(event.result)
        elif event.cell is not None:
            self._running[event.cell] = f"{event.step} on {event.host}" if event.host else event.step

    def render(self) -> Any:
        from rich.console import Group

        from edgekit.benchmarking.ratios import ratios_to_fp32

        ended, running = list(self._ended), dict(self._running)
        room = max(2, self._height() - FRAME_LINES)
        shown = dict(list(running.items())[:room])
        rest = room - len(shown)
        red = sum(r.status != "done" for r in ended)
        seconds = int(time.monotonic() - self._started)
        line = f"{len(ended)} of {self._cells} cells, {red} of them red · {seconds // 60}:{seconds % 60:02} · "
        rows = ended[-rest:] if rest else []
        return Group(table(rows, ratios_to_fp32(ended), shown), line + "Ctrl-C stops; --resume goes on")
