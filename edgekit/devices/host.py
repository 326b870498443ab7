"""This machine: each artifact in a process of its own, all on the same cores."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, final

from edgekit.devices._base import Burst, Device, Session
from edgekit.devices.host_worker import ARTIFACT
from edgekit.devices.machine import choose_cpus, facts, stolen_seconds
from edgekit.devices.sessions import LineSession, LocalFiles, board_files
from edgekit.errors import EnvironmentProblem
from edgekit.types import Artifact


@final
class Host(Device):
    name = "host"
    clock = "one call of the runtime's Python API: arrays in, the model, arrays out; no preprocessing"

    def __init__(self) -> None:
        self._cpus: tuple[int, ...] = ()

    def check(self, artifact: Artifact) -> None:
        if artifact.manifest.target == "coreml" and sys.platform != "darwin":
            raise EnvironmentProblem(
                f"{artifact.path} is for Core ML, which this machine does not have",
                "Its latency is measured on a Mac or a phone. Here it is only evaluated op by op, which tells nothing.",
            )

    @contextmanager
    def sessions(self, artifacts: Sequence[Artifact], threads: int) -> Iterator[list[Session]]:
        """Bound to `threads` cores, where the system can bind a process to cores."""
        self._cpus = choose_cpus(threads)
        with ExitStack() as stack:
            started: list[_HostSession] = []
            for artifact in artifacts:
                log = stack.enter_context(tempfile.TemporaryFile())
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-")))
                process = _start(artifact, folder, threads, self._cpus, log)
                session = _HostSession(artifact, process, log, LocalFiles(folder))
                session.cpus = self._cpus
                stack.callback(session.end)
                started.append(session)
            for session in started:
                session.ready()
            yield list(started)

    def facts(self) -> dict[str, str]:
        return facts(self._cpus)

    def state(self) -> dict[str, str]:
        return {"load": f"{os.getloadavg()[0]:.1f}"} if hasattr(os, "getloadavg") else {}


class _HostSession(LineSession):
    cpus: tuple[int, ...] = ()

    def run(self, runs: int, secs: float, expected_secs: float) -> Burst:
        stolen = stolen_seconds(self.cpus)
        burst = super().run(runs, secs, expected_secs)
        return Burst(
            us=burst.us,
            preempted=burst.preempted,
            waited_secs=burst.waited_secs,
            stolen_secs=stolen_seconds(self.cpus) - stolen,
        )


def _start(
    artifact: Artifact, folder: Path, threads: int, cpus: Sequence[int], log: IO[bytes]
) -> "subprocess.Popen[str]":
    files = board_files(artifact)
    board = json.loads(files["board.json"])
    board |= {"model": str(artifact.model_path.absolute()), ARTIFACT: str(artifact.path.absolute())}
    for name, content in (files | {"board.json": json.dumps(board).encode()}).items():
        (folder / name).write_bytes(content)
    # -P: a file of the working directory must not be taken for a module of ours.
    command = [sys.executable, "-P", "-m", "edgekit.devices.host_worker", str(folder), str(threads)]
    return subprocess.Popen(
        [*command, ",".join(map(str, cpus))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"},
        start_new_session=True,  # Ctrl-C is for the one that measures, who then ends these
    )
