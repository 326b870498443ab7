"""An Android device: what is pushed to it, and what is started there."""

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from edgekit.artifacts import read_golden
from edgekit.devices._base import Device, Session
from edgekit.devices.adb.client import Client, find_adb
from edgekit.devices.adb.facts import Core, cores_of, device_facts, gate, properties, state, unfit
from edgekit.devices.adb.folder import own_folder, remove_stale
from edgekit.devices.adb.session import TOOL, RunnerSession, execute, place_of
from edgekit.devices.runner.build import LOADER, RUNNER, runner_command, runner_folder
from edgekit.devices.sessions import LineSession, sample_files
from edgekit.devices.tools import TOOLS, ToolSession, check_artifact, tool_of
from edgekit.errors import BadInput, DeviceError, EnvironmentProblem, UnknownName, Unsupported
from edgekit.types import Artifact, Step

ARCHS = {"arm64-v8a": "arm64", "x86_64": "x86_64"}
"""What Android calls the architectures that there is a runner of ours for."""
HELP_SECS = 20.0
_MACHINES = {0x03: "x86", 0x28: "armeabi-v7a", 0x3E: "x86_64", 0xB7: "arm64-v8a"}


@final
class Adb(Device):
    """The device `serial`, or the only one. `runner` is a tool of the user's, `arguments` more options for it."""

    def __init__(self, serial: str = "", runner: Path | None = None, arguments: Sequence[str] = ()) -> None:
        self.name = f"adb:{serial}" if serial else "adb"
        self._address, self._runner, self._arguments = serial, runner, tuple(arguments)
        self.clock = (
            "one call of ExecuTorch in C++: inputs handed over, the model, its outputs copied out; no preprocessing"
            if runner is None
            else f"what {runner.name} times: the model alone; no preprocessing"
        )
        if arguments and runner is None:
            raise BadInput("--runner-args are for a runner of yours", "Give it with --runner PATH, or leave them out.")
        if runner is not None and not runner.is_file():
            raise BadInput(f"there is no runner {runner}", "Give the path of the binary on this computer.")
        self._client: Client | None = None
        self._facts: dict[str, str] = {}

    def check(self, artifact: Artifact) -> None:
        find_adb()
        target = artifact.manifest.target
        if target == "coreml":
            raise Unsupported(
                f"{artifact.path} is for Core ML, which runs on Apple's systems alone",
                "Export it to another target: -t executorch, tflite or onnx.",
            )
        if self._runner is not None:
            # A name that says nothing: it is asked on the device.
            with suppress(UnknownName):
                check_artifact(tool_of(TOOLS, self._runner.name, lambda: ""), artifact)
            return
        for tool in TOOLS:
            if tool.target == target != "executorch":
                raise EnvironmentProblem(
                    f"{artifact.path} is measured over adb by {tool.name}, which you have to bring: {tool.built}",
                    f"Type: edgekit profile {artifact.path} --device {self.name} --runner PATH/{tool.name}   "
                    "(an artifact of -t executorch needs no runner)",
                )

    @contextmanager
    def sessions(self, artifacts: Sequence[Artifact], threads: int) -> Iterator[list[Session]]:
        """Bound to the `threads` fastest cores; no process and no file stays there when the block ends."""
        client = self._connected()
        with own_folder(client) as folder, ExitStack() as stack:
            try:
                started = self._set_up(client, folder, artifacts, threads, stack)
            except DeviceError as error:  # nothing was measured yet
                raise EnvironmentProblem(error.message, error.hint) from error
            yield started

    def _set_up(
        self, client: Client, folder: str, artifacts: Sequence[Artifact], threads: int, stack: ExitStack
    ) -> list[Session]:
        values, cores = properties(client), cores_of(client)
        cpus = self._cpus(cores, threads)
        self._facts = device_facts(values, client.serial, cores, cpus)
        local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-")))
        stay = _Stay(client, folder, local, values.get("abi", ""), threads, cpus, stack)
        start = self._own(stay) if self._runner is None else self._tool(stay, self._runner)
        started = []
        for n, artifact in enumerate(artifacts):
            _push_artifact(stay, artifact, n)
            started.append(start(artifact, n))
        for session in started:
            if isinstance(session, LineSession):
                session.ready()
        return started

    def facts(self) -> dict[str, str]:
        return dict(self._facts)

    def state(self) -> dict[str, str]:
        return state(self._connected())

    def gate(self, on_step: Step) -> tuple[str, ...]:
        return gate(self.state, on_step)

    def unfit(self, state: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(unfit(state))

    def _connected(self) -> Client:
        if self._client is None:
            self._client = Client(self._address)
            remove_stale(self._client)
        return self._client

    def _cpus(self, cores: Sequence[Core], threads: int) -> tuple[int, ...]:
        if threads > len(cores) > 0:
            raise BadInput(
                f"--threads {threads} is not possible: {self.name} has {len(cores)} cores switched on",
                f"Type a number from 1 to {len(cores)}.",
            )
        return tuple(sorted(c.number for c in cores[:threads]))

    def _own(self, stay: "_Stay") -> Callable[[Artifact, int], Session]:
        """Push our runner; what starts it for an artifact."""
        if stay.abi not in ARCHS:
            raise EnvironmentProblem(
                f"{self.name} is {stay.abi or 'of an unknown architecture'}; "
                f"edgekit's runner is for {' and '.join(ARCHS)}",
                "Bring a runner that was built for it: --runner PATH/executor_runner",
            )
        runner, client, there = runner_folder(ARCHS[stay.abi]), stay.client, f"{stay.folder}/{RUNNER}"
        client.do(f"mkdir {there}")
        client.push([(path, f"{there}/{path.name}") for path in sorted(runner.iterdir()) if path.is_file()])
        client.do(f"chmod 755 {there}/{LOADER} {there}/{RUNNER}")

        def start(artifact: Artifact, n: int) -> Session:
            log = stay.stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            command = runner_command(there, artifact.model_path.name, stay.threads, stay.cpus)
            process = client.start(f"cd {stay.folder}/{n} && exec {shlex.join(command)}", log)
            session = RunnerSession(artifact, process, log, client, f"{stay.folder}/{n}", stay.local / str(n))
            stay.stack.callback(session.end)
            return session

        return start

    def _tool(self, stay: "_Stay", runner: Path) -> Callable[[Artifact, int], Session]:
        """Push the user's runner; what makes a session of it for an artifact."""
        built_for, client = _machine(runner), stay.client
        if built_for and stay.abi not in ("", built_for) and (built_for, stay.abi) != ("armeabi-v7a", "arm64-v8a"):
            raise BadInput(
                f"{runner} was built for {built_for}; {self.name} is {stay.abi}",
                f"Build or download it for {stay.abi}.",
            )
        there = f"{stay.folder}/{TOOL}"
        binary = f"{there}/{runner.name}"
        client.do(f"mkdir {there}")
        client.push([(runner, binary)])
        client.do(f"chmod 755 {shlex.quote(binary)}")
        mask = f"{sum(1 << c for c in stay.cpus):x}"
        pinned = bool(stay.cpus) and client.shell(f"taskset {mask} true").code == 0
        if not pinned:
            self._facts.pop("pinned_to", None)
        prefix = ("taskset", mask) if pinned else ()
        tool = tool_of(
            TOOLS, binary, lambda: execute(client, stay.folder, (), there, [binary, "--help"], HELP_SECS).text
        )

        def start(artifact: Artifact, n: int) -> Session:
            check_artifact(tool, artifact)
            place = place_of(client, stay.folder, prefix, f"{stay.folder}/{n}", binary, stay.local / str(n))
            return ToolSession(artifact, tool, place, artifact.model_path.name, stay.threads, self._arguments)

        return start


@dataclass(frozen=True)
class _Stay:
    """One measurement's place on a device, and beside it here; `stack` ends with it."""

    client: Client
    folder: str
    local: Path
    abi: str
    threads: int
    cpus: tuple[int, ...]
    stack: ExitStack


def _push_artifact(stay: _Stay, artifact: Artifact, n: int) -> None:
    """The model and its first golden sample."""
    place, local = f"{stay.folder}/{n}", stay.local / str(n)
    stay.client.do(f"mkdir {place}")
    local.mkdir()
    files = [(artifact.model_path, f"{place}/{artifact.model_path.name}")]
    for name, content in sample_files(0, read_golden(artifact)[0][0]).items():
        (local / name).write_bytes(content)
        files.append((local / name, f"{place}/{name}"))
    stay.client.push(files)


def _machine(binary: Path) -> str:
    """What Android calls the architecture that a binary was built for; "" for a script."""
    with binary.open("rb") as file:
        head = file.read(20)
    return _MACHINES.get(int.from_bytes(head[18:20], "little"), "") if head[:4] == b"\x7fELF" else ""
