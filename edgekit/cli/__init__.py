"""The command line: one file a command. Importing this imports no torch."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from edgekit.cli import (
    benchmark,
    compress,
    data,
    doctor,
    embed,
    evaluate,
    export,
    inspect,
    models,
    predict,
    profile,
    quantize,
    recipes,
    report,
    runner,
    train,
    verify,
    weights,
)
from edgekit.cli._options import with_values
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
app.command("quantize")(quantize.quantize)
app.command("recipes")(recipes.recipes)
app.command("train")(train.train)
app.command("compress")(compress.compress)
app.command("verify")(verify.verify)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("profile")(profile.profile)
app.command("benchmark", epilog=benchmark.FARM)(benchmark.benchmark)
app.command("report")(report.report)
app.command("embed")(embed.embed)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(runner.app, name="runner")


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
    """Run the command line. Exit codes: 0 done, 1 a gate failed, 2 bad input or usage, 3 something is missing."""
    debug = "--debug" in sys.argv
    arguments = with_values([a for a in sys.argv[1:] if a != "--debug"])
    # torch's threads wait by spinning, which makes it ten times slower while another process wants the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with _interrupts() as interrupted:
        try:
            code = app(args=arguments, prog_name="edgekit", obj=debug, standalone_mode=False)
        except EdgekitError as error:
            code = 130 if interrupted else _fail(str(error), error.exit_code, debug)
        except typer.TyperException as error:
            code = _fail(
                error.format_message() + "\n  See `edgekit --help` or `edgekit COMMAND --help`.", error.exit_code, debug
            )
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except Exception as error:  # the last resort: a defect of edgekit, said in one line
            text = f"unexpected {type(error).__name__}: {error}\n  This is a defect of edgekit. --debug shows where."
            code = 130 if interrupted else _fail(text, 1, debug)
    if code == 130:
        code = _fail("interrupted; nothing unfinished was left behind", 130, debug)
    sys.exit(code)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Make Ctrl-C, a polite kill and a closed terminal raise KeyboardInterrupt; the list holds the signals that came.

    It is raised again each second until it gets through: importing or running an exporter may swallow one.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 1)
        raise KeyboardInterrupt

    numbers = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, n)]
    # What `nohup` or a shell's `&` has set to be ignored stays ignored.
    before = [(n, signal.signal(n, interrupt)) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    try:
        yield came
    finally:
        if came and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before:
            signal.signal(number, handler)


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    from edgekit.cli._terminal import print_error

    print_error(text)
    return code
