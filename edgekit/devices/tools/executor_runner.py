"""ExecuTorch's executor_runner. It does not warm up, and only recent versions time each run."""

import re

from edgekit.devices.tools._base import WARMUP_RUNS, Ask, Report, Tool, find, lines_of, number

_CODES = {
    0x01: ("Internal", "XNNPACK does not start where /proc/cpuinfo or /sys cannot be read."),
    0x02: ("InvalidState", ""),
    0x03: ("EndOfMethod", ""),
    0x10: ("NotSupported", ""),
    0x11: ("NotImplemented", ""),
    0x12: ("InvalidArgument", "Were the model and the runner made by the same version of ExecuTorch?"),
    0x13: ("InvalidType", ""),
    0x14: ("OperatorMissing", "Build executor_runner with the kernels that the model needs (optimized, quantized)."),
    0x20: ("NotFound", "Most often a backend that was not linked: build executor_runner with it (XNNPACK)."),
    0x21: ("MemoryAllocationFailed", "Free memory on the device, or export a smaller image size."),
    0x22: ("AccessFailed", "The file cannot be read; measure again."),
    0x23: ("InvalidProgram", "The file is damaged, or of another version of ExecuTorch: export it again."),
    0x30: ("DelegateInvalidCompatibility", "Export the model again with the version that built executor_runner."),
    0x31: ("DelegateMemoryAllocationFailed", "Free memory on the device, or export a smaller image size."),
    0x32: ("DelegateInvalidHandle", ""),
}
_TRACE = "trace.etdp"
_OTHER_RUNNER = "Without --runner, edgekit's own runner is used, which has these."


class ExecutorRunner(Tool):
    name = "executor_runner"
    target = "executorch"
    reads_inputs = True
    built = "it is built with CMake from ExecuTorch's sources, with the NDK for a phone"

    def named(self, binary: str, help_text: str) -> bool:
        if help_text:
            return "model_path" in help_text and ("num_executions" in help_text or "executor_runner" in help_text)
        return "executor_runner" in binary or "xnn_executor" in binary

    def command(self, binary: str, ask: Ask) -> list[str]:
        # A version that lists no options, or not this one, would end because of it.
        has = (ask.flags or {"num_executions"}).__contains__
        runs = 1 if ask.cold else WARMUP_RUNS + ask.runs
        command = [binary, f"--model_path={ask.model}", f"--num_executions={runs}"]
        if has("inputs"):
            command += ["--inputs=" + ",".join(f"input.0.{n}.bin" for n in range(ask.inputs))]
        if has("print_output"):
            command += ["--print_output=none"]
        if ask.threads and has("cpu_threads"):
            command += [f"--cpu_threads={ask.threads}"]
        if ask.trace:
            command += [f"--etdump_path={_TRACE}"]
        return [*command, *ask.extra]

    def outputs_command(self, binary: str, ask: Ask, sample: int) -> list[str]:
        if not {"inputs", "output_file"} <= ask.flags:
            return super().outputs_command(binary, ask, sample)
        inputs = ",".join(f"input.{sample}.{n}.bin" for n in range(ask.inputs))
        return [binary, f"--model_path={ask.model}", f"--inputs={inputs}", "--output_file=output", *ask.extra]

    def trace_file(self) -> str:
        return _TRACE

    def parse(self, text: str, ask: Ask) -> Report:
        lines = lines_of(text)
        found = (re.search(r"Iteration (\d+) of \d+:\s*(\S+)\s*ms", line) for line in lines)
        ms = [value for match in found if match and (value := number(match[2])) is not None]
        total = executions = None
        for line in lines:
            if match := re.search(r"executed successfully\s*(?:(\d+) time\(s\) in (\S+) ms)?", line):
                executions, total = number(match[1] or ""), number(match[2] or "")
        once = total if executions == 1 else None
        return Report(
            runtime="ExecuTorch (executor_runner)",
            load_ms=find(r"Model loaded in\s*NUMBER\s*ms", lines),
            first_ms=ms[0] if ms else once,
            us=tuple(value * 1e3 for value in ms),
            executions=int(min(executions or 0, 1e9)),
            total_ms=total,
            warnings=()
            if not ask.flags or "inputs" in ask.flags
            else ("this executor_runner takes no inputs: it measured the model on ones, not on a photo",),
        )

    def failure(self, text: str) -> tuple[str, str] | None:
        if match := re.search(r"[Mm]issing operator: \[\d+\] (\S+)|kernel '([^'\s]+)' not found", text):
            return f"it has no kernel for {match[1] or match[2]}", f"{_CODES[0x14][1]} {_OTHER_RUNNER}"
        if match := re.search(r"Backend (\S+) is not (?:registered|available)", text):
            return f"it was built without the backend {match[1]}", f"Build it with that backend. {_OTHER_RUNNER}"
        if match := re.search(r"unknown command line flag '([^'\s]+)'", text):
            return f"it has no option --{match[1]}", "Leave it out of --runner-args, or bring a newer binary."
        for line in lines_of(text):
            if match := re.search(r"(?:failed with(?: status)?|error:?|:) 0x([0-9a-fA-F]{1,4})\b", line[:400]):
                code = int(match[1], 16)
                name, advice = _CODES.get(code, ("an unknown error", ""))
                what = line[: match.start()].rpartition("] ")[2].strip() or "it"
                return f"{what} failed with ExecuTorch's error 0x{code:02x}, {name}", advice or _OTHER_RUNNER
        return None
