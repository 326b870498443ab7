"""Times of operators: they add up to the whole, in the order of running, each with its line of the model."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from inspect import getsourcelines
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import edgekit
from edgekit.artifacts import SOURCES, hash_files, load_artifact, read_golden, read_sources, write_manifest
from edgekit.cli._operators import operator_lines, operator_table
from edgekit.devices import open_device
from edgekit.devices.board import litert_profiler, tracing
from edgekit.devices.board.runtimes import Failure
from edgekit.errors import ArtifactDamaged, BadInput, Unsupported
from edgekit.profiling.operators import read_operators
from edgekit.profiling.operators._means import OVERHEAD
from edgekit.profiling.operators.xnnpack import align
from edgekit.types import Artifact, ArtifactProfile, FileOp
from edgekit.types.profile import Operators, OperatorTime, Protocol

TARGETS = ("executorch", "tflite", "onnx")
PRECISIONS = ("fp32", "int8")
RUNS = 40
PRODUCTS = re.compile(r"Conv(?!ert)|CONV|Gemm|MatMul|FullyConnected|FULLY_CONNECTED")


class Sums(nn.Module):
    """Two convolutions around a cumulative sum, which XNNPACK does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=2)
        self.second = nn.Conv2d(32, 64, 3)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x.cumsum(1)
        x = self.second(x).relu()
        return self.head(x.mean((2, 3)))


def line(text: str) -> str:
    """`test_operators.py:12`, of the line of `Sums.forward` that has `text`."""
    lines, first = getsourcelines(Sums.forward)
    return f"{Path(__file__).name}:{first + next(n for n, code in enumerate(lines) if text in code)}"


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("sums")
    exported = edgekit.export(Sums().eval(), TARGETS, input_shape=[(1, 3, 192, 192)], out=out, verify=False)
    return {a.manifest.target: a for a in exported}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Artifact]:
    """MobileNetV1-0.25 by (target, precision)."""
    out = tmp_path_factory.mktemp("zoo")
    np.savez(out / "noise.npz", images=np.random.default_rng(0).integers(0, 256, (32, 160, 160, 3), np.uint8))
    made: dict[tuple[str, str], Artifact] = {}
    for precision in PRECISIONS:
        calibrated = {"calibration": out / "noise.npz", "num_calibration_samples": 4} if precision == "int8" else {}
        exported = edgekit.export(
            "mobilenet-v1-025", TARGETS, precision=precision, image_size=160, out=out, verify=False,
            compare_speed=False, **calibrated,
        )  # fmt: skip
        made |= {(a.manifest.target, precision): a for a in exported}
    return made


Profiler = Callable[[Artifact], tuple[Operators, Path]]


@pytest.fixture(scope="module")
def traced() -> dict[Path, tuple[float, bytes]]:
    """What `profiled` has measured: (microseconds of the whole, trace) by artifact."""
    return {}


@pytest.fixture
def profiled(traced: dict[Path, tuple[float, bytes]], tmp_path: Path) -> Profiler:
    """`profiled(artifact)`: its operators, and a trace of its own to read or to damage."""

    def profile(artifact: Artifact) -> tuple[Operators, Path]:
        if artifact.path not in traced:
            traced[artifact.path] = measured(artifact)
        (whole_us, content), trace = traced[artifact.path], tmp_path / f"trace.{artifact.manifest.target}"
        trace.write_bytes(content)
        return read_operators(artifact, trace, whole_us, RUNS), trace

    return profile


def measured(artifact: Artifact) -> tuple[float, bytes]:
    """As `profile` does it, in a process of its own; again where another one had the core between the operators."""
    with open_device("host").sessions([artifact], 1) as (session,):
        session.load()
        for _ in range(8):
            trace, whole_us = session.trace(RUNS)
            if 0.85 < read_operators(artifact, trace, whole_us, RUNS).sum_us / whole_us < 1.02:
                break
        return whole_us, trace.read_bytes()


# ------------------------------------------------------------------------------------------ real runtimes


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_operators_add_up_to_the_whole_in_the_order_of_the_model(
    zoo: dict[tuple[str, str], Artifact], profiled: Profiler, target: str, precision: str
) -> None:
    operators, _ = profiled(zoo[target, precision])
    assert 0.85 * operators.whole_us < operators.sum_us < 1.02 * operators.whole_us
    model = edgekit.create_model("mobilenet-v1-025")
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    products = [o for o in operators.operators if PRODUCTS.search(o.op)]
    assert [o.source.split()[-1] for o in products] == layers
    files = {path.name for path in Path(edgekit.__file__).parent.joinpath("models").glob("*.py")}
    for o in operators.operators:
        assert o.delegated
        assert o.op == OVERHEAD or o.source.split(":")[0] in files
    assert operators.outside_share == 0


@pytest.mark.parametrize("target", TARGETS)
def test_what_runs_outside_the_delegate_is_told_with_its_line(
    sums: dict[str, Artifact], profiled: Profiler, target: str
) -> None:
    operators, _ = profiled(sums[target])
    assert 0.85 * operators.whole_us < operators.sum_us < 1.02 * operators.whole_us
    rows = [o for o in operators.operators if o.us > 0.01 * operators.sum_us and o.op != OVERHEAD]
    places = [next(n for n, o in enumerate(operators.operators) if line(text) in o.source) for text in (
        "self.first", "cumsum", "self.second", "self.head",
    )]  # fmt: skip
    assert places == sorted(places)
    assert all(o.source.startswith("test_operators.py:") for o in rows)
    outside = [o for o in operators.operators if not o.delegated]
    if target == "onnx":  # its CPU runs everything
        assert outside == []
    else:
        sources = {o.source for o in outside}
        assert line("cumsum") in sources
        assert not sources & {f"{line('self.first')} first", f"{line('self.second')} second"}
        assert 0 < operators.outside_share < 1


def test_the_overhead_of_a_call_is_not_counted_twice(sums: dict[str, Artifact], profiled: Profiler) -> None:
    operators, _ = profiled(sums["executorch"])
    beyond = [o for o in operators.operators if o.op == OVERHEAD]
    assert len(beyond) == sums["executorch"].manifest.delegation.partitions == 2
    assert sum(o.us for o in beyond) < 0.3 * operators.sum_us


def test_what_was_traced_before_does_not_count(sums: dict[str, Artifact], profiled: Profiler) -> None:
    for target, artifact in sums.items():
        operators, trace = profiled(artifact)
        last = read_operators(artifact, trace, operators.whole_us, 1)
        assert [o.name for o in last.operators] == [o.name for o in operators.operators]
        with pytest.raises(BadInput, match="5000 runs"):
            read_operators(artifact, trace, operators.whole_us, 5000)
        assert last.sum_us != operators.sum_us, target


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_trace_cut_short_is_refused(sums: dict[str, Artifact], profiled: Profiler, target: str, keep: float) -> None:
    operators, trace = profiled(sums[target])
    content = trace.read_bytes()
    trace.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(BadInput, match="cannot be read as the profile of 40 runs"):
        read_operators(sums[target], trace, operators.whole_us, RUNS)


def test_an_etdump_without_its_size_in_front_is_the_same(sums: dict[str, Artifact], profiled: Profiler) -> None:
    operators, trace = profiled(sums["executorch"])
    trace.write_bytes(trace.read_bytes()[4:])
    assert read_operators(sums["executorch"], trace, operators.whole_us, RUNS) == operators


@pytest.mark.parametrize("target", TARGETS)
def test_an_artifact_without_sources_is_profiled_all_the_same(
    sums: dict[str, Artifact], tmp_path: Path, profiled: Profiler, target: str
) -> None:
    operators, trace = profiled(sums[target])
    folder = Path(copytree(sums[target].path, tmp_path / "old"))
    (folder / SOURCES).unlink()
    write_manifest(folder, replace(sums[target].manifest, files=hash_files(folder)))
    old = read_operators(load_artifact(folder), trace, operators.whole_us, RUNS)
    assert [(o.name, o.us) for o in old.operators if o.op != OVERHEAD and o.delegated] == [
        (o.name, o.us) for o in operators.operators if o.op != OVERHEAD and o.delegated
    ]
    assert {o.source for o in old.operators} == {""}
    assert old.outside_share == pytest.approx(operators.outside_share)


def test_sources_say_nothing_of_the_machine(sums: dict[str, Artifact]) -> None:
    for artifact in sums.values():
        text = (artifact.path / SOURCES).read_text()
        assert str(Path(__file__).parent) not in text
        assert len(text) < 4000
        assert all(op.source or op.inside for op in read_sources(artifact))


def test_damaged_sources_are_damage(sums: dict[str, Artifact], tmp_path: Path) -> None:
    folder = Path(copytree(sums["onnx"].path, tmp_path / "damaged"))
    (folder / SOURCES).write_text(json.dumps({"ops": [["a", "Conv", 7, []]], "sources": []}))
    write_manifest(folder, replace(sums["onnx"].manifest, files=hash_files(folder)))
    with pytest.raises(ArtifactDamaged):
        read_sources(load_artifact(folder))


def test_another_version_of_litert_is_not_called(
    sums: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litert_profiler, "version", lambda _: "2.9.9")
    artifact = sums["tflite"]
    with pytest.raises(Failure, match=r"2\.3\.0, and not from ai-edge-litert 2\.9\.9"):
        tracing.trace("tflite", artifact.model_path, read_golden(artifact)[0][0], 1, 1, tmp_path / "trace")


def test_core_ml_has_no_times_of_operators(sums: dict[str, Artifact], tmp_path: Path) -> None:
    apple = replace(sums["onnx"], manifest=replace(sums["onnx"].manifest, target="coreml"))
    with pytest.raises(Unsupported, match="no times of operators for coreml"):
        read_operators(apple, tmp_path / "trace", 1.0, 1)


# ------------------------------------------------------------------------------------------ which op a kernel was


@pytest.mark.parametrize(
    ("kernels", "ops", "places"),
    [
        (  # a clamp in the convolution, a reshape left out
            ["Convolution (NHWC, F32) IGEMM", "Fully Connected (NC, F32) GEMM #1"],
            ["XNNConv2d", "XNNClamp", "XNNStaticReshape", "XNNFullyConnected"],
            [0, 3],
        ),
        (  # a convolution of 1 x 1 is a product; depthwise ones are told apart
            ["Fully Connected (NC, F32) GEMM", "Convolution (NHWC, F32) DWConv", "Fully Connected (NC, F32) GEMM"],
            ["CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D"],
            [0, 1, 2],
        ),
        (["Convert (NC, F32, QD8)", "Fully Connected (NC, QD8, F32, QC8W) GEMM"], ["FULLY_CONNECTED"], [None, 0]),
        (["Copy (NC, X32)", "Copy (NC, X32)", "Add (ND)"], ["CONCATENATION", "ADD"], [0, 0, 1]),
        (["Square (NC)", "Multiply (ND)", "Abs (NC)"], ["LOGISTIC", "MUL", "MUL"], [1, 2, None]),
        (["Softmax (NC, F32)"], [], [None]),
    ],
)
def test_kernels_are_aligned_with_the_ops_of_the_file(
    kernels: list[str], ops: list[str], places: list[int | None]
) -> None:
    assert align(kernels, ops) == places


def test_alignment_of_a_thousand_ops_is_quick_and_exact() -> None:
    kinds = ["CONV_2D", "ADD", "MUL", "RESHAPE", "SOFTMAX"]
    ops = [kinds[(n * n + n // 7) % 5] for n in range(1500)]
    names = {
        "CONV_2D": "Convolution (NHWC, QS8) IGEMM",
        "ADD": "Add (ND)",
        "MUL": "Multiply (ND)",
        "SOFTMAX": "Softmax",
    }
    kept = [n for n, op in enumerate(ops) if op in names]
    assert [ops[p] for p in align([names[ops[n]] for n in kept], ops) if p is not None] == [ops[n] for n in kept]


# ------------------------------------------------------------------------------------------ as it is shown


def shown(rows: tuple[OperatorTime, ...], whole_us: float) -> ArtifactProfile:
    protocol = Protocol(warmup_runs=1, num_runs=1, min_secs=0, rounds=1, runs_per_round=1, clock="")
    figures = dict.fromkeys(("mean_ms", "std_ms", "cv", "min_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms"), 0.1)
    return ArtifactProfile(
        artifact="net", sha256="", name="net", target="tflite", precision="fp32", runtime="", device={}, threads=1,
        protocol=protocol, load_ms=None, first_ms=None, latency_us=(), p50_ms=0.1, peak_memory_mib=None,
        model_memory_mib=None, per_op=rows, per_op_whole_us=whole_us, **figures,
    )  # fmt: skip


def test_the_slowest_are_shown_and_the_rest_counted() -> None:
    rows = tuple(
        OperatorTime(name=f"op{n}", op="[b]CONV_2D", us=float(n), delegated=n % 4 > 0, source=f"net.py:{n} at.{n}")
        for n in range(25)
    )
    result = shown(rows, 320.0)
    console = Console(width=150, highlight=False)
    with console.capture() as captured:
        console.print(operator_table(result))
    lines = captured.get().splitlines()
    body = [text.split() for text in lines if "net.py" in text]
    assert [row[0] for row in body] == [str(n) for n in range(25, 5, -1)]
    assert body[0][1:5] == ["24.0", "8.0", "op24", "[b]CONV_2D"]
    assert "outside the delegate" in lines[4]
    assert lines[4].rstrip().endswith("net.py:24 at.24")
    assert re.search(r"10\.0 +3\.3 +5 more", captured.get())
    first, second, third = operator_lines(result)
    assert first == "28.0 % of the time is spent outside the delegate"
    assert second.startswith("sum of operators 300 µs of 320 µs whole (94 %), 0 % of it")
    assert third.startswith("profiled runs took 3.20 times the p50 of 0.100 ms")


def test_ops_of_a_file_keep_their_sources(sums: dict[str, Artifact]) -> None:
    ops = read_sources(sums["executorch"])
    assert [op.op for op in ops if not op.inside] != []
    conv = next(o for o in ops[0].inside if o.op == "XNNConv2d")
    assert conv == FileOp(name=conv.name, op="XNNConv2d", source=f"{line('self.first')} first")
