"""`edgekit train`."""

import typer

from edgekit.cli._options import JSON


def train(
    context: typer.Context,
    recipe: str = typer.Argument(..., metavar="RECIPE.yaml", help="The recipe: `edgekit recipes` lists some."),
    overrides: list[str] = typer.Argument(  # noqa: B008 (read at import, as Typer has it)
        None, metavar="[KEY=VALUE]...", help="Changes to it, such as optimizer.lr=0.003."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on from the last checkpoint, where there is one."),
    force: bool = typer.Option(False, "--force", help="Replace a run that is there already."),
    as_json: bool = JSON,
) -> None:
    """Train, distil, fine-tune, quantize and export a model by a recipe, with the accuracy of each step."""
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import training

        with screen.progress() as step:
            trained = training.train(recipe, overrides or [], resume=resume, force=force, on_step=step)
        if trained is None:  # the first process of torchrun's speaks for all
            return
        for note in trained.notes:
            screen.note(note)
        if as_json:
            accuracy = {name: asdict(value) for name, value in trained.accuracy.items()}
            artifacts = [str(a.path) for a in trained.artifacts]
            document = {"path": str(trained.path), "steps": trained.steps, "accuracy": accuracy}
            screen.json({**document, "artifacts": artifacts, "notes": trained.notes})
            return
        screen.print(f"{trained.name}  {trained.path}  {trained.steps} steps")
        width = max(map(len, trained.accuracy), default=0)
        for name, a in trained.accuracy.items():
            top1 = "" if a.top1 is None else f"top-1 {a.top1:6.2f} %  "
            screen.print(f"  {name:<{width}}  {top1}agreement with float {a.agreement:6.2f} %  ({a.n} photos)")
        for artifact in trained.artifacts:
            screen.print(f"  {artifact.path}")
        screen.print(f"Next: {trained.next_command}")
