"""The process of one artifact, seen from the one that measures: started, asked, and never left behind."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

from edgekit.errors import ArtifactDamaged, EdgekitError, EnvironmentProblem
from edgekit.types import Artifact

PATIENCE_SECS = 60.0
"""What a request may take beyond twenty times what was expected of it."""
START_SECS = 15.0
"""What importing a runtime, or loading a model, is expected to take at most."""


class Worker:
    """An artifact in a process of its own; see `edgekit.profiling.worker` for the requests."""

    def __init__(self, artifact: Artifact, process: "subprocess.Popen[str]", log: IO[bytes]) -> None:
        self.artifact, self._process, self._log = artifact, process, log
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def ready(self) -> None:
        """Wait until it has imported its runtime."""
        self._answer("starting", START_SECS)

    def ask(self, what: str, expected_secs: float, request: Mapping[str, float | str]) -> dict[str, Any]:
        """The answer to a request; `what` it is doing, for errors.

        Raises `ArtifactDamaged` or `EnvironmentProblem` as the worker reports, `EdgekitError` where it dies or hangs.
        """
        assert self._process.stdin is not None
        with suppress(OSError):  # it is dead, which the answer will tell
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer(what, expected_secs)

    def _answer(self, what: str, expected_secs: float) -> dict[str, Any]:
        limit = PATIENCE_SECS + 20 * expected_secs
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            self.end()
            raise EdgekitError(
                f"{self.artifact.path} did not answer for {limit:.0f} s while {what}; its process was ended",
                "Try fewer threads, or a machine that is not so busy.",
            ) from None
        if line is None:
            raise self._death(what)
        values = json.loads(line)
        if "error" in values:
            raise self._reported(values)
        return values

    def _reported(self, values: dict[str, Any]) -> EdgekitError:
        if values["code"] == EnvironmentProblem.exit_code:
            return EnvironmentProblem(values["error"], values["hint"])
        if values["hint"]:
            return ArtifactDamaged(values["error"], values["hint"])
        return ArtifactDamaged(
            f"the runtime of {self.artifact.manifest.target} cannot run {self.artifact.model_path}: {values['error']}",
            "Export the artifact again.",
        )

    def _death(self, what: str) -> EdgekitError:
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else ""
        self._log.seek(0)
        said = self._log.read().decode(errors="backslashreplace").strip().splitlines()
        if name == "SIGKILL":
            hint = "Something ended it from outside; on Linux most often the kernel, when memory runs out."
        else:
            hint = f"It said last: {said[-1][:300]}" if said else "Check the artifact with `edgekit verify`."
        how = f"was ended by {name}" if name else f"ended with code {code}"
        return EdgekitError(f"the process that runs {self.artifact.path} {how} while {what}", hint)

    def end(self) -> None:
        """End the process, whatever state it is in, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # a request that it never read
                pipe.close()


@contextmanager
def workers(artifacts: Sequence[Artifact], threads: int, cpus: Sequence[int]) -> Iterator[list[Worker]]:
    """One worker an artifact, all ready; all gone when the block ends, however it ends."""
    with ExitStack() as stack:
        started = []
        for artifact in artifacts:
            log = stack.enter_context(tempfile.TemporaryFile())
            worker = Worker(artifact, _start(artifact, threads, cpus, log), log)
            stack.callback(worker.end)
            started.append(worker)
        for worker in started:
            worker.ready()
        yield started


def _start(artifact: Artifact, threads: int, cpus: Sequence[int], log: IO[bytes]) -> "subprocess.Popen[str]":
    # -P: a file of the working directory must not be taken for a module of ours.
    command = [sys.executable, "-P", "-m", "edgekit.profiling.worker", str(artifact.path), str(threads)]
    return subprocess.Popen(
        [*command, ",".join(map(str, cpus))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"},
        start_new_session=True,  # Ctrl-C is for the one that measures, who then ends these
    )
