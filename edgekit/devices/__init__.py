"""Where artifacts run: this machine, an Android phone, a board, an emulated ARM. One file a kind, one line below."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.devices._base import Arrays as Arrays
from edgekit.devices._base import Burst as Burst
from edgekit.devices._base import Device as Device
from edgekit.devices._base import Figures as Figures
from edgekit.devices._base import LoadTimes as LoadTimes
from edgekit.devices._base import Memory as Memory
from edgekit.devices._base import Session as Session
from edgekit.devices.adb import Adb
from edgekit.devices.host import Host
from edgekit.devices.qemu import QemuArm64
from edgekit.devices.ssh import Ssh
from edgekit.errors import BadInput
from edgekit.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of device: `form` is how it is typed, `programs` what it needs here, with the Debian package of each.

    `open` makes one of an address ("" for none), a runner of the user's, arguments for that, and a Python there.
    """

    name: str
    form: str
    open: Callable[[str, Path | None, Sequence[str], str], Device]
    programs: Mapping[str, str] = field(default_factory=dict)
    takes_address: bool = False
    takes_runner: bool = False
    takes_python: bool = False

    def missing(self) -> dict[str, str]:
        """What of `programs` is not on this machine."""
        return {program: package for program, package in self.programs.items() if shutil.which(program) is None}


DEVICES: Registry[Kind] = Registry(
    "device",
    (
        Kind(name="host", form="host", open=lambda address, runner, arguments, python: Host()),
        Kind(
            name="adb",
            form="adb[:SERIAL]",
            open=lambda address, runner, arguments, python: Adb(address, runner, arguments),
            programs={"adb": "adb"},
            takes_address=True,
            takes_runner=True,
        ),
        Kind(
            name="ssh",
            form="ssh:USER@HOST[:PORT]",
            open=lambda address, runner, arguments, python: Ssh(address, python or "python3"),
            programs={"ssh": "openssh-client"},
            takes_address=True,
            takes_python=True,
        ),
        Kind(
            name="qemu-arm64",
            form="qemu-arm64",
            open=lambda address, runner, arguments, python: QemuArm64(),
            programs={"qemu-aarch64": "qemu-user", "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu"},
        ),
    ),
)


def open_device(name: str, runner: Path | None = None, runner_args: Sequence[str] = (), python: str = "") -> Device:
    """The device that a user typed: "host", "adb", "adb:SERIAL", "ssh:USER@HOST[:PORT]", "qemu-arm64".

    `runner` is a benchmark tool of the user's for that device, with `runner_args` for it; `python` the interpreter of a
    board that has the runtimes. Raises `UnknownName`, or `BadInput` for what the kind does not take.
    """
    word, colon, address = name.partition(":")
    kind = DEVICES[word]
    if (runner is not None or runner_args) and not kind.takes_runner:
        able = " and ".join(k.name for k in DEVICES.values() if k.takes_runner)
        raise BadInput(f"--runner and --runner-args are for {able}, not for {kind.name}", "Leave them out.")
    if python and not kind.takes_python:
        raise BadInput(f"--python is the interpreter of a board over ssh, not of {kind.name}", "Leave it out.")
    if colon and not (address and kind.takes_address):
        raise BadInput(f"{name!r} names no device", f"Type {' or '.join(k.form for k in DEVICES.values())}.")
    return kind.open(address, runner, runner_args, python)
