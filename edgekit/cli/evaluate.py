"""`edgekit evaluate`."""

import typer

from edgekit.cli._options import JSON, MODEL, parse_numbers
from edgekit.types import ClassAccuracy, Evaluation

SHOWN = 5


def evaluate(
    context: typer.Context,
    subject: str = typer.Argument(
        ..., metavar="ARTIFACT|MODEL", help="An artifact's folder, or a model as `export -m` takes it."
    ),
    data: str = typer.Option(
        ...,
        "--data",
        help="Labelled photos: a folder with one folder a class, a .npz, or a .tar."
        " Those that cannot be read are left out, counted and named.",
    ),
    weights: str = typer.Option(
        None, "-w", "--weights", help="Weights, for a model of the zoo; for --against where the subject has its own."
    ),
    mean: str = typer.Option(None, "--mean", help="For a model of your own, as for `export`."),
    std: str = typer.Option(None, "--std", help="For a model of your own, as for `export`."),
    model: str = MODEL,
    against: str = typer.Option(
        None,
        "--against",
        metavar="ARTIFACT|MODEL",
        help="What to compare with, image by image; else the float model that the artifact was exported from.",
    ),
    limit: int = typer.Option(
        None, "--limit", help="Use N images, drawn from all classes by their share: the same ones each time."
    ),
    as_json: bool = JSON,
) -> None:
    """Measure top-1 and top-5 accuracy of a model in torch, or of an artifact run by its runtime.

    An artifact is compared with its float model on the same images: agreement, drop of top-1 with its interval, and the
    classes that lost most (all of them with --json).
    """
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import evaluation

        with screen.progress() as step:
            result = evaluation.evaluate(
                subject,
                data,
                weights=weights,
                mean=parse_numbers("--mean", mean),
                std=parse_numbers("--std", std),
                model=model,
                against=against,
                limit=limit,
                on_step=step,
            )
        for note in result.notes:
            screen.note(note)
        if as_json:
            screen.json(asdict(result))
            return
        for line in _lines(result):
            screen.print(line)


def _lines(result: Evaluation) -> list[str]:
    low, high = result.ci95
    agreement = "" if result.agreement is None else f" · agreement with {result.against} {result.agreement:.2f} %"
    lines = [
        f"top-1 {result.top1:.2f} % (95 % interval {low:.1f} to {high:.1f}) · top-5 {result.top5:.2f} %{agreement}"
    ]
    if result.drop is not None and result.drop_ci95 is not None:
        low, high = result.drop_ci95
        lines.append(
            f"  drop        {_points(result.drop)} points, from {result.reference_top1:.2f} %"
            f" (95 % interval {_points(low)} to {_points(high)})"
        )
    if worst := _worst(result.per_class):
        lines.append("  lost most   " + " · ".join(worst))
    batches = "one by one" if result.batch_size == 1 else f"in batches of {result.batch_size}"
    lines.append(
        f"  speed       {result.images_per_second:.1f} images/s {batches}, without preprocessing"
        f" · {result.n} images · {result.runtime}"
    )
    return lines


def _points(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _worst(classes: tuple[ClassAccuracy, ...]) -> list[str]:
    """The classes that lost most images, of those that lost more than one: a single image says little."""
    counts = [
        (round(c.reference_top1 * c.n / 100), round(c.top1 * c.n / 100), c)
        for c in classes
        if c.reference_top1 is not None
    ]
    worst = sorted((x for x in counts if x[0] - x[1] > 1), key=lambda x: (x[1] - x[0], x[2].n))
    return [f"{c.label} {before} → {now} of {c.n}" for before, now, c in worst[:SHOWN]]
