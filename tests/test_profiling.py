"""Latency: the statistics exactly, the turns as they are taken, and no process left whatever happens to one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgekit
from edgekit.artifacts import hash_files, load_artifact, write_manifest
from edgekit.devices import sessions
from edgekit.devices.machine import choose_cpus
from edgekit.errors import ArtifactDamaged, BadInput, EdgekitError, EnvironmentProblem
from edgekit.profiling import compare, not_faster, slow_causes
from edgekit.profiling.statistics import bootstrap_medians, drift, ratio_interval, summary
from edgekit.types import Artifact, Comparison
from tests.conftest import Cli, process

TARGETS = ("executorch", "tflite", "onnx")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class Sums(nn.Module):
    """Two convolutions around a cumulative sum, which XNNPACK does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2)
        self.second = nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu().cumsum(1)
        return self.head(self.second(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The same tiny model for each runtime of this machine."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("sums")
    exported = edgekit.export(Sums().eval(), TARGETS, input_shape=[(1, 3, 64, 64)], out=out, verify=False)
    return {a.manifest.target: a for a in exported}


Changer = Callable[..., Artifact]


@pytest.fixture
def changed(sums: dict[str, Artifact], tmp_path: Path) -> Changer:
    """`changed("onnx", change, precision="int8")`: a copy whose model file went through `change`, with its hashes."""

    def make(name: str, change: Callable[[bytes], bytes], **facts: Any) -> Artifact:
        source = sums[name]
        folder = Path(copytree(source.path, tmp_path / f"sums-{name}-changed"))
        model = folder / source.model_path.name
        model.write_bytes(change(model.read_bytes()))
        write_manifest(folder, replace(source.manifest, files=hash_files(folder), **facts))
        return load_artifact(folder)

    return make


Children = Callable[[], list[int]]


@pytest.fixture
def children() -> Children:
    """`children()`: the processes that this one has started since the test began and not yet buried."""

    def of_all_threads() -> list[int]:
        lists = Path("/proc/self/task").glob("*/children")
        return [int(pid) for path in lists for pid in path.read_text().split()]

    before = of_all_threads()  # such as the resource tracker of multiprocessing, which stays for good
    return lambda: [pid for pid in of_all_threads() if pid not in before]


def quick(artifacts: list[Any], **options: Any) -> edgekit.Profile:
    return edgekit.profile(artifacts, **{"num_runs": 20, "warmup_runs": 1, "min_secs": 0, **options})


# ------------------------------------------------------------------------------------------ statistics


def test_figures_of_known_latencies() -> None:
    s = summary(np.arange(1, 101, dtype=float).reshape(10, 10) * 1000)
    assert (s.min_ms, s.max_ms, s.mean_ms, s.p50_ms) == (1, 100, 50.5, 50.5)
    assert (s.p90_ms, s.p95_ms, s.p99_ms) == pytest.approx((90.1, 95.05, 99.01))
    assert s.std_ms == pytest.approx(np.sqrt(100 * 101 / 12))
    assert s.cv == pytest.approx(s.std_ms / 50.5)


def test_one_latency_has_no_spread() -> None:
    s = summary(np.array([[250.0]]))
    assert (s.p50_ms, s.p99_ms, s.std_ms, s.cv, s.stable) == (0.25, 0.25, 0, 0, True)


@pytest.mark.parametrize(
    ("latencies", "stable"),
    [
        ([100.0] * 98 + [103.0] * 2, True),
        ([88.0, 112.0] * 50, False),  # cv 12 %
        ([100.0] * 97 + [152.0] * 3, False),  # cv 9 %, p99 152 %
        ([100.0] * 97 + [148.0] * 3, True),
    ],
)
def test_unstable_is_a_wide_spread_or_a_long_tail(latencies: list[float], stable: bool) -> None:
    assert summary(np.array([latencies])).stable is stable


def test_interval_is_paired_by_round() -> None:
    rng = np.random.default_rng(0)
    rounds = rng.lognormal(0, 1, (20, 1)) * 100  # the machine's speed, which changes wildly from round to round
    draws = bootstrap_medians([np.repeat(rounds, 3, 1), np.repeat(1.5 * rounds, 5, 1)])
    assert ratio_interval(*draws) == pytest.approx((1.5, 1.5))
    assert np.ptp(draws[0]) > 10


def test_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits, narrow = 0, 0
    for seed in range(200):
        a, b = (100 * scale * rng.lognormal(0, 0.05, (20, 5)) for scale in (1, 0.9))
        low, high = ratio_interval(*bootstrap_medians([a, b], resamples=200, seed=seed))
        hits += low <= 0.9 <= high
        narrow += high - low < 0.08
    assert 180 <= hits < 200
    assert narrow == 200


def test_drift_is_the_last_third_against_the_first() -> None:
    assert drift(np.array([[100.0]] * 3 + [[400.0]] * 3 + [[130.0]] * 3)) == pytest.approx(0.3)
    assert drift(np.array([[1.0], [2.0]])) == 0


# ------------------------------------------------------------------------------------------ measuring


@pytest.fixture(scope="module")
def order() -> list[tuple[str, str]]:
    """(target, request) as they were sent while `measured` was made."""
    return []


@pytest.fixture(scope="module")
def measured(sums: dict[str, Artifact], order: list[tuple[str, str]]) -> Iterator[edgekit.Profile]:
    asked = sessions.LineSession._ask

    def ask(self: sessions.LineSession, what: str, expected_secs: float, request: str) -> dict[str, Any]:
        order.append((self.artifact.manifest.target, request.split()[0]))
        return asked(self, what, expected_secs, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions.LineSession, "_ask", ask)
        yield edgekit.profile([sums[t].path for t in TARGETS], num_runs=50, min_secs=0.2)


def test_artifacts_take_turns(measured: edgekit.Profile, order: list[tuple[str, str]]) -> None:
    begin = [(t, do) for t in TARGETS for do in ("load", "run")]
    turns = [(t, "run") for t in TARGETS] * measured.results[0].protocol.rounds
    assert order == [*begin, *turns, *[(t, "memory") for t in TARGETS]]


def test_a_profile_holds_what_was_asked_for(measured: edgekit.Profile, sums: dict[str, Artifact]) -> None:
    assert [r.target for r in measured.results] == list(TARGETS)
    assert len({r.protocol.rounds for r in measured.results}) == 1
    for r in measured.results:
        us = np.array(r.latency_us)
        assert len(us) == r.protocol.rounds * r.protocol.runs_per_round >= 50
        assert us.sum() >= 0.2e6
        assert r.protocol.rounds >= 20
        assert us.min() > 1
        assert (r.p50_ms, r.p99_ms) == pytest.approx(tuple(np.percentile(us, (50, 99)) / 1e3))
        assert (r.mean_ms, r.max_ms) == pytest.approx((us.mean() / 1e3, us.max() / 1e3))
        assert r.load_ms > 0
        assert r.first_ms >= 0.5 * r.min_ms
        assert r.sha256 == sha256(sums[r.target].model_path.read_bytes()).hexdigest()
        assert (r.artifact, r.precision, r.threads) == (str(sums[r.target].path), "fp32", 1)
        assert any(char.isdigit() for char in r.runtime)
        assert r.device["kind"] == "host"


def test_each_pair_is_compared_by_its_medians(measured: edgekit.Profile) -> None:
    a, b, c = measured.results
    assert [(x.a, x.b) for x in measured.comparisons] == [
        (a.artifact, b.artifact),
        (a.artifact, c.artifact),
        (b.artifact, c.artifact),
    ]
    for x, (first, second) in zip(measured.comparisons, [(a, b), (a, c), (b, c)], strict=True):
        assert x.ratio == pytest.approx(second.p50_ms / first.p50_ms)
        assert x.ci95[0] <= x.ratio <= x.ci95[1]


@linux
def test_memory_is_the_worker_s_and_the_model_s_share_of_it(measured: edgekit.Profile) -> None:
    for r in measured.results:
        assert r.peak_memory_mib is not None
        assert r.model_memory_mib is not None
        assert 20 < r.peak_memory_mib < 2000
        assert 0 < r.model_memory_mib < 0.7 * r.peak_memory_mib


def test_an_artifact_is_as_fast_as_itself(sums: dict[str, Artifact]) -> None:
    artifact = sums["tflite"]
    comparison = compare(artifact, artifact, seconds=0.5)
    assert comparison.a == comparison.b
    assert 0.5 < comparison.ratio < 2
    assert comparison.ci95[0] < comparison.ratio < comparison.ci95[1]


@linux
@pytest.mark.parametrize("target", TARGETS)
def test_every_thread_is_bound_to_the_chosen_core(sums: dict[str, Artifact], children: Children, target: str) -> None:
    cpus = choose_cpus(1)
    allowed: set[str] = set()

    def look(what: str, done: int, total: int) -> None:
        if what.startswith("measuring"):
            for pid in children():
                for task in Path(f"/proc/{pid}/task").iterdir():
                    lines = (task / "status").read_text().splitlines()
                    allowed.update(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))

    quick([sums[target]], on_step=look)
    assert allowed == {str(cpus[0])}


@linux
def test_a_disturbed_measurement_is_called_unstable_with_the_cause(sums: dict[str, Artifact]) -> None:
    busy = f"import os\nos.sched_setaffinity(0, {set(choose_cpus(1))})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as neighbour:
        try:
            (result,) = quick([sums["onnx"]], min_secs=0.3).results
        finally:
            neighbour.kill()
    (warning,) = result.warnings
    assert warning.startswith("unstable: the coefficient of variation is ")
    assert "other processes took the core" in warning or "the virtual machine waited" in warning


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_the_thread_pool_of_executorch_has_as_many_threads_as_asked(sums: dict[str, Artifact]) -> None:
    code = (
        "import sys; from edgekit.artifacts import load_artifact; from edgekit.targets import TARGETS\n"
        "a = load_artifact(sys.argv[1]); m = a.manifest\n"
        "from executorch.extension.pybindings import portable_lib\n"
        "for n in (1, 2):\n"
        "    TARGETS['executorch'].runner(a.model_path, m.inputs, m.outputs, threads=n)\n"
        "    print(portable_lib._threadpool_get_thread_count())\n"
    )
    command = [sys.executable, "-c", code, str(sums["executorch"].path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["1", "2"]


def test_cores_are_refused_where_there_are_too_few() -> None:
    with pytest.raises(BadInput, match="from 1 to"):
        choose_cpus(4097)


# ------------------------------------------------------------------------------------------ what goes wrong


@linux
@pytest.mark.parametrize("target", TARGETS)
def test_a_corrupted_model_is_a_clear_error_and_leaves_no_process(
    sums: dict[str, Artifact], changed: Changer, children: Children, target: str
) -> None:
    broken = changed(target, lambda data: data[: len(data) // 2])
    with pytest.raises(EdgekitError) as caught:
        quick([sums[target], broken])
    assert str(broken.path) in str(caught.value)
    assert isinstance(caught.value, ArtifactDamaged) or "ended" in caught.value.message
    assert children() == []


@linux
@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "was ended by SIGKILL while"), (signal.SIGSTOP, "did not answer for")]
)
def test_a_worker_that_dies_or_hangs_is_named_and_leaves_no_process(
    sums: dict[str, Artifact], children: Children, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    struck: list[int] = []

    def strike(what: str, done: int, total: int) -> None:
        if what.startswith("measuring") and not struck:
            if number == signal.SIGSTOP:
                monkeypatch.setattr(sessions, "PATIENCE_SECS", 2.0)
            struck.append(children()[0])
            os.kill(struck[0], number)

    with pytest.raises(EdgekitError, match=words) as caught:
        quick([sums["onnx"], sums["onnx"]], on_step=strike)
    assert str(sums["onnx"].path) in caught.value.message
    assert struck
    assert children() == []


@linux
def test_workers_end_with_a_killed_parent(sums: dict[str, Artifact]) -> None:
    arguments = ("profile", sums["onnx"].path, sums["onnx"].path, "--min-secs", "600")
    with subprocess.Popen(process(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        try:
            lists = Path(f"/proc/{parent.pid}/task")
            workers = wait_for(lambda: [p for f in lists.glob("*/children") for p in f.read_text().split()])
        finally:
            parent.kill()
    wait_for(lambda: not any(alive(pid) for pid in workers))


def alive(pid: str) -> bool:
    """Whether a process runs; one that waits to be buried by a parent that does not care is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Core ML")
def test_core_ml_is_not_measured_where_it_is_not(sums: dict[str, Artifact]) -> None:
    onnx = sums["onnx"]
    with pytest.raises(EnvironmentProblem, match="on a Mac or a phone"):
        quick([replace(onnx, manifest=replace(onnx.manifest, target="coreml"))])


def test_nothing_to_measure_is_refused(sums: dict[str, Artifact]) -> None:
    with pytest.raises(BadInput, match="no artifact"):
        quick([])
    for wrong in ({"num_runs": 0}, {"warmup_runs": -1}, {"min_secs": -1.0}, {"min_secs": float("inf")}):
        with pytest.raises(BadInput, match="no measurement"):
            quick([sums["onnx"]], **wrong)


# ------------------------------------------------------------------------------------------ why int8 is not faster


def between_pairs(data: bytes) -> bytes:
    """An ONNX model in which each ReLU comes six times, each time behind quantize and dequantize ops of its own."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(data)
    graph = model.graph
    constants = {"scale": np.float32(0.02), "zero": np.uint8(128)}
    graph.initializer.extend(numpy_helper.from_array(np.array(v), name) for name, v in constants.items())
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "Relu":
            continue
        last = node.output[0]
        node.output[0] = f"{last}.0"
        for n in range(6):
            q, dq, relu = f"{last}.q{n}", f"{last}.dq{n}", f"{last}.{n + 1}"
            nodes += [
                helper.make_node("QuantizeLinear", [f"{last}.{n}", "scale", "zero"], [q]),
                helper.make_node("DequantizeLinear", [q, "scale", "zero"], [dq]),
                helper.make_node("Relu", [dq], [relu if n < 5 else last]),
            ]
    made = helper.make_graph(nodes, graph.name, graph.input, graph.output, graph.initializer)
    graph.CopyFrom(made)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_pairs_that_onnx_runtime_cannot_fuse_are_the_cause(changed: Changer, sums: dict[str, Artifact]) -> None:
    slow = changed("onnx", between_pairs, precision="int8")
    result = quick([sums["onnx"], slow], min_secs=0.3)
    (warning,) = (w for w in result.results[1].warnings if w.startswith("int8 is"))
    head, *causes = warning.split("\n  ")
    assert head.startswith("int8 is slower than fp32")
    assert causes[0].startswith("11 quantize and 11 dequantize ops are left inside the model")
    assert "12 x Relu is computed in float between a dequantize and a quantize: not fused" in causes
    assert "2 x Conv is still computed in float" in causes
    assert not any(w.startswith("int8") for w in result.results[0].warnings)
    reverse = quick([slow, sums["onnx"]], min_secs=0.3)
    assert any(w.startswith("int8 is slower") for w in reverse.results[0].warnings)


def quantized(data: bytes) -> bytes:
    """The convolutions and the linear in int8 as ONNX Runtime's own tool does it, calibrated on noise."""
    from onnxruntime import quantization

    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(data)
        samples = iter([{"image": np.random.default_rng(n).normal(size=(1, 3, 64, 64)).astype("f")} for n in range(2)])

        class Reader(quantization.CalibrationDataReader):
            def get_next(self) -> Any:
                return next(samples, None)

        quantization.quantize_static(source, target, Reader(), op_types_to_quantize=["Conv", "Relu"], per_channel=True)
        return target.read_bytes()


def test_what_onnx_runtime_fuses_is_no_cause(changed: Changer) -> None:
    causes = slow_causes(changed("onnx", quantized, precision="int8"))
    assert not any("Conv" in cause or "Relu" in cause for cause in causes), causes
    # Cumulative sum and head are left in float on purpose.
    assert any(cause.startswith("1 quantize and 1 dequantize ops are left") for cause in causes), causes


def quantized_convolutions(data: bytes) -> bytes:
    """A LiteRT model whose convolutions are int8 and whose other ops are float, calibrated on noise."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer

    ((signature, names),) = Interpreter(model_content=data).get_signature_list().items()
    images = [{names["inputs"][0]: np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("f")}]
    tool = quantizer.Quantizer(bytearray(data))
    tool.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.CONV_2D,
        op_config=qtyping.OpQuantizationConfig(
            activation_tensor_config=qtyping.TensorQuantizationConfig(num_bits=8, symmetric=False),
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=8, symmetric=True),
            compute_precision=qtyping.ComputePrecision.INTEGER,
        ),
    )
    return bytes(tool.quantize(tool.calibrate({signature: images})).quantized_model)


@pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`")  # by the calibration
def test_pairs_inside_a_litert_model_are_a_cause(changed: Changer, sums: dict[str, Artifact]) -> None:
    pairs = "1 quantize and 1 dequantize ops are left inside the model"
    assert not any(cause.startswith(pairs) for cause in slow_causes(sums["tflite"]))
    assert any(c.startswith(pairs) for c in slow_causes(changed("tflite", quantized_convolutions, precision="int8")))


def test_an_int8_artifact_that_is_surely_faster_gets_no_warning(sums: dict[str, Artifact]) -> None:
    gain = Comparison(a="fp32", b="int8", ratio=0.6, ci95=(0.55, 0.66))
    assert not_faster(sums["onnx"], gain) == ""
    doubt = not_faster(sums["onnx"], replace(gain, ratio=0.97, ci95=(0.93, 1.01)))
    assert doubt.startswith("int8 is not measurably faster than fp32: it takes 0.97 (0.93-1.01) of the time of fp32")
    assert not_faster(sums["onnx"], replace(gain, ratio=1.3, ci95=(1.2, 1.4))).startswith("int8 is slower than fp32")


def test_ops_outside_the_delegate_are_a_cause(sums: dict[str, Artifact]) -> None:
    outside, entered = slow_causes(sums["executorch"])
    assert outside.startswith("1 x aten.cumsum runs outside XNNPACK: ")
    assert entered == "XNNPACK is entered 2 times in a run, each with copies"


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def light() -> tuple[str, ...]:
    return ("--num-runs", "20", "--warmup-runs", "1", "--min-secs", "0")


def test_the_table_has_a_row_an_artifact(cli: Cli, sums: dict[str, Artifact], light: tuple[str, ...]) -> None:
    result = cli("profile", sums["onnx"].path, sums["tflite"].path, *light)
    assert result.code == 0, result.err
    rows = [line for line in result.out.splitlines() if str(sums["onnx"].path.parent) in line]
    assert [Path(row.split()[0]) for row in rows] == [sums["onnx"].path, sums["tflite"].path]
    assert rows[0].split()[-1] == "1"
    assert rows[1].rstrip().endswith(")")
    assert "p50 ms" in result.out
    assert "in the clock: one call" in result.out


def test_json_is_one_document_and_the_file_the_same(
    cli: Cli, sums: dict[str, Artifact], light: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "profile.json"
    result = cli("profile", sums["onnx"].path, *light, "--json", "-o", out)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document == json.loads(out.read_text(encoding="utf-8"))
    assert next(iter(document)) == "schema"
    assert document["comparisons"] == []
    (measured,) = document["results"]
    contract = "artifact sha256 device threads protocol load_ms first_ms latency_us mean_ms p50_ms p90_ms p95_ms"
    assert set(f"{contract} p99_ms std_ms cv peak_memory_mib warnings".split()) <= set(measured)
    assert len(measured["latency_us"]) == 20
    again = cli("profile", sums["onnx"].path, *light, "-o", out)
    assert again.code == 2
    assert "--force" in again.err
    assert json.loads(out.read_text(encoding="utf-8")) == document
    assert cli("profile", sums["onnx"].path, *light, "-o", out, "--force").code == 0
    assert json.loads(out.read_text(encoding="utf-8")) != document
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "toaster"), "Known: adb, host"),
        (("--threads", "4097"), "Type a number from 1 to"),
        (("-o", "/nowhere/at/all.json"), "a folder that exists"),
    ],
)
def test_what_is_not_possible_is_said(
    cli: Cli, sums: dict[str, Artifact], arguments: tuple[str, ...], words: str
) -> None:
    result = cli("profile", sums["onnx"].path, *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_exit_codes_say_whose_fault_it_is(cli: Cli, changed: Changer, tmp_path: Path) -> None:
    assert cli("profile", tmp_path / "nothing").code == 2
    apple = changed("onnx", bytes, target="coreml")
    result = cli("profile", apple.path)
    assert result.code == (2 if sys.platform == "darwin" else 3)
    assert "Traceback" not in result.err
