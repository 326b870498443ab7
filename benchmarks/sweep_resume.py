"""Sweeps that are killed: 5 models x 3 targets x 2 precisions, and whether each cell is measured once all the same.

    python benchmarks/sweep_resume.py PHOTOS [local] [ray]

`local`: the command and all its processes get SIGKILL three times, at random, and `--resume` ends the sweep.
`ray`: on a cluster of two nodes a worker that runs a cell gets SIGKILL, and later a whole node.
A cell is done once if its file, once written, is never written again, and no cell is begun that had been done.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _measure import save, saved

from edgekit.benchmarking import guard

EDGEKIT = Path(sys.executable).parent / "edgekit"
MODELS = "mobilenet-v1-025,mobilenet-v2,mobilenet-v3-small,micronet-m0,mobile-former-26m"
CELLS = 30
QUICK = ("--imgsz", "128", "--num-runs", "20", "--min-secs", "0.2", "--timeout", "900")


def command(out: Path, photos: str, *more: str) -> list[str]:
    what = ("--models", MODELS, "-t", "onnx,tflite,executorch", "-p", "fp32,int8", "--calibration", photos)
    return [str(EDGEKIT), "benchmark", *what, *QUICK, "-o", str(out), "--resume", *more]


def done(out: Path) -> dict[str, tuple[int, bytes]]:
    """The cells that are done, as they lie on the disk; a half-written one would raise."""
    found = {}
    for path in (out / "cells").glob("*.json"):
        content = path.read_bytes()
        if json.loads(content)["status"] == "done":
            found[path.name] = (path.stat().st_mtime_ns, content)
    return found


def cells_at_work(out: Path) -> dict[int, int]:
    """Processes of cells, and the process that asked for each (behind the guard and what stands before it)."""
    parents = guard.parents()
    found = {}
    for pid in parents:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"edgekit.benchmarking.cell" in words and b"guard.py" not in words:
            found[pid] = parents.get(parents.get(parents[pid], 0), 0)
    return {cell: worker for cell, worker in found.items() if worker > 1}


def wait_for(out: Path, count: int, running: "subprocess.Popen[str]") -> None:
    while len(done(out)) < count and running.poll() is None:
        time.sleep(0.2)


def state(out: Path, before: dict[str, tuple[int, bytes]]) -> dict[str, tuple[int, bytes]]:
    now = done(out)
    changed = [name for name in before if now.get(name) != before[name]]
    assert not changed, f"done and written again: {changed}"
    return now


def local(out: Path, photos: str) -> dict[str, Any]:
    seed = random.Random(6)
    kept: dict[str, tuple[int, bytes]] = {}
    kills = []
    for target in (7, 15, 23):
        started = time.monotonic()
        with subprocess.Popen(command(out, photos), stderr=subprocess.PIPE, text=True) as running:
            wait_for(out, target, running)
            time.sleep(seed.uniform(0, 15))
            family = {running.pid, *guard.descendants(running.pid)}
            for pid in family:
                os.kill(pid, signal.SIGKILL)
        kept = state(out, kept)
        kills.append({"cells_done": len(kept), "processes_killed": len(family), "secs": time.monotonic() - started})
        print(kills[-1], flush=True)
    started = time.monotonic()
    last = subprocess.run(command(out, photos), capture_output=True, text=True, check=False)
    end = state(out, kept)
    return {"kills": kills, "exit_code": last.returncode, **_summary(out, end), "last_secs": time.monotonic() - started}


def _summary(out: Path, end: dict[str, tuple[int, bytes]]) -> dict[str, Any]:
    values = json.loads((out / "benchmark.json").read_text())
    names = ("model", "target", "precision", "status", "size_bytes", "sqnr_db", "p50_ms", "ratio_to_fp32")
    cells = [{name: row[name] for name in names} for row in values["summary"]]
    unfinished = [str(p) for p in out.rglob(".*") if p.name != ".lock"]
    attempts = sum(json.loads(content)["attempts"] for _, content in end.values())
    return {"cells_done": len(end), "of": CELLS, "unfinished_files": len(unfinished), "begun": attempts, "cells": cells}


def on_ray(out: Path, photos: str) -> dict[str, Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        lost = cluster.add_node(num_cpus=2)
        started = time.monotonic()
        more = ("--engine", "ray", "--ray-address", cluster.address)
        with subprocess.Popen(command(out, photos, *more), stderr=subprocess.PIPE, text=True) as running:
            wait_for(out, 3, running)
            while not (at_work := cells_at_work(out)):
                time.sleep(0.1)
            _cell, worker = next(iter(at_work.items()))
            os.kill(worker, signal.SIGKILL)
            killed_at = len(done(out))
            wait_for(out, 12, running)
            kept = done(out)
            cluster.remove_node(lost, allow_graceful=False)
            _, said = running.communicate()
        end = state(out, kept)
        faults = {"worker_killed_after_cells": killed_at, "node_lost_after_cells": len(kept)}
        whole = {"exit_code": running.returncode, "secs": time.monotonic() - started}
        return {**faults, **whole, **_summary(out, end), "said": said.splitlines()[-3:] if running.returncode else []}
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    photos, *which = sys.argv[1:]
    results = saved("sweep_resume").get("results", {})
    for name, sweep in (("local", local), ("ray", on_ray)):
        if not which or name in which:
            with tempfile.TemporaryDirectory() as folder:
                results[name] = sweep(Path(folder) / "sweep", photos)
            shown = {k: v for k, v in results[name].items() if k != "cells"}
            print(name, json.dumps(shown, indent=1), flush=True)
            save("sweep_resume", {"results": results})
