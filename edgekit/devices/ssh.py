"""A board that one can log in to: a Raspberry Pi, a Jetson, any Linux with Python 3.8 and a runtime.

Everything goes through the user's OpenSSH, with the user's keys and configuration: one connection that the others share
(ControlMaster), never a question for a password.
"""

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, final

from edgekit.devices._base import Device, Session
from edgekit.devices.runner.build import runner_command, runner_folder
from edgekit.devices.sessions import Files, LineSession, board_files, copy_board_package
from edgekit.errors import BadInput, DeviceError, EnvironmentProblem, Unsupported
from edgekit.types import Artifact

CONNECT_SECS = 15
COPY_SECS = 600.0
COMMAND_SECS = 60.0
PERSIST_SECS = 120
"""How long the shared connection outlives an edgekit that was killed."""
REFUSED = 255
"""What ssh itself ends with where it could not connect, or lost the connection."""
OPTIONS = (
    "-oBatchMode=yes", f"-oConnectTimeout={CONNECT_SECS}", "-oServerAliveInterval=5", "-oServerAliveCountMax=3",
)  # fmt: skip
ADDRESS = re.compile(r"(?:[\w.-]+@)?(?:[\w.-]+|\[[0-9A-Fa-f:.%\w]+\])(?::\d+)?")
RUNNER = "runner"

# One line a fact, `name=value`; what a board does not have stays empty.
FACTS = """
echo "model=$(tr -d '\\000' < /proc/device-tree/model 2>/dev/null)"
echo "system=$(uname -sr)"
echo "machine=$(uname -m)"
echo "cores=$(nproc)"
echo "cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
echo "governor=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)"
echo "max_khz=$(cat /sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq 2>/dev/null | sort -n | tail -n 1)"
echo "os=$(. /etc/os-release 2>/dev/null && echo "$PRETTY_NAME")"
echo "python=$(PYTHON -c 'import platform; print(platform.python_version())' 2>/dev/null)"
"""
STATE = """
echo "load=$(cut -d' ' -f1 /proc/loadavg)"
echo "khz=$(cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq 2>/dev/null | tr '\\n' ' ')"
echo "temperature_millicelsius=$(cat /sys/class/thermal/thermal_zone*/temp 2>/dev/null | sort -n | tail -n 1)"
echo "throttled=$(vcgencmd get_throttled 2>/dev/null | cut -d= -f2)"
"""
# What this login may use, as a list of ranges, and the top speed of each core where it is told.
CORES = """
sed -n 's/^Cpus_allowed_list:[[:space:]]*/allowed /p' /proc/self/status
for c in /sys/devices/system/cpu/cpu[0-9]*; do
  echo "khz $(cat $c/cpufreq/cpuinfo_max_freq 2>/dev/null || echo 0) ${c##*cpu}"
done
"""
# A folder of ours that a lost connection left behind, a day or more ago.
STALE = """
find /tmp -maxdepth 1 -name 'edgekit-board-*' -user "$(id -un)" -mtime +0 -exec rm -rf {} + 2>/dev/null || true
"""


@final
class Ssh(Device):
    """`address` is [USER@]HOST[:PORT]; HOST may be an alias of the user's ssh configuration.

    ONNX and TFLite files run in the board's own Python, with the runtime that it has; a `.pte` in our C++ runner.
    """

    clock = "one call of the runtime's Python API on the board: arrays in, the model, arrays out; no preprocessing"

    def __init__(self, address: str, python: str = "python3", options: Sequence[str] = ()) -> None:
        if not ADDRESS.fullmatch(address):
            raise BadInput(
                f"{address!r} is no address to log in to", "Type --device ssh:USER@HOST or ssh:USER@HOST:PORT."
            )
        self.name = f"ssh:{address}"
        host, _, port = address.rpartition(":") if re.search(r"[^:\]]:\d+$|\]:\d+$", address) else (address, "", "")
        self._host, self._python = host.replace("[", "").replace("]", ""), python
        self._options = [*OPTIONS, *options, *([f"-oPort={port}"] if port else [])]
        self._facts: dict[str, str] = {}
        self._control = ""

    def check(self, artifact: Artifact) -> None:
        if artifact.manifest.target == "coreml":
            raise Unsupported(
                f"{artifact.path} is for Core ML, which runs on Apple's systems alone",
                "Export it to another target: -t tflite, onnx or executorch.",
            )
        if shutil.which("ssh") is None:
            raise EnvironmentProblem("there is no ssh here", "Install OpenSSH's client (openssh-client).")

    @contextmanager
    def sessions(self, artifacts: Sequence[Artifact], threads: int) -> Iterator[list[Session]]:
        """Bound to the `threads` fastest cores of the board; everything that was copied is removed at the end."""
        with self._connected() as folder, ExitStack() as stack:
            cpus = self._cpus(threads)
            self._facts = {
                "kind": "ssh",
                "address": self.name,
                **self._told(FACTS.replace("PYTHON", shlex.quote(self._python))),
                "pinned_to": ",".join(map(str, cpus)),
            }
            if not self._facts.get("python") and any(a.manifest.target != "executorch" for a in artifacts):
                raise EnvironmentProblem(
                    f"there is no {self._python} on {self.name}", "Install Python 3.8 or newer there, and numpy."
                )
            with tempfile.TemporaryDirectory(prefix="edgekit-") as program:
                self._copy(copy_board_package(Path(program)), folder)
            if any(a.manifest.target == "executorch" for a in artifacts):
                with _named(runner_folder(self._facts["machine"]), RUNNER) as runner:
                    self._copy(runner, folder)
            started: list[LineSession] = []
            for n, artifact in enumerate(artifacts):
                log = stack.enter_context(tempfile.TemporaryFile())
                local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-")))
                process = self._start(artifact, folder, f"{folder}/{n}", threads, cpus, log)
                remote = _Remote(self, f"{folder}/{n}", local)
                session = LineSession(artifact, process, log, remote, f" on {self.name}", self._kill)
                stack.callback(session.end)
                started.append(session)
            for session in started:
                session.ready()
            yield list(started)

    def facts(self) -> dict[str, str]:
        return {k: v for k, v in self._facts.items() if v}

    def state(self) -> dict[str, str]:
        """Within `sessions`, which has the connection."""
        return {k: v for k, v in self._told(STATE).items() if v}

    @contextmanager
    def _connected(self) -> Iterator[str]:
        """The one connection that the others share, and a folder there that is gone when it closes."""
        with tempfile.TemporaryDirectory(prefix="edgekit-") as local:
            self._control = f"{local}/c"
            try:
                self._call(["-oControlMaster=yes", f"-oControlPersist={PERSIST_SECS}", "-fN"], None)
                self._shell(STALE)
                folder = self._shell("mktemp -d /tmp/edgekit-board-XXXXXXXX").strip()
                if not re.fullmatch(r"/tmp/edgekit-board-\w+", folder):
                    raise DeviceError(
                        f"{self.name} answered {folder[:80]!r} where it was asked to make a folder",
                        "Its shell prints something at login: keep that to terminals ([ -t 1 ]).",
                    )
                try:
                    yield folder
                finally:
                    with suppress(DeviceError, EnvironmentProblem):  # a board that is gone keeps it in /tmp
                        # What was only just ended may still write there.
                        place = shlex.quote(folder)
                        self._shell(f"rm -rf {place} || (sleep 1; rm -rf {place})")
            finally:
                with suppress(DeviceError, EnvironmentProblem):
                    self._call(["-Oexit"], None)
                self._control = ""

    def _start(
        self, artifact: Artifact, folder: str, place: str, threads: int, cpus: Sequence[int], log: IO[bytes]
    ) -> "subprocess.Popen[str]":
        with tempfile.TemporaryDirectory(prefix="edgekit-") as local:
            here = Path(local) / place.rpartition("/")[2]
            here.mkdir()
            for name, content in board_files(artifact).items():
                (here / name).write_bytes(content)
            (here / artifact.model_path.name).symlink_to(artifact.model_path.absolute())
            self._copy(here, folder)
        if artifact.manifest.target == "executorch":
            words = runner_command(f"{folder}/{RUNNER}", artifact.model_path.name, threads, cpus)
        else:
            words = ["env", f"PYTHONPATH={folder}", f"OMP_NUM_THREADS={threads}", "OMP_WAIT_POLICY=passive"]
            words += [self._python, "-m", "edgekit.devices.board.serve", ".", str(threads), ",".join(map(str, cpus))]
        return subprocess.Popen(
            [*self._command(), self._host, f"cd {shlex.quote(place)} && exec {shlex.join(words)}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
        )

    def _kill(self, pid: int | None) -> None:
        if isinstance(pid, int):
            with suppress(DeviceError, EnvironmentProblem):
                self._shell(f"kill -9 {pid} 2>/dev/null || true")

    def _cpus(self, threads: int) -> tuple[int, ...]:
        """The fastest; of equals the last, since interrupts of devices are mostly served by the first."""
        found = [line.split() for line in self._shell(CORES).splitlines()]
        allowed = {cpu for f in found if f[:1] == ["allowed"] for cpu in _ranges(f[-1])}
        speeds = [(int(f[1]), int(f[2])) for f in found if f[:1] == ["khz"] and "".join(f[1:]).isdigit()]
        cores = sorted(((khz, cpu) for khz, cpu in speeds if cpu in allowed), reverse=True)
        if threads > len(cores) > 0:
            raise BadInput(
                f"--threads {threads} is not possible: {self.name} has {len(cores)} cores",
                f"Type a number from 1 to {len(cores)}.",
            )
        return tuple(sorted(cpu for _, cpu in cores[:threads]))

    def _told(self, script: str) -> dict[str, str]:
        lines = self._shell(script).splitlines()
        return {k: v.strip() for k, equals, v in (line.partition("=") for line in lines) if equals}

    def _shell(self, script: str) -> str:
        """What a POSIX shell there prints; the script goes in by stdin, so that no login shell rewrites it."""
        return self._call(["--", self._host, "sh"], script)

    def _copy(self, source: Path, folder: str) -> None:
        """A local folder into one there, links followed."""
        command = ["tar", "-C", str(source.parent), "-chf", "-", source.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as packed:
            remote = [*self._command(), self._host, f"tar -C {shlex.quote(folder)} -xf -"]
            done = self._run(remote, None, packed.stdout, COPY_SECS)
        self._check(done, f"copying {source.name}")

    def fetch(self, path: str, here: Path) -> None:
        """A file from there."""
        done = self._run([*self._command(), self._host, f"cat {shlex.quote(path)}"], None, None, COPY_SECS)
        self._check(done, f"fetching {path}")
        here.write_bytes(done.stdout)

    def send(self, content: bytes, path: str) -> None:
        """A file to there."""
        done = self._run([*self._command(), self._host, f"cat > {shlex.quote(path)}"], content, None, COPY_SECS)
        self._check(done, f"writing {path}")

    def _command(self) -> list[str]:
        return ["ssh", *self._options, "-oControlMaster=no", f"-oControlPath={self._control}"]

    def _call(self, words: Sequence[str], script: str | None) -> str:
        master = words[0] == "-oControlMaster=yes"
        base = ["ssh", *self._options, f"-oControlPath={self._control}"] if master else self._command()
        rest = [*words] if "--" in words else [*words, self._host]
        done = self._run([*base, *rest], None if script is None else script.encode(), None, COMMAND_SECS)
        self._check(done, "connecting" if master else "asking it")
        return done.stdout.decode(errors="backslashreplace")

    def _run(
        self, command: Sequence[str], given: bytes | None, source: IO[bytes] | None, secs: float
    ) -> "subprocess.CompletedProcess[bytes]":
        # A file: the connection stays open behind the first call, and would keep a pipe of it open too.
        with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as out:
            try:
                if given is None:
                    stream: IO[bytes] | int = subprocess.DEVNULL if source is None else source
                    done = subprocess.run(command, stdin=stream, stdout=out, stderr=log, timeout=secs, check=False)
                else:
                    done = subprocess.run(command, input=given, stdout=out, stderr=log, timeout=secs, check=False)
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"{self.name} did not answer for {secs:.0f} s", "Is it switched on, and its disk not full?"
                ) from None
            out.seek(0)
            log.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, out.read(), log.read())

    def _check(self, done: "subprocess.CompletedProcess[bytes]", what: str) -> None:
        if not done.returncode:
            return
        said = done.stderr.decode(errors="backslashreplace").strip().splitlines() or [""]
        if done.returncode != REFUSED:
            text = " ".join(said[-2:])
            full = "Free some space there." if "No space left" in text else "Try it by hand with ssh."
            raise DeviceError(f"{self.name}: {what} failed: {text[-300:]}", full)
        if what != "connecting":
            raise DeviceError(f"the connection to {self.name} was lost while {what}: {said[-1]}", "Is it still there?")
        raise EnvironmentProblem(f"cannot log in to {self.name}: {said[-1]}", _advice(" ".join(said), self._host))


@contextmanager
def _named(folder: Path, name: str) -> Iterator[Path]:
    """`folder` under another name, for what copies it by its name."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as local:
        link = Path(local) / name
        link.symlink_to(folder)
        yield link


def _ranges(text: str) -> set[int]:
    """The numbers of "0-3,6"."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _advice(said: str, host: str) -> str:
    if "Host key verification" in said or "authenticity" in said:
        return f"Log in once by hand and accept its key: ssh {host}"
    if "Permission denied" in said:
        return f"edgekit asks for no password. Type: ssh-copy-id {host} (with an agent: ssh-add)."
    return f"Does this work without a question: ssh {host} true"


class _Remote(Files):
    """The working directory of a session on the board; `local` is where what is fetched lies."""

    def __init__(self, device: Ssh, place: str, local: Path) -> None:
        self._device, self._place, self._local = device, place, local

    def put(self, name: str, content: bytes) -> None:
        self._device.send(content, f"{self._place}/{name}")

    def get(self, name: str) -> Path:
        here = self._local / Path(name).name
        self._device.fetch(f"{self._place}/{Path(name).name}", here)
        return here
