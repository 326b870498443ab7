"""What runs on the device: our runner, which is talked to, or a tool of the user's, which is started for every turn."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgekit.devices.adb.client import Client, lost
from edgekit.devices.adb.folder import end_processes
from edgekit.devices.sessions import Files, LineSession
from edgekit.devices.tools import Place, Said
from edgekit.errors import DeviceError
from edgekit.types import Artifact

TOOL = "tool"
"""Where a tool of the user's lies in our folder."""
_SIGNALS = {
    4: "an illegal instruction: it was built for another processor",
    6: "abort",
    7: "bus error",
    9: "killed, most often by Android when memory runs out",
    11: "segmentation fault",
}


class RunnerSession(LineSession):
    """Our runner on the device, through adb's shell."""

    def __init__(
        self,
        artifact: Artifact,
        process: "subprocess.Popen[str]",
        log: IO[bytes],
        client: Client,
        place: str,
        local: Path,
    ) -> None:
        self._client = client
        super().__init__(
            artifact,
            process,
            log,
            _Remote(client, place, local),
            f" on adb:{client.serial}",
            lambda pid: _end_if_there(client, place),
        )

    def _death(self, what: str) -> DeviceError:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="backslashreplace").strip().splitlines()
        said = lines[-1][:300] if lines else ""
        if code in (0, 1, 255) and not self._client.reachable():
            return lost(self._client.serial, f"{self.artifact.path} was {what}", said)
        if code > 128 and code != 255:
            how = f"was ended by signal {code - 128}"
            hint = _SIGNALS.get(code - 128, "")
        elif code == 0:
            return lost(self._client.serial, f"{self.artifact.path} was {what}", said)
        else:
            how, hint = f"ended with code {code}", "Check the artifact with `edgekit verify`."
        hint = f"It said last: {said}" if said else hint
        return DeviceError(f"the process of {self._name} {how} while {what}", hint)


def _end_if_there(client: Client, place: str) -> None:
    """A device that was lost has told so already."""
    with suppress(DeviceError):
        end_processes(client, place)


class _Remote(Files):
    """A folder of the device; what is fetched from it goes to `local`."""

    def __init__(self, client: Client, folder: str, local: Path) -> None:
        self._client, self._folder, self._local = client, folder, local

    def put(self, name: str, content: bytes) -> None:
        path = self._local / name
        path.write_bytes(content)
        self._client.push([(path, f"{self._folder}/{name}")])
        path.unlink()

    def get(self, name: str) -> Path:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise DeviceError(f"adb:{self._client.serial} names a file that is none of ours: {name[:80]!r}")
        path = self._local / name
        try:
            self._client.pull(f"{self._folder}/{name}", path)
        except FileNotFoundError:
            raise DeviceError(
                f"adb:{self._client.serial} has no file {name}, which the runner was to write",
                "Is there space left on it?",
            ) from None
        return path


def place_of(client: Client, folder: str, prefix: Sequence[str], place: str, binary: str, local: Path) -> Place:
    """Where a tool of the user's runs: the artifact's folder there; what is fetched from it goes to `local`."""

    def fetch(pattern: str) -> Path:
        """The newest file that the pattern finds there, and then no longer there: the next start writes it anew."""
        found = client.shell(f"cd {shlex.quote(place)} && ls -t {pattern} 2>/dev/null | head -n 1").out.strip()
        if not re.fullmatch(r"\w[\w.-]*", found):
            raise FileNotFoundError(pattern)
        path = local / found
        client.pull(f"{place}/{found}", path)
        client.shell(f"rm -f {shlex.quote(f'{place}/{found}')}")
        return path

    return Place(
        binary=binary,
        local=local,
        execute=lambda words, secs: execute(client, folder, prefix, place, words, secs),
        fetch=fetch,
        put=_Remote(client, place, local).put,
    )


def execute(client: Client, folder: str, prefix: Sequence[str], place: str, words: Sequence[str], secs: float) -> Said:
    """Run an argument list in a folder of the device; one that does not end in time is killed there."""
    command = ["env", f"LD_LIBRARY_PATH={folder}/{TOOL}", *prefix, *words]
    name = words[0].rpartition("/")[2]
    try:
        answer = client.shell(f"cd {shlex.quote(place)} && exec {shlex.join(command)} </dev/null", secs, name)
    except (DeviceError, KeyboardInterrupt):
        _end_if_there(client, place)
        raise
    return Said(code=answer.code, text=f"{answer.out}\n{answer.err}")
