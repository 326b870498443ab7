"""`edgekit compress`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgekit.cli._options import IMAGE_SIZE, JSON, NUM_CLASSES, WEIGHTS

if TYPE_CHECKING:
    from edgekit.compressing import CompressedModel

SKIP = typer.Option([], "--skip", help="Layers that stay: a pattern of their paths, as 'blocks.3.*'; may be repeated.")


def compress(
    context: typer.Context,
    model: str = typer.Option(..., "-m", "--model", help="Zoo name, file.py:callable or package.module:callable."),
    ratio: float = typer.Option(2.0, "--ratio", help="How many times fewer weights a linear layer gets; above 1."),
    skip: list[str] = SKIP,
    weights: str = WEIGHTS,
    num_classes: int = NUM_CLASSES,
    image_size: int = IMAGE_SIZE,
    seed: int = typer.Option(0, "--seed", help="For weights where none are given."),
    out: Path = typer.Option(..., "-o", "--out", help="The .safetensors file to write."),  # noqa: B008
    force: bool = typer.Option(False, "--force", help="Replace a file that is there already."),
    as_json: bool = JSON,
) -> None:
    """Make the linear layers of a model pairs of low rank: fewer weights and multiplications, to be trained after."""
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import compressing

        with screen.progress() as step:
            made = compressing.compress(
                model,
                out,
                ratio=ratio,
                skip=tuple(skip),
                weights=weights,
                num_classes=num_classes,
                image_size=image_size,
                seed=seed,
                force=force,
                on_step=step,
            )
        for note in made.notes:
            screen.note(note)
        if as_json:
            screen.json({**asdict(made), "path": str(made.path)})
        else:
            screen.print("\n".join(_lines(made, weights)))


def _lines(made: "CompressedModel", weights: str | None) -> list[str]:
    from edgekit.cli._render import count, size

    before, after = made.before, made.after
    mean = sum(layer.error for layer in made.layers) / len(made.layers)
    worst = max(made.layers, key=lambda layer: layer.error)
    top1 = "" if made.agreement is None else f"top-1 agrees on {round(made.agreement * made.photos)} of {made.photos}, "
    what, given = shlex.quote(made.model), f", weights: {weights}" if weights else ""
    return [
        f"{made.model} at ratio {made.ratio:g}  {made.path}  {size(made.bytes)}",
        f"  parameters  {count(before.parameters)} -> {count(after.parameters)}"
        f"  (deployed {count(before.deployed_parameters)} -> {count(after.deployed_parameters)})",
        f"  MACs        {count(before.macs)} -> {count(after.macs)}"
        f"  (deployed {count(before.deployed_macs)} -> {count(after.deployed_macs)})",
        f"  layers      {len(made.layers)} in low rank; |W - BA| / |W| is {mean:.1%} on average,"
        f" most in {worst.name}: {worst.error:.1%} at rank {worst.rank}",
        f"  answers     {top1}SQNR {made.sqnr_db:.1f} dB against the original, untrained",
        "Next: train it with the original as its teacher, by a recipe with",
        f"  model: {{name: {made.model}{given}}}",
        f"  compression: {{ratio: {made.ratio:g}}}",
        f"Or as it is: edgekit export -m {what} --weights {shlex.quote(str(made.path))} -t all",
    ]
