"""A folder of ours on the device, and that nothing of it stays: no file and no process.

It is /data/local/tmp/edgekit-TIME-NAME and goes when the measurement ends: also after an interrupt, a crash or a
time-out. Where the device was unplugged it stays; one older than a day is removed the next time. A process of ours is
one whose working directory is in such a folder, so that no other is ever mistaken for ours.
"""

import re
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from edgekit.devices.adb.client import Client
from edgekit.errors import DeviceError, EnvironmentProblem

ROOT = "/data/local/tmp"
OURS = re.compile(r"edgekit-(\d{1,12})-[0-9a-f]{8}")
STALE_SECS = 86400
# A process of ours works in our folder. It may make files while it ends: the folder goes after it.
_END = """
for p in /proc/[0-9]*; do
  case "$(readlink "$p/cwd" 2>/dev/null)" in FOLDER|FOLDER/*) kill -9 "${p##*/}" 2>/dev/null;; esac
done
"""
_REMOVE = """
rm -rf FOLDER || { sleep 1; rm -rf FOLDER; }
"""


@contextmanager
def own_folder(client: Client) -> Iterator[str]:
    """A folder of our own there; gone at the end, with every process in it, however the end comes."""
    now = client.shell("date +%s").out.strip()
    folder = f"{ROOT}/edgekit-{now if now.isdigit() else 0}-{secrets.token_hex(4)}"
    try:
        made = client.shell(f"mkdir {folder}")
        if made.code:
            raise EnvironmentProblem(
                f"adb:{client.serial} does not let adb write to {ROOT}: {made.err.strip()[:200]}",
                "Is its storage full, or is it locked down by an administrator?",
            )
        yield folder
    finally:
        _remove_surely(client, folder)


def end_processes(client: Client, folder: str) -> None:
    """Kill every process that works in a folder of ours, or below it."""
    client.shell(_END.replace("FOLDER", shlex.quote(folder)), what="cleaning up")


def _remove(client: Client, folder: str) -> None:
    client.shell((_END + _REMOVE).replace("FOLDER", shlex.quote(folder)), what="cleaning up")


def _remove_surely(client: Client, folder: str) -> None:
    """Clean up whatever happens: Ctrl-C, pressed while this runs, waits. A device that is gone keeps its folder."""
    interrupt: KeyboardInterrupt | None = None
    for _ in range(3):
        try:
            with suppress(DeviceError, EnvironmentProblem):
                _remove(client, folder)
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt:
        raise interrupt


def remove_stale(client: Client) -> None:
    """Remove what an earlier measurement had to leave, by the device's own clock."""
    lines = client.shell(f"date +%s; ls {ROOT} 2>/dev/null").out.split()
    now = int(lines[0]) if lines and lines[0].isdigit() else 0
    for name in lines[1:]:
        if (match := OURS.fullmatch(name)) and now - int(match[1]) > STALE_SECS:
            _remove(client, f"{ROOT}/{name}")
