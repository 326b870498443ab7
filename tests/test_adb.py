"""An Android device: a real adbd in a namespace for the whole way, a fake one for everything that goes wrong."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgekit.artifacts import read_golden
from edgekit.devices import open_device, sessions
from edgekit.devices.adb import Adb, client, device, facts
from edgekit.devices.tools import session as tool_session
from edgekit.errors import BadInput, DeviceError, EdgekitError, EnvironmentProblem, UnknownName, Unsupported
from edgekit.profiling import measuring, profile
from edgekit.types import Artifact
from tests.conftest import ROOT, Cli, process
from tests.devices import fake_adbd, phone
from tests.devices.fake_adbd import FakePhone, Faults

ADBD = Path(os.environ.get("EDGEKIT_ADBD", ROOT / ".venv" / "adbd"))
TOOL_OUTPUT = Path(__file__).parent / "data" / "tools" / "benchmark_model-2.14.txt"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces, /proc")


def missing(what: str) -> None:
    """Skip, or fail where everything has to be there."""
    if os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def pte(small_artifacts: dict[str, Artifact]) -> Artifact:
    return small_artifacts["executorch"]


# A real adbd


@contextmanager
def real_phone(monkeypatch: pytest.MonkeyPatch, data_bytes: str = "200m") -> Iterator[phone.Phone]:
    if not (ADBD / "done").exists():
        missing(f"no adbd at {ADBD}: tests/devices/install_adbd.sh {ADBD}")
    if shutil.which("adb") is None or subprocess.run(["unshare", "-r", "-n", "-m", "-p", "-f", "true"]).returncode:
        missing("no adb, or no user namespaces")
    with phone.phone(ADBD, data_bytes) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield running


def on_phone(script: str) -> str:
    return subprocess.run(["adb", "shell", "-T", script], capture_output=True, text=True, check=False).stdout


def left_on_phone() -> tuple[str, str]:
    """Files of ours, and processes that run in one of our folders."""
    return on_phone("ls /data/local/tmp"), on_phone("ls -l /proc/[0-9]*/cwd 2>/dev/null | grep edgekit-")


def check_nothing_is_left() -> None:
    """A process that was killed needs a moment to be gone."""
    deadline = time.monotonic() + 60
    while (left := left_on_phone()) != ("", ""):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_the_whole_way_on_a_real_adbd(pte: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with real_phone(monkeypatch):
        used = Adb()
        measured = profile([pte, pte], device=used, num_runs=40, min_secs=0.1, per_op=True)
        first = measured.results[0]
        assert len(first.latency_us) >= 40
        assert first.load_ms is not None
        assert first.first_ms is not None
        assert min(first.load_ms, first.first_ms, *first.latency_us) > 0
        assert first.peak_memory_mib is not None
        assert first.model_memory_mib is not None
        assert 5 < first.peak_memory_mib < 200
        assert {"Convolution", "FullyConnected"} & {
            word for o in first.per_op for word in (o.op, o.name)
        } or first.per_op
        assert first.device["model"] == "Acme Phone 5"
        assert first.device["system"] == "Android 14 (API 34)"
        assert first.device["fingerprint"].startswith("acme/phone5/")
        assert first.state["before"]["thermal_status"] == "0"
        assert first.state["before"]["cpu_celsius"] == "33.25"  # the HAL's, not the cached 61
        assert first.state["after"]["battery_celsius"] == "29.8"
        assert 0.2 < measured.comparisons[0].ratio < 5
        check_nothing_is_left()


def test_outputs_are_those_of_the_artifact(pte: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, expected = read_golden(pte)
    with real_phone(monkeypatch):
        with Adb().sessions([pte], 1) as (session,):
            session.load()
            outputs = session.outputs(inputs)
        check_nothing_is_left()
    for (actual,), (wanted,) in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)


def signal_ours(name: str) -> None:
    """Send a signal to every process on the phone that runs in a folder of ours."""
    ours = f'case "$(readlink $p/cwd)" in */edgekit-*) kill -{name} ${{p##*/}};; esac'
    on_phone(f"for p in /proc/[0-9]*; do {ours}; done")


@pytest.mark.parametrize(
    ("name", "error"), [("SEGV", "was ended by signal 11 while being measured"), ("STOP", "did not answer for")]
)
def test_a_runner_that_really_crashes_or_hangs(
    pte: Artifact, monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    with real_phone(monkeypatch):
        with Adb().sessions([pte], 1) as (session,):
            session.load()
            signal_ours(name)
            if name == "STOP":
                monkeypatch.setattr(sessions, "PATIENCE_SECS", 1.0)
            with pytest.raises(DeviceError, match=error) as caught:
                session.run(10, 0, 0)
        assert caught.value.exit_code == 1
        check_nothing_is_left()


def test_a_disk_that_is_really_full(pte: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with real_phone(monkeypatch, "2m"):
        with pytest.raises(EnvironmentProblem, match="has no space left"), Adb().sessions([pte], 1):
            pytest.fail("it started")
        check_nothing_is_left()


def test_ctrl_c_leaves_nothing(pte: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with real_phone(monkeypatch):
        command = process("profile", pte.path, "--device", "adb", "--min-secs", "60")
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while "edgekit-" not in left_on_phone()[1]:
            assert time.monotonic() < deadline, running.poll()
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=300)
        assert running.returncode != 0
        assert "Traceback" not in err
        check_nothing_is_left()


def test_a_tool_of_the_users_on_a_real_adbd(
    small_artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = script(tmp_path / "benchmark_model", f"cat <<'END'\n{TOOL_OUTPUT.read_text()}END")
    with real_phone(monkeypatch):
        used = open_device("adb", tool, ["--use_gpu=true", "--a=b c'd"])
        result = profile([small_artifacts["tflite"]], device=used, num_runs=50, min_secs=0.1).results[0]
        check_nothing_is_left()
    assert result.latency_us == ()
    assert result.mean_ms is not None
    assert result.runtime == "TFLite (benchmark_model)"
    assert any("GPU" in w for w in result.warnings)


# A fake one


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """An adb server of our own on a port of its own."""
    if shutil.which("adb") is None:
        missing("no adb here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="adb-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("TMPDIR", folder)
        patch.setenv("HOME", folder)  # its key
        patch.delenv("ADB_SERVER_SOCKET", raising=False)
        subprocess.run(["adb", "start-server"], capture_output=True, check=True, timeout=120)
        yield
        subprocess.run(["adb", "kill-server"], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fake(server: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., FakePhone]]:
    """`fake(runner="crash")`: a phone that is connected; its runner is a small one."""
    folder = tmp_path / "built"
    folder.mkdir()
    for name in ("ld.so", "runner", "libexecutorch.so"):
        (folder / name).write_bytes(b"x" * 100_000)
    monkeypatch.setattr(device, "runner_folder", lambda arch: folder)
    monkeypatch.setattr(measuring, "WARMUP_SECS", 0.01)
    with ExitStack() as stack:

        def make(**faults: object) -> FakePhone:
            if "offline" in faults:  # which may pass: that is waited for
                monkeypatch.setattr(client, "SETTLE_SECS", 0.3)
            made = FakePhone(Faults(**faults))  # type: ignore[arg-type]
            stack.enter_context(made.running())
            connect(made)
            stack.callback(adb, "disconnect", serial(made))
            return made

        yield make


def adb(*arguments: str) -> str:
    done = subprocess.run(["adb", *arguments], capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr


def serial(made: FakePhone) -> str:
    return f"127.0.0.1:{made.port}"


def connect(made: FakePhone) -> None:
    process = subprocess.Popen(["adb", "connect", serial(made)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while serial(made) not in adb("devices"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if made.faults.unauthorized or made.faults.offline:
        process.kill()  # it waits for what does not come
    process.wait(60)


def test_a_fake_phone_is_measured(fake: Callable[..., FakePhone], pte: Artifact) -> None:
    made = fake()
    used = Adb(serial(made))
    result = profile([pte], device=used, num_runs=20, min_secs=0).results[0]
    assert set(result.latency_us) == {1000.0}
    assert (result.load_ms, result.first_ms, result.peak_memory_mib) == (5.0, 2.0, 20.0)
    assert result.device["pinned_to"] == "3"  # the fastest
    assert (result.device["governor"], result.device["cores"]) == ("schedutil", "4")
    assert any(s.endswith(" model.pte 1 3") for s in made.scripts)
    assert made.left == []


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        ({"unauthorized": True}, "has not allowed this computer to use it"),
        ({"offline": True}, "does not answer \\(offline\\)"),
        ({"disk_bytes": 150_000}, "has no space left for"),
        ({"lost_bytes": 1}, "did not arrive whole"),
        ({"unplug_after_bytes": 90_000}, "was lost while .* was copied to it"),
    ],
)
def test_what_keeps_it_from_starting(
    fake: Callable[..., FakePhone], pte: Artifact, faults: dict[str, object], error: str
) -> None:
    made = fake(**faults)
    with pytest.raises(EnvironmentProblem, match=error) as caught:
        profile([pte], device=Adb(serial(made)))
    assert caught.value.exit_code == 3
    assert caught.value.hint
    if "unplug_after_bytes" not in faults:
        assert made.left == []


@pytest.mark.parametrize(
    ("runner", "error"),
    [
        ("crash", "was ended by signal 11 while being measured"),
        ("hang", "did not answer for .* while being measured"),
        ("garbage", "answered what no runner of ours answers"),
        ("error", "no memory"),
        ("unplug", "was lost while"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_what_ends_it_in_the_middle(
    fake: Callable[..., FakePhone], pte: Artifact, monkeypatch: pytest.MonkeyPatch, runner: str, error: str, late: bool
) -> None:
    """`late`: only when some turns were taken, which are kept."""
    made = fake(**({} if late else {"runner": runner}))
    request = made._request

    async def later(stream: fake_adbd.Stream, process: fake_adbd.Process, text: str) -> int | None:
        if len(made.requests) == 8:
            made.faults.runner = runner
        return await request(stream, process, text)

    monkeypatch.setattr(made, "_request", later)
    if runner == "hang":
        monkeypatch.setattr(sessions, "PATIENCE_SECS", 3.0)
        monkeypatch.setattr(sessions, "START_SECS", 0.0)
    with pytest.raises(DeviceError, match=error) as caught:
        profile([pte], device=Adb(serial(made)), num_runs=100, min_secs=0)
    assert caught.value.exit_code == 1
    partial = caught.value.partial
    assert (partial is not None) == late
    if partial is not None:
        assert len(partial.results[0].latency_us) >= 5
        assert any("cut short" in w for w in partial.results[0].warnings)
    if runner != "unplug":
        assert made.left == []


def test_unplugged_and_back_a_day_later(
    fake: Callable[..., FakePhone], pte: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake(runner="unplug")
    with pytest.raises(DeviceError, match="was lost"):
        profile([pte], device=Adb(serial(made)))
    assert made.left
    made.faults.runner = ""
    made.plug()
    adb("disconnect", serial(made))
    connect(made)
    profile([pte], device=Adb(serial(made)), num_runs=10, min_secs=0)
    assert made.left  # it may be somebody else's, who measures now
    tomorrow = time.time() + 90_000
    monkeypatch.setattr(fake_adbd, "time", SimpleNamespace(time=lambda: tomorrow))
    profile([pte], device=Adb(serial(made)), num_runs=10, min_secs=0)
    assert made.left == []


def test_a_users_tool_that_hangs_or_is_unplugged(
    fake: Callable[..., FakePhone],
    small_artifacts: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    tool = script(tmp_path / "benchmark_model", "true")
    for fault, error in (("hang", "did not answer for 1 s while benchmark_model ran"), ("unplug", "was lost")):
        monkeypatch.setattr(tool_session, "START_SECS", 1.0 if fault == "hang" else 60.0)
        made = fake(runner=fault)
        made.tool_output = lambda words: (0, TOOL_OUTPUT.read_text(encoding="utf-8"))
        with pytest.raises(DeviceError, match=error):
            profile([small_artifacts["tflite"]], device=Adb(serial(made), tool))
        if fault == "hang":
            assert made.left == []


def test_a_users_tool_is_started_as_it_should_be(
    fake: Callable[..., FakePhone], small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    tool = script(tmp_path / "my runner", "true")
    made = fake()
    made.tool_output = lambda words: (0, TOOL_OUTPUT.read_text(encoding="utf-8") + "--graph --num_runs\n")
    profile([small_artifacts["tflite"]], device=Adb(serial(made), tool, ["--x=a b"]), num_runs=50, min_secs=0)
    started = [s for s in made.scripts if "--graph=model.tflite" in s]
    assert all("exec env LD_LIBRARY_PATH=" in s and " taskset 8 " in s for s in started)
    assert all("'--x=a b'" in s and "/tool/my runner'" in s for s in started)
    assert made.left == []


def test_a_tool_for_another_processor_is_refused(
    fake: Callable[..., FakePhone], small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    tool = tmp_path / "benchmark_model"
    tool.write_bytes(b"\x7fELF" + bytes(14) + b"\xb7\x00" + bytes(40))
    made = fake()
    with pytest.raises(BadInput, match=r"was built for arm64-v8a; .* is x86_64"):
        profile([small_artifacts["tflite"]], device=Adb(serial(made), tool))
    assert made.left == []


# Which device


def test_several_devices_are_named(fake: Callable[..., FakePhone], pte: Artifact) -> None:
    one, two = fake(), fake()
    with pytest.raises(EnvironmentProblem, match="adb knows 2 devices") as caught:
        profile([pte], device=Adb())
    assert f"adb:{serial(one)} (Fake 1)" in caught.value.hint
    assert f"adb:{serial(two)} (Fake 1)" in caught.value.hint
    with pytest.raises(EnvironmentProblem, match="knows no device 'XYZ'") as caught:
        profile([pte], device=Adb("XYZ"))
    assert serial(one) in caught.value.hint


def test_no_device_and_no_adb(server: None, pte: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="adb knows no device"):
        profile([pte], device=Adb())
    with pytest.raises(EnvironmentProblem) as caught:
        profile([pte], device=Adb("192.0.2.1:5555"))
    assert caught.value.hint == "Type: adb connect 192.0.2.1:5555"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="there is no adb here"):
        profile([pte], device=Adb())


def test_what_adb_prints_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "List of devices attached\n"
        "0a388e93               unauthorized usb:1-1 transport_id:1\n"
        "emulator-5554          offline\n"
        "XX                     no permissions (user in plugdev group; are your udev rules wrong?); see [http://x]\n"
        "ZY22                   recovery usb:1-2 product:p model:Moto_G device:d\n\n"
    )
    monkeypatch.setattr(client, "find_adb", lambda: "adb")
    monkeypatch.setattr(client, "_run", lambda command, secs: client.Answer(code=0, out=text, err=""))
    assert [d.state for d in client.attached()] == ["unauthorized", "offline", "no permissions", "recovery"]
    for name, word in (("0a388e93", "allowed"), ("XX", "no permissions"), ("ZY22", "recovery")):
        with pytest.raises(EnvironmentProblem, match=word) as caught:
            client.choose(name)
        assert caught.value.hint


# What is refused before anything is pushed


def test_artifacts_that_need_a_runner_say_where_it_comes_from(small_artifacts: dict[str, Artifact]) -> None:
    for target, tool in (("tflite", "benchmark_model"), ("onnx", "onnxruntime_perf_test")):
        with pytest.raises(EnvironmentProblem, match=f"by {tool}, which you have to bring") as caught:
            Adb().check(small_artifacts[target])
        assert f"--device adb --runner PATH/{tool}" in caught.value.hint
    with pytest.raises(Unsupported, match="is for Core ML"):
        Adb().check(
            replace(small_artifacts["onnx"], manifest=replace(small_artifacts["onnx"].manifest, target="coreml"))
        )
    Adb().check(small_artifacts["executorch"])


def test_runners_that_do_not_fit(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no runner"):
        Adb(runner=tmp_path / "benchmark_model")
    with pytest.raises(BadInput, match="--runner-args are for a runner"):
        Adb(arguments=["-v"])
    with pytest.raises(Unsupported, match="runs artifacts of the target tflite"):
        Adb(runner=script(tmp_path / "benchmark_model", "true")).check(small_artifacts["onnx"])


def test_a_runner_that_nobody_knows(
    fake: Callable[..., FakePhone], small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    made = fake()
    made.tool_output = lambda words: (0, "Usage: something else\n")
    with pytest.raises(UnknownName, match="unknown runner 'thing'"):
        profile([small_artifacts["tflite"]], device=Adb(serial(made), script(tmp_path / "thing", "true")))
    assert made.left == []


# Heat and battery


def test_the_gate_waits_until_it_is_cool(
    fake: Callable[..., FakePhone], pte: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake(thermal_status=2, battery=415)
    waits = []

    def cool(secs: float) -> None:
        waits.append(secs)
        if len(waits) == 3:
            made.faults.thermal_status, made.faults.battery = 0, 300

    monkeypatch.setattr(facts, "time", SimpleNamespace(sleep=cool, monotonic=time.monotonic))
    assert Adb(serial(made)).gate(lambda *_: None) == ()
    assert waits == [5.0, 5.0, 5.0]
    made.faults.thermal_status = 3
    monkeypatch.setattr(facts, "WAIT_SECS", 0.0)
    (warning,) = Adb(serial(made)).gate(lambda *_: None)
    assert warning.startswith("degraded: its thermal status is 3 (severe) after 0 s of waiting")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, ()),
        ({"battery_percent": "12", "charging": "no"}, ("its battery is at 12 %",)),
        ({"battery_percent": "12", "charging": "yes"}, ()),
        ({"low_power": "1"}, ("battery saver is on",)),
        ({"battery_celsius": "41.5"}, ("its battery has 41.5 °C",)),
    ],
)
def test_what_makes_it_unfit(now: dict[str, str], said: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "WAIT_SECS", 0.0)
    warnings = facts.gate(lambda: now, lambda *_: None)
    assert len(warnings) == len(said)
    assert all(s in w for s, w in zip(said, warnings, strict=True))


@pytest.mark.parametrize(
    "text", ["", "Can't find service: thermalservice", "Thermal Status: x\n\x00Temperature{mValue="]
)
def test_dumps_that_tell_nothing(text: str) -> None:
    assert facts.thermal(text) == {}
    assert facts.battery(text) == {}


def test_cores_by_their_fastest_clock(fake: Callable[..., FakePhone], monkeypatch: pytest.MonkeyPatch) -> None:
    made = fake()
    monkeypatch.setattr(fake_adbd, "CORES", fake_adbd.CORES.replace("online=0-3", "online=0-2"))
    found = facts.cores_of(client.Client(serial(made)))
    assert [c.number for c in found] == [2, 1, 0]  # 3 is switched off
    assert facts.ranges("0-3,6,8-9") == {0, 1, 2, 3, 6, 8, 9}


# The command line


def test_on_the_command_line(
    fake: Callable[..., FakePhone], pte: Artifact, small_artifacts: dict[str, Artifact], cli: Cli, tmp_path: Path
) -> None:
    made = fake()
    name = f"adb:{serial(made)}"
    done = cli("profile", pte.path, "--device", name, "--num-runs", "20", "--min-secs", "0", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["results"][0]["device"]["address"] == name
    made.faults.runner = "crash"
    lost = cli("profile", pte.path, "--device", name)
    assert lost.code == 1
    assert "was ended by signal 11" in lost.err
    needs = cli("profile", small_artifacts["onnx"].path, "--device", name)
    assert needs.code == 3
    assert "--runner PATH/onnxruntime_perf_test" in needs.err
    tool = script(tmp_path / "benchmark_model", "true")
    made.tool_output = lambda words: (0, TOOL_OUTPUT.read_text(encoding="utf-8"))
    arguments = ("--runner", tool, "--runner-args", "--use_gpu=true")
    ran = cli("profile", small_artifacts["tflite"].path, "--device", name, *arguments, "--min-secs", "0")
    assert ran.code == 0, ran.err
    assert "nothing in the output shows that a GPU delegate took the model" in ran.err
    assert made.left == []


def test_a_sweep_uses_the_runner_of_each_target(fake: Callable[..., FakePhone], cli: Cli, tmp_path: Path) -> None:
    model = tmp_path / "net.py"
    model.write_text(
        "from torch import nn\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    made, tool = fake(), script(tmp_path / "benchmark_model", "true")
    made.tool_output = lambda words: (0, TOOL_OUTPUT.read_text(encoding="utf-8"))
    arguments = ("-m", f"{model}:net", "-t", "tflite,onnx", "-p", "fp32", "--imgsz", "32", "--num-runs", "5")
    devices = ("--device", f"adb:{serial(made)}", "--runner", f"tflite={tool}")
    done = cli("benchmark", *arguments, *devices, "-o", tmp_path / "sweep", "--json")
    tflite, onnx = json.loads(done.out)["cells"]
    assert tflite["status"] == "done", done.err
    assert f"Inference (avg): {1e3 * tflite['mean_ms']:g}" in TOOL_OUTPUT.read_text(encoding="utf-8")
    assert onnx["status"] == "failed", "it has no runner"
    assert "onnx" in onnx["error"]
    assert done.code == 1
    assert made.left == []
    tool.write_text("#!/bin/sh\nfalse\n")
    changed = cli("benchmark", "--resume", "-o", tmp_path / "sweep")
    assert changed.code == 2
    assert "files: " in changed.err


def test_errors_are_ours() -> None:
    assert issubclass(DeviceError, EdgekitError)
