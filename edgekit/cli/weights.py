"""`edgekit weights import`."""

from pathlib import Path

import typer

from edgekit.cli._options import JSON

app = typer.Typer(no_args_is_help=True, help="Weights from elsewhere, under the zoo's own names.")


@app.command("import")
def import_(
    context: typer.Context,
    model: str = typer.Option(..., "-m", "--model", help="A model of the zoo, see `edgekit models`."),
    source: Path = typer.Option(  # noqa: B008
        ...,
        "--from",
        help="A .safetensors, .npz or torch.save file, or a TensorFlow checkpoint's prefix or .index file.",
    ),
    out: Path = typer.Option(..., "-o", "--out", help="The .safetensors file to write."),  # noqa: B008
    entry: str = typer.Option(None, "--entry", help="Which of several models in the file, e.g. state_dict_ema."),
    num_classes: int = typer.Option(None, "--num-classes", min=1, help="Size of the classifier in the file."),
    image_size: int = typer.Option(
        None, "--image-size", "--imgsz", min=1, help="Height and width that position tables are resized for."
    ),
    force: bool = typer.Option(False, "--force", help="Replace a file that is there already."),
    as_json: bool = JSON,
) -> None:
    """Convert published weights of a model: every key and shape accounted for, written as one safetensors file."""
    import shlex
    from dataclasses import asdict

    from edgekit.cli._render import size
    from edgekit.cli._terminal import terminal
    from edgekit.errors import WeightsMismatch

    with terminal(context.obj) as screen:
        from edgekit.weights import import_weights

        try:
            done = import_weights(
                model, source, out, num_classes=num_classes, image_size=image_size, entry=entry, force=force
            )
        except WeightsMismatch as error:
            # The error says how many and the first few; whoever renames keys needs all of them.
            for what, keys in (
                ("missing", error.missing),
                ("unexpected", error.unexpected),
                ("of other shape", error.misshapen),
            ):
                for key in keys:
                    screen.note(f"{what}: {key}")
            raise
        for note in done.notes:
            screen.note(note)
        if as_json:
            screen.json({**asdict(done), "path": str(done.path)})
            return
        screen.print(
            f"{done.path}  {done.tensors} tensors · {done.parameters:,} parameters · {size(done.bytes)}"
            f" · sha256 {done.sha256}"
        )
        given = "".join(
            f" {option} {value}"
            for option, value in (("--num-classes", num_classes), ("--image-size", image_size))
            if value
        )
        screen.print(f"Next: edgekit export -m {done.model} --weights {shlex.quote(str(done.path))}{given} -t all")
