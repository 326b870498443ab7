"""`edgekit train`."""

import typer

from edgekit.cli._options import JSON


def train(
    context: typer.Context,
    recipe: str = typer.Argument(..., metavar="RECIPE.yaml", help="The recipe: see recipes/*.yaml."),
    overrides: list[str] = typer.Argument(  # noqa: B008 (read at import, as Typer has it)
        None, metavar="[KEY=VALUE]...", help="Changes to it, such as optimizer.lr=0.003."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on from the last checkpoint, where there is one."),
    force: bool = typer.Option(False, "--force", help="Replace a run that is there already."),
    as_json: bool = JSON,
) -> None:
    """Fine-tune a model in int8 by a recipe, into a .pt2 file that exports to every runtime."""
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import training

        with screen.progress() as step:
            trained = training.train(recipe, overrides or [], resume=resume, force=force, on_step=step)
        for note in trained.notes:
            screen.note(note)
        if as_json:
            screen.json({**asdict(trained), "path": str(trained.path)})
            return
        q = trained.quantized
        screen.print(f"{q.name} in {q.scheme}  {trained.path}  {trained.steps} steps")
        for name, accuracy in trained.accuracy.items():
            top1 = "" if accuracy.top1 is None else f"top-1 {accuracy.top1:.2f} %  "
            screen.print(f"  {name:<6}{top1}agreement {accuracy.agreement:.2f} %  ({accuracy.n} photos)")
        screen.print(f"Next: edgekit export -m {trained.path} -t all")
