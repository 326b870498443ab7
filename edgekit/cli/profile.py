"""`edgekit profile`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgekit.cli._options import JSON, PYTHON

if TYPE_CHECKING:
    from rich.table import Table

    from edgekit.cli._terminal import Terminal
    from edgekit.types import ArtifactProfile, Profile

DEVICE = typer.Option(
    "host",
    "--device",
    help="Where to measure: host (this machine), adb or adb:SERIAL (Android), ssh:USER@HOST[:PORT] (a board), "
    "qemu-arm64 (counts ARM instructions, which are no latency).",
)
RUNNER = typer.Option(
    None,
    "--runner",
    help="Over adb: your own benchmark_model, executor_runner or onnxruntime_perf_test for the phone.",
)
RUNNER_ARGS = typer.Option(None, "--runner-args", help='Arguments for it, as one text: "--use_gpu=true".')


def profile(
    context: typer.Context,
    artifacts: list[str] = typer.Argument(..., metavar="ARTIFACT...", help="One or more artifacts' folders."),  # noqa: B008
    device: str = DEVICE,
    mode: str = typer.Option("usual", "--mode", help="usual, or mlperf: 1024 runs and 60 s at least, quoted as p90."),
    threads: int = typer.Option(1, "--threads", min=1, help="Threads of each runtime, each bound to a core."),
    num_runs: int = typer.Option(None, "--num-runs", min=1, help="Recorded runs of each artifact, at least (50)."),
    warmup_runs: int = typer.Option(10, "--warmup-runs", min=0, help="Runs before that, at least; and 0.5 s."),
    min_secs: float = typer.Option(None, "--min-secs", min=0, help="Seconds of recorded runs, at least (1)."),
    sustained: float = typer.Option(0.0, "--sustained", min=0, help="Then run each for so many seconds: a curve."),
    per_op: bool = typer.Option(False, "--per-op", help="Then time each operator, with its source line."),
    runner: Path = RUNNER,
    runner_args: str = RUNNER_ARGS,
    python: str = PYTHON,
    out: Path = typer.Option(None, "-o", "--out", help="Write everything measured, raw samples too, as JSON."),  # noqa: B008
    force: bool = typer.Option(False, "--force", help="Replace a file that is there already."),
    as_json: bool = JSON,
) -> None:
    """Measure latency and memory of artifacts, in turns on the same cores, and compare them."""
    from edgekit.cli._terminal import terminal
    from edgekit.errors import EdgekitError

    with terminal(context.obj) as screen:
        if out is not None:
            _check_writable(out, force)
        from edgekit import profiling
        from edgekit.devices import open_device

        try:
            with screen.progress() as step:
                result = profiling.profile(
                    artifacts,
                    device=open_device(device, runner, _words(runner_args or ""), python or ""),
                    mode=mode,
                    threads=threads,
                    num_runs=num_runs,
                    warmup_runs=warmup_runs,
                    min_secs=min_secs,
                    sustained=sustained,
                    per_op=per_op,
                    on_step=step,
                )
        except EdgekitError as error:
            if error.partial is not None:
                _show(screen, error.partial, out, as_json)
                screen.note("this is what was measured before the error")
            raise
        _show(screen, result, out, as_json)


def _words(text: str) -> list[str]:
    import shlex

    from edgekit.errors import BadInput

    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadInput(f"--runner-args {text!r} cannot be split into words: {error}", "Close its quotes.") from error


def _show(screen: "Terminal", result: "Profile", out: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from edgekit.artifacts import write_file

    values = _values(result)
    if out is not None:
        write_file(out, _json(values))
    if as_json:
        screen.json(values)
    else:
        # A pipe has no width: nothing is to be folded there.
        console = Console(file=screen.out, width=None if screen.out.isatty() else 200, highlight=False)
        console.print(_table(result))
        screen.print("\n".join(_lines(result)))
        for r in result.results:
            if r.per_op:
                from edgekit.cli._operators import operator_lines, operator_table

                console.print(operator_table(r))
                screen.print("\n".join(operator_lines(r)))
        if out is not None:
            screen.print(f"written to {out}")
    for r in result.results:
        for warning in r.warnings:
            screen.note(f"{r.artifact}: {warning}")


def _values(result: "Profile") -> dict[str, Any]:
    from dataclasses import asdict

    values = asdict(result)
    return {"schema": values.pop("schema"), **values}


def _json(values: Mapping[str, Any]) -> bytes:
    import json

    return (json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _table(result: "Profile") -> "Table":
    """One row an artifact; the ratio is of its median to the first one's."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("artifact", overflow="fold")
    counted = result.results[0].instructions is not None
    figures = ["instructions"] if counted else ["load ms", "first ms", "p50 ms", "p90 ms", "p99 ms"]
    for name in (*figures, "peak MiB", "ratio to the first"):
        table.add_column(name, justify="right")
    # The comparisons with the first artifact come first, in order.
    ratios = ["1"] + [f"{c.ratio:.2f} ({c.ci95[0]:.2f}-{c.ci95[1]:.2f})" for c in result.comparisons]
    if counted:
        ratios = ["1"] + [f"{c.ratio:.4f}" for c in result.comparisons]
    for r, ratio in zip(result.results, ratios, strict=False):
        cells = [f"{r.instructions:,}"] if counted else _latencies(r)
        table.add_row(r.artifact, *cells, _memory(r), ratio)
    return table


def _latencies(r: "ArtifactProfile") -> list[str]:
    values = [r.first_ms, r.p50_ms, r.p90_ms, r.p99_ms]
    load = "" if r.load_ms is None else f"{r.load_ms:.0f}"
    return [load, *("" if ms is None else f"{ms:.3f}" for ms in values)]


def _memory(r: "ArtifactProfile") -> str:
    grown = "" if r.model_memory_mib is None else f" (+{r.model_memory_mib:.0f})"
    return "" if r.peak_memory_mib is None else f"{r.peak_memory_mib:.0f}{grown}"


def _lines(result: "Profile") -> list[str]:
    """Under which conditions the table holds."""
    first = result.results[0]
    device, protocol = first.device, first.protocol
    what = device.get("model") or device.get("cpu") or device.get("machine", "an unknown processor")
    cores = f", {device['cores']} cores" if "cores" in device else ""
    where = [f"on {what}{cores}, threads: {first.threads}, bound to cores: {device.get('pinned_to', 'not known')}"]
    if first.instructions is not None:
        return [*where, "instructions of one inference, counted by an emulator: a figure to compare, not a latency"]
    runs = ", ".join(str(r.runs) for r in result.results)
    by = "MLPerf's single stream, quoted as p90" if protocol.mode == "mlperf" else f"{protocol.rounds} rounds"
    lines = [
        *where,
        f"runs: {runs} in {by}, the artifacts in turns; ratios of medians with 95 % intervals",
        f"in the clock: {protocol.clock}",
        "peak MiB: the whole process, (+) what loading and running the model added",
    ]
    for r in result.results:
        if r.sustained:
            a, b = r.sustained[0], r.sustained[-1]
            lines.append(f"sustained: {r.artifact} {a.p50_ms:.3f} ms at first, {b.p50_ms:.3f} ms after {b.secs:.0f} s")
    return lines


def _check_writable(out: Path, force: bool) -> None:
    from edgekit.errors import BadInput

    if out.exists() and not force:
        raise BadInput(f"{out} exists already", "Replace it with --force, or give another file with -o.")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise BadInput(f"{out} cannot be written: it needs a file name in a folder that exists", "Give another -o.")
