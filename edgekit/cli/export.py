"""`edgekit export`."""

from pathlib import Path

import typer

from edgekit.cli._options import JSON


def export(
    context: typer.Context,
    model: str = typer.Option(
        ..., "-m", "--model", help="Zoo name, file.py:callable, package.module:callable or file.pt2."
    ),
    target: str = typer.Option(
        "all", "-t", "--target", "--format", help="coreml, executorch, tflite, onnx, a comma-separated list, or all."
    ),
    precision: str = typer.Option("fp32", "-p", "--precision", help="fp32 or fp16."),
    weights: str = typer.Option(None, "-w", "--weights", help="A .safetensors or .pth file with the model's weights."),
    num_classes: int = typer.Option(None, "--num-classes", min=1, help="Size of the classifier."),
    labels: str = typer.Option(None, "--labels", help="A text file with one label a line."),
    image_size: int = typer.Option(None, "--image-size", "--imgsz", min=1, help="Height and width of the input."),
    input_shape: list[str] = typer.Option([], "--input-shape", help="Such as 1,3,224,224; once for each input."),  # noqa: B008
    batch_size: int = typer.Option(1, "--batch-size", min=1, help="Images in a batch; shapes are static."),
    mean: str = typer.Option(None, "--mean", help="Of pixels / 255, by channel: 0.485,0.456,0.406."),
    std: str = typer.Option(None, "--std", help="Of pixels / 255, by channel: 0.229,0.224,0.225."),
    features_only: bool = typer.Option(
        False, "--features-only", help="Stage outputs in place of logits, of a model of the zoo: a backbone."
    ),
    seed: int = typer.Option(0, "--seed", help="For weights where none are given, and for test inputs."),
    verify: bool = typer.Option(
        True, "--verify/--no-verify", help="Prove that the artifact computes what the model computes."
    ),
    min_sqnr: float = typer.Option(None, "--min-sqnr", help="Floor of the proof in dB (60 for fp32, 35 for fp16)."),
    out: Path = typer.Option(Path("artifacts"), "-o", "--out", help="The folder that gets one folder an artifact."),  # noqa: B008
    force: bool = typer.Option(False, "--force", help="Replace an artifact that is there already."),
    as_json: bool = JSON,
) -> None:
    """Export a model to one or more runtimes and verify each artifact against the float model."""
    from edgekit.cli._options import parse_numbers, parse_shape
    from edgekit.cli._render import artifact_lines, next_command
    from edgekit.cli._terminal import terminal
    from edgekit.errors import PartialFailure

    with terminal(context.obj) as screen:
        from edgekit import pipeline
        from edgekit.artifacts import manifest_json

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
                    seed=seed,
                    verify=verify,
                    min_sqnr=min_sqnr,
                    out=out,
                    force=force,
                    on_step=step,
                )
            except PartialFailure as error:
                failure, artifacts = error, error.artifacts
        for note in artifacts[0].manifest.notes if artifacts else ():
            screen.note(note)
        if as_json:
            screen.json([{**manifest_json(a.manifest), "path": str(a.path), "seconds": a.seconds} for a in artifacts])
        else:
            for artifact in artifacts:
                screen.print("\n".join(artifact_lines(artifact)))
            if artifacts:
                screen.print(next_command(artifacts))
        if failure:
            raise failure
