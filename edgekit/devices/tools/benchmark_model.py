"""TFLite's benchmark_model, and LiteRT's benchmark_litert_model, which is also shipped under that name.

Units differ by line: a session's start is in milliseconds, statistics in microseconds, memory in MiB (called MB).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgekit.devices._base import Figures
from edgekit.devices.tools._base import (
    WARMUP_RUNS,
    WARMUP_SECS,
    Ask,
    Report,
    Tool,
    find,
    lines_of,
    number,
)
from edgekit.types.profile import OperatorTime

_MAX_SECS = 150.0
"""The tool's own limit, at which it stops short of what was asked."""
_FAILURES = {
    "Failed to apply GPU delegate": ("the GPU delegate could not be applied", "Leave --use_gpu out to use the CPU."),
    "Disallowed CPU fallback detected": (
        "the delegate does not take the whole model, which --require_full_delegation demands",
        "Leave that option out, or see with `edgekit inspect` which operators stay outside.",
    ),
    "Failed to load model": ("the model file cannot be loaded", "Is the binary older than the model? Export it again."),
    "Failed to initialize the interpreter": (
        "the interpreter cannot be started with this model",
        "Is the binary older than the model, or built without an operator that it has?",
    ),
    "Failed to allocate tensors": (
        "memory for the tensors cannot be had",
        "Free memory, or take a smaller image size.",
    ),
    "No inference runs were performed": ("it did not run the model", "Try without --runner-args."),
}
# What was asked for, and what its delegate is called in the runtime's own lines.
_ACCELERATORS = {
    "use_gpu": ("GPU", r"gpu|opencl|litert_cl|ml_?drift|webgpu"),
    "use_nnapi": ("NNAPI", r"nnapi"),
    "use_npu": ("NPU", r"npu|dispatch|qnn|neuron|edgetpu"),
    "use_hexagon": ("Hexagon", r"hexagon"),
    "use_coreml": ("Core ML", r"core_?ml"),
    "external_delegate_path": ("external delegate", r"external|delegate"),
    "stable_delegate_settings_file": ("stable delegate", r"stable|delegate"),
}
_STATISTICS = re.compile(r"(?<!Timings \(microseconds\): )\bcount=\S")
_BLOCK = "BENCHMARK RESULTS"


class BenchmarkModel(Tool):
    name = "benchmark_model"
    target = "tflite"
    built = "LiteRT's releases have it as benchmark_model for android_arm64; or build it with bazel from its sources"
    native_secs = True

    def named(self, binary: str, help_text: str) -> bool:
        if help_text:
            return "--graph" in help_text and "--num_runs" in help_text
        return "benchmark_model" in binary or "benchmark_litert_model" in binary

    def command(self, binary: str, ask: Ask) -> list[str]:
        runs, secs = (1, 0.0) if ask.cold else (ask.runs, ask.secs)
        command = [binary, f"--graph={ask.model}", f"--num_runs={runs}", f"--min_secs={secs:g}"]
        command += [f"--max_secs={max(_MAX_SECS, 2 * secs):g}"]
        if ask.threads:
            command += [f"--num_threads={ask.threads}"]
        if ask.cold:
            # A thread of its own looks at the memory: not beside what is timed.
            command += ["--warmup_runs=1", "--warmup_min_secs=0", "--report_peak_memory_footprint=true"]
        else:
            command += [f"--warmup_runs={WARMUP_RUNS}", f"--warmup_min_secs={WARMUP_SECS:g}"]
        if ask.trace:  # LiteRT's flavour has the other name
            profilers = [flag for flag in ("enable_op_profiling", "use_profiler") if flag in ask.flags]
            command += [f"--{flag}=true" for flag in profilers or ["enable_op_profiling"]]
        return [*command, *ask.extra]

    def parse(self, text: str, ask: Ask) -> Report:
        lines = lines_of(text)
        report = _litert(lines) if any(_BLOCK in line for line in lines) else _tflite(lines)
        return replace(report, operators=tuple(_operators(lines)), warnings=tuple(delegation(lines, ask.extra)))

    def failure(self, text: str) -> tuple[str, str] | None:
        for words, told in _FAILURES.items():
            if words in text:
                return told
        if match := re.search(r"Run failed: (\S.{0,200})", text):
            return f"the run failed: {match[1].strip()}", "Try without --runner-args."
        return None


def _values(line: str) -> dict[str, float]:
    """count=50 first=12 curr=13(all same) … as numbers; those that are none are left out."""
    pairs = ((key, number(value)) for key, value in re.findall(r"(\w+)=\s*([^\s=(]+)", line))
    return {key: value for key, value in pairs if value is not None}


def _tflite(lines: Sequence[str]) -> Report:
    """The lines of TFLite's flavour: the second line of statistics is that of the runs, the first of the warm-up."""
    stats = [
        _values(line) for line in lines if _STATISTICS.search(line) and "Timings" not in line and "Memory" not in line
    ]
    whole = next((line for line in lines if "Inference timings in us" in line), "")
    mean_us = find(r"Inference \(avg\):\s*NUMBER", [whole])
    figures = None
    # Where the output breaks off after the warm-up there is one line only, and it is not of the runs.
    if len(stats) > 1 and (runs := stats[1]).get("count"):
        mean_us = runs.get("avg", runs.get("curr", mean_us))
        if mean_us is not None:
            figures = Figures(
                runs=int(min(runs["count"], 1e9)),
                mean_ms=mean_us / 1e3,
                std_ms=_ms(runs, "std"),
                min_ms=_ms(runs, "min", "curr"),
                p50_ms=_ms(runs, "median"),
                p95_ms=_ms(runs, "p95"),
                max_ms=_ms(runs, "max", "curr"),
            )
    first_us = find(r"First inference:\s*NUMBER", [whole])
    if first_us is None and stats:
        first_us = stats[0].get("first", stats[0].get("curr"))
    init_us = find(r"\bInit:\s*NUMBER", [whole])
    peak = find(r"Overall peak memory footprint \(MB\).*:\s*NUMBER", lines) or 0.0
    grown = find(r"Memory footprint delta.*\boverall=\s*NUMBER", lines)
    return Report(
        runtime="TFLite (benchmark_model)",
        load_ms=find(r"Initialized session in\s*NUMBER\s*ms", lines) if init_us is None else init_us / 1e3,
        first_ms=None if first_us is None else first_us / 1e3,
        figures=figures,
        peak_mib=peak,
        before_mib=max(0.0, peak - grown) if peak and grown is not None else 0.0,
    )


def _ms(values: dict[str, float], *names: str) -> float | None:
    """The first of `names` that is there, of microseconds; where all runs are the same, `curr` is each of them."""
    us = next((values[n] for n in names if n in values), None)
    return None if us is None else us / 1e3


def _litert(lines: Sequence[str]) -> Report:
    """LiteRT's block: every figure in milliseconds, whether it says so or not, with two decimals."""
    start = next(n for n, line in enumerate(lines) if _BLOCK in line)
    block = lines[start:]
    mean = find(r"Inference \(avg\):\s*NUMBER\s*ms", block)
    runs = find(r"Inference \(avg\):.*\(\s*NUMBER\s*runs?\)", block)
    ms = {name: find(rf"Inference \({name}\):\s*NUMBER", block) for name in ("min", "max", "std", "median", "p95")}
    figures = None
    if mean is not None and runs:
        figures = Figures(
            runs=int(min(runs, 1e9)),
            mean_ms=mean,
            std_ms=ms["std"],
            min_ms=ms["min"],
            p50_ms=ms["median"],
            p95_ms=ms["p95"],
            max_ms=ms["max"],
        )
    peak = find(r"Peak memory:\s*NUMBER", block) or 0.0
    grown = find(r"Overall footprint:\s*NUMBER", block)
    return Report(
        runtime="LiteRT (benchmark_litert_model)",
        load_ms=find(r"Model initialization:\s*NUMBER", block),
        first_ms=find(r"Warmup \(first\):\s*NUMBER", block),
        figures=figures,
        peak_mib=peak,
        before_mib=max(0.0, peak - grown) if peak and grown is not None else 0.0,
    )


def delegation(lines: Sequence[str], extra: Sequence[str]) -> Iterator[str]:
    """What has to be said where an accelerator was asked for: it took only a part of the model, or nothing shows it."""
    unknown = " ".join(line.partition("Unconsumed cmdline flags:")[2] for line in lines if "Unconsumed" in line)
    for argument in extra:
        flag = argument.lstrip("-").partition("=")
        if f"--{flag[0]}" in unknown and flag[0] not in _ACCELERATORS:
            yield f"{argument} is no option of this benchmark_model: it was ignored"
        if flag[0] not in _ACCELERATORS or flag[2].lower() in ("false", "0"):
            continue
        name, pattern = _ACCELERATORS[flag[0]]
        if f"--{flag[0]}" in unknown:
            yield f"not a {name} latency: this benchmark_model was built without that delegate and ignored {argument}"
        elif text := _evidence(lines, name, pattern):
            yield from [text] if text != "whole" else []
        else:
            yield (
                f"{argument} was asked for, and nothing in the output shows that a {name} delegate took the model: "
                'this may be a CPU latency; with --runner-args "--require_full_delegation=true" it fails instead'
            )


def _evidence(lines: Sequence[str], name: str, pattern: str) -> str:
    """ "whole" where a delegate of that name took all, a warning where a part or nothing, "" where no line tells."""
    for line in lines:
        told = re.search(r"[Ee]xplicitly applied (.+?) delegate|Though (.+?) delegate is explicitly applied", line)
        replaced = re.search(r"Replacing (\d+) (?:out of (\d+) )?node\(s\) with delegate \(([^)]*)\)", line)
        if told and re.search(pattern, told[1] or told[2] or "", re.I):
            if "will not be executed" in line:
                return f"not a {name} latency: its delegate was applied and took no operator of the model"
            if "partially executed" in line:
                kernels = re.search(r"(\d+) delegate kernel", line)
                count = f" ({kernels[1]} pieces)" if kernels else ""
                return f"only a part of the model ran on the {name}{count}, the rest on the CPU"
            if "completely executed" in line:
                return "whole"
        elif replaced and re.search(pattern, replaced[3], re.I) and replaced[2]:
            if replaced[1] == replaced[2]:
                return "whole"
            share = f"{replaced[1]} of {replaced[2]} operators"
            return f"only a part of the model ran on the {name} ({share}), the rest on the CPU"
    accelerators = next((line for line in lines if re.search(r"\bAccelerators:", line)), "")
    if re.search(pattern, accelerators, re.I):
        if any(re.search(r"Fully accelerated:\s*True", line) for line in lines):
            return "whole"
        if any(re.search(r"Fully accelerated:\s*False", line) for line in lines):
            return f"only a part of the model ran on the {name}, the rest on the CPU"
    return ""


def _operators(lines: Sequence[str]) -> Iterator[OperatorTime]:
    """The table of the regular runs, in their order; the shares that it prints are off by 100 in some versions."""
    starts = [n for n, line in enumerate(lines) if "Operator-wise Profiling Info for Regular" in line]
    lines = lines[starts[-1] :] if starts else lines
    tables = [n for n, line in enumerate(lines) if "= Run Order =" in line]
    if not tables:
        return
    columns: list[str] = []
    for line in lines[tables[0] + 1 :]:
        cells = [cell.strip() for cell in line.split("\t")]
        if "[avg ms]" in cells:
            columns = cells
        elif columns and len(cells) == len(columns) and (ms := number(cells[columns.index("[avg ms]")])) is not None:
            # The first cell is empty: a row begins with a tab.
            op, name = cells[1], re.sub(r":\d+$", "", cells[-1]).strip("[]")
            yield OperatorTime(name=name, op=op, us=ms * 1e3, delegated="delegate" in op.lower())
        elif columns:
            return
