"""The events of LiteRT's profiler as `devices.board.tracing` writes them.

{"runtime": …, "events": [[tag, kind, start, microseconds, index], …]}: a built-in kernel is known by the index of its
op in the file; what XNNPACK ran follows as one event a kernel. Around the others, which are no operators, the profiler
reads the memory of the process from /proc: of a small network that is much, and it is in the last row.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from edgekit.devices.board.litert_profiler import DEFAULT, INSIDE, OPERATOR, Event
from edgekit.profiling.operators import xnnpack
from edgekit.profiling.operators._means import OVERHEAD, Step, last, mean_steps
from edgekit.types import FileOp
from edgekit.types.profile import OperatorTime

_FIRST, _DELEGATE = "LiteRT::Run[buffer registration]", "DELEGATE"


def read(trace: Path, runs: int, ops: Sequence[FileOp]) -> tuple[OperatorTime, ...]:
    """The operators of the last `runs` inferences."""
    events: list[Event] = json.loads(trace.read_text(encoding="utf-8"))["events"]
    starts = [n for n, (tag, kind, *_) in enumerate(events) if kind == DEFAULT and tag == _FIRST]
    taken = [_steps(events[a:b]) for a, b in zip(starts, [*starts[1:], len(events)], strict=True)]
    whole, *steps = mean_steps(last(taken, runs))
    outside = {s.index for s in steps if not s.delegated}
    inside = [op for n, op in enumerate(ops) if n not in outside]
    delegated = iter(xnnpack.operators([s for s in steps if s.delegated], inside))
    rows = [next(delegated) if s.delegated else _row(s, ops) for s in steps]
    beyond = max(0.0, whole.us - sum(s.us for s in steps))
    name = "LiteRT beyond its ops, and its profiler"
    return (*rows, OperatorTime(name=name, op=OVERHEAD, us=beyond, delegated=True))


def _row(step: Step, ops: Sequence[FileOp]) -> OperatorTime:
    known = step.index is not None and step.index < len(ops)
    source = ops[step.index].source if known and step.index is not None else ""
    return OperatorTime(name=step.name, op=step.name, us=step.us, delegated=False, source=source)


def _steps(events: Sequence[Event]) -> list[Step]:
    """The run itself, then its operators."""
    ends = [start + us for _, kind, start, us, _ in events if kind == DEFAULT]
    steps = [Step("run", max(ends) - events[0][2], True)]
    for tag, kind, _, us, index in events:
        if kind == INSIDE:
            steps.append(Step(tag, us, True))
        elif kind == OPERATOR and tag != _DELEGATE:
            steps.append(Step(tag, us, False, index))
    return steps
