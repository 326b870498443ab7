"""`edgekit verify`."""

import typer

from edgekit.cli._options import JSON, MODEL


def verify(
    context: typer.Context,
    artifact: str = typer.Argument(..., help="The artifact's folder."),
    images: str = typer.Option(
        None, "--images", help="Photos to compare on: an image, a folder, .npz or .tar; else its golden vectors."
    ),
    model: str = MODEL,
    min_sqnr: float = typer.Option(None, "--min-sqnr", help="Floor in dB (60 for fp32, 35 for fp16)."),
    as_json: bool = JSON,
) -> None:
    """Run an artifact by its runtime and compare it with the float model; exits 1 where they differ."""
    from dataclasses import asdict

    from edgekit.cli._render import parity_line
    from edgekit.cli._terminal import terminal
    from edgekit.errors import GateFailed

    with terminal(context.obj) as screen:
        from edgekit import verification

        result = verification.verify(artifact, images=images, model=model, min_sqnr=min_sqnr)
        if as_json:
            screen.json(asdict(result))
        else:
            screen.print(f"{'passed' if result.passed else 'FAILED'}  {parity_line(result)}")
        if not result.passed:
            raise GateFailed(
                f"{artifact} does not compute what the float model computes:\n  " + "\n  ".join(result.failures)
            )
