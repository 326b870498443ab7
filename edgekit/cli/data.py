"""`edgekit data check` and `edgekit data shard`."""

from pathlib import Path

import typer

from edgekit.cli._options import JSON

app = typer.Typer(no_args_is_help=True, help="Photos to train on: what is wrong with them, and as tar shards.")


@app.command("check")
def check(
    context: typer.Context,
    data: str = typer.Argument(..., help="What is trained on: a folder, .npz, .tar or 'shards-{000..099}.tar'."),
    evaluation: Path = typer.Argument(None, help="What is evaluated on; else its val or test folder, if there is one."),  # noqa: B008
    num_classes: int = typer.Option(None, "--num-classes", min=1, help="Of the model, if it is not the data's number."),
    channels: int = typer.Option(3, "--channels", min=1, help="That the model takes: 3 (RGB) or 1 (grey)."),
    limit: int = typer.Option(None, "--limit", min=1, help="Look at so many images of each set, of all classes."),
    as_json: bool = JSON,
) -> None:
    """Find images that cannot be read, empty classes, photos in both sets, contradictory labels, as `train` does."""
    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from dataclasses import asdict

        from edgekit.data import ImageSet, open_images
        from edgekit.data.checks import check
        from edgekit.data.images import HELD_OUT
        from edgekit.data.shards import is_pattern, open_shards

        trained = ("train", "training")
        with screen.progress() as step:
            folder = Path(data)
            images: ImageSet = (
                open_shards(data, step) if is_pattern(data) else open_images(folder, (*trained, *HELD_OUT))
            )
            if evaluation is None and all(any((folder / s).is_dir() for s in names) for names in (trained, HELD_OUT)):
                evaluation = folder
            held = None if evaluation is None else open_images(evaluation)
            found = check(images, held, num_classes=num_classes, channels=channels, limit=limit, on_step=step)
        if as_json:
            screen.json(asdict(found))
        for note in () if as_json else found.notes:
            screen.note(note)
        found.refuse()
        if not as_json:
            beside = f" and {len(held):,} to evaluate on" if held is not None else ""
            screen.print(f"nothing against training with these {len(images):,} images{beside}")


@app.command("shard")
def shard(
    context: typer.Context,
    data: Path = typer.Argument(..., help="A folder, .npz or .tar of images."),  # noqa: B008
    out: Path = typer.Option(..., "-o", "--out", help="The folder to make."),  # noqa: B008
    size: int = typer.Option(1000, "--size", min=1, help="Images in a shard."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the order in which images are spread over the shards."),
    as_json: bool = JSON,
) -> None:
    """Write images as tar shards, in an order of chance: the form for data that is too much for single files."""
    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from dataclasses import asdict

        from edgekit.data import open_images
        from edgekit.data.images import HELD_OUT
        from edgekit.training.sharding import write_shards

        with screen.progress() as step:
            images = open_images(data, ("train", "training", *HELD_OUT))
            done = write_shards(images, out, size=size, seed=seed, on_step=step)
        for why in done.unreadable:
            screen.note(f"left out: {why}")
        if as_json:
            screen.json(asdict(done))
            return
        screen.print(f"{out}  {done.samples:,} images in {done.shards} shards")
        screen.print(f"Next: edgekit train RECIPE.yaml 'data.train={done.pattern}'")
