"""`edgekit profile`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgekit.cli._options import JSON

if TYPE_CHECKING:
    from rich.table import Table

    from edgekit.types import Profile

DEVICES = ("host",)


def profile(
    context: typer.Context,
    artifacts: list[str] = typer.Argument(..., metavar="ARTIFACT...", help="One or more artifacts' folders."),  # noqa: B008
    device: str = typer.Option("host", "--device", help="Where to measure: host, this machine."),
    threads: int = typer.Option(1, "--threads", min=1, help="Threads of each runtime, each bound to a core."),
    num_runs: int = typer.Option(50, "--num-runs", min=1, help="Recorded runs of each artifact, at least."),
    warmup_runs: int = typer.Option(10, "--warmup-runs", min=0, help="Runs before that, at least; and 0.5 s."),
    min_secs: float = typer.Option(1.0, "--min-secs", min=0, help="Seconds of recorded runs, at least."),
    out: Path = typer.Option(None, "-o", "--out", help="Write everything measured, raw samples too, as JSON."),  # noqa: B008
    force: bool = typer.Option(False, "--force", help="Replace a file that is there already."),
    as_json: bool = JSON,
) -> None:
    """Measure latency and memory of artifacts, in turns on the same cores, and compare them."""
    import json
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal
    from edgekit.errors import UnknownName

    with terminal(context.obj) as screen:
        if device not in DEVICES:
            raise UnknownName("device", device, DEVICES)
        if out is not None:
            _check_writable(out, force)
        from edgekit import profiling
        from edgekit.artifacts import write_file

        with screen.progress() as step:
            result = profiling.profile(
                artifacts,
                threads=threads,
                num_runs=num_runs,
                warmup_runs=warmup_runs,
                min_secs=min_secs,
                on_step=step,
            )
        values = asdict(result)
        values = {"schema": values.pop("schema"), **values}
        if out is not None:
            write_file(out, (json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n").encode())
        if as_json:
            screen.json(values)
        else:
            from rich.console import Console

            # A pipe has no width: nothing is to be folded there.
            Console(file=screen.out, width=None if screen.out.isatty() else 200, highlight=False).print(_table(result))
            screen.print("\n".join(_lines(result)))
            if out is not None:
                screen.print(f"written to {out}")
        for r in result.results:
            for warning in r.warnings:
                screen.note(f"{r.artifact}: {warning}")


def _table(result: "Profile") -> "Table":
    """One row an artifact; the ratio is of its median to the first one's."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("artifact", overflow="fold")
    for name in ("load ms", "first ms", "p50 ms", "p90 ms", "p99 ms", "peak MiB", "ratio to the first"):
        table.add_column(name, justify="right")
    # The comparisons with the first artifact come first, in order.
    ratios = ["1"] + [f"{c.ratio:.2f} ({c.ci95[0]:.2f}-{c.ci95[1]:.2f})" for c in result.comparisons]
    for r, ratio in zip(result.results, ratios, strict=False):
        grown = "" if r.model_memory_mib is None else f" (+{r.model_memory_mib:.0f})"
        memory = "" if r.peak_memory_mib is None else f"{r.peak_memory_mib:.0f}{grown}"
        latencies = (r.first_ms, r.p50_ms, r.p90_ms, r.p99_ms)
        table.add_row(r.artifact, f"{r.load_ms:.0f}", *(f"{ms:.3f}" for ms in latencies), memory, ratio)
    return table


def _lines(result: "Profile") -> list[str]:
    """Under which conditions the table holds."""
    first = result.results[0]
    device, protocol = first.device, first.protocol
    runs = ", ".join(str(len(r.latency_us)) for r in result.results)
    return [
        f"on {device.get('cpu', device['machine'])}, {device['cores']} cores, threads: {first.threads},"
        f" bound to cores: {device['pinned_to']}",
        f"runs: {runs} in {protocol.rounds} rounds, the artifacts in turns; ratios of medians with 95 % intervals",
        f"in the clock: {protocol.clock}",
        "peak MiB: the whole process, (+) what loading and running the model added",
    ]


def _check_writable(out: Path, force: bool) -> None:
    from edgekit.errors import BadInput

    if out.exists() and not force:
        raise BadInput(f"{out} exists already", "Replace it with --force, or give another file with -o.")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise BadInput(f"{out} cannot be written: it needs a file name in a folder that exists", "Give another -o.")
