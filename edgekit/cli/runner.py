"""`edgekit runner`."""

from pathlib import Path

import typer

app = typer.Typer(help="Our own ExecuTorch runner for phones and boards.", no_args_is_help=True)


@app.callback()
def _runner() -> None:
    """Our own ExecuTorch runner for phones and boards."""


@app.command("build")
def build(
    context: typer.Context,
    arch: str = typer.Option("arm64", "--arch", help="arm64 (phones, boards, --device qemu-arm64) or x86_64."),
    out: Path = typer.Option(None, "-o", "--out", help="The folder to make; else one that the devices find."),  # noqa: B008
    force: bool = typer.Option(False, "--force", help="Replace what is in that folder."),
    with_python: bool = typer.Option(
        False, "--with-python", help="Also an ARM64 Python with the other runtimes, for --device qemu-arm64."
    ),
) -> None:
    """Compile the runner into a folder with all its libraries, ready to be copied to a device."""
    from edgekit.cli._terminal import terminal
    from edgekit.errors import BadInput

    with terminal(context.obj) as screen:
        from edgekit.devices import qemu
        from edgekit.devices.runner import build as runner

        if with_python and arch != "arm64":
            raise BadInput(f"--with-python is for arm64, not for {arch}", "Leave it out.")
        with screen.progress() as step:
            python = qemu.python_folder(step) if with_python else None
            if out is None:
                folder = runner.runner_folder(arch, on_step=step)
            else:
                runner.build_runner(arch, out, force=force, on_step=step)
                folder = out
        size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
        screen.print(f"{folder}  ({size:.0f} MiB: runner, ExecuTorch {runner.EXECUTORCH}, loader and C library)")
        command = " ".join(runner.runner_command(".", "MODEL.pte", 1)).rstrip()
        screen.print(f"on the device, in that folder: {command}")
        if arch == "arm64":
            screen.print("or from here: edgekit profile ARTIFACT --device adb")
        if python is not None:
            screen.print(f"{python}  (Python and the other runtimes, for --device qemu-arm64)")
