"""What a person sees: our lines on stdout, errors and progress on stderr, and nobody else's noise.

The libraries underneath write to both streams from Python and from C++. While a command runs, the process's
stdout and stderr lead into a temporary file; our own lines go to copies of the real ones.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

from edgekit.types import Step


@dataclass(frozen=True)
class Terminal:
    """The real stdout and stderr of this process."""

    out: TextIO
    err: TextIO

    def print(self, text: str = "") -> None:
        print(text, file=self.out, flush=True)

    def json(self, value: Any) -> None:
        print(json.dumps(value, indent=2, ensure_ascii=False), file=self.out, flush=True)

    def note(self, text: str) -> None:
        """A warning that a person should see even where stdout is piped away."""
        print(self._colour("33", f"note: {text}"), file=self.err, flush=True)

    def error(self, text: str) -> None:
        head, _, rest = text.partition("\n")
        print(self._colour("31", "error:") + f" {head}" + (f"\n{rest}" if rest else ""), file=self.err, flush=True)

    def _colour(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.err.isatty() and "NO_COLOR" not in os.environ else text

    @contextmanager
    def progress(self) -> Iterator[Step]:
        """A bar on stderr with what is being done and an estimate, on a terminal only."""
        if not self.err.isatty():
            yield lambda what, done, total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # `redirect_*` would make rich print what the libraries write.
        with Progress(
            *columns, console=Console(file=self.err), transient=True, redirect_stdout=False, redirect_stderr=False
        ) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@contextmanager
def terminal(debug: bool) -> Iterator[Terminal]:
    """The terminal for one command; with `debug` the libraries may write to it too."""
    sys.stdout.flush()
    sys.stderr.flush()
    with _open(os.dup(1)) as out, _open(os.dup(2)) as err:
        # In debug they go to stderr, so that --json stays one document.
        sink = _open(os.dup(2) if debug else _temporary())
        with sink, redirect_stdout(sink), redirect_stderr(sink):
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            try:
                yield Terminal(out, err)
            finally:
                sink.flush()
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)


def _open(descriptor: int) -> TextIO:
    """Takes any text, whatever the locale: a library's words, a file name that is no Unicode."""
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")


def _temporary() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def print_error(text: str) -> None:
    """`error: …` on stderr, after the terminal is itself again."""
    Terminal(sys.stdout, sys.stderr).error(text)
