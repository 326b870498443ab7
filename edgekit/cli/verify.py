"""`edgekit verify`."""

from typing import TYPE_CHECKING

import typer

from edgekit.cli._options import JSON, MODEL, PYTHON

if TYPE_CHECKING:
    from edgekit.types import Verification


def verify(
    context: typer.Context,
    artifact: str = typer.Argument(..., help="The artifact's folder."),
    images: str = typer.Option(
        None, "--images", help="Photos to compare on: an image, a folder, .npz or .tar; else its golden vectors."
    ),
    model: str = MODEL,
    min_sqnr: float = typer.Option(None, "--min-sqnr", help="Floor in dB (fp32 60, fp16 35; 25 on ExecuTorch)."),
    device: str = typer.Option(
        "host", "--device", help="Where to run it: host, qemu-arm64, adb[:SERIAL] or ssh:USER@HOST[:PORT]."
    ),
    python: str = PYTHON,
    as_json: bool = JSON,
) -> None:
    """Run an artifact by its runtime and compare it with the float model; exits 1 where they differ.

    On another device it is also compared with what this machine makes of the same file: fp32 to 1e-5 of the output's
    largest value, int8 to one step, or as near as the artifact has to be to its simulation where a step grows in it.
    """
    from dataclasses import asdict

    from edgekit.cli._terminal import terminal
    from edgekit.errors import GateFailed

    with terminal(context.obj) as screen:
        from edgekit import verification
        from edgekit.devices import open_device

        used = device if device == "host" else open_device(device, python=python or "")
        with screen.progress() as step:
            result = verification.verify(
                artifact, images=images, model=model, min_sqnr=min_sqnr, device=used, on_step=step
            )
        if as_json:
            screen.json(asdict(result))
        else:
            screen.print("\n".join(_lines(result)))
        if not result.passed:
            where = "" if device == "host" else f" on {device}"
            raise GateFailed(
                f"{artifact} does not compute{where} what the float model computes:\n  " + "\n  ".join(result.failures)
            )


def _lines(result: "Verification") -> list[str]:
    from edgekit.cli._render import parity_line
    from edgekit.parity import parity_words
    from edgekit.types import DeviceVerification

    lines = [f"{'passed' if result.passed else 'FAILED'}  {parity_line(result)}"]
    if isinstance(result, DeviceVerification):
        lines[0] += f" on {result.device}"
        lines += [f"        {parity_words(p)} · {result.here} here" for p in result.parity]
    return lines
