"""ARM64 kernels under QEMU: the same function as on this machine, and how many instructions they take."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edgekit
from edgekit.artifacts import read_golden
from edgekit.devices import open_device
from edgekit.devices._base import Session
from edgekit.devices.runner import counting
from edgekit.devices.runner.build import ARCHS, runner_folder
from edgekit.devices.sysroot import sysroot
from edgekit.errors import BadInput, EnvironmentProblem, Unsupported
from edgekit.parity import grid_step, parity, parity_words
from edgekit.quantization import placement
from edgekit.types import Artifact, DeviceVerification
from edgekit.verification import verify
from tests.conftest import Cli

TARGETS = ("executorch", "onnx", "tflite")
TOOLS = (
    "qemu-aarch64",
    "gcc",
    "apt-get",
    "dpkg",
    "g++" if platform.machine() == "aarch64" else "aarch64-linux-gnu-g++",
)
SIZES = {"net": 64, "mobilenet-v2": 32, "lvt": 64}
MODELS = ["net", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet-v2", "lvt"))]
"""`net` is the tiny model."""
EQUAL_SHARE = 3e-3
"""By how much two counts of what runs in Python differ, of so small a model; of one of the zoo it is 0.1 %."""
Exported = Callable[..., dict[str, Artifact]]


@pytest.fixture(scope="module")
def emulator() -> None:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing or sys.platform != "linux":
        reason = f"ARM64 is emulated on Debian with {', '.join(TOOLS)}; missing: {', '.join(missing)}"
        if os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def exported(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model at a small size, for the three runtimes."""
    done: dict[tuple[str, str], dict[str, Artifact]] = {}

    def export(precision: str, model: str = "net") -> dict[str, Artifact]:
        if (model, precision) not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(placement, "_MACS", 1 / 16)  # as if so few multiplications paid
                artifacts = edgekit.export(
                    tiny if model == "net" else model,
                    TARGETS,
                    precision=precision,
                    image_size=SIZES[model],
                    num_classes=10,
                    calibration="synthetic" if precision == "int8" else None,
                    num_calibration_samples=8,
                    compare_speed=False,
                    verify=False,
                    out=tmp_path_factory.mktemp(model) / precision,
                )
            done[model, precision] = {a.manifest.target: a for a in artifacts}
        return done[model, precision]

    return export


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("model", MODELS)
def test_arm_kernels_are_the_same_function(model: str, precision: str, exported: Exported) -> None:
    for artifact in exported(precision, model).values():
        result = verify(artifact, device="qemu-arm64")
        assert result.passed, result.failures
        assert isinstance(result, DeviceVerification)
        assert result.device == "qemu-arm64"
        assert result.runtime == result.here, "the same version on both"
        assert len(result.parity) == len(artifact.manifest.outputs)
        for p in result.parity:
            # What LVT softens and normalizes in float rounds to other steps, and there are many layers behind it.
            assert p.within_rule or (model, precision) == ("lvt", "int8"), p


@pytest.mark.usefixtures("emulator")
def test_counts_of_instructions_repeat(exported: Exported) -> None:
    executorch = exported("int8")["executorch"]
    artifacts = [executorch, exported("int8")["onnx"], exported("int8")["tflite"], executorch]
    with open_device("qemu-arm64").sessions(artifacts, 1) as sessions:
        counts: list[list[int]] = []
        for session in sessions:
            assert session.load().load_ms > 0
            counts.append([session.instructions() for _ in range(3)])
            assert session.memory().peak_mib == 0, "the system tells the emulator's"
    first, onnx, tflite, other_process = counts
    assert len({*first, *other_process}) == 1, "exactly, in another process too"
    assert 1e5 < first[0] < 1e8
    for taken in (onnx, tflite):
        assert max(taken) - min(taken) < EQUAL_SHARE * min(taken)


@pytest.mark.usefixtures("emulator")
def test_what_an_emulator_does_not_tell(exported: Exported) -> None:
    device = open_device("qemu-arm64")
    artifact = exported("fp32")["executorch"]
    with pytest.raises(BadInput, match="emulates one thread"), device.sessions([artifact], 2):
        pass
    with device.sessions([artifact], 1) as (session,):
        assert device.facts()["cpu"] == "Cortex-A76, emulated"
        with pytest.raises(Unsupported, match="times of operators"):
            session.trace(1)


@pytest.mark.usefixtures("emulator")
def test_the_command_line(exported: Exported, cli: Cli) -> None:
    path = exported("int8")["executorch"].path
    done = cli("verify", path, "--device", "qemu-arm64")
    assert done.code == 0, done.err
    assert "ExecuTorch 1.5.1 on qemu-arm64\n" in done.out
    assert "differs from this machine by" in done.out
    assert "at most (allowed" in done.out
    found = json.loads(cli("verify", path, "--device", "qemu-arm64", "--json").out)
    assert found["device"] == "qemu-arm64"
    assert 0 <= found["parity"][0]["max_difference"] <= found["parity"][0]["allowed"]
    assert cli("verify", path, "--device", "qemu-arm65").code == 2


@pytest.mark.usefixtures("emulator")
def test_no_process_is_left(exported: Exported) -> None:
    artifacts = exported("fp32")
    places: list[Path] = []

    def interrupted(sessions: list[Session]) -> None:
        places.extend(s.place for s in sessions)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        open_device("qemu-arm64").sessions([artifacts["executorch"], artifacts["onnx"]], 1) as sessions,
    ):
        interrupted(sessions)
    assert len(places) == 2
    assert not any(place.parent.exists() for place in places)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not any(str(place.parent) in running for place in places)


def test_a_machine_without_the_emulator(
    exported: Exported, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = exported("fp32")["executorch"].path
    monkeypatch.setenv("PATH", str(tmp_path))
    done = cli("verify", path, "--device", "qemu-arm64")
    assert done.code == 3
    assert "sudo apt-get install qemu-user" in done.err
    # With the emulator, and nothing else.
    (tmp_path / "qemu-aarch64").write_text("#!/bin/sh\necho qemu-aarch64 version 7.2.22\n", encoding="ascii")
    (tmp_path / "qemu-aarch64").chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = cli("verify", path, "--device", "qemu-arm64")
    assert done.code == 3
    assert "apt-get install " + (ARCHS["arm64"].package if platform.machine() != "aarch64" else "g++") in done.err
    with pytest.raises(EnvironmentProblem, match="apt-get install apt"):
        sysroot("qemu-aarch64")
    with pytest.raises(EnvironmentProblem, match="takes no plugins"):
        counting.counter(str(tmp_path / "qemu-aarch64"), [])
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("emulator")
def test_a_sysroot_is_made_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip fails, when the packages of the system are unpacked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("edgekit.devices.sysroot.RUNTIMES", {"no-such-package-of-edgekit": "1.0"})
    steps: list[str] = []
    with pytest.raises(EnvironmentProblem, match="fetching ARM64 wheels failed"):
        sysroot("qemu-aarch64", lambda what, done, total: steps.append(what))
    assert steps == ["fetching ARM64 packages", "unpacking them", "fetching ARM64 wheels"]
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("emulator")
def test_the_runner_for_arm_is_self_contained() -> None:
    folder = runner_folder("arm64")
    told = subprocess.run(["file", "-L", *folder.iterdir()], capture_output=True, text=True, check=False).stdout
    assert "x86-64" not in told
    # Phones with pages of 16 KiB load nothing that is aligned to 4.
    for library in folder.glob("*.so*"):
        assert _alignments(library.read_bytes()) <= {0x4000, 0x10000}, library


def _alignments(elf: bytes) -> set[int]:
    """Of the segments that are loaded, of a 64-bit little-endian ELF file (its specification, chapter 2)."""
    start, size, count = (int.from_bytes(elf[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    headers = [elf[start + n * size : start + (n + 1) * size] for n in range(count)]
    return {int.from_bytes(h[48:56], "little") for h in headers if int.from_bytes(h[:4], "little") == 1}


def levels(scale: float, *integers: int) -> NDArray[np.float64]:
    return (np.array(integers) * np.float32(scale)).astype(np.float32).astype(np.float64)


def test_the_step_of_an_output_is_found_from_its_values() -> None:
    assert grid_step(levels(0.0753, -3, -128, 0, 4, 100, 127)) == 0.0  # no neighbours: 3 is no divisor of all
    assert grid_step(levels(0.0753, -128, -3, 0, 1, 100, 127)) == pytest.approx(0.0753, rel=1e-5)
    assert grid_step(np.random.default_rng(0).normal(size=500)) == 0.0
    assert grid_step(levels(0.1, 0, 1, 300)) == 0.0, "more than 8 bits"
    assert grid_step(np.zeros(3)) == 0.0


@pytest.mark.parametrize(("steps", "floor", "passed"), [(1, None, True), (2, None, False), (2, 20.0, True)])
def test_an_integer_output_may_differ_by_one_step(
    steps: int, floor: float | None, passed: bool, exported: Exported
) -> None:
    artifact = exported("int8")["executorch"]
    here = levels(0.05, *range(-60, 60)).astype(np.float32)
    there = here.copy()
    there[7] += steps * 0.05
    (found,) = parity(artifact, [[here]], [[there]], floor)
    assert found.rule == "one step of int8"
    assert found.passed == passed
    assert found.within_rule == (steps == 1)
    assert ("SQNR" in parity_words(found)) == (floor is not None)


def test_a_float_output_may_differ_in_its_last_places(exported: Exported) -> None:
    artifact = exported("fp32")["executorch"]
    here = read_golden(artifact)[1]
    largest = max(float(np.abs(x[0]).max()) for x in here)
    for share, passed in ((0.9e-5, True), (1.1e-5, False)):
        there = [[x[0] + np.float64(share * largest)] for x in here]
        (found,) = parity(artifact, here, there, 0.0 if passed else None)
        assert found.passed == passed, share
        assert found.floor_db is None, "a network of floats makes little of its last places"
    (found,) = parity(artifact, here, [[x[0] * np.nan] for x in here])
    assert not found.passed
