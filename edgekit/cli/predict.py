"""`edgekit predict`."""

import typer

from edgekit.cli._options import JSON


def predict(
    context: typer.Context,
    artifact: str = typer.Argument(..., help="The artifact's folder."),
    images: list[str] = typer.Argument(..., help="Photos."),  # noqa: B008
    top: int = typer.Option(5, "--top", min=1, help="How many classes to show."),
    as_json: bool = JSON,
) -> None:
    """Classify photos with an artifact, preprocessed as its manifest says."""
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import prediction

        results = prediction.predict(artifact, images, top=top)
        if as_json:
            screen.json([[asdict(p) for p in ranked] for ranked in results])
            return
        for image, ranked in zip(images, results, strict=True):
            screen.print(image)
            for p in ranked:
                screen.print(f"  {p.probability:6.2%}  {p.label}  ({p.index})")
