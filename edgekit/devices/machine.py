"""The machine that measures: what it is, which of its cores to use, and what disturbed it."""

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from edgekit.errors import BadInput

CPUS = Path("/sys/devices/system/cpu")


def facts(cpus: Sequence[int]) -> dict[str, str]:
    """What a latency must be quoted with; `cpus` are the ones it is bound to."""
    known = {
        "kind": "host",
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
        "pinned_to": ",".join(map(str, cpus)) or "nothing: this system cannot bind a process to cores",
        "python": platform.python_version(),
    }
    if cpus:
        cpufreq = f"cpu{cpus[0]}/cpufreq"
        known |= {"governor": _read(f"{cpufreq}/scaling_governor"), "max_khz": _read(f"{cpufreq}/cpuinfo_max_freq")}
    return {k: v for k, v in known.items() if v}


def choose_cpus(threads: int) -> tuple[int, ...]:
    """As many cores as there are threads: the fastest, one of each pair of hyper-threads, the first core last.

    () where the system cannot bind a process to cores; raises `BadInput` where this process has too few.
    """
    allowed = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else range(os.cpu_count() or 1)
    if not 1 <= threads <= len(allowed):
        raise BadInput(
            f"--threads {threads} is not possible: this process may use {len(allowed)} cores",
            f"Type a number from 1 to {len(allowed)}.",
        )
    if sys.platform != "linux":
        return ()
    # Interrupts of devices are mostly served by the first core.
    return tuple(sorted(sorted(allowed, key=lambda c: (_sibling(c), -_max_khz(c), -c))[:threads]))


def _sibling(cpu: int) -> int:
    """0 for the first hyper-thread of a core, 1 for the second."""
    names = _read(f"cpu{cpu}/topology/thread_siblings_list").replace("-", ",").split(",")
    return names.index(str(cpu)) if str(cpu) in names else 0


def _max_khz(cpu: int) -> int:
    return int(_read(f"cpu{cpu}/cpufreq/cpuinfo_max_freq") or 0)


def _read(name: str) -> str:
    try:
        return (CPUS / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def stolen_seconds(cpus: Sequence[int]) -> float:
    """How long, since it started, a virtual machine's `cpus` had to wait for a real core; 0 where it does not tell."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    wanted = {f"cpu{c}" for c in cpus}
    fields = [line.split() for line in lines]
    return sum(int(f[8]) for f in fields if f and f[0] in wanted and len(f) > 8) / os.sysconf("SC_CLK_TCK")
