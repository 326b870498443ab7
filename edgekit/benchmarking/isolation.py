"""A job in a process of its own, under a guard: whatever happens there, here it is a result."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from platform import node
from typing import IO, Any

import cattrs

from edgekit.benchmarking import guard
from edgekit.benchmarking._job import Answer, Found, Job, Limits
from edgekit.types import CellResult

LOG_BYTES = 64 * 1024
END_SECS = 20.0
"""What the guard may take to end a cell."""
_CONVERTER = cattrs.Converter()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a job, and the end of what its process and the libraries in it said."""

    result: CellResult
    log: str = ""


def run_job(job: Job, limits: Limits, on_step: Callable[[str], None], folder: str = ".") -> Outcome:
    """Run a job under its limits, in `folder`, and wait for it. Nothing of it is left when this returns or raises."""
    if job.cell.device.partition(":")[0] == "adb" and (adb := shutil.which("adb")):
        # Its server serves others too: one that a cell has started would end with the cell.
        subprocess.run([adb, "start-server"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    started = time.monotonic()
    found, verdict = Found(), {}
    with tempfile.TemporaryFile() as log:
        with _guarded(job, limits, log, folder) as lines:
            for values in lines:
                if "guard" in values:
                    verdict = values["guard"]
                    break
                answer = _CONVERTER.structure(values, Answer)
                found = found.add(answer)
                if answer.step:
                    on_step(answer.step)
        size = log.seek(0, 2)
        log.seek(max(0, size - LOG_BYTES))
        said = log.read().decode(errors="backslashreplace")
    status, error, hint = _judge(found.values, verdict, limits, said)
    seconds = time.monotonic() - started
    empty = CellResult(cell=job.cell, status=status, seconds=seconds, error=error, hint=hint, host=node())
    return Outcome(result=found.result(empty), log=said)


@contextmanager
def _guarded(job: Job, limits: Limits, log: IO[bytes], folder: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The JSON lines of a job's process and of its guard, which ends with the block."""
    text = json.dumps(asdict(job))
    # -P: a file of the working directory must not be taken for a module of ours.
    cell = [sys.executable, "-P", "-m", "edgekit.benchmarking.cell", text]
    numbers = [repr(limits.timeout), repr(limits.max_memory)]
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(guard.__file__)), *numbers, *cell],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        start_new_session=True,  # Ctrl-C is for us, who then end it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield _lines(process.stdout)
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let the guard end everything; a second Ctrl-C, pressed while this runs, waits until it is done."""
    assert process.stdin is not None
    assert process.stdout is not None
    interrupt: KeyboardInterrupt | None = None
    deadline = time.monotonic() + END_SECS
    while process.poll() is None:
        try:
            with suppress(OSError):
                process.stdin.close()
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except KeyboardInterrupt as error:
            interrupt = error
        except subprocess.TimeoutExpired:
            process.kill()
    process.stdout.close()
    with suppress(OSError):
        process.stdin.close()
    if interrupt:
        raise interrupt


def _lines(stdout: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in stdout:
        # A process that was killed leaves half a line.
        with suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict):
                yield values


def _judge(found: Answer, verdict: dict[str, Any], limits: Limits, said: str) -> tuple[str, str, str]:
    """Status, error and hint."""
    ended, code = verdict.get("ended"), verdict.get("code")
    if found.finished:  # what a library does as the process ends is not the cell's
        return "done", "", ""
    if ended == "timeout":
        return (
            "timeout",
            f"it took longer than {limits.timeout:g} s and was ended",
            f"Allow more with --timeout SECS, or give a smaller --image-size. {_last_words(said)}".strip(),
        )
    if ended == "memory":
        return (
            "memory",
            f"its processes held {verdict['peak_mib']:.0f} MiB, more than the {verdict['limit_mib']:.0f} allowed",
            "Allow more with --max-memory MIB, or give a smaller --image-size.",
        )
    if found.error:  # behind the limits: what a cell that has to end says on its way is not why
        return "failed", found.error, found.hint
    if code is None:
        return "crashed", "its process was ended from outside", "Try it again with --resume."
    last = _last_words(said)
    if code == -signal.SIGKILL:
        return (
            "crashed",
            "its process was ended by SIGKILL",
            "Most often that is the kernel, when memory runs out: give --max-memory MIB, or a smaller --image-size.",
        )
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return "crashed", f"its process {how}", last or "It said nothing."


def _last_words(said: str) -> str:
    """Where a process was when it ended, as Python's fault handler tells, or else its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    fatal = next((n for n, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
    for line in lines[fatal:]:
        if line.startswith("File ") and not line.endswith(" in _leave"):  # that is where it was told to end
            return f"It was at {line.removeprefix('File ')}."
    return f"It said last: {lines[-1][:300]}" if lines else ""
