"""`edgekit evaluate`."""

import typer

from edgekit.cli._options import JSON, MODEL


def evaluate(
    context: typer.Context,
    subject: str = typer.Argument(
        ..., metavar="ARTIFACT|MODEL", help="An artifact's folder, or a model as `export -m` takes it."
    ),
    data: str = typer.Option(
        ..., "--data", help="Labelled photos: a folder with one folder a class, a .npz, or a .tar."
    ),
    weights: str = typer.Option(None, "-w", "--weights", help="Weights, for a model of the zoo."),
    model: str = MODEL,
    limit: int = typer.Option(None, "--limit", help="Use the first N images."),
    as_json: bool = JSON,
) -> None:
    """Measure top-1 and top-5 accuracy of a float model, or of an artifact run by its runtime."""
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import evaluation

        with screen.progress() as step:
            result = evaluation.evaluate(subject, data, weights=weights, model=model, limit=limit, on_step=step)
        for note in result.notes:
            screen.note(note)
        if as_json:
            screen.json(asdict(result))
            return
        low, high = result.ci95
        agreement = "" if result.agreement is None else f" · agreement with float {result.agreement:.2f} %"
        screen.print(
            f"top-1 {result.top1:.2f} % (95 % interval {low:.1f} to {high:.1f}) · top-5 {result.top5:.2f} %{agreement}"
            f" · {result.n} images · {result.images_per_second:.1f} images/s"
        )
