"""A board over ssh: a real sshd on loopback, real runtimes, and what goes wrong with either."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.artifacts import read_golden
from edgekit.devices import DEVICES, board, open_device
from edgekit.devices.ssh import Ssh
from edgekit.errors import BadInput, DeviceError, EnvironmentProblem, UnknownName, Unsupported
from edgekit.types import Artifact, DeviceVerification
from tests.conftest import Cli
from tests.devices.sshd import Sshd, sshd
from tests.zoo import FAMILIES, golden

TARGETS = ("executorch", "tflite", "onnx")
LINUX = sys.platform == "linux"
pytestmark = pytest.mark.skipif(not LINUX, reason="sshd of an ordinary user, and /proc")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def device(server: Sshd, python: str = sys.executable) -> Ssh:
    return Ssh(server.address, python, server.options)


def left_there() -> set[str]:
    """What edgekit has left in the folder that a board keeps temporary files in."""
    return {p.name for p in Path("/tmp").glob("edgekit-board-*")}


def serving(server: Sshd) -> list[str]:
    """The processes that serve an artifact for a connection to `server`."""
    parents, words = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words[path.name] = (path / "cmdline").read_bytes().split(b"\0")
            parents[path.name] = (path / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue

    def below(pid: str) -> bool:
        return pid in parents and (parents[pid] == str(server.pid) or below(parents[pid]))

    return [pid for pid in parents if b"edgekit.devices.board.serve" in words[pid] and below(pid)]


def check_nothing_is_left(server: Sshd, before: set[str]) -> None:
    """A process that was killed needs a moment to be gone."""
    deadline = time.monotonic() + 60
    while left := (*serving(server), *(left_there() - before)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_artifacts_of_three_runtimes_are_measured_in_turns(server: Sshd, small_artifacts: dict[str, Artifact]) -> None:
    before = left_there()
    result = edgekit.profile(list(small_artifacts.values()), device=device(server), num_runs=40, min_secs=0.1)
    for r in result.results:
        assert r.device["kind"] == "ssh"
        assert r.device["address"] == f"ssh:{server.address}"
        assert (r.device["system"], r.device["machine"]) == (f"Linux {os.uname().release}", os.uname().machine)
        assert len(r.latency_us) == r.runs >= 40
        assert r.p50_ms is not None
        assert r.peak_memory_mib is not None
        assert 1 < r.peak_memory_mib < 1000
        assert {"before", "after"} == set(r.state)
    assert [r.runtime.split()[0] for r in result.results] == ["ExecuTorch", "LiteRT", "ONNX"]
    assert len(result.comparisons) == 3
    check_nothing_is_left(server, before)


def test_what_it_computes_there_is_the_reference(server: Sshd, small_artifacts: dict[str, Artifact]) -> None:
    artifacts = list(small_artifacts.values())
    with device(server).sessions(artifacts, 1) as sessions:
        for session, artifact in zip(sessions, artifacts, strict=True):
            session.load()
            inputs, outputs = read_golden(artifact)
            for actual, wanted in zip(session.outputs(inputs), outputs, strict=True):
                np.testing.assert_allclose(actual[0], wanted[0], rtol=1e-4, atol=1e-5)


def test_the_calls_share_one_connection(server: Sshd, small_artifacts: dict[str, Artifact]) -> None:
    log = server.folder / "log"
    before = log.read_text().count("Accepted publickey")
    edgekit.profile([small_artifacts["onnx"]], device=device(server), num_runs=5, min_secs=0)
    assert log.read_text().count("Accepted publickey") == before + 1


def test_a_wrong_key_is_refused_with_what_to_type(server: Sshd, small_artifacts: dict[str, Artifact]) -> None:
    options = [o.replace("IdentityFile=" + str(server.folder / "user"), f"IdentityFile={server.folder / 'host'}")
               for o in server.options]  # fmt: skip
    with pytest.raises(EnvironmentProblem, match="Permission denied") as caught:
        edgekit.profile([small_artifacts["onnx"]], device=Ssh(server.address, options=options))
    assert "ssh-copy-id" in caught.value.hint
    assert caught.value.exit_code == 3


def test_an_unknown_host_key_is_not_accepted(server: Sshd, small_artifacts: dict[str, Artifact]) -> None:
    options = [o for o in server.options if "KnownHosts" not in o]
    other = Ssh(server.address, options=[*options, f"-oUserKnownHostsFile={server.folder / 'nobody'}"])
    with pytest.raises(EnvironmentProblem, match="Host key verification failed") as caught:
        edgekit.profile([small_artifacts["onnx"]], device=other)
    assert "accept its key" in caught.value.hint


def test_a_board_that_is_off(small_artifacts: dict[str, Artifact], cli: Cli) -> None:
    result = cli("profile", small_artifacts["onnx"].path, "--device", "ssh:nobody@127.0.0.1:1")
    assert result.code == 3
    assert "Connection refused" in result.err
    assert "ssh nobody@127.0.0.1 true" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("address", ["", "a b", "-oProxyCommand=x", "u@h:port", "$(id)", "h;id", "a@b@c"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(BadInput):
        open_device(f"ssh:{address}")


def test_an_unknown_device_names_the_known_ones(small_artifacts: dict[str, Artifact], cli: Cli) -> None:
    result = cli("profile", small_artifacts["onnx"].path, "--device", "shs:pi@board")
    assert result.code == UnknownName.exit_code
    assert all(name in result.err for name in DEVICES)


def test_python_without_a_runtime(server: Sshd, small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    site = Path(np.__file__).parent.parent
    # numpy alone: -S leaves out the packages beside it.
    (tmp_path / "numpy").symlink_to(site / "numpy")
    for libraries in site.glob("numpy.libs"):
        (tmp_path / libraries.name).symlink_to(libraries)
    bare.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="$PYTHONPATH:{tmp_path}"\nexec {sys.executable} -S "$@"\n', encoding="utf-8"
    )
    bare.chmod(0o755)
    for target, words in (("onnx", "pip install onnxruntime"), ("tflite", "pip install ai-edge-litert")):
        with pytest.raises(EnvironmentProblem) as caught:
            edgekit.profile([small_artifacts[target]], device=device(server, str(bare)))
        assert words in caught.value.hint
        assert server.address in caught.value.message


def test_no_python_at_all(server: Sshd, small_artifacts: dict[str, Artifact]) -> None:
    with pytest.raises((EnvironmentProblem, DeviceError), match="no /nowhere/python3"):
        edgekit.profile([small_artifacts["onnx"]], device=device(server, "/nowhere/python3"))


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with the runtime that most boards still carry, and nothing else."""
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime 2.14 has no wheel for this Python")
    folder = tmp_path_factory.mktemp("board")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "10"]
    subprocess.run([*pip, "tflite-runtime==2.14.0", "numpy<2"], check=True)
    return python


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "name", [n if n == "micronet-m0" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_the_runtime_that_most_boards_carry_computes_the_same(
    server: Sshd, old_python: str, shared: Path, tmp_path: Path, name: str, precision: str
) -> None:
    torch.save(golden(shared, *FAMILIES[name]).state, tmp_path / "weights.pth")
    photos = shared / "data" / "imagenet_sample800.tar" if precision == "int8" else None
    (artifact,) = edgekit.export(
        name, "tflite", precision=precision, weights=tmp_path / "weights.pth", calibration=photos,
        num_calibration_samples=8, compare_speed=False, verify=False, out=tmp_path,
    )  # fmt: skip
    verification = edgekit.verify(artifact, device=device(server, old_python))
    assert isinstance(verification, DeviceVerification)
    assert verification.runtime.startswith("TFLite 2.14.0")
    (parity,) = verification.parity
    if parity.floor_db is None:
        assert verification.passed, verification.failures
    else:  # its int8 kernels round sums otherwise: LVT is 0.6 dB further away than nudged inputs move it
        assert parity.sqnr_db >= parity.floor_db - 1


def test_core_ml_does_not_run_there(server: Sshd, small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    (made,) = edgekit.export(
        nn.Conv2d(3, 4, 3).eval(), "coreml", input_shape=[(1, 3, 8, 8)], out=tmp_path, verify=False
    )
    with pytest.raises(Unsupported, match="Apple"):
        edgekit.profile([made], device=device(server))


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "ended"), (signal.SIGSTOP, "did not answer")])
def test_a_process_that_dies_or_hangs_there(
    server: Sshd, small_artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    before, struck = left_there(), []

    def strike(what: str, done: int, total: int) -> None:
        if what.startswith("measuring") and done > total - 10 and not struck:
            if number == signal.SIGSTOP:
                monkeypatch.setattr("edgekit.devices.sessions.PATIENCE_SECS", 2.0)
            struck.append(int(serving(server)[0]))
            os.kill(struck[0], number)

    with pytest.raises(DeviceError, match=words) as caught:
        edgekit.profile(
            [small_artifacts["onnx"], small_artifacts["tflite"]],
            device=device(server), num_runs=4000, min_secs=0, on_step=strike,
        )  # fmt: skip
    assert struck
    assert server.address in caught.value.message
    # What was measured before is kept.
    assert caught.value.partial is not None
    assert [r.runs > 0 for r in caught.value.partial.results] == [True, True]
    assert any("cut short" in w for w in caught.value.partial.results[0].warnings)
    check_nothing_is_left(server, before)


def test_a_connection_that_breaks(server: Sshd, small_artifacts: dict[str, Artifact]) -> None:
    struck: list[str] = []

    def strike(what: str, done: int, total: int) -> None:
        if what.startswith("measuring") and done > total - 10 and not struck:
            struck.append("")
            # Those that serve this connection; the daemon lives on.
            subprocess.run(["pkill", "-9", "-P", str(server.pid)], check=False)

    with pytest.raises(DeviceError) as caught:
        edgekit.profile([small_artifacts["onnx"]], device=device(server), num_runs=4000, min_secs=0, on_step=strike)
    assert struck
    assert caught.value.partial is not None
    for _ in range(50):  # it notices that nobody reads any more
        if not serving(server):
            break
        time.sleep(0.1)
    assert serving(server) == []


@pytest.mark.parametrize("path", sorted(Path(board.__file__).parent.glob("*.py")), ids=lambda p: p.name)
def test_what_runs_on_boards_is_python_3_8_without_the_rest_of_edgekit(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    ast.parse(text, feature_version=8)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgekit"):
            assert (node.module or "").startswith("edgekit.devices.board")
