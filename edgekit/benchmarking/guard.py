"""The guard of a cell: starts its process, watches time and memory of all that this starts, and ends it all.

It runs as a script of its own, so small that nothing can hang in it, and imports the standard library only:

    python -P guard.py TIMEOUT_SECS MAX_MIB COMMAND...        (0: no limit of time, three quarters of the memory)

The command writes to the guard's stdout; its last line is the guard's verdict, {"guard": {"ended", "code", "peak_mib"}}
with "exit", "timeout" or "memory". When the guard's stdin ends, whoever asked is gone, and so is the command at once.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time

GRACE_SECS = {"timeout": 10.0, "orphaned": 10.0, "memory": 2.0}
"""How long a command that has to end, and why, may take to clean up: on a phone, on a board."""
POLL_SECS = 0.1
SCAN_SECS = 0.5
"""Between looks at the whole process table, which cost a busy machine milliseconds."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MIB = 1 << 20


def process_control(option: int, value: int) -> None:
    """Linux's prctl; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def machine_mib() -> float:
    """Memory of this machine, or of the container that it is seen from."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(f"/sys/fs/cgroup/{name}", encoding="ascii") as file:
            most = min(most, int(file.read()))
    return most / MIB


def parents() -> dict[int, int]:
    """The parent of each process of the system."""
    found = {}
    if not os.path.isdir("/proc/self"):
        with subprocess.Popen(["ps", "-axo", "pid=,ppid="], stdout=subprocess.PIPE, text=True) as ps:
            assert ps.stdout is not None
            rows = [tuple(map(int, line.split())) for line in ps.stdout]
        return {pid: parent for pid, parent in rows if pid != ps.pid}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # "pid (any name) state parent …"
            found[int(pid)] = int(file.read().rpartition(")")[2].split()[1])
    return found


def descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    queue = [root]
    while queue:
        new = [pid for pid in children.get(queue.pop(), ()) if pid not in found]
        found.update(new)
        queue += new
    return found


def used_mib(pids: set[int]) -> float:
    """Memory of processes: what each holds alone, and once what they can share, such as libraries."""
    alone, shared = 0.0, 0.0
    if not os.path.isdir("/proc/self"):
        command = ["ps", "-o", "rss=", "-p", ",".join(map(str, pids))]
        table = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return sum(map(int, table.split())) / 1024
    page = os.sysconf("SC_PAGE_SIZE") / MIB
    for pid in pids:
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm", encoding="ascii") as file:
            resident, common = (int(n) * page for n in file.read().split()[1:3])
            alone += resident - common
            shared = max(shared, common)
    return alone + shared


def end(command: "subprocess.Popen[bytes]") -> None:
    """Kill the command and all that it started; orphans of it have become this process's own."""
    for _ in range(100):
        found = descendants(os.getpid()) | ({command.pid} if command.poll() is None else set())
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def watch(command: "subprocess.Popen[bytes]", timeout: float, most_mib: float) -> tuple[str, float]:
    """How the command ended, and the most memory that it held."""
    started = scanned = time.monotonic()
    pids, peak = {command.pid}, 0.0
    while command.poll() is None:
        now = time.monotonic()
        if select.select([0], [], [], POLL_SECS)[0] and not os.read(0, 1024):
            return "orphaned", peak
        if now - scanned > SCAN_SECS:
            pids, scanned = descendants(os.getpid()), now
        peak = max(peak, used_mib(pids))
        if peak > most_mib:
            return "memory", peak
        if timeout and now - started > timeout:
            return "timeout", peak
    return "exit", peak


def ask_to_end(command: "subprocess.Popen[bytes]", secs: float) -> None:
    """Let the command put away what it has on a device; one that cannot writes to its log where it is."""
    command.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.wait(timeout=secs)
        return
    command.send_signal(signal.SIGABRT)
    time.sleep(POLL_SECS)


def main(arguments: list[str]) -> None:
    if pid := os.fork():
        # Who kills the children of whoever asked, as Ray does, reaches this one and not the guard behind it.
        os.waitpid(pid, 0)
        os._exit(0)
    os.setsid()
    timeout, most = float(arguments[0]), float(arguments[1])
    process_control(PR_SET_CHILD_SUBREAPER, 1)
    command = subprocess.Popen(arguments[2:], stdin=subprocess.DEVNULL, start_new_session=True)
    limit = most or machine_mib() * 0.75
    how, peak = watch(command, timeout, limit)
    code = command.poll()
    if how != "exit":
        ask_to_end(command, GRACE_SECS[how])
    end(command)
    verdict = {"ended": how, "code": code, "peak_mib": peak, "limit_mib": limit}
    with contextlib.suppress(BrokenPipeError):  # nobody is left to read it
        # The command may have died in the middle of a line.
        os.write(1, f"\n{json.dumps({'guard': verdict})}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
