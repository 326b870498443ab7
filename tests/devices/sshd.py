"""A real sshd on loopback, for an ordinary test: its own keys, a high port, this user alone."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Sshd:
    """`options` make ssh use the throw-away keys; `pid` is the daemon's."""

    address: str
    options: tuple[str, ...]
    folder: Path
    pid: int


def find_sshd() -> str:
    """The daemon's path; a test that needs it is skipped without it, and fails where it must be there."""
    found = shutil.which("sshd") or next(
        (p for p in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(p).exists()), ""
    )
    if not found or shutil.which("ssh") is None:
        reason = "no OpenSSH server here: apt-get install openssh-server openssh-client"
        if os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL)
    return path


@contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """The daemon, answering when the block begins and gone when it ends."""
    daemon = find_sshd()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    host_key, user_key = _key(folder / "host"), _key(folder / "user")
    authorized = folder / "authorized"
    authorized.write_bytes((folder / "user.pub").read_bytes())
    known = folder / "known"
    known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}", encoding="ascii")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    configuration = folder / "sshd_config"
    lines = (
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {authorized}",
        f"PidFile {folder / 'pid'}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
    )
    configuration.write_text("\n".join(lines) + "\n", encoding="ascii")
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([daemon, "-D", "-e", "-f", configuration], stderr=log) as p,
    ):
        try:
            _wait(port, folder / "log")
            options = (
                f"-oIdentityFile={user_key}",
                "-oIdentitiesOnly=yes",
                f"-oUserKnownHostsFile={known}",
                "-F/dev/null",
            )
            yield Sshd(f"{getpass.getuser()}@127.0.0.1:{port}", options, folder, p.pid)
        finally:
            p.terminate()


def _wait(port: int, log: Path) -> None:
    for _ in range(100):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"sshd does not answer: {log.read_text()}")
