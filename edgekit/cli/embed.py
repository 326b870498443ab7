"""`edgekit embed`."""

from pathlib import Path

import typer

from edgekit.cli._options import JSON


def embed(
    context: typer.Context,
    artifact: str = typer.Argument(..., help="The artifact's folder."),
    platform: str = typer.Option(..., "--platform", help="android or ios."),
    package: str | None = typer.Option(
        None, "--package", help="Android: a package such as com.example.flowers. iOS: a module such as Flowers."
    ),
    out: Path = typer.Option(..., "-o", "--out", help="The folder of the module."),  # noqa: B008
    force: bool = typer.Option(False, "--force", help="Replace a module that was generated there."),
    as_json: bool = JSON,
) -> None:
    """Generate a Gradle library or a Swift package that classifies photos with an artifact."""
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal

    with terminal(context.obj) as screen:
        from edgekit import apps

        done = apps.embed(artifact, platform, out, package=package, force=force)
        if as_json:
            screen.json({**asdict(done), "path": str(done.path)})
            return
        screen.print(f"{done.classifier} in {done.package}: {len(done.files)} files  {done.path}")
        for note in done.notes:
            screen.print(f"  note  {note}")
        for n, step in enumerate(done.steps, 1):
            screen.print(f"  {n}. {step}")
