"""A tool as a session: every turn starts it anew, so that it loads the model and warms up each time."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.devices._base import Arrays, Burst, Figures, LoadTimes, Memory, Session
from edgekit.devices.sessions import sample_files
from edgekit.devices.tools._base import WARMUP_RUNS, WARMUP_SECS, Ask, Place, Report, Said, Tool, flags_of, no_figures
from edgekit.errors import DeviceError, Unsupported
from edgekit.types import Artifact

START_SECS, PATIENCE = 60.0, 10.0
"""How long loading may take; and how many times longer than expected a turn."""
_TRIES = 3
"""So often a tool that counts runs, not seconds, is started for a turn that should last so many seconds."""
_HELP_SECS = 20.0
_RUN, _OPERATOR, _INSIDE = 1, 2, 8
"""Kinds of events of LiteRT's profiler: the run, an operator of its own, one inside a delegate."""


class ToolSession(Session):
    """An artifact run by somebody else's program; every method raises `DeviceError` where that does not end well."""

    restarts = True
    input = "what the tool makes up"

    def __init__(
        self, artifact: Artifact, tool: Tool, place: Place, model: str, threads: int, extra: Sequence[str]
    ) -> None:
        self.artifact, self._tool, self._place, self._model = artifact, tool, place, model
        self._threads, self._extra = threads, tuple(extra)
        self._flags: frozenset[str] | None = None
        self._cold: Report | None = None
        self._warnings: list[str] = []
        self._one_ms = 0.0
        self._sizes: dict[tuple[int, float], int] = {}

    def load(self) -> LoadTimes:
        report, said = self._start(self._ask(runs=1, secs=0.0, cold=True), START_SECS)
        first = report.first_ms if report.first_ms is not None else _mean(report)
        if first is None:
            raise no_figures(self._tool, said)
        if self._tool.reads_inputs and "inputs" in (self._flags or ()):
            self.input = Session.input
        self._cold, self._one_ms = report, max(first, 1e-3)
        if report.load_ms is None:
            self._warn(f"this version of {self._tool.name} does not say how long loading takes")
        return LoadTimes(load_ms=report.load_ms, first_ms=first, runtime=report.runtime)

    def run(self, runs: int, secs: float, expected_secs: float) -> Burst:
        """Single runs, where it prints them, are as many in every turn that asks for the same."""
        size = self._sizes.get((runs, secs), 0)
        taken: list[float] = []
        for _ in range(_TRIES):
            ask = self._ask(runs=size or self._wanted(runs, secs, taken), secs=secs)
            report, said = self._start(ask, START_SECS + PATIENCE * (expected_secs + secs + WARMUP_SECS))
            if not report.us:
                return Burst(us=(), figures=self._figures(report, said))
            taken += report.us[WARMUP_RUNS:]
            if taken:
                self._one_ms = max(float(np.mean(taken)) / 1e3, 1e-3)
            if len(taken) >= (size or runs) and (size or sum(taken) >= 0.9e6 * secs):
                break
        size = size or len(taken)
        if not size or len(taken) < max(size, runs):
            raise no_figures(self._tool, said)
        self._sizes[runs, secs] = size
        return Burst(us=tuple(taken[:size]))

    def _wanted(self, runs: int, secs: float, taken: Sequence[float]) -> int:
        """How many more runs make so many seconds, by what one took so far, for a tool that does not count seconds."""
        if self._tool.native_secs:
            return runs
        missing = math.ceil((1e3 * secs - sum(taken) / 1e3) / self._one_ms)
        return max(1, runs - len(taken), missing)

    def memory(self) -> Memory:
        if self._cold is None:
            return Memory(peak_mib=0.0, before_mib=0.0)
        return Memory(peak_mib=self._cold.peak_mib, before_mib=self._cold.before_mib)

    def outputs(self, samples: Sequence[Sequence[NDArray[Any]]]) -> list[Arrays]:
        ask, specs = self._ask(runs=1, secs=0.0), self.artifact.manifest.outputs
        results = []
        for n, sample in enumerate(samples):
            for name, content in sample_files(n, sample).items():
                self._place.put(name, content)
            said = self._place.execute(self._tool.outputs_command(self._place.binary, ask, n), START_SECS)
            if said.code:
                raise no_figures(self._tool, said)
            arrays: Arrays = []
            for m, spec in enumerate(specs):
                values = np.frombuffer(self._place.fetch(f"output-{m}.bin").read_bytes(), dtype=spec.dtype)
                if values.size != math.prod(spec.shape):
                    raise DeviceError(f"{self._tool.name} wrote {values.size} values for the output {spec.name}")
                arrays.append(values.reshape(spec.shape))
            results.append(arrays)
        return results

    def trace(self, runs: int) -> tuple[Path, float]:
        report, said = self._start(self._ask(runs=runs, secs=0.0, trace=True), START_SECS * 2)
        mean = _mean(report)
        if mean is None:
            raise no_figures(self._tool, said)
        if pattern := self._tool.trace_file():
            try:
                return self._place.fetch(pattern), mean * 1e3
            except FileNotFoundError:
                raise Unsupported(
                    f"this {self._tool.name} wrote no profile of its operators: it was built without",
                    "Leave --per-op out, or build it with its event tracer.",
                ) from None
        if not report.operators:
            raise Unsupported(f"this {self._tool.name} printed no table of operators", "Leave --per-op out.")
        path = self._place.local / "trace.json"
        values = {"runtime": report.runtime, "events": _events(report, mean) * runs}
        path.write_text(json.dumps(values), encoding="utf-8")
        return path, mean * 1e3

    def warnings(self) -> tuple[str, ...]:
        return tuple(self._warnings)

    def _ask(self, *, runs: int, secs: float, cold: bool = False, trace: bool = False) -> Ask:
        if self._flags is None:
            self._flags = flags_of(self._place.execute([self._place.binary, "--help"], _HELP_SECS).text)
        return Ask(
            model=self._model,
            runs=runs,
            secs=secs,
            threads=self._threads,
            inputs=len(self.artifact.manifest.inputs),
            cold=cold,
            trace=trace,
            extra=self._extra,
            flags=self._flags,
        )

    def _start(self, ask: Ask, limit_secs: float) -> tuple[Report, Said]:
        """One start of the tool; raises `EdgekitError` where it does not end well."""
        said = self._place.execute(self._tool.command(self._place.binary, ask), limit_secs)
        if said.code:
            raise no_figures(self._tool, said)
        texts = [said.text]
        for name in self._tool.files():
            try:
                texts.append(self._place.fetch(name).read_text(encoding="utf-8", errors="replace"))
            except FileNotFoundError:
                continue
        report = self._tool.parse("\n".join(texts), ask)
        for warning in report.warnings:
            self._warn(warning)
        return report, said

    def _figures(self, report: Report, said: Said) -> Figures:
        """What it printed instead of single runs; of a bare total, what is left without the cold runs."""
        if report.figures:
            return report.figures
        if report.total_ms is None or report.executions <= WARMUP_RUNS:
            raise no_figures(self._tool, said)
        warm, _ = self._start(self._ask(runs=0, secs=0.0), START_SECS)
        runs = report.executions - warm.executions
        if warm.total_ms is None or runs < 1 or report.total_ms <= warm.total_ms:
            raise no_figures(self._tool, said)
        return Figures(runs=runs, mean_ms=(report.total_ms - warm.total_ms) / runs)

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)


def _mean(report: Report) -> float | None:
    if report.us:
        return float(np.mean(report.us)) / 1e3
    if report.figures:
        return report.figures.mean_ms
    return None if report.total_ms is None else report.total_ms / max(1, report.executions)


def _events(report: Report, mean_ms: float) -> list[tuple[str, int, int, int, int]]:
    """A table of operators as the events of one run, as `devices.board.tracing` writes them."""
    run = ("LiteRT::Run[buffer registration]", _RUN, 0, round(mean_ms * 1e3), -1)
    rows = enumerate(report.operators)
    return [run, *((o.op, _INSIDE if o.delegated else _OPERATOR, 0, round(o.us), n) for n, o in rows)]
