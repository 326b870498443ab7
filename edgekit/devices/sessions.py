"""A process that answers requests, on this machine or on another: started, asked, and never left behind."""

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.artifacts import read_golden
from edgekit.devices import board
from edgekit.devices._base import Arrays, Burst, LoadTimes, Memory, Session
from edgekit.errors import ArtifactDamaged, DeviceError, EnvironmentProblem
from edgekit.targets import TARGETS
from edgekit.types import Artifact

PATIENCE_SECS = 60.0
"""What a request may take beyond twenty times what was expected of it."""
START_SECS = 15.0
"""What importing a runtime, or loading a model, is expected to take at most."""


class Files(ABC):
    """The working directory of a session, wherever it is."""

    @abstractmethod
    def put(self, name: str, content: bytes) -> None: ...

    @abstractmethod
    def get(self, name: str) -> Path:
        """A file of that directory, as one on this machine."""


class LocalFiles(Files):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def get(self, name: str) -> Path:
        return self.folder / name


def board_files(artifact: Artifact) -> dict[str, bytes]:
    """What a session's directory holds beside the model: `board.json` and the first golden sample."""
    manifest = artifact.manifest
    facts = {
        "target": manifest.target,
        "model": artifact.model_path.name,
        "inputs": [{"dtype": s.dtype, "shape": list(s.shape)} for s in manifest.inputs],
    }
    return {"board.json": json.dumps(facts).encode(), **sample_files(0, read_golden(artifact)[0][0])}


def sample_files(number: int, sample: Sequence[NDArray[Any]]) -> dict[str, bytes]:
    """The inputs of one sample as raw arrays, by the names that `infer` reads."""
    return {f"input.{number}.{n}.bin": np.ascontiguousarray(x).tobytes() for n, x in enumerate(sample)}


def copy_board_package(folder: Path) -> Path:
    """Make `folder`/edgekit of what runs on a board and nothing else; that folder.

    Its empty __init__ files keep an edgekit that may be installed there from being found in its place.
    """
    package = folder / "edgekit"
    here = package / "devices" / "board"
    here.mkdir(parents=True)
    for empty in (package, here.parent):
        (empty / "__init__.py").touch()
    for file in Path(board.__file__).parent.glob("*.py"):
        shutil.copy(file, here)
    return package


class LineSession(Session):
    """An artifact in a process that keeps to the words of `devices._base`.

    `where` is said in errors behind the artifact's path ("" on this machine). `after` is called when it has ended, with
    the process id it gave (None: it gave none), to end what a broken connection leaves behind.
    """

    def __init__(
        self,
        artifact: Artifact,
        process: "subprocess.Popen[str]",
        log: IO[bytes],
        files: Files,
        where: str = "",
        after: Callable[[int | None], None] | None = None,
    ) -> None:
        self.artifact, self._process, self._log, self._files = artifact, process, log, files
        self._where, self._after, self._pid = where, after, None
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
        self._pid = self._answer("starting", START_SECS).get("pid")

    def load(self) -> LoadTimes:
        values = self._ask("loading", START_SECS, "load")
        return LoadTimes(load_ms=values["load_ms"], first_ms=values["first_ms"], runtime=values["runtime"])

    def run(self, runs: int, secs: float, expected_secs: float) -> Burst:
        values = self._ask("being measured", expected_secs, f"run {runs} {secs}")
        return Burst(us=tuple(values["us"]), preempted=values["preempted"], waited_secs=values["waited_secs"])

    def memory(self) -> Memory:
        values = self._ask("being measured", 1.0, "memory")
        return Memory(peak_mib=values["peak_mib"], before_mib=values["before_mib"])

    def outputs(self, samples: Sequence[Sequence[NDArray[Any]]]) -> list[Arrays]:
        results = []
        for number, sample in enumerate(samples):
            for name, content in sample_files(number, sample).items():
                self._files.put(name, content)
            self._ask("computing outputs", START_SECS, f"infer {number}")
            results.append([self._array(f"output.{number}.{n}.bin", n) for n in range(len(self._specs))])
        return results

    @property
    def _specs(self) -> Any:
        return self.artifact.manifest.outputs

    def _array(self, name: str, index: int) -> NDArray[Any]:
        spec = self._specs[index]
        values = np.fromfile(self._files.get(name), dtype=spec.dtype)
        if values.size != np.prod(spec.shape):
            raise DeviceError(
                f"output {spec.name} of {self._name} came back with {values.size} values, not {np.prod(spec.shape)}",
                "Check the connection, and the runner's version: edgekit runner build --force",
            )
        return values.reshape(spec.shape)

    def trace(self, runs: int) -> tuple[Path, float]:
        values = self._ask("being profiled", START_SECS, f"trace {runs}")
        return self._files.get(values["file"]), values["whole_us"]

    @property
    def _name(self) -> str:
        return f"{self.artifact.path}{self._where}"

    def _ask(self, what: str, expected_secs: float, request: str) -> dict[str, Any]:
        """The answer to a request; `what` it is doing, for errors.

        Raises `ArtifactDamaged` or `EnvironmentProblem` as the process reports, `DeviceError` where it dies or hangs.
        """
        assert self._process.stdin is not None
        with suppress(OSError):  # it is dead, which the answer will tell
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        return self._answer(what, expected_secs)

    def _answer(self, what: str, expected_secs: float) -> dict[str, Any]:
        limit = PATIENCE_SECS + 20 * expected_secs
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            self.end()
            raise DeviceError(
                f"{self._name} did not answer for {limit:.0f} s while {what}; its process was ended",
                "Try fewer threads, or a machine that is not so busy.",
            ) from None
        if line is None:
            raise self._death(what)
        try:
            values = json.loads(line)
            assert isinstance(values, dict)
        except (ValueError, AssertionError):
            self.end()
            raise DeviceError(
                f"{self._name} answered what no runner of ours answers while {what}: {line.strip()[:100]!r}",
                "Something else writes to the connection, or the runner is of another version.",
            ) from None
        if "error" in values:
            raise self._reported(values)
        return values

    def _reported(self, values: dict[str, Any]) -> DeviceError | EnvironmentProblem | ArtifactDamaged:
        message, hint, code = str(values["error"]), str(values.get("hint", "")), values.get("code", 1)
        if code == EnvironmentProblem.exit_code:
            return EnvironmentProblem(message + self._where, hint)
        if code == 1:
            return DeviceError(f"{self._name}: {message}", hint)
        if hint:
            return ArtifactDamaged(message, hint)
        target = TARGETS[self.artifact.manifest.target].name
        return ArtifactDamaged(
            f"the runtime of {target} cannot run {self.artifact.model_path}{self._where}: {message}",
            "Export the artifact again.",
        )

    def _death(self, what: str) -> DeviceError:
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else ""
        self._log.seek(0)
        said = self._log.read().decode(errors="backslashreplace").strip().splitlines()
        if name == "SIGKILL":
            hint = "Something ended it from outside; on Linux most often the kernel, when memory runs out."
        else:
            hint = f"It said last: {said[-1][:300]}" if said else "Check the artifact with `edgekit verify`."
        how = f"was ended by {name}" if name else f"ended with code {code}"
        return DeviceError(f"the process of {self._name} {how} while {what}", hint)

    def end(self) -> None:
        """No process is left, whatever state it is in."""
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # a request that it never read
                pipe.close()
        if self._after is not None:
            after, self._after = self._after, None
            after(self._pid)
