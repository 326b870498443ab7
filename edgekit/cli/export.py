"""`edgekit export`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgekit.cli._options import (
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
    MEAN,
    NUM_CALIBRATION_SAMPLES,
    NUM_CLASSES,
    RANGE_ESTIMATOR,
    SMOOTH_QUANT,
    STD,
    WEIGHTS,
)
from edgekit.types import Artifact

if TYPE_CHECKING:
    from edgekit.cli._terminal import Terminal


def export(
    context: typer.Context,
    model: str = typer.Option(
        ..., "-m", "--model", help="Zoo name, file.py:callable, package.module:callable or file.pt2."
    ),
    target: str = typer.Option(
        "all", "-t", "--target", "--format", help="coreml, executorch, tflite, onnx, a comma-separated list, or all."
    ),
    precision: str = typer.Option(
        None, "-p", "--precision", help="fp32 (the default), fp16, int8, int8-dynamic, int8-weight or int4-weight."
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
    num_calibration_samples: int = NUM_CALIBRATION_SAMPLES,
    range_estimator: str = RANGE_ESTIMATOR,
    bias_correction: str = BIAS_CORRECTION,
    smooth_quant: bool = SMOOTH_QUANT,
    equalize: bool = EQUALIZE,
    keep_float: list[str] = KEEP_FLOAT,
    seed: int = typer.Option(0, "--seed", help="For weights where none are given, and for test inputs."),
    verify: bool = typer.Option(
        True, "--verify/--no-verify", help="Prove that the artifact computes what the model computes."
    ),
    min_sqnr: float = typer.Option(
        None, "--min-sqnr", help="Floor of the proof in dB (fp32 60, fp16 35; 25 on ExecuTorch)."
    ),
    compare_speed: bool = typer.Option(
        True, "--compare-speed/--no-compare-speed", help="Measure int8 against fp32 on the runtimes of this machine."
    ),
    out: Path = typer.Option(Path("artifacts"), "-o", "--out", help="The folder that gets one folder an artifact."),  # noqa: B008
    force: bool = typer.Option(False, "--force", help="Replace an artifact that is there already."),
    as_json: bool = JSON,
) -> None:
    """Export a model to one or more runtimes and verify each artifact against the float model."""
    from edgekit.cli._options import parse_numbers, parse_shape
    from edgekit.cli._terminal import terminal
    from edgekit.errors import PartialFailure

    with terminal(context.obj) as screen:
        from edgekit import pipeline
        from edgekit.types import QuantizationOptions

        failure: PartialFailure | None = None
        with screen.progress() as step:
            try:
                artifacts = pipeline.export(
                    model,
                    target,
                    precision=precision,
                    weights=weights,
                    num_classes=num_classes,
                    labels=labels,
                    image_size=image_size,
                    input_shape=[parse_shape(s) for s in input_shape],
                    batch_size=batch_size,
                    mean=parse_numbers("--mean", mean),
                    std=parse_numbers("--std", std),
                    features_only=features_only,
                    calibration=calibration,
                    num_calibration_samples=num_calibration_samples,
                    options=QuantizationOptions(
                        range_estimator=range_estimator,
                        bias_correction=bias_correction,
                        smooth_quant=smooth_quant,
                        equalize=equalize,
                        keep_float=tuple(keep_float),
                    ),
                    seed=seed,
                    verify=verify,
                    min_sqnr=min_sqnr,
                    compare_speed=compare_speed,
                    out=out,
                    force=force,
                    on_step=step,
                )
            except PartialFailure as error:
                failure, artifacts = error, error.artifacts
        _show(screen, artifacts, as_json)
        if failure:
            raise failure


def _show(screen: "Terminal", artifacts: tuple[Artifact, ...], as_json: bool) -> None:
    from edgekit.artifacts import manifest_json
    from edgekit.cli._render import artifact_lines, next_command
    from edgekit.profiling import not_faster

    notes = [a.manifest.notes for a in artifacts]
    common = [note for note in notes[0] if all(note in others for others in notes)] if notes else []
    for note in common:
        screen.note(note)
    for artifact in artifacts:
        for note in artifact.manifest.notes:
            if note not in common:
                screen.note(f"{artifact.manifest.target}: {note}")
        if artifact.speed and (warning := not_faster(artifact, artifact.speed)):
            screen.note(warning)
        if artifact.no_speed:
            screen.note(f"{artifact.manifest.target}: not measured against fp32: {artifact.no_speed}")
    if as_json:
        rows = [(a, {"path": str(a.path), "seconds": a.seconds}) for a in artifacts]
        screen.json([{**manifest_json(a.manifest), **more, **_speed(a)} for a, more in rows])
        return
    for artifact in artifacts:
        screen.print("\n".join(artifact_lines(artifact)))
    if artifacts:
        screen.print(next_command(artifacts))


def _speed(artifact: Artifact) -> dict[str, object]:
    from dataclasses import asdict

    return {"speed": asdict(artifact.speed)} if artifact.speed else {}
