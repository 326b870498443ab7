"""`edgekit quantize`."""

import shlex
import sys
from typing import TYPE_CHECKING

import typer

from edgekit.cli._options import (
    ACCURACY_DATA,
    BATCH_SIZE,
    BIAS_CORRECTION,
    CALIBRATION,
    EQUALIZE,
    FEATURES_ONLY,
    IMAGE_SIZE,
    INPUT_SHAPE,
    JSON,
    KEEP_FLOAT,
    LABELS,
    MAX_DROP,
    MEAN,
    NUM_ACCURACY_SAMPLES,
    NUM_CALIBRATION_SAMPLES,
    NUM_CLASSES,
    RANGE_ESTIMATOR,
    SMOOTH_QUANT,
    STD,
    WEIGHTS,
)
from edgekit.errors import BadInput
from edgekit.types import AccuracyControl, AccuracyTarget, Trial

if TYPE_CHECKING:
    from edgekit.quantizing import QuantizedModel

SHOWN = 5


def quantize(
    context: typer.Context,
    model: str = typer.Option(
        ..., "-m", "--model", help="Zoo name, file.py:callable, package.module:callable or file.pt2."
    ),
    scheme: str = typer.Option("int8", "--scheme", help="int8 (or w8a8): 8-bit weights and activations."),
    weights: str = WEIGHTS,
    num_classes: int = NUM_CLASSES,
    labels: str = LABELS,
    image_size: int = IMAGE_SIZE,
    input_shape: list[str] = INPUT_SHAPE,
    batch_size: int = BATCH_SIZE,
    mean: str = MEAN,
    std: str = STD,
    features_only: bool = FEATURES_ONLY,
    calibration: str = CALIBRATION,
    num_calibration_samples: int = NUM_CALIBRATION_SAMPLES,
    range_estimator: str = RANGE_ESTIMATOR,
    bias_correction: str = BIAS_CORRECTION,
    smooth_quant: bool = SMOOTH_QUANT,
    equalize: bool = EQUALIZE,
    keep_float: list[str] = KEEP_FLOAT,
    accuracy_data: str = ACCURACY_DATA,
    max_drop: float = MAX_DROP,
    num_accuracy_samples: int = NUM_ACCURACY_SAMPLES,
    seed: int = typer.Option(0, "--seed", help="Of the choice of photos, and of weights where none are given."),
    out: str = typer.Option(..., "-o", "--out", help="The .pt2 file to write: `edgekit export -m` takes it."),
    force: bool = typer.Option(False, "--force", help="Replace the file if it is there already."),
    as_json: bool = JSON,
) -> None:
    """Quantize a model once, into a .pt2 file that exports to every runtime with the same numbers.

    With --accuracy-data and --max-drop the layers are ranked by what int8 does to the answers, and the fewest stay in
    float that keep the drop of top-1 within the target. The ranking is written beside the file, as JSON and as a plot.
    An interrupted command goes on where it was when it is typed again.
    """
    from dataclasses import asdict

    from edgekit.cli._options import parse_numbers, parse_shape
    from edgekit.cli._render import quantized_lines
    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import quantizing
        from edgekit.types import QuantizationOptions

        with screen.progress() as step:
            made = quantizing.quantize(
                model,
                out,
                scheme=scheme,
                calibration=calibration,
                num_calibration_samples=num_calibration_samples,
                options=QuantizationOptions(
                    range_estimator=range_estimator,
                    bias_correction=bias_correction,
                    smooth_quant=smooth_quant,
                    equalize=equalize,
                    keep_float=tuple(keep_float),
                ),
                accuracy=_target(accuracy_data, max_drop, num_accuracy_samples),
                weights=weights,
                num_classes=num_classes,
                labels=labels,
                image_size=image_size,
                input_shape=[parse_shape(s) for s in input_shape],
                batch_size=batch_size,
                mean=parse_numbers("--mean", mean),
                std=parse_numbers("--std", std),
                features_only=features_only,
                seed=seed,
                force=force,
                on_step=step,
            )
        for note in (*made.quantized.notes, *(made.accuracy.notes if made.accuracy else ())):
            screen.note(note)
        if as_json:
            accuracy = {} if made.accuracy is None else {"accuracy": asdict(made.accuracy)}
            screen.json({"path": str(made.path), **asdict(made.quantized), **accuracy})
        else:
            *head, following = quantized_lines(made)
            more = [] if made.accuracy is None else accuracy_lines(made, made.accuracy)
            screen.print("\n".join([*head, *more, following]))


def _target(data: str | None, max_drop: float | None, samples: int | None) -> AccuracyTarget | None:
    if data is not None and max_drop is not None:
        return AccuracyTarget(data=data, max_drop=max_drop, samples=samples)
    for option, value in (
        ("--accuracy-data", data),
        ("--max-drop", max_drop),
        ("--num-accuracy-samples", samples),
    ):
        if value is not None:
            raise BadInput(
                f"{option} alone says too little: accuracy control takes labelled photos and the drop that is allowed",
                "Type --accuracy-data PATH --max-drop X",
            )
    return None


def accuracy_lines(made: "QuantizedModel", a: AccuracyControl) -> list[str]:
    """What stays in float, why, what it costs, and how to get the same again."""
    from edgekit.cli._render import count, size
    from edgekit.quantizing import plot_file, ranking_file

    whole, kept = a.trials[0], a.chosen.keep_float
    files = f"  ranking     {ranking_file(made.path)} · {plot_file(made.path)}"
    lines = [
        f"  accuracy    {a.reference_top1:.2f} % in float on {a.n} images of {a.data}; {_drop('all in int8', whole)}"
    ]
    if not kept:
        return [*lines, f"  kept float  nothing: that is within {a.max_drop:g} points", *_worst(a), files]
    noun = "layer" if len(kept) == 1 else "layers"
    return [
        *lines,
        f"  kept float  {len(kept)} of {len(a.layers)} {noun}: {', '.join(kept)}",
        f"              {_drop('so', a.chosen)}, within {a.max_drop:g}",
        f"  costs       {size(a.bytes)} more, on {size(a.bytes_total // 3)} of int8 weights; {count(a.macs)} of"
        f" {count(a.macs_total)} MACs in float ({a.macs / a.macs_total:.1%})",
        *_worst(a),
        files,
        f"Without measuring again: edgekit {shlex.join(_same_command(sys.argv[1:], kept))}",
    ]


def _drop(how: str, trial: Trial) -> str:
    low, high = trial.drop_ci95
    return f"{how} {trial.top1:.2f} %, a drop of {trial.drop:.2f} points (95 % interval {low:.2f} to {high:.2f})"


def _worst(a: AccuracyControl) -> list[str]:
    worst = " · ".join(f"{layer.name} {layer.nats:.2g}" for layer in a.layers[:SHOWN])
    return [f"  sensitive   {worst} (nats of KL, {a.samples} photos)"]


def _same_command(arguments: list[str], kept: tuple[str, ...]) -> list[str]:
    """The command without accuracy control, with its result instead."""
    dropped = ("--accuracy-data", "--max-drop", "--num-accuracy-samples")
    found, skip = [], False
    for argument in arguments:
        if skip or argument in dropped:
            skip = not skip
        elif not argument.startswith(tuple(f"{option}=" for option in dropped)):
            found.append(argument)
    return [*found, *(text for name in kept for text in ("--keep-float", name))]
