"""Our C++ ExecuTorch runner, built for this machine and spoken to: its answers, its errors, and what it leaves."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.artifacts import read_golden
from edgekit.devices.runner import build
from edgekit.errors import BadInput, EnvironmentProblem, UnknownName
from edgekit.quantization import placement
from edgekit.targets import TARGETS
from edgekit.types import Artifact
from tests.conftest import Cli

ARCH = platform.machine()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner for this machine, built anew."""
    if (
        sys.platform != "linux"
        or ARCH not in [spec.machine for spec in build.ARCHS.values()]
        or not shutil.which("g++")
    ):
        reason = "the runner is built with g++ on Linux; type: apt-get install g++"
        if os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
            pytest.fail(reason)
        pytest.skip(reason)
    made = tmp_path_factory.mktemp("runner") / "here"
    assert build.build_runner(ARCH, made)
    return made


class Runner:
    """A running process of it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.first = self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        values = json.loads(self.process.stdout.readline())
        assert isinstance(values, dict)
        return values

    def ask(self, request: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self.answer()

    def tasks(self) -> list[Path]:
        return list(Path(f"/proc/{self.process.pid}/task").iterdir())


@contextmanager
def running(
    folder: Path, model: Path | str, place: Path, threads: int = 1, cpus: Sequence[int] = ()
) -> Iterator[Runner]:
    command = build.runner_command(folder, model, threads, cpus)
    with subprocess.Popen(
        command, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as started:
        try:
            yield Runner(started)
        finally:
            started.kill()


def put_inputs(artifact: Artifact, place: Path) -> None:
    for number, sample in enumerate(read_golden(artifact)[0]):
        for n, array in enumerate(sample):
            array.tofile(place / f"input.{number}.{n}.bin")


@pytest.fixture(scope="module")
def exported(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """The tiny model for ExecuTorch in a precision."""
    done: dict[str, Artifact] = {}

    def export(precision: str) -> Artifact:
        if precision not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(placement, "_MACS", 1 / 16)  # as if so few multiplications paid
                (done[precision],) = edgekit.export(
                    tiny,
                    "executorch",
                    precision=precision,
                    image_size=32,
                    calibration="synthetic" if precision == "int8" else None,
                    num_calibration_samples=8,
                    compare_speed=False,
                    verify=False,
                    out=tmp_path_factory.mktemp(precision),
                )
        return done[precision]

    return export


def program(module: nn.Module, path: Path) -> None:
    """A model without XNNPACK: each op needs a kernel."""
    from executorch.exir import to_edge

    captured = torch.export.export(module.eval(), (torch.zeros(1, 4),))
    path.write_bytes(to_edge(captured).to_executorch().buffer)
    np.zeros((1, 4), np.float32).tofile(path.parent / "input.0.0.bin")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-dynamic"])
def test_outputs_are_those_of_the_python_runtime(
    precision: str, exported: Callable[[str], Artifact], folder: Path, tmp_path: Path
) -> None:
    artifact = exported(precision)
    put_inputs(artifact, tmp_path)
    manifest = artifact.manifest
    python = TARGETS["executorch"].runner(artifact.model_path, manifest.inputs, manifest.outputs)
    with running(folder, artifact.model_path, tmp_path) as runner:
        assert runner.ask("load")["runtime"] == f"ExecuTorch {version('executorch')}"
        for number, sample in enumerate(read_golden(artifact)[0]):
            assert runner.ask(f"infer {number}") == {}
            (expected,) = python(sample)
            found = np.fromfile(tmp_path / f"output.{number}.0.bin", expected.dtype).reshape(expected.shape)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_raw_samples_memory_and_a_trace(exported: Callable[[str], Artifact], folder: Path, tmp_path: Path) -> None:
    artifact = exported("fp32")
    put_inputs(artifact, tmp_path)
    with running(folder, artifact.model_path, tmp_path) as runner:
        assert runner.first == {"pid": runner.process.pid}
        loaded = runner.ask("load")
        assert loaded["load_ms"] > 0
        assert loaded["first_ms"] > 0
        began = time.perf_counter()
        burst = runner.ask("run 20 0.05")
        elapsed = (time.perf_counter() - began) * 1e6
        assert len(burst["us"]) >= 20
        assert min(burst["us"]) > 0
        assert 0.05e6 * 0.5 < sum(burst["us"]) < elapsed
        assert burst["preempted"] >= 0
        assert 0 <= burst["waited_secs"] * 1e6 <= elapsed
        assert len(runner.ask("run 3 0")["us"]) == 3
        memory = runner.ask("memory")
        assert 1 < memory["before_mib"] < memory["peak_mib"] < 200
        trace = runner.ask("trace 7")
        assert runner.ask("count") == {}
    from executorch.devtools import Inspector

    with pytest.warns(UserWarning, match="Output Buffer not found"):
        events = [
            e for block in Inspector(etdump_path=str(tmp_path / trace["file"])).event_blocks for e in block.events
        ]
    inside = [e for e in events if e.is_delegated_op]
    assert any("Convolution" in e.name for e in inside)
    assert {len(e.perf_data.raw) for e in inside if e.perf_data} == {7}, "the runs that warm up are not in it"
    assert 0 < sum(e.perf_data.avg for e in inside if e.perf_data) * 1e3 < 1.2 * trace["whole_us"]


def test_threads_are_bound_to_the_cores_that_were_named(
    exported: Callable[[str], Artifact], folder: Path, tmp_path: Path
) -> None:
    artifact = exported("fp32")
    put_inputs(artifact, tmp_path)
    core = max(os.sched_getaffinity(0))
    with running(folder, artifact.model_path, tmp_path, threads=1, cpus=[core]) as runner:
        runner.ask("load")
        assert len(runner.tasks()) == 1
    with running(folder, artifact.model_path, tmp_path, threads=2, cpus=[core]) as runner:
        runner.ask("load")
        tasks = runner.tasks()
        assert len(tasks) == 2
        for task in tasks:
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            assert status["Cpus_allowed_list"] == str(core)
    with running(folder, artifact.model_path, tmp_path, cpus=[1000]) as runner:
        assert "cannot be bound to cores 1000" in runner.first["error"]


def damaged(kind: str, artifact: Artifact, place: Path) -> Path:
    """A model file with one defect."""
    path, content = place / "model.pte", artifact.model_path.read_bytes()
    if kind == "short":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("no model\n" * 100, encoding="ascii")
    elif kind == "backend":
        assert b"XnnpackBackend" in content
        path.write_bytes(content.replace(b"XnnpackBackend", b"SomeOneBackend"))
    elif kind == "operator":

        class Sine(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.sin()

        program(Sine(), path)
        path.write_bytes(path.read_bytes().replace(b"aten::sin", b"aten::sun"))
    return path


@pytest.mark.parametrize(
    ("kind", "words", "hint", "code"),
    [
        ("missing", "No such file", "Copy the artifact", 1),
        ("short", "0x23, InvalidProgram (File size is too small", "damaged", 2),
        ("text", "0x23, InvalidProgram", "damaged", 2),
        ("backend", "0x20, NotFound (Backend SomeOneBackend is not registered", "it has XNNPACK", 2),
        ("operator", "0x14, OperatorMissing", "register the operator", 2),
    ],
)
def test_a_model_that_cannot_be_loaded(
    kind: str, words: str, hint: str, code: int, exported: Callable[[str], Artifact], folder: Path, tmp_path: Path
) -> None:
    put_inputs(exported("fp32"), tmp_path)
    with running(folder, damaged(kind, exported("fp32"), tmp_path), tmp_path) as runner:
        answer = runner.ask("load")
        assert words in answer["error"]
        assert hint in answer["hint"]
        assert answer["code"] == code
        assert "not loaded" in runner.ask("run 1 0")["error"]


def test_inputs_that_do_not_fit_and_requests_that_are_none(
    exported: Callable[[str], Artifact], folder: Path, tmp_path: Path
) -> None:
    artifact = exported("fp32")
    put_inputs(artifact, tmp_path)
    (tmp_path / "input.1.0.bin").write_bytes(b"1234")
    with running(folder, artifact.model_path, tmp_path) as runner:
        runner.ask("load")
        assert "has 4 bytes, the model takes 12288" in runner.ask("infer 1")["error"]
        assert "No such file" in runner.ask("infer 99")["error"]
        assert "this is no request" in runner.ask('"\\ \x01 ü')["error"]
        assert runner.ask("infer 2") == {}, "it goes on"
        shutil.rmtree(tmp_path)
        assert "cannot be written" in runner.ask("trace 1")["error"]
    place = Path(folder)
    with running(folder, artifact.model_path, place, threads=-1) as runner:
        assert "usage" in runner.first["error"]


def test_a_kernel_outside_the_delegate(folder: Path, tmp_path: Path) -> None:
    class Softplus(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.softplus(x).cumsum(1)

    program(Softplus(), tmp_path / "model.pte")
    with running(folder, "model.pte", tmp_path) as runner:
        runner.ask("load")
        runner.ask("infer 0")
    found = np.fromfile(tmp_path / "output.0.0.bin", np.float32)
    np.testing.assert_allclose(found, np.log(2) * np.arange(1, 5), rtol=1e-6)


def test_it_ends_with_its_input_and_with_its_parent(
    exported: Callable[[str], Artifact], folder: Path, tmp_path: Path
) -> None:
    artifact = exported("fp32")
    put_inputs(artifact, tmp_path)
    with running(folder, artifact.model_path, tmp_path) as runner:
        runner.ask("load")
        assert runner.process.stdin is not None
        runner.process.stdin.close()
        assert runner.process.wait(60) == 0
    command = build.runner_command(folder, artifact.model_path, 1)
    code = f"""
import subprocess, sys
p = subprocess.Popen({command!r}, cwd={str(tmp_path)!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
p.stdin.write("load\\nrun 1000000 1000\\n"); p.stdin.flush()
p.stdout.readline(); p.stdout.readline(); print(p.pid, flush=True)
p.wait()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the runner outlives its parent")


def test_the_folder_is_all_that_it_needs(exported: Callable[[str], Artifact], folder: Path, tmp_path: Path) -> None:
    artifact = exported("fp32")
    place = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    put_inputs(artifact, place)
    shutil.copy(artifact.model_path, place / "model.pte")
    with running(Path("."), "model.pte", place) as runner:
        runner.ask("load")
        maps = Path(f"/proc/{runner.process.pid}/maps").read_text(encoding="utf-8")
    files = {Path(line.split()[-1]) for line in maps.splitlines() if line.split()[-1].startswith("/")}
    assert {f.parent for f in files} == {place}
    assert sum(f.stat().st_size for f in folder.iterdir()) < 24 * 2**20


def test_it_is_built_once_and_again_where_it_is_of_another_version(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not build.build_runner(ARCH, folder), "it is up to date"
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / build.STAMP).write_text('{"executorch": "1.4.1"}', encoding="ascii")
    with pytest.raises(BadInput, match="exists already"):
        build.build_runner(ARCH, other)
    monkeypatch.setattr(build, "_compile", lambda *_: (_ for _ in ()).throw(EnvironmentProblem("compiling failed")))
    with pytest.raises(EnvironmentProblem, match="compiling failed"):
        build.build_runner(ARCH, other, force=True)
    assert (other / build.RUNNER).is_file(), "what was there stays"
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="architecture 'riscv'"):
        build.build_runner("riscv", tmp_path / "a")
    monkeypatch.setenv("PATH", str(tmp_path))
    foreign = next(name for name, spec in build.ARCHS.items() if spec.machine != ARCH)
    with pytest.raises(EnvironmentProblem, match=f"apt-get install {re.escape(build.ARCHS[foreign].package)}"):
        build.build_runner(foreign, tmp_path / "a")
    with pytest.raises(EnvironmentProblem, match=r"apt-get install g\+\+ "):
        build.build_runner(ARCH, tmp_path / "a")
    monkeypatch.undo()
    monkeypatch.setattr(build, "EXECUTORCH", "1.4.1")
    with pytest.raises(
        EnvironmentProblem, match=r"(?s)ExecuTorch 1\.5\.1 is installed here; .* pip install executorch==1\.4\.1"
    ):
        build.build_runner(ARCH, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_the_command_builds_where_it_is_told(cli: Cli, folder: Path, tmp_path: Path) -> None:
    done = cli("runner", "build", "--arch", ARCH, "-o", tmp_path / "r")
    assert done.code == 0, done.err
    assert "./ld.so --library-path . ./runner MODEL.pte 1" in done.out
    assert (tmp_path / "r" / "runner").is_file()
    (tmp_path / "r" / build.STAMP).unlink()
    assert cli("runner", "build", "--arch", ARCH, "-o", tmp_path / "r").code == 2
    assert cli("runner", "build", "--arch", "sparc").code == 2
    assert cli("runner", "build", "--arch", "x86_64", "--with-python").code == 2
