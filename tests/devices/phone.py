"""A real adbd in a namespace of its own, with the answers of a phone; see phone.sh."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# Not one of those at which an adb server looks for emulators: it would find the phone twice.
SERIAL = "127.0.0.1:6555"
PROPERTIES = {
    "ro.product.manufacturer": "Acme",
    "ro.product.model": "Phone 5",
    "ro.soc.manufacturer": "Acme",
    "ro.soc.model": "A100",
    "ro.product.cpu.abi": "x86_64",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.build.fingerprint": "acme/phone5/phone5:14/AB1.240101.001/1234567:user/release-keys",
}
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=61.0, mType=0, mName=AP, mStatus=3}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=31.5, mType=0, mName=AP, mStatus=0}
\tTemperature{mValue=30.1, mType=3, mName=SKIN, mStatus=0}
\tTemperature{mValue=33.25, mType=0, mName=BIG, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  health: 2
  present: true
  level: 87
  scale: 100
  voltage: 4123
  temperature: 298
  technology: Li-ion
"""


@dataclass(frozen=True)
class Phone:
    """`environment` makes adb talk to it; `dumps` is the folder of what its dumpsys says."""

    environment: dict[str, str]
    dumps: Path


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def _scripts(folder: Path) -> None:
    folder.mkdir()
    cases = "\n".join(f"'{name}') echo '{value}';;" for name, value in PROPERTIES.items())
    _script(folder / "getprop", f'case "$1" in\n{cases}\n*) echo;;\nesac')
    _script(folder / "dumpsys", 'cat "/dumps/$1" 2>/dev/null || echo "Can\'t find service: $1"')
    _script(folder / "settings", 'cat "/dumps/$3" 2>/dev/null || echo null')


@contextmanager
def phone(adbd: Path, data_bytes: str = "200m") -> Iterator[Phone]:
    """One that is connected; every process of it is gone at the end."""
    # A socket's path may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="phone-"))
    process = None
    try:
        _scripts(folder / "bin")
        (folder / "dumps").mkdir()
        (folder / "dumps" / "thermalservice").write_text(THERMAL, encoding="utf-8")
        (folder / "dumps" / "battery").write_text(BATTERY, encoding="utf-8")
        build = ["gcc", "-shared", "-fPIC", "-o", folder / "no_vsock.so", HERE / "no_vsock.c", "-ldl"]
        subprocess.run(build, check=True)
        log = (folder / "phone.log").open("wb")
        with log:
            process = subprocess.Popen(
                ["unshare", "-r", "-n", "-m", "-p", "-f", "--kill-child", HERE / "phone.sh", adbd, folder],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PHONE_BYTES": data_bytes},
            )
        environment = {"ADB_SERVER_SOCKET": f"localfilesystem:{folder}/adb.sock", "TMPDIR": str(folder)}
        _connect(environment, folder)
        yield Phone(environment, folder / "dumps")
    finally:
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _connect(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + 120
    said = ""
    while time.monotonic() < deadline:
        if (folder / "adb.sock").exists():
            command = ["adb", "connect", SERIAL]
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
            )
            said = done.stdout + done.stderr
            if said.startswith(("connected", "already connected")):
                subprocess.run(
                    ["adb", "-s", SERIAL, "wait-for-device"], env={**os.environ, **environment}, timeout=120, check=True
                )
                return
        time.sleep(0.05)
    logs = "\n".join(f"{p.name}: {p.read_text(errors='replace')}" for p in folder.glob("*.log"))
    raise RuntimeError(f"the phone did not start: {said}\n{logs}")
