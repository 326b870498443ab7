"""Sweeps: each cell alone in a process, killed and resumed, and on the machines of a Ray cluster."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.benchmarking import guard
from edgekit.benchmarking._job import Job, Limits
from edgekit.benchmarking.isolation import Outcome, run_job
from edgekit.benchmarking.plan import Asked, cells_of, plan_of
from edgekit.benchmarking.ratios import ratios_to_fp32
from edgekit.benchmarking.results import Store
from edgekit.errors import BadInput, UnknownName, Unsupported
from edgekit.types import ArtifactProfile, Benchmark, Cell, CellResult, Protocol, SweepPlan
from tests.conftest import Cli, process

MODELS = """
import ctypes, os, pathlib, subprocess, time
from torch import nn

LOG = pathlib.Path(__file__).with_name("calls.log")


def one():
    with LOG.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    stem = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(stem, nn.Flatten(), nn.Linear(4, 3))


def two():
    return nn.Sequential(one(), nn.ReLU())


def crashes():
    ctypes.string_at(0)


def hangs():
    # In C with Python's lock held, and with a child that is no longer in the group.
    LOG.with_name("child").write_text(str(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid))
    ctypes.PyDLL(None).sleep(1000)


def eats():
    held = []
    while True:
        held.append(bytearray(50_000_000))
        time.sleep(0.1)


def refuses():
    raise ValueError("no such thing")


def vanishes():
    os.kill(os.getpid(), 9)
"""

QUICK = ("--imgsz", "32", "--num-runs", "5", "--warmup-runs", "1", "--min-secs", "0.01")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.py"
    path.write_text(MODELS, encoding="utf-8")
    return path


def plan(models: Path, *names: str, **more: Any) -> Any:
    asked = Asked(
        models=[f"{models}:{name}" for name in names],
        targets=["onnx"],
        precisions=["fp32"],
        image_size=32,
        num_runs=5,
        warmup_runs=1,
        min_secs=0.01,
        **more,
    )
    return plan_of(asked)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The cells that are done, as they lie on the disk."""
    found = {}
    for path in (folder / "cells").glob("*.json"):
        if json.loads(path.read_text())["status"] == "done":
            found[path.name] = (path.stat().st_mtime_ns, path.read_bytes())
    return found


def mentioning(text: str) -> set[int]:
    """Processes with `text` in their command line."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in words and int(pid) != os.getpid():
            found.add(int(pid))
    return found


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


@contextmanager
def started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A command that is running, and is gone with all that it started when the block ends, however it ends."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                for pid in (running.pid, *guard.descendants(running.pid)):
                    os.kill(pid, signal.SIGKILL)


# The plan


def test_cells_are_in_the_order_of_the_plan_and_what_no_target_has_is_left_out() -> None:
    made = plan_of(
        Asked(
            models=["lvt", "mobilenet-v2"],
            targets=["xnnpack", "coreml"],
            precisions=["fp32", "int8-dynamic"],
            devices=["host", "ssh:a@b"],
        )
    )
    cells, notes = cells_of(made)
    assert [c.name for c in cells][:4] == [
        "lvt-executorch-fp32-host",
        "lvt-executorch-fp32-ssh_a@b".replace("@", "_") + cells[1].name[-9:],
        "lvt-executorch-int8-dynamic-host",
        cells[3].name,
    ]
    assert len(cells) == 2 * 3 * 2
    assert notes == ("coreml has no int8-dynamic: these cells are left out",)
    with pytest.raises(Unsupported, match="coreml has no precision 'int8-dynamic'"):
        cells_of(plan_of(Asked(models=["lvt"], targets=["coreml"], precisions=["int8-dynamic"])))


def test_names_of_cells_are_files_names_and_no_two_are_one() -> None:
    def name(model: str) -> str:
        return Cell(model=model, target="onnx", precision="fp32", device="host").name

    names = [name(m) for m in ("lvt", "/a/b.py:net", "/a_b.py:net", "a/b.py:net", "../x.py:n", "é.py:n", "m" * 400)]
    assert names[0] == "lvt-onnx-fp32-host"
    assert len(set(names)) == len(names)
    assert all(n.isascii() and "/" not in n and ":" not in n and n[0] != "." and len(n) < 200 for n in names)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Asked(models=["lvtt"]), "unknown model 'lvtt'"),
        (Asked(models=["nothing.py:net"]), "nothing.py cannot be read"),
        (Asked(models=["lvt"], weights={"mobilenet-v2": "x"}), "mobilenet-v2 is none of the models"),
        (Asked(models=["lvt"], weights={"lvt": "nothing.pth"}), "nothing.pth cannot be read"),
        (Asked(models=["lvt"], precisions=["int8"]), "int8 needs photos"),
        (Asked(models=["lvt"], precisions=["int7"]), "unknown precision 'int7'"),
        (Asked(models=["lvt"], targets=["ios14"]), "unknown target 'ios14'"),
        (Asked(models=["lvt"], data="nothing"), "--data nothing: there is nothing"),
        (Asked(models=["lvt"], calibration="nothing"), "--calibration nothing: there is nothing"),
        (Asked(models=["lvt"], limit=3), "--limit is of the images at --data"),
        (Asked(models=["lvt"], num_runs=0), "are no measurement"),
        (Asked(models=[""]), "no model was given"),
        (Asked(models=["lvt"], devices=["toaster"]), "unknown device 'toaster'"),
        (Asked(models=["lvt"], devices=["adb"], runners={"onnx": "nothing"}), "--runner onnx=nothing: nothing cannot"),
        (Asked(models=["lvt"], devices=["adb"], runners={"tflite": __file__}), "there is no tflite"),
        (Asked(models=["lvt"], runners={"onnx": __file__}), "--runner is for phones over adb"),
        (Asked(models=["lvt"], python="/usr/bin/python3"), "--python is for boards over ssh"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(asked: Asked, words: str) -> None:
    with pytest.raises((BadInput, UnknownName)) as refused:
        plan_of(replace(asked, targets=asked.targets or ["onnx"]))
    assert words in str(refused.value)


# One cell


def test_a_cell_is_exported_evaluated_and_profiled(models: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(6) % 3)
    made = plan(models, "one", data=str(tmp_path / "data.npz"), limit=5)
    (cell,), _ = cells_of(made)
    steps: list[str] = []
    job = Job(cell=cell, plan=made, artifacts=str(tmp_path / "artifacts"))
    result = run_job(job, Limits(), steps.append).result
    assert (result.status, result.error) == ("done", "")
    assert result.parity is not None
    assert (result.parity["sqnr_db"] or 0) > 60
    assert result.accuracy is not None
    assert result.accuracy["n"] == 5
    assert result.profile is not None
    assert len(result.profile.latency_us) >= 5
    assert (tmp_path / result.artifact / "edgekit.json").is_file()
    assert result.size_bytes > 0
    assert {step.partition(":")[0] for step in steps} == {"export", "evaluate", "profile"}

    calls = (tmp_path / "calls.log").read_text()
    again = run_job(Job(cell=cell, plan=made, artifacts=job.artifacts, steps=("export", "profile")), Limits(), print)
    assert again.result.status == "done"
    assert (tmp_path / "calls.log").read_text() == calls, "an artifact that is whole is not made again"

    next((tmp_path / result.artifact).glob("model.*")).write_bytes(b"half")
    repaired = run_job(Job(cell=cell, plan=made, artifacts=job.artifacts, steps=("export",)), Limits(), print)
    assert repaired.result.status == "done"
    assert (tmp_path / "calls.log").read_text() != calls


@pytest.mark.parametrize(
    ("name", "limits", "status", "words"),
    [
        ("crashes", Limits(), "crashed", ("SIGSEGV", "string_at")),
        ("eats", Limits(max_memory=1200), "memory", ("more than the 1200 allowed", "--max-memory")),
        ("refuses", Limits(), "failed", ("no such thing", "models.py")),
        ("vanishes", Limits(), "crashed", ("SIGKILL", "memory runs out")),
    ],
)
def test_a_bad_model_is_a_red_cell(
    models: Path, tmp_path: Path, name: str, limits: Limits, status: str, words: tuple[str, ...]
) -> None:
    made = plan(models, name)
    (cell,), _ = cells_of(made)
    result = run_job(Job(cell=cell, plan=made, artifacts=str(tmp_path / "a")), limits, print).result
    assert result.status == status
    assert all(word in f"{result.error} {result.hint}" for word in words), (result.error, result.hint)


def test_a_hanging_model_is_ended_with_all_that_it_started(models: Path, tmp_path: Path) -> None:
    made = plan(models, "hangs")
    (cell,), _ = cells_of(made)
    child = tmp_path / "child"
    slept: list[bool] = []
    for timeout in (30, 300):  # within which it must have come to the model
        limits = Limits(timeout=timeout)
        job = Job(cell=cell, plan=made, artifacts=str(tmp_path / "a"))
        outcome = run_job(job, limits, lambda s: slept.append(True))
        if child.exists():
            break
    assert outcome.result.status == "timeout"
    assert child.exists(), "the machine is too slow for this test"
    assert "models.py" in outcome.result.hint, "where it hung"
    assert not Path(f"/proc/{child.read_text()}").exists()


def test_guard_counts_what_a_process_and_its_children_hold() -> None:
    code = "import time; held = bytearray(200_000_000); print(flush=True); time.sleep(100)"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        found = guard.descendants(parent.pid)
        assert len(found) == 1
        assert 190 < guard.used_mib(found | {parent.pid}) < 260
        for pid in (parent.pid, *found):
            os.kill(pid, signal.SIGKILL)


# The folder


def profiled(p50: float, cpu: str = "a") -> ArtifactProfile:
    return ArtifactProfile(
        artifact="x", sha256="", name="m", target="onnx", precision="fp32", runtime="r", device={"cpu": cpu}, threads=1,
        protocol=Protocol(warmup_runs=1, num_runs=1, min_secs=0, rounds=1, runs_per_round=1, clock="c"),
        load_ms=1.0, first_ms=1.0, latency_us=(1.0,), mean_ms=p50, std_ms=0.0, cv=0.0, min_ms=p50, p50_ms=p50,
        p90_ms=p50, p95_ms=p50, p99_ms=p50, max_ms=p50, peak_memory_mib=1.0, model_memory_mib=1.0,
    )  # fmt: skip


def test_ratios_are_of_cells_of_one_machine() -> None:
    def result(precision: str, p50: float, cpu: str = "a", causes: tuple[str, ...] = ()) -> CellResult:
        cell = Cell(model="m", target="onnx", precision=precision, device="host")
        return CellResult(cell=cell, status="done", seconds=1, profile=profiled(p50, cpu), slow_causes=causes)

    (faster,) = ratios_to_fp32([result("fp32", 2.0), result("int8", 1.0)])
    assert (faster.ratio, faster.warning) == (0.5, "")
    (slower,) = ratios_to_fp32([result("int8", 3.0, causes=("the cause",)), result("fp32", 2.0)])
    assert slower.ratio == 1.5
    assert "slower than fp32" in slower.warning
    assert "the cause" in slower.warning
    assert "not interleaved" in slower.warning
    assert ratios_to_fp32([result("fp32", 2.0), result("int8", 1.0, cpu="b")]) == ()


def test_what_is_in_the_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "sweep")
    made = SweepPlan(models=("m",), targets=("onnx",), precisions=("fp32",), devices=("host",))
    store.begin(made, {})
    cell = Cell(model="m", target="onnx", precision="fp32", device="host")
    result = CellResult(cell=cell, status="done", seconds=1, profile=profiled(1.0))
    store.write(Outcome(result=result))
    assert store.results([cell]) == {cell.name: result}
    store.finish(Benchmark(folder="", plan=made, results=(result,), ratios=()))
    assert "finished" in (tmp_path / "sweep" / "benchmark.json").read_text()
    store.go_on()
    assert "finished" not in (tmp_path / "sweep" / "benchmark.json").read_text()
    assert store.plan() == made
    for name in ("benchmark.json.0123abcd", "benchmark.csv.89abcdef"):
        (tmp_path / "sweep" / f".{name}").write_text("hal")
    (tmp_path / "sweep" / ".mine").write_text("of the user")
    store.sweep_up()
    assert [p.name for p in (tmp_path / "sweep").glob(".*")] == [".mine"]
    (tmp_path / "sweep" / "cells" / f"{cell.name}.json").write_text("")
    assert store.results([cell]) == {}, "a power cut may leave that: it is done again"


def test_command_says_what_came_of_each_cell(cli: Cli, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    names = f"{models}:refuses,{models}:one"
    got = cli("benchmark", "--models", names, "-t", "onnx", "-p", "fp32", *QUICK, "-o", out, "--json")
    assert got.code == 1, got.err
    assert "1 of 2 cells are red" in got.err
    values = json.loads(got.out)
    assert [(c["model"].rpartition(":")[2], c["status"]) for c in values["cells"]] == [
        ("refuses", "failed"),
        ("one", "done"),
    ]
    with (out / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert float(rows[1]["p50_ms"]) > 0
    assert rows[0]["p50_ms"] == ""
    assert "no such thing" in next((out / "logs").glob("*refuses*")).read_text()
    summary = json.loads((out / "benchmark.json").read_text())
    assert summary["counts"] == {"cells": 2, "done": 1}
    assert summary["schema"] == 1

    before = contents(out)
    models.write_text(MODELS.replace('raise ValueError("no such thing")', "return one()"), encoding="utf-8")
    got = cli("benchmark", "-o", out, "--resume")
    assert got.code == 2, "another model file is another sweep"
    assert "files: " in got.err
    models.write_text(MODELS, encoding="utf-8")

    got = cli("benchmark", "-o", out)
    assert got.code == 2
    assert "--resume" in got.err
    got = cli("benchmark", "-o", out, "--resume", "--models", "lvt", "--num-runs", "6")
    assert got.code == 2
    assert "num_runs: 5, now 6" in got.err
    assert "models: " in got.err
    got = cli("benchmark", "-o", out, "--resume")
    assert got.code == 1
    assert "1 of 2 cells were done before" in got.err
    assert "done" in got.out
    assert contents(out) == before

    (out / "mine.txt").write_text("of the user")
    names = f"{models}:refuses"
    got = cli("benchmark", "--models", names, "-t", "onnx", "-p", "fp32", *QUICK, "-o", out, "--force")
    assert got.code == 1
    assert len(list((out / "cells").iterdir())) == 1
    assert not (out / "artifacts").exists()
    assert (out / "mine.txt").exists()


def test_folders_of_others_are_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "out" / "cells").mkdir(parents=True)
    for more in ((), ("--force",), ("--resume",)):
        got = cli("benchmark", "--models", "lvt", "-t", "onnx", "-p", "fp32", "-o", tmp_path / "out", *more)
        assert got.code == 2
        assert "holds no sweep" in got.err
    got = cli("benchmark", "--models", "lvt", "--device", "hosst", "-o", tmp_path / "new")
    assert got.code == 2
    assert "unknown device 'hosst'" in got.err
    assert not (tmp_path / "new").exists()


# Killed and resumed


def test_a_sweep_killed_three_times_does_each_cell_once(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    names = f"{models}:one,{models}:two"
    command = process("benchmark", "--models", names, "-t", "onnx", "-p", "fp32,fp16", *QUICK, "-o", out, "--resume")
    kept: dict[str, tuple[int, bytes]] = {}
    seed = random.Random(0)
    for attempt in range(3):
        with started(command) as running:
            before = len(kept)
            wait_until(lambda n=before: len(contents(out)) > n)
            time.sleep(seed.uniform(0, 2))
            # The command alone, whose guard must then end the rest; or all of it at once.
            family = {running.pid} if attempt == 1 else {running.pid, *guard.descendants(running.pid)}
            for pid in family:
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not mentioning(str(out)))
        now = contents(out)
        assert kept.items() <= now.items(), "what was done has not been touched"
        kept = now
        for path in (out / "cells").glob("*.json"):
            json.loads(path.read_text())  # none is half written
    assert len(kept) < 4, "it was killed after it was done"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    now = contents(out)
    assert len(now) == 4
    assert kept.items() <= now.items()
    assert not [p for p in out.rglob(".*") if p.name != ".lock"], "nothing unfinished is left"
    calls = (tmp_path / "calls.log").read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "4 of 4 cells were done before" in done.stderr
    assert (tmp_path / "calls.log").read_text() == calls
    assert contents(out) == now


def test_ctrl_c_ends_everything_and_says_how_to_go_on(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    command = process("benchmark", "--models", f"{models}:hangs", "-t", "onnx", "-p", "fp32", *QUICK, "-o", out)
    with started(command) as running:
        wait_until((tmp_path / "child").exists)
        got = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
        assert got.returncode == 2
        assert "another sweep is running" in got.stderr
        running.send_signal(signal.SIGTERM)  # as Ctrl-C, which a shell lets what it runs behind a & ignore
        _, said = running.communicate(timeout=300)
    assert running.returncode == 130
    assert f"edgekit benchmark --resume -o {out}" in said
    assert not mentioning(str(out))
    assert not Path(f"/proc/{(tmp_path / 'child').read_text()}").exists()
    assert Store(out).plan() is not None


# On Ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray on this machine: a head, on which nothing runs, and the nodes that a test adds."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from ray.cluster_utils import Cluster
    except ImportError as error:
        if os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
            pytest.fail(str(error))
        pytest.skip(f"no Ray: {error}")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def on_ray(cluster: Any, models: Path, names: str, out: Path, *more: str) -> list[str]:
    named = ",".join(f"{models}:{name}" for name in names.split(","))
    address = ("--engine", "ray", "--ray-address", cluster.address)
    return process("benchmark", "--models", named, "-t", "onnx", "-p", "fp32,fp16", *QUICK, "-o", out, *address, *more)


def at_work(models: Path) -> dict[int, int]:
    """The processes of the cells that run now, and the Ray worker of each."""
    ours = (mentioning(f"{models}:") & mentioning("edgekit.benchmarking.cell")) - mentioning("guard.py")
    above = guard.parents()
    # Between them are the guard and what stands before it.
    found = {pid: above.get(above.get(above.get(pid, 0), 0), 0) for pid in ours}
    return {cell: worker for cell, worker in found.items() if worker > 1}  # to kill 0 would end this process, too


def test_a_lost_worker_and_a_lost_machine_cost_nothing_but_time(cluster: Any, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    cluster.add_node(num_cpus=2, resources={"device:host": 1})
    lost = cluster.add_node(num_cpus=2, resources={"device:host": 1})
    command = on_ray(cluster, models, "one,two", out)
    with started(command) as running:
        working: dict[int, int] = {}
        wait_until(lambda: working.update(at_work(models)) or working or running.poll() is not None)
        cell, worker = next(iter(working.items()))
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{cell}").exists())
        wait_until(lambda: contents(out) or running.poll() is not None)
        before = contents(out)
        cluster.remove_node(lost, allow_graceful=False)
        _, said = running.communicate(timeout=600)
    assert running.returncode == 0, said
    results = [json.loads(p.read_text()) for p in (out / "cells").glob("*.json")]
    assert [r["status"] for r in results] == ["done"] * 4
    assert before.items() <= contents(out).items(), "what was done is not done again"
    assert all((out / r["artifact"] / "edgekit.json").is_file() for r in results)
    assert not at_work(models)


def test_a_farm_says_what_it_lacks(cluster: Any, cli: Cli, models: Path, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    got = cli(*on_ray(cluster, models, "one", tmp_path / "a", "--device", "adb:R5C")[1:])
    assert got.code == 3
    assert """--resources='{"device:adb:R5C": 1}'""" in got.err
    assert not (tmp_path / "a").exists()
    got = cli(*on_ray(cluster, models, "refuses", tmp_path / "b")[1:])
    assert got.code == 1
    assert "no such thing" in next((tmp_path / "b" / "cells").iterdir()).read_text()


def test_an_interrupt_reaches_the_machines(cluster: Any, models: Path, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    with started(on_ray(cluster, models, "hangs", tmp_path / "out")) as running:
        wait_until((tmp_path / "child").exists)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=300)
    assert running.returncode == 130
    assert f"edgekit benchmark --resume -o {tmp_path / 'out'}" in said
    wait_until(lambda: not at_work(models))
    wait_until(lambda: not Path(f"/proc/{(tmp_path / 'child').read_text()}").exists())


def test_no_cluster_is_said_at_once(cli: Cli, tmp_path: Path) -> None:
    if not os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
        pytest.importorskip("ray", reason="no Ray")
    where = ("--engine", "ray", "--ray-address", "127.0.0.1:9")
    got = cli("benchmark", "--models", "lvt", "-t", "onnx", "-p", "fp32", "-o", tmp_path / "out", *where)
    assert got.code == 3
    assert "there is no Ray cluster at 127.0.0.1:9" in got.err
    assert not (tmp_path / "out").exists()
