"""`edgekit quantize`."""

from typing import TYPE_CHECKING

import typer

from edgekit.cli._options import (
    ACCURACY_DATA,
    BATCH_SIZE,
    BIAS_CORRECTION,
    CALIBRATION,
    DATA_FREE,
    DEVICE,
    EQUALIZE,
    EXPLAIN,
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

if TYPE_CHECKING:
    from edgekit.accuracy_control import AccuracyTarget


def quantize(
    context: typer.Context,
    model: str = typer.Option(
        ..., "-m", "--model", help="Zoo name, file.py:callable, package.module:callable or file.pt2."
    ),
    scheme: str = typer.Option(
        "int8", "--scheme", help="int8; or wXaY of 2 to 8 bits, such as w4a4: learned, and simulated in torch."
    ),
    protocol: str = typer.Option(
        "h",
        "--protocol",
        help="Of wXaY: h (every tensor), a (behind ReLUs alone) or b (first and last layer in 8 bits).",
    ),
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
    data_free: str = DATA_FREE,
    device: str = DEVICE,
    explain: bool = EXPLAIN,
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

    With --accuracy-data and --max-drop the fewest layers stay in float that the target needs; their ranking is written
    beside the file, as JSON and as a plot. An interrupted command goes on when it is typed again.
    """
    from dataclasses import asdict

    from edgekit.cli._options import parse_numbers, parse_shape
    from edgekit.cli._quantized import quantized_lines, resumable
    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import quantizing
        from edgekit.types import QuantizationOptions

        with resumable(screen, out), screen.progress() as step:
            made = quantizing.quantize(
                model,
                out,
                scheme=scheme,
                protocol=protocol,
                calibration=calibration,
                data_free=data_free,
                device=device,
                explain=explain,
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
            accuracy = made.accuracy and asdict(made.accuracy)
            explained = [str(p) for p in made.explained]
            head = {"path": str(made.path), "explained": explained}
            screen.json({**head, **asdict(made.quantized), "accuracy": accuracy})
        else:
            screen.print("\n".join(quantized_lines(made)))


def _target(data: str | None, max_drop: float | None, samples: int | None) -> "AccuracyTarget | None":
    if data is not None and max_drop is not None:
        from edgekit.accuracy_control import AccuracyTarget

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
