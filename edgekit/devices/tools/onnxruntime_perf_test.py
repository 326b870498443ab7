"""ONNX Runtime's onnxruntime_perf_test. It runs once before the clock starts, and reports that run apart.

Its result file has every run, which its output has only beside verbose logs. The mean is in milliseconds, percentiles
are in seconds, memory in bytes.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from edgekit.devices._base import Figures
from edgekit.devices.tools._base import MIB, NUMBER, WARMUP_RUNS, Ask, Report, Tool, find, lines_of, number

_RESULT = "perf_test.csv"
_TRACE = "trace"
_ROW = re.compile(rf"^[^,]*,\s*{NUMBER}\s*,\s*(\d+)\s*,\s*-?\d+\s*,\s*(\d+)\s*$")
_LATENCY = rf"^\s*NAME Latency(?::| is)\s*{NUMBER}\s*s(?:ec)?\b"
_CPU = ("", "cpu")


class OnnxruntimePerfTest(Tool):
    name = "onnxruntime_perf_test"
    target = "onnx"
    built = "it is built with ONNX Runtime from its sources (build.py --android), and is in no package"

    def named(self, binary: str, help_text: str) -> bool:
        if help_text:
            return "repeated_times" in help_text or "perf_test [options" in help_text
        return "onnxruntime_perf_test" in binary

    def command(self, binary: str, ask: Ask) -> list[str]:
        # Without -m times it runs for ten minutes, without -I it wants inputs as protobuf files.
        runs = 1 if ask.cold else WARMUP_RUNS + ask.runs
        command = [binary, "-m", "times", "-r", str(runs), "-I", "-s", "-o", "99"]
        if ask.threads:
            command += ["-x", str(ask.threads), "-y", "1"]
        if _provider(ask.extra) is None:
            command += ["-e", "cpu"]
        if ask.trace:
            command += ["-p", _TRACE]
        return [*command, *ask.extra, ask.model, _RESULT]

    def files(self) -> tuple[str, ...]:
        return (_RESULT,)

    def trace_file(self) -> str:
        return f"{_TRACE}*.json"

    def parse(self, text: str, ask: Ask) -> Report:
        lines = lines_of(text)
        rows = [match for line in lines if (match := _ROW.match(line))]
        secs = [value for row in rows if (value := number(row[1])) is not None]
        if not secs:
            secs = [
                v for line in lines if (v := find(r"^iteration:\d+,\s*time_cost:\s*NUMBER\s*$", [line])) is not None
            ]
        peak = find(r"Peak working set size:\s*NUMBER", lines)
        load = find(r"Session creation time cost:\s*NUMBER\s*s", lines)
        return Report(
            runtime="ONNX Runtime (onnxruntime_perf_test)",
            load_ms=None if load is None else load * 1e3,
            first_ms=find(r"First inference time cost:\s*NUMBER\s*ms", lines),
            figures=_figures(lines),
            us=tuple(value * 1e6 for value in secs),
            peak_mib=(peak or 0.0) / MIB,
            warnings=tuple(_placement(text, ask.extra)),
        )

    def failure(self, text: str) -> tuple[str, str] | None:
        if ("unknown" in text.lower() and "provider" in text.lower()) or "is not supported in this build" in text:
            return "it was built without that execution provider", "Leave -e out of --runner-args to use the CPU."
        if "disable_cpu_ep_fallback" in text or "fallback to CPU EP has been explicitly disabled" in text:
            return (
                "the execution provider does not take the whole model, and the CPU was ruled out",
                "Leave session.disable_cpu_ep_fallback out to measure both together.",
            )
        for pattern in (
            r"Run failed:\s*(\S.{0,300})",
            r"(Load model from .{0,300})",
            r"(input path is not a valid model)",
        ):
            if match := re.search(pattern, text):
                return match[1].strip(), "Check the artifact with `edgekit verify`; is the binary older than the model?"
        if "[options...] model_path" in text:
            return "it does not know one of its options", "Compare --runner-args with what its -h lists."
        return None


def _figures(lines: Sequence[str]) -> Figures | None:
    """Old and new spelling alike. Newer versions say of the mean that it is of the total."""
    mean = find(r"Average (?:inference )?time cost(?: total)?:\s*NUMBER\s*ms", lines)
    runs = find(r"(?:Total inference requests|Total iterations|^Runs):\s*NUMBER", lines)
    if mean is None or not runs:
        return None
    ms = {
        name: None if (secs := find(_LATENCY.replace("NAME", name), lines)) is None else secs * 1e3
        for name in ("Min", "Max", "P50", "P90", "P95", "P99")
    }
    return Figures(
        runs=int(min(runs, 1e9)),
        mean_ms=mean,
        min_ms=ms["Min"],
        p50_ms=ms["P50"],
        p90_ms=ms["P90"],
        p95_ms=ms["P95"],
        p99_ms=ms["P99"],
        max_ms=ms["Max"],
    )


def _provider(extra: Sequence[str]) -> str | None:
    """The execution provider that the user's arguments ask for (`-e qnn`, `-eqnn`)."""
    for argument, following in zip_longest(extra, extra[1:], fillvalue=""):
        if argument == "-e":
            return following
        if argument.startswith("-e") and not argument.startswith("--"):
            return argument[2:]
    return None


def _placement(text: str, extra: Sequence[str]) -> Iterator[str]:
    """The warning where an accelerator was asked for and nothing shows that it took the model."""
    provider = (_provider(extra) or "").lower()
    if provider in _CPU or any("disable_cpu_ep_fallback|1" in argument for argument in extra):
        return
    if re.search(r"All nodes placed on \[CPUExecutionProvider\]", text):
        yield f"not a latency of {provider}: the log says that all nodes were placed on the CPU"
    elif not re.search(rf"All nodes placed on \[{re.escape(provider)}\w*ExecutionProvider\]", text, re.I):
        yield (
            f"-e {provider} was asked for, and nothing in the output shows that it took the model: this may be a CPU "
            'latency; with --runner-args "-C session.disable_cpu_ep_fallback|1" it fails instead, and --per-op shows '
            "which nodes it took"
        )
