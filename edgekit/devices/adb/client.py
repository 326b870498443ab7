"""The user's `adb`, as argument lists with time limits, and what goes wrong with it told apart.

adb gives 0 where the connection breaks in the middle of a command, so that every command ends with a line of ours that
carries its exit code: without that line it did not end.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgekit.errors import DeviceError, EnvironmentProblem

COMMAND_SECS = 60.0
CONNECT_SECS = 20.0
COPY_SECS, COPY_BYTES_A_SEC = 60.0, 0.5e6
"""What copying may take: so long, and longer by what the slowest cable needs."""
SETTLE_SECS = 5.0
"""How long a device that is only just being connected is waited for."""
_SETTLING = ("authorizing", "connecting", "offline")
END = ":edgekit-ended:"
_WHERE = (
    "Debian and Ubuntu: sudo apt-get install adb; else Google's platform-tools, or pip install adbutils and add the "
    "folder adbutils/binaries of it to PATH."
)
_FULL = "Free some of its storage, then try again."
_STATES = {
    "offline": ("does not answer (offline)", "Plug it in again, or type: adb reconnect offline"),
    "unauthorized": (
        "has not allowed this computer to use it (unauthorized)",
        "Unlock it and accept “Allow USB debugging?”. If it does not ask: revoke USB debugging authorizations in its "
        "developer options and plug it in again.",
    ),
    "authorizing": ("is waiting to be allowed (authorizing)", "Unlock it and accept “Allow USB debugging?”."),
    "connecting": ("is still being connected", "Wait a little, then try again."),
    "no permissions": (
        "cannot be opened by this user (no permissions)",
        "Add yourself to the group plugdev and install udev rules (Debian: sudo apt-get install "
        "android-sdk-platform-tools-common), then plug it in again.",
    ),
}
_LOST = re.compile(
    r"(?m)^(?:adb: |error: )+.*(?:device .*not found|no devices|device offline|unauthorized|closed|protocol fault"
    r"|connect failed|connection reset|broken pipe|couldn't read|read copy response|failed to get feature|EOF"
    r"|disconnected|failed to read|failed to write|terminated|shutdown)",
    re.I,
)
_STARTING = re.compile(r"^\* daemon .*$\n?", re.M)
"""What adb says when it starts its server: no answer to anything."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command on the device printed, and its exit code (128 + N: ended by signal N)."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Attached:
    """One line of `adb devices -l`."""

    serial: str
    state: str
    model: str = ""

    def __str__(self) -> str:
        note = ", ".join(filter(None, (self.model.replace("_", " "), "" if self.state == "device" else self.state)))
        return f"adb:{self.serial}" + (f" ({note})" if note else "")


def find_adb() -> str:
    """The user's adb; raises `EnvironmentProblem` where there is none."""
    path = shutil.which("adb")
    if path is None:
        raise EnvironmentProblem("there is no adb here, which talks to Android devices", _WHERE)
    return path


def attached() -> tuple[Attached, ...]:
    """The devices that adb knows, in whatever state; raises `EnvironmentProblem`."""
    done = _run([find_adb(), "devices", "-l"], CONNECT_SECS)
    if done is None or done.code:
        said = "" if done is None else f": {_last(done)}"
        raise EnvironmentProblem(
            f"adb cannot list its devices{said or ' in ' + f'{CONNECT_SECS:.0f} s'}",
            "Type: adb kill-server; adb devices -l",
        )
    found = []
    for line in done.out.splitlines():
        if match := re.match(r"(\S+)\s+(no permissions|\w+)\b(.*)", line):
            if line.startswith(("List of devices", "* ", "adb ")):
                continue
            model = re.search(r"\bmodel:(\S+)", match[3])
            found.append(Attached(serial=match[1], state=match[2], model=model[1] if model else ""))
    return tuple(found)


def choose(address: str) -> str:
    """The serial of the one device, or of `address`, when it can be used; raises `EnvironmentProblem`."""
    deadline = time.monotonic() + SETTLE_SECS
    while True:
        devices = attached()
        wanted = [d for d in devices if d.serial == address] if address else _usable(devices)
        if not wanted or wanted[0].state not in _SETTLING or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if not devices:
        raise EnvironmentProblem(
            f"adb knows no device{f' {address!r}' if address else ''}",
            f"Type: adb connect {address}"
            if ":" in address
            else "Plug one in and allow USB debugging in its developer options; `adb devices` then lists it.",
        )
    names = ", ".join(map(str, devices))
    if not wanted:
        raise EnvironmentProblem(f"adb knows no device {address!r}", f"It knows: {names}.")
    if len(wanted) > 1:
        raise EnvironmentProblem(f"adb knows {len(wanted)} devices", f"Name one with --device: {names}.")
    if wanted[0].state != "device":
        what, hint = _STATES.get(
            wanted[0].state, (f"is in the state {wanted[0].state!r}", "Start its Android system, then try again.")
        )
        raise EnvironmentProblem(f"adb:{wanted[0].serial} {what}", hint)
    return wanted[0].serial


def _usable(devices: Sequence[Attached]) -> list[Attached]:
    """Those that can be used; where there are none, all: the error then says why."""
    return [d for d in devices if d.state == "device"] or list(devices)


class Client:
    """One device. Every method raises `DeviceError` where it is lost or does not answer in time."""

    def __init__(self, address: str) -> None:
        self._adb, self.serial = find_adb(), choose(address)
        features = _run([*self._command, "features"], CONNECT_SECS)
        if features is None or features.code:
            error = self._lost("connecting", "" if features is None else _last(features))
            raise EnvironmentProblem(error.message, error.hint)
        if "shell_v2" not in features.out.split():
            raise EnvironmentProblem(
                f"adb:{self.serial} is older than Android 7, or its adb is", "Use a device with Android 7 or newer."
            )

    @property
    def _command(self) -> list[str]:
        return [self._adb, "-s", self.serial]

    def shell(self, script: str, secs: float = COMMAND_SECS, what: str = "a command") -> Answer:
        """What a script of Android's shell prints; its words are the caller's to quote (`shlex.quote`)."""
        # A subshell, so that an `exit` in it does not leave out our last line.
        line = f"({script}\n); code=$?; echo; echo {END}$code"
        done = _run([*self._command, "shell", "-T", "-n", line], secs)
        if done is None:
            raise DeviceError(
                f"adb:{self.serial} did not answer for {secs:.0f} s while {what} ran",
                "Is it asleep, or very busy? Unlock it and try again.",
            )
        out, mark, code = done.out.rpartition(END)
        if not mark or not code.strip().isdigit():
            raise self._lost(f"{what} ran", _last(done))
        return Answer(code=int(code), out=out.removesuffix("\n").removesuffix("\r"), err=done.err)

    def do(self, script: str) -> None:
        """Something that has to work; raises `EnvironmentProblem` where it does not."""
        answer = self.shell(script)
        if answer.code:
            said = answer.err.strip()
            if "No space left" in said:
                raise EnvironmentProblem(f"adb:{self.serial} has no space left", _FULL)
            raise EnvironmentProblem(f"adb:{self.serial} does not do `{script}`: {said[:200] or answer.code}")

    def push(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copy files to paths there, whole: their sizes are compared. Raises `EnvironmentProblem` for a full disk."""
        for local, remote in files:
            size = local.stat().st_size
            limit = COPY_SECS + size / COPY_BYTES_A_SEC
            done = _run([*self._command, "push", str(local), remote], limit)
            if done is None or done.code:
                raise self._not_copied(local.name, remote, f"{limit:.0f} s passed" if done is None else _last(done))
        names = " ".join(shlex.quote(remote) for _, remote in files)
        told = self.shell(f"stat -c '%s %n' {names}", what="comparing sizes").out.splitlines()
        sizes = {name: size for size, _, name in (line.strip().partition(" ") for line in told)}
        for local, remote in files:
            if sizes.get(remote) != str(local.stat().st_size):
                raise self._not_copied(local.name, remote, f"{sizes.get(remote, 'no')} bytes arrived")

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from there; raises `FileNotFoundError` where it is not."""
        done = _run([*self._command, "pull", remote, str(local)], COPY_SECS)
        if done is not None and not done.code and local.is_file():
            return
        local.unlink(missing_ok=True)
        said = "" if done is None else _last(done)
        if re.search(r"does not exist|No such file|failed to stat", said):
            raise FileNotFoundError(remote)
        raise self._lost(f"{remote} was copied from it", said)

    def start(self, script: str, log: IO[bytes]) -> "subprocess.Popen[str]":
        """A script of its shell that is talked to through stdin and stdout."""
        return subprocess.Popen(
            [*self._command, "shell", "-T", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,  # Ctrl-C is for the one that measures, who then cleans up
        )

    def reachable(self) -> bool:
        done = _run([*self._command, "get-state"], CONNECT_SECS)
        return done is not None and done.code == 0 and done.out.strip() == "device"

    def _not_copied(self, name: str, remote: str, said: str) -> DeviceError | EnvironmentProblem:
        folder = remote.rpartition("/")[0]
        if "No space left" in said:
            return EnvironmentProblem(f"adb:{self.serial} has no space left for {name}", _FULL)
        if re.search(r"Permission denied|Read-only file system", said):
            return EnvironmentProblem(f"adb:{self.serial} does not let adb write to {folder}: {said}")
        if _LOST.search(said) or not self.reachable():
            return self._lost(f"{name} was copied to it", said)
        return DeviceError(f"{name} did not arrive whole on adb:{self.serial}: {said}", "Try another cable or port.")

    def _lost(self, what: str, said: str) -> DeviceError:
        return lost(self.serial, what, said)


def lost(serial: str, what: str, said: str = "") -> DeviceError:
    """The error for a connection that broke while `what` happened."""
    if "unauthorized" in said:
        return DeviceError(f"adb:{serial} no longer allows this computer to use it", _STATES["unauthorized"][1])
    text = f"adb:{serial} was lost while {what}: unplugged, switched off, or its adb was restarted"
    return DeviceError(f"{text} (adb says: {said})" if said else text, "Connect it again; `adb devices` lists it then.")


def _run(command: Sequence[str], secs: float) -> Answer | None:
    """What adb printed; None where it did not end in time. Bytes that are no text are kept readable."""
    # Not in a pipe: a server that adb starts may keep it open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=hasattr(os, "setsid")
        )
        try:
            code = process.wait(secs)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(OSError):
                process.kill()
            process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace").replace("\r\n", "\n"))
    return Answer(code=code, out=_STARTING.sub("", texts[0]), err=_STARTING.sub("", texts[1]))


def _last(done: Answer) -> str:
    """The line in which adb says what went wrong, else its last one."""
    lines = [line.strip() for line in (done.out + "\n" + done.err).splitlines() if line.strip() and END not in line]
    errors = [line for line in lines if re.match(r"(adb: )?error:|adb: |cannot |failed ", line)]
    return (errors or lines or [f"code {done.code}"])[-1][:300]
