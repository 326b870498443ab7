"""`edgekit benchmark`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgekit.cli._options import JSON, PYTHON

if TYPE_CHECKING:
    from edgekit.cli._terminal import Terminal
    from edgekit.types import Benchmark

FARM = (
    "On many machines: --engine ray. Every machine needs edgekit and the same paths. On the first: ray start --head; "
    "on each other one, with what is attached to it: ray start --address=FIRST:6379 "
    """--resources='{"device:adb:R5C": 1}'; then --device adb:R5C. A cell of the device host takes a whole machine: """
    """any, or those alone that were given "device:host": 1."""
)


def benchmark(
    context: typer.Context,
    models: str = typer.Option(
        None,
        "--models",
        "-m",
        "--model",
        help="Models as `export -m` takes them, separated by commas; else four small ones.",
    ),
    targets: str = typer.Option(
        None, "--targets", "-t", "--target", "--format", help="Such as onnx,tflite, or all; else those that work here."
    ),
    precisions: str = typer.Option(
        None,
        "--precisions",
        "-p",
        "--precision",
        help="Such as fp32,int8; else fp32 and int8, or fp16 without --calibration.",
    ),
    device: str = typer.Option(None, "--device", "--devices", help="As for `profile`; else host."),
    weights: list[str] = typer.Option(  # noqa: B008 (read at import, as Typer has it)
        [], "-w", "--weights", metavar="MODEL=FILE", help="Of a model; may be repeated."
    ),
    image_size: int = typer.Option(None, "--image-size", "--imgsz", min=1, help="Of every model, instead of its own."),
    calibration: str = typer.Option(None, "--calibration", help="Photos for int8, as for `export`; or synthetic."),
    data: str = typer.Option(None, "--data", help="Labelled photos: each cell's accuracy, as `evaluate` says it."),
    limit: int = typer.Option(None, "--limit", help="Use N of these photos: the same ones in each cell."),
    threads: int = typer.Option(None, "--threads", min=1, help="Threads of each runtime; else 1."),
    num_runs: int = typer.Option(None, "--num-runs", min=1, help="Recorded runs, at least; else 50."),
    warmup_runs: int = typer.Option(None, "--warmup-runs", min=0, help="Runs before that, at least; else 10."),
    min_secs: float = typer.Option(None, "--min-secs", min=0, help="Seconds of recorded runs, at least; else 1."),
    runner: list[str] = typer.Option(  # noqa: B008
        [],
        "--runner",
        metavar="TARGET=FILE",
        help="Over adb: your own tool for a target, as for `profile`; may be repeated. executorch needs none.",
    ),
    python: str = PYTHON,
    timeout: float = typer.Option(1800.0, "--timeout", help="Seconds after which a cell is ended and red."),
    max_memory: float = typer.Option(
        0.0, "--max-memory", help="MiB that a cell may hold, or it is ended; else three quarters of the machine's."
    ),
    engine: str = typer.Option("local", "--engine", help="local, or ray: the machines of a Ray cluster."),
    ray_address: str = typer.Option(
        None, "--ray-address", help="Of the cluster, such as 10.0.0.1:6379; else the one here."
    ),
    resume: bool = typer.Option(
        False,
        "--resume",
        help="Go on: cells that are done stay, red ones are tried again. Needs no other option but -o.",
    ),
    out: Path = typer.Option(..., "-o", "--out", help="The folder of the sweep."),  # noqa: B008
    force: bool = typer.Option(
        False, "--force", help="Begin anew where there is a sweep already; that one is removed."
    ),
    as_json: bool = JSON,
) -> None:
    """Export, evaluate and measure every model for every target in every precision on every device.

    Each cell runs in a process of its own, under --timeout and --max-memory: a crash is one red cell, and the exit code
    is then 1. What is done is kept at once: after an interrupt or a power cut, --resume goes on.
    """
    from edgekit.cli._sweep import watched
    from edgekit.cli._terminal import terminal
    from edgekit.errors import GateFailed

    with terminal(context.obj) as screen:
        from edgekit import benchmarking

        try:
            with watched(screen) as on_event:
                result = benchmarking.benchmark(
                    _names(models),
                    _names(targets),
                    _names(precisions),
                    _names(device),
                    out=out,
                    weights=_pairs(weights, "--weights MODEL=FILE"),
                    image_size=image_size,
                    calibration=calibration,
                    data=data,
                    limit=limit,
                    threads=threads,
                    num_runs=num_runs,
                    warmup_runs=warmup_runs,
                    min_secs=min_secs,
                    runners=_pairs(runner, "--runner TARGET=FILE"),
                    python=python,
                    timeout=timeout,
                    max_memory=max_memory,
                    engine=engine,
                    ray_address=ray_address,
                    resume=resume,
                    force=force,
                    on_event=on_event,
                )
        except KeyboardInterrupt:
            if (out / "benchmark.json").exists():
                screen.note(f"what was done is kept. Go on with: edgekit benchmark --resume -o {out}")
            raise
        _show(screen, result, as_json)
        if result.failed:
            raise GateFailed(
                f"{len(result.failed)} of {len(result.results)} cells are red",
                f"{out}/logs has what each of them said. Try them again: edgekit benchmark --resume -o {out}",
            )


def _names(text: str | None) -> list[str] | None:
    return None if text is None else text.split(",")


def _pairs(given: list[str], form: str) -> dict[str, str] | None:
    from edgekit.errors import BadInput

    pairs = {}
    for text in given:
        name, equals, file = text.rpartition("=")
        if not equals or not name or not file:
            raise BadInput(f"{form.split()[0]} {text!r} does not say what it is for", f"Type {form}.")
        pairs[name] = file
    return pairs or None


def _show(screen: "Terminal", result: "Benchmark", as_json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from edgekit.benchmarking import rows
    from edgekit.cli._sweep import table

    for note in result.notes:
        screen.note(note)
    if as_json:
        warnings = [{"cell": r.cell.name, "text": r.warning} for r in result.ratios if r.warning]
        more = {"plan": asdict(result.plan), "reused": result.reused, "notes": result.notes, "warnings": warnings}
        screen.json({"schema": 1, "folder": result.folder, **more, "cells": rows(result)})
        return
    # A pipe has no width: nothing is to be folded there.
    console = Console(file=screen.out, width=None if screen.out.isatty() else 220, highlight=False)
    console.print(table(result.results, result.ratios, {}))
    for ratio in result.ratios:
        if ratio.warning:
            c = ratio.cell
            screen.note(f"{c.model} {c.target} {c.device}: {ratio.warning}")
    screen.print(f"written to {result.folder}: benchmark.json, benchmark.csv, cells, artifacts")
    screen.print(f"Next: edgekit report {result.folder} -o report.html")
