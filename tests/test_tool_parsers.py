"""Other people's runners: how they are started, and what is made of what they print, whole, old, damaged or none."""

import json
import random
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from edgekit.devices.tools import TOOLS, Place, Said, Tool, ToolSession, check_artifact, tool_of
from edgekit.devices.tools._base import Ask, Report, flags_of, no_figures
from edgekit.errors import DeviceError, UnknownName, Unsupported
from edgekit.types import Artifact

DATA = Path(__file__).parent / "data" / "tools"
ASK = Ask(model="model.tflite", runs=50, secs=1.0, threads=2)
BENCHMARK, EXECUTOR, PERF_TEST = TOOLS
OF_FILES = {"benchmark_model": BENCHMARK, "benchmark_litert": BENCHMARK, "litert-benchmark": BENCHMARK} | {
    "executor_runner": EXECUTOR,
    "onnxruntime_perf_test": PERF_TEST,
}
FILES = sorted(DATA.glob("*.txt"))


def text_of(name: str) -> str:
    return (DATA / f"{name}.txt").read_text(encoding="utf-8")


def tool_for(path: Path) -> Tool:
    return next(t for name, t in OF_FILES.items() if name in path.name)


def parsed(name: str, extra: Sequence[str] = ()) -> Report:
    return tool_for(Path(name)).parse(text_of(name), replace(ASK, extra=tuple(extra)))


# benchmark_model


def test_captured_benchmark_model() -> None:
    report = parsed("benchmark_model-2.14")
    lines = text_of("benchmark_model-2.14").splitlines()
    runs = [line for line in lines if "count=" in line][1]
    assert report.figures is not None
    assert f"count={report.figures.runs} " in runs
    assert f"avg={report.figures.mean_ms * 1e3:g} " in runs
    assert f"min={report.figures.min_ms * 1e3:g} max={report.figures.max_ms * 1e3:g} " in runs  # type: ignore[operator]
    assert report.figures.p50_ms is None  # 2.14 has no percentiles
    assert report.load_ms is not None
    assert report.first_ms is not None
    assert f"Init: {report.load_ms * 1e3:.0f}, First inference: {report.first_ms * 1e3:.0f}," in text_of(
        "benchmark_model-2.14"
    )
    assert 1 < report.before_mib < report.peak_mib < 100
    assert report.warnings == ()


def test_documented_benchmark_model_new_and_old() -> None:
    new = parsed("doc-benchmark_model-new")
    assert new.figures is not None
    assert (new.load_ms, new.first_ms, new.peak_mib, new.before_mib) == (11.237, 10.12, 10.5, 1.0)
    figures = new.figures
    assert (figures.runs, figures.mean_ms, figures.std_ms, figures.min_ms) == pytest.approx((335, 2.9629, 0.042, 2.861))
    assert (figures.p50_ms, figures.p95_ms, figures.max_ms) == pytest.approx((2.951, 3.04, 3.34))
    old = parsed("doc-benchmark_model-old")
    assert old.figures is not None
    assert (old.load_ms, old.first_ms, old.figures.runs, old.figures.mean_ms) == pytest.approx(
        (0.86, 130.4, 50, 79.732)
    )
    assert (old.figures.p50_ms, old.peak_mib) == (None, 0.0)


def test_a_single_run_and_runs_that_are_all_the_same() -> None:
    single = parsed("benchmark_model-2.14-single")
    assert single.figures is not None
    assert single.figures.runs == 1
    assert single.figures.min_ms == single.figures.mean_ms == single.figures.max_ms
    same = BENCHMARK.parse("count=3 curr=120\nINFO: count=50 curr=123(all same)\n", ASK).figures
    assert same is not None
    assert (same.runs, same.mean_ms, same.min_ms, same.max_ms) == (50, 0.123, 0.123, 0.123)


def test_only_the_warm_up_is_no_measurement() -> None:
    text = text_of("doc-benchmark_model-new")
    assert BENCHMARK.parse(text[: text.index("Running benchmark for at least 50")], ASK).figures is None


def test_both_litert_flavours() -> None:
    native = parsed("doc-benchmark_litert_model")
    assert native.figures is not None
    assert (native.runtime, native.load_ms, native.first_ms) == ("LiteRT (benchmark_litert_model)", 12.34, 9.87)
    assert (native.figures.runs, native.figures.mean_ms, native.figures.std_ms) == (340, 2.95, 0.05)
    assert (native.peak_mib, native.before_mib) == (10.5, 1.0)
    python = parsed("litert-benchmark-2.3")
    assert python.figures is not None
    assert python.figures.runs == 20
    assert f"Inference (median):    {python.figures.p50_ms:.2f} ms" in text_of("litert-benchmark-2.3")
    assert f"Inference (std):       {python.figures.std_ms:.2f} ms" in text_of("litert-benchmark-2.3")


def test_the_table_of_operators_is_that_of_the_regular_runs() -> None:
    operators = parsed("benchmark_model-2.14-operators").operators
    text = text_of("benchmark_model-2.14-operators")
    assert len(operators) == 25
    assert "25 nodes observed" in text
    assert operators[0].op != "AllocateTensors"
    assert not any(o.delegated for o in operators)
    mean = parsed("benchmark_model-2.14-operators").figures
    assert mean is not None
    assert 0.8 < sum(o.us for o in operators) / (mean.mean_ms * 1e3) < 1.2
    delegate = text.replace(f"{operators[0].op}\t", "TfLiteXNNPackDelegate\t")
    assert any(o.delegated for o in BENCHMARK.parse(delegate, ASK).operators)


def test_an_older_table_has_another_column() -> None:
    table = (
        "============================== Run Order ==============================\n"
        "\t   [node type]\t [start]\t [first]\t [avg ms]\t  [%]\t [cdf%]\t [mem KB]\t[times called]\t[Name]\n"
        "\t CONV_2D\t 0.000\t 4.269\t 4.212\t 0.107%\t 0.107%\t 0.000\t 0\t[conv]:0\n"
        "\t SOFTMAX\t 4.270\t 0.008\t 1.2e-2\t 0.000%\t 0.107%\t 0.000\t 0\t[prob]:1\n\n"
    )
    found = [(o.op, o.name, round(o.us, 3)) for o in BENCHMARK.parse(table, ASK).operators]
    assert found == [("CONV_2D", "conv", 4212.0), ("SOFTMAX", "prob", 12.0)]


GPU = ("--use_gpu=true",)
WHOLE = "Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate."
PART = WHOLE.replace("completely executed by the delegate", "partially executed by the delegate w/ 3 delegate kernels")
NOTHING = "Though GPU delegate is explicitly applied, the model graph will not be executed by the delegate."
REPLACED = "Replacing 60 out of 66 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 4 partitions."
NOT_SHOWN = "nothing in the output shows that a GPU delegate took the model"


@pytest.mark.parametrize(
    ("name", "change", "warning"),
    [
        ("doc-benchmark_model-gpu", ("", ""), ""),
        ("doc-benchmark_model-gpu", (WHOLE, PART), "only a part of the model ran on the GPU (3 pieces)"),
        (
            "doc-benchmark_model-gpu",
            (WHOLE, NOTHING),
            "not a GPU latency: its delegate was applied and took no operator",
        ),
        ("doc-benchmark_model-gpu", (WHOLE, REPLACED), "(60 of 66 operators), the rest on the CPU"),
        ("doc-benchmark_model-gpu", (WHOLE, WHOLE.replace("GPU", "XNNPACK")), NOT_SHOWN),
        ("doc-benchmark_model-new", ("", ""), NOT_SHOWN),
        ("benchmark_model-2.14-gpu-not-built", ("", ""), "was built without that delegate and ignored --use_gpu=true"),
        ("litert-benchmark-2.3", ("", ""), NOT_SHOWN),
        ("litert-benchmark-2.3", ("Accelerators:    CPU", "Accelerators:    GPU|CPU"), ""),
    ],
)
def test_gpu_is_believed_on_evidence_only(name: str, change: tuple[str, str], warning: str) -> None:
    text = text_of(name).replace(*change) if change[0] else text_of(name)
    warnings = BENCHMARK.parse(text, replace(ASK, extra=GPU)).warnings
    assert [warning in w for w in warnings] == ([True] if warning else []), warnings
    assert BENCHMARK.parse(text, replace(ASK, extra=("--use_gpu=false",))).warnings == ()


def test_an_option_that_the_tool_ignores_is_named() -> None:
    text = text_of("benchmark_model-2.14-gpu-not-built").replace("--use_gpu=true", "--num_treads=1")
    (warning,) = BENCHMARK.parse(text, replace(ASK, extra=("--num_treads=1",))).warnings
    assert warning == "--num_treads=1 is no option of this benchmark_model: it was ignored"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("benchmark_model-2.14-missing", "the model file cannot be loaded"),
        ("benchmark_model-2.14-damaged", "the model file cannot be loaded"),
        ("doc-executor_runner-no-kernel", "it has no kernel for aten::gelu.out"),
    ],
)
def test_failures_are_put_into_words(name: str, said: str) -> None:
    error = no_figures(tool_for(Path(name)), Said(code=1, text=text_of(name)))
    assert said in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("tool", "text", "said"),
    [
        (BENCHMARK, "ERROR: Failed to apply GPU delegate.", "the GPU delegate could not be applied"),
        (BENCHMARK, "ERROR: Disallowed CPU fallback detected.", "does not take the whole model"),
        (EXECUTOR, "Loading of method forward failed with status 0x20", "0x20, NotFound"),
        (EXECUTOR, "Execution of method forward failed with status 0x1\n", "0x01, Internal"),
        (EXECUTOR, "E x] Backend XnnpackBackend is not registered.", "built without the backend XnnpackBackend"),
        (EXECUTOR, "ERROR: unknown command line flag 'inputs'", "it has no option --inputs"),
        (PERF_TEST, "Run failed:Non-zero status code returned", "Non-zero status code"),
        (PERF_TEST, "perf_test [options...] model_path", "does not know one of its options"),
    ],
)
def test_known_failures(tool: Tool, text: str, said: str) -> None:
    assert said in no_figures(tool, Said(code=1, text=text)).message


def test_how_a_process_ended_is_told_apart() -> None:
    assert "segmentation fault" in no_figures(EXECUTOR, Said(code=139, text="")).message
    assert "memory runs out" in no_figures(EXECUTOR, Said(code=137, text="")).message
    cannot = no_figures(EXECUTOR, Said(code=126, text="Exec format error"))
    assert "cannot be started there" in cannot.message
    assert "architecture" in cannot.hint
    assert "no latency" in no_figures(EXECUTOR, Said(code=0, text="hello")).message


# executor_runner, onnxruntime_perf_test


def test_executor_runner_with_and_without_single_runs() -> None:
    new = parsed("doc-executor_runner-new")
    assert (new.load_ms, new.first_ms, len(new.us), new.us[1]) == (8.123, 6.014, 13, 3314.0)
    total = parsed("doc-executor_runner-total")
    assert (total.load_ms, total.us, total.executions, total.total_ms) == (None, (), 10, 32.101)


def test_perf_test_new_and_old() -> None:
    new = parsed("doc-onnxruntime_perf_test-new")
    assert new.figures is not None
    assert (new.load_ms, new.first_ms) == (217.932, 196.0)
    assert new.peak_mib == pytest.approx(271122432 / 2**20)
    assert (new.figures.runs, new.figures.mean_ms, new.figures.min_ms) == (5, 98.961997, 95.8204)
    assert (new.figures.p50_ms, new.figures.p99_ms) == (98.5103, 103.012)
    old = parsed("doc-onnxruntime_perf_test-old")
    assert old.figures is not None
    assert (old.figures.runs, old.figures.mean_ms, old.figures.p95_ms) == (1000, 58.8053, 60.5676)


def test_perf_test_has_its_single_runs_in_a_file_or_beside_logs() -> None:
    rows = "".join(f"model,{0.001 * n},271122432,11,{n - 1}\n" for n in range(1, 6))
    assert PERF_TEST.parse(rows, ASK).us == pytest.approx((1000, 2000, 3000, 4000, 5000))
    assert PERF_TEST.parse("iteration:1,time_cost:9.5e-05\n", ASK).us == pytest.approx((95,))


@pytest.mark.parametrize(
    ("extra", "text", "warnings"),
    [
        ((), "", 0),
        (("-e", "cpu"), "", 0),
        (("-e", "qnn"), "", 1),
        (("-eqnn",), "All nodes placed on [QNNExecutionProvider]. Number of nodes: 66", 0),
        (("-e", "nnapi"), "All nodes placed on [CPUExecutionProvider]. Number of nodes: 66", 1),
        (("-e", "qnn", "-C", "session.disable_cpu_ep_fallback|1"), "", 0),
    ],
)
def test_an_execution_provider_is_believed_on_evidence_only(extra: Sequence[str], text: str, warnings: int) -> None:
    assert len(PERF_TEST.parse(text, replace(ASK, extra=tuple(extra))).warnings) == warnings


# What a parser must survive


def damaged(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    whole = ["".join(lines[:n]) for n in range(0, len(lines), 1 + len(lines) // 40)]
    noise = random.Random(0)
    binary = bytes(noise.randrange(256) for _ in range(2000)).decode("utf-8", "replace")
    huge = text.replace("1", "9" * 4400)
    other = [
        text.replace("=", "= "),
        text.replace("=", "=nan "),
        text.replace(": ", ": -1e999 "),
        text.replace(" ", ""),
    ]
    shuffled = "".join(noise.sample(lines, len(lines)))
    return [
        *whole,
        text.replace("\n", "\r\n"),
        text[: len(text) // 2] + binary + text[len(text) // 2 :],
        huge,
        *other,
        shuffled,
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_damage_makes_a_parser_raise(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for case in damaged(text):
        for tool in TOOLS:
            report = tool.parse(case, replace(ASK, extra=("--use_gpu=true", "-e", "qnn")))
            assert all(np.isfinite(report.us))
            assert report.figures is None or np.isfinite(report.figures.mean_ms)
            assert no_figures(tool, Said(code=1, text=case)).message


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_windows_line_ends_and_prefixes_change_nothing(path: Path) -> None:
    text, tool = path.read_text(encoding="utf-8"), tool_for(path)
    assert tool.parse(text.replace("\n", "\r\n"), ASK) == tool.parse(text, ASK)
    assert tool.parse(text.replace("INFO: ", ""), ASK) == tool.parse(text, ASK)


# Which tool it is, and how it is started


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("benchmark_model", BENCHMARK),
        ("benchmark_model_plus_flex", BENCHMARK),
        ("android_aarch64_benchmark_model", BENCHMARK),
        ("benchmark_litert_model", BENCHMARK),
        ("executor_runner", EXECUTOR),
        ("xnn_executor_runner", EXECUTOR),
        ("onnxruntime_perf_test", PERF_TEST),
    ],
)
def test_a_tool_is_known_by_its_name(name: str, tool: Tool) -> None:
    def no_need() -> str:
        raise AssertionError("asked for help")

    assert tool_of(TOOLS, f"/some/where/{name}", no_need) is tool


def test_else_by_its_help() -> None:
    assert tool_of(TOOLS, "bm-v2", lambda: text_of("benchmark_model-2.14-help")) is BENCHMARK
    gflags = "    -model_path (Model serialized in flatbuffer format.)\n    -num_executions (Number of times)\n"
    assert tool_of(TOOLS, "et", lambda: gflags) is EXECUTOR
    assert tool_of(TOOLS, "p", lambda: "perf_test [options...] model_path [result_file]\n") is PERF_TEST
    with pytest.raises(UnknownName, match="unknown runner 'ls'"):
        tool_of(TOOLS, "/bin/ls", lambda: "Usage: ls [OPTION]... [FILE]...")


def test_options_are_read_from_the_help() -> None:
    assert {"graph", "num_runs", "enable_op_profiling"} <= flags_of(text_of("benchmark_model-2.14-help"))
    assert flags_of("") == frozenset()


def test_a_tool_takes_its_own_runtime_only() -> None:
    artifact = cast(Artifact, SimpleNamespace(path="x", manifest=SimpleNamespace(target="onnx")))
    check_artifact(PERF_TEST, artifact)
    with pytest.raises(Unsupported, match="benchmark_model runs artifacts of the target tflite; x is of onnx"):
        check_artifact(BENCHMARK, artifact)


def test_command_lines() -> None:
    ask = replace(ASK, extra=("--use_gpu=true",))
    command = BENCHMARK.command("./b", ask)
    assert command[0] == "./b"
    assert {"--num_runs=50", "--min_secs=1", "--num_threads=2", "--warmup_runs=10", "--warmup_min_secs=0.5"} <= {
        *command
    }
    assert command[-1] == "--use_gpu=true"  # the user's last, so that they win
    assert "--max_secs=240" in BENCHMARK.command("./b", replace(ASK, secs=120.0))
    assert "--num_executions=60" in EXECUTOR.command("./e", ASK)  # ten are thrown away
    with_flags = EXECUTOR.command("./e", replace(ASK, flags=frozenset({"inputs", "print_output"}), inputs=2))
    assert {"--inputs=input.0.0.bin,input.0.1.bin", "--print_output=none"} <= {*with_flags}
    assert not any("--inputs" in word for word in EXECUTOR.command("./e", ASK))
    perf = PERF_TEST.command("./p", ASK)
    assert perf[1:7] == ["-m", "times", "-r", "60", "-I", "-s"]
    assert perf[-2:] == ["model.tflite", "perf_test.csv"]
    assert "cpu" in perf
    assert PERF_TEST.command("./p", replace(ASK, extra=("-e", "qnn"))).count("-e") == 1


# Sessions


def session_of(
    tool: Tool, tmp_path: Path, answer: Callable[[list[str]], str], extra: Sequence[str] = ()
) -> ToolSession:
    """A session of a tool that answers with texts; every command is kept in `commands`."""
    spec = SimpleNamespace(name="y", shape=(1, 4), dtype="float32")
    manifest = SimpleNamespace(target=tool.target, inputs=(spec,), outputs=(spec,))
    artifact = cast(Artifact, SimpleNamespace(path=tmp_path, manifest=manifest))

    def execute(words: Sequence[str], secs: float) -> Said:
        return Said(code=0, text=answer(list(words)))

    def fetch(name: str) -> Path:
        found = sorted(tmp_path.glob(name))
        if not found:
            raise FileNotFoundError(name)
        return found[0]

    def put(name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)

    place = Place(binary="./tool", local=tmp_path, execute=execute, fetch=fetch, put=put)
    return ToolSession(artifact, tool, place, "model", 1, extra)


def test_a_session_of_benchmark_model(tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def answer(words: list[str]) -> str:
        commands.append(words)
        return text_of("benchmark_model-2.14-help" if "--help" in words else "doc-benchmark_model-new")

    session = session_of(BENCHMARK, tmp_path, answer, ["--use_gpu=true"])
    loaded = session.load()
    assert (loaded.load_ms, loaded.first_ms, loaded.runtime) == (11.237, 10.12, "TFLite (benchmark_model)")
    burst = session.run(50, 1.0, 1.0)
    assert burst.us == ()
    assert burst.figures is not None
    assert burst.figures.mean_ms == pytest.approx(2.9629)
    assert session.memory().peak_mib == 10.5
    (warning,) = session.warnings()  # once, however often it was started
    assert "nothing in the output shows that a GPU delegate took the model" in warning
    assert sum("--help" in c for c in commands) == 1
    with pytest.raises(Unsupported, match="does not give out what a model computes"):
        session.outputs([[np.zeros((1, 4), np.float32)]])


def test_a_session_of_executor_runner_throws_the_cold_runs_away(tmp_path: Path) -> None:
    def answer(words: list[str]) -> str:
        runs = next((int(w.partition("=")[2]) for w in words if w.startswith("--num_executions")), 0)
        lines = [f"I x] Iteration {n + 1} of {runs}: {9 if n < 10 else 2}.0 ms" for n in range(runs)]
        return "\n".join(["I x] Model loaded in 5.0 ms.", *lines])

    session = session_of(EXECUTOR, tmp_path, answer)
    assert session.load().first_ms == 9.0
    first = session.run(5, 0.1, 0.1)
    assert set(first.us) == {2000.0}
    assert sum(first.us) >= 0.9e5
    # Turns are compared in pairs: they have as many runs each.
    assert len(session.run(5, 0.1, 0.1).us) == len(first.us)


def test_of_a_bare_total_the_cold_runs_are_subtracted(tmp_path: Path) -> None:
    def answer(words: list[str]) -> str:
        runs = next((int(w.partition("=")[2]) for w in words if w.startswith("--num_executions")), 0)
        return (
            f"I x] Model executed successfully {runs} time(s) in {min(runs, 10) * 9.0 + max(0, runs - 10) * 2.0:f} ms."
        )

    session = session_of(EXECUTOR, tmp_path, answer)
    session.load()
    figures = session.run(20, 0.0, 0.1).figures
    assert figures is not None
    assert (figures.runs, figures.mean_ms) == (20, 2.0)
    assert any("how long loading takes" in w for w in session.warnings())


def test_outputs_and_traces_are_files(tmp_path: Path) -> None:
    def answer(words: list[str]) -> str:
        if "--help" in words:
            return "    -model_path x\n    -num_executions x\n    -inputs x\n    -output_file x\n"
        if "--output_file=output" in words:
            given = np.fromfile(tmp_path / next(w for w in words if "--inputs" in w).partition("=")[2], np.float32)
            (given * 2).tofile(tmp_path / "output-0.bin")
        return text_of("doc-executor_runner-new")

    session = session_of(EXECUTOR, tmp_path, answer)
    samples = [[np.full((1, 4), n, np.float32)] for n in range(2)]
    assert [float(outputs[0].sum()) for outputs in session.outputs(samples)] == [0.0, 8.0]
    with pytest.raises(Unsupported, match="wrote no profile of its operators"):
        session.trace(5)
    (tmp_path / "trace.etdp").write_bytes(b"etdump")
    assert session.trace(3)[0].read_bytes() == b"etdump"


def test_a_table_of_operators_becomes_a_trace(tmp_path: Path) -> None:
    session = session_of(BENCHMARK, tmp_path, lambda words: text_of("benchmark_model-2.14-operators"))
    path, whole_us = session.trace(3)
    events = json.loads(path.read_text(encoding="utf-8"))["events"]
    assert len(events) == 3 * (1 + 25)
    assert events[0][3] == round(whole_us)
    with pytest.raises(Unsupported, match="printed no table of operators"):
        session_of(BENCHMARK, tmp_path, lambda words: text_of("benchmark_model-2.14")).trace(3)


def test_no_latency_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    session = session_of(BENCHMARK, tmp_path, lambda words: "INFO: STARTING!\n\x00\x01 bye\n")
    with pytest.raises(DeviceError, match="printed no latency") as caught:
        session.load()
    assert "bye" in caught.value.hint


def test_a_real_program_as_a_tool(tmp_path: Path) -> None:
    """Through a real process: what the captured tool printed, printed again."""
    script = tmp_path / "benchmark_model"
    script.write_text(f'#!/bin/sh\ncat "{DATA}/benchmark_model-2.14.txt"\n', encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)

    def answer(words: list[str]) -> str:
        return subprocess.run([script, *words[1:]], capture_output=True, text=True, check=True).stdout

    burst = session_of(BENCHMARK, tmp_path, answer).run(50, 0.1, 1.0)
    assert burst.figures is not None
    assert burst.figures.mean_ms > 0
