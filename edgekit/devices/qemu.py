"""ARM64 code on this machine, emulated by QEMU: the kernels that a phone would run, and how many instructions.

Its time says nothing about any device, and is never given for a latency.
"""

import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, final

from edgekit.devices._base import Device, Memory, Session
from edgekit.devices._tools import need_tool
from edgekit.devices.runner.build import LOADER, runner_command, runner_folder
from edgekit.devices.runner.counting import counter, plugged, version_of
from edgekit.devices.sessions import START_SECS, LineSession, LocalFiles, board_files, copy_board_package
from edgekit.devices.sysroot import emulated, python_of, sysroot, write_cpuinfo
from edgekit.errors import BadInput, EnvironmentProblem, Unsupported
from edgekit.types import Artifact, Step

PROGRAM = "qemu-aarch64"
COUNT = "instructions"


@final
class QemuArm64(Device):
    name = "qemu-arm64"
    counts_instructions = True
    clock = "the instructions of one call of the runtime: arrays in, the model, arrays out; no preprocessing"

    def check(self, artifact: Artifact) -> None:
        if artifact.manifest.target == "coreml":
            raise Unsupported(
                f"{artifact.path} is for Core ML, which runs on Apple's systems alone",
                "Export it to another target: -t tflite, onnx or executorch.",
            )
        _need_qemu()

    def prepare(self, artifacts: Sequence[Artifact], on_step: Step) -> None:
        targets = {artifact.manifest.target for artifact in artifacts}
        if "executorch" in targets:
            runner_folder("arm64", on_step)
        if targets - {"executorch"}:
            python_folder(on_step)

    @contextmanager
    def sessions(self, artifacts: Sequence[Artifact], threads: int) -> Iterator[list[Session]]:
        """Of one thread: others wait by spinning, which would be counted."""
        if threads != 1:
            raise BadInput(f"{self.name} emulates one thread, not {threads}", "Leave --threads out.")
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-")))
            write_cpuinfo(folder)
            copy_board_package(folder)
            started: list[_Emulated] = []
            for n, artifact in enumerate(artifacts):
                log = stack.enter_context(tempfile.TemporaryFile())
                session = _start(artifact, folder, folder / str(n), log)
                stack.callback(session.end)
                started.append(session)
            for session in started:
                session.ready()
            yield list(started)

    def facts(self) -> dict[str, str]:
        return {
            "kind": self.name,
            "model": f"QEMU {version_of(PROGRAM)}, user emulation",
            "machine": "aarch64",
            "cpu": "Cortex-A76, emulated",
            "system": f"{platform.system()} {platform.release()} on {platform.machine()}",
            "cores": "1",
            "pinned_to": "nothing: it is emulated",
        }


def python_folder(on_step: Step) -> Path:
    """The emulated Python with its runtimes, made now where there is none; raises `EnvironmentProblem`."""
    return sysroot(_need_qemu(), on_step)


def _need_qemu() -> str:
    return need_tool(PROGRAM, "qemu-user", "emulating ARM64")


class _Emulated(LineSession):
    """`place` is its working directory; `why` is why it cannot count, or None."""

    place: Path
    why: EnvironmentProblem | None = None

    def memory(self) -> Memory:
        """What the system tells is the emulator's."""
        return Memory(peak_mib=0, before_mib=0)

    def trace(self, runs: int) -> tuple[Path, float]:
        raise Unsupported("an emulator's times of operators say nothing about any device", "Leave --per-op out.")

    def instructions(self) -> int:
        if self.why is not None:
            raise self.why
        self._ask("being counted", START_SECS, "count")
        return int((self.place / COUNT).read_text(encoding="ascii"))


def _start(artifact: Artifact, shared: Path, place: Path, log: IO[bytes]) -> _Emulated:
    """`shared` holds what all sessions have: this Python's programs, and the emulated machine's description."""
    place.mkdir()
    for name, content in board_files(artifact).items():
        (place / name).write_bytes(content)
    model = place / artifact.model_path.name
    model.symlink_to(artifact.model_path.absolute())
    if artifact.manifest.target == "executorch":
        runner = runner_folder("arm64")
        root, trial = shared, [str(runner / LOADER), "--version"]
        command = runner_command(runner, model, threads=1)
    else:
        root = sysroot(PROGRAM)
        trial = [str(python_of(root)), "-c", ""]
        command = [str(python_of(root)), "-P", "-m", "edgekit.devices.board.serve", str(place), "1", ""]
    qemu, *words = emulated(command[0], root, PROGRAM)
    why, plugin = None, []
    try:
        plugin = plugged(counter(qemu, [*words[:-1], *trial]), place / COUNT)
    except EnvironmentProblem as error:  # it runs without, for those who do not count
        why = error
    process = subprocess.Popen(
        [qemu, *plugin, *words, *command[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        encoding="utf-8",
        errors="backslashreplace",
        cwd=place,
        env=_environment(shared),
        start_new_session=True,
    )
    session = _Emulated(artifact, process, log, LocalFiles(place))
    session.place, session.why = place, why
    return session


def _environment(shared: Path) -> dict[str, str]:
    """Little: what lies in it moves the stack, and this machine's libraries are none of the emulated one's."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": str(shared), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "HOME": str(shared)}
