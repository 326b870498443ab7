"""The command line: one file a command. Importing this imports no torch."""

import os
import signal
import sys
import traceback
from types import FrameType

import typer

from edgekit.cli import doctor, evaluate, export, inspect, models, predict, verify
from edgekit.errors import EdgekitError

app = typer.Typer(
    name="edgekit",
    help="From PyTorch to the phone: export a vision model to ExecuTorch, Core ML, LiteRT and ONNX, proven equal.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("models")(models.models)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"edgekit {version('edgekit')}")
        raise typer.Exit()


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks and what the libraries print. Goes anywhere."),
    version: bool = typer.Option(False, "--version", help="Show the version.", callback=_version, is_eager=True),
) -> None:
    pass


def main() -> None:
    """Run the command line; the exit codes are 0 done, 1 a gate failed, 2 bad input or usage, 3 something is missing."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    # torch's threads wait by spinning, which makes it ten times slower while another process wants the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A polite kill cleans up like Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(args=arguments, obj=debug, standalone_mode=False)
    except EdgekitError as error:
        code = _fail(str(error), error.exit_code, debug)
    except typer.TyperException as error:
        code = _fail(
            error.format_message() + "\n  See `edgekit --help` or `edgekit COMMAND --help`.", error.exit_code, debug
        )
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted; nothing was left behind", 130, debug)
    except Exception as error:  # the last resort: a defect of edgekit, said in one line
        code = _fail(
            f"unexpected {type(error).__name__}: {error}\n  This is a defect of edgekit. --debug shows where.", 1, debug
        )
    sys.exit(code)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    from edgekit.cli._terminal import print_error

    print_error(text)
    return code
