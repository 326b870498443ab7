"""ONNX Runtime's profile, a Chrome trace: one event a kernel and run, in whole microseconds, rounded down.

Its nodes are those of the optimized graph, named after what they were fused of. Writing an event down takes the runtime
longer than a tiny op takes: what lies between the kernels is a row of its own.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.profiling.operators._means import OVERHEAD, Step, last, mean_steps
from edgekit.types import FileOp
from edgekit.types.profile import OperatorTime

_KERNEL = "_kernel_time"
_EXECUTOR, _RUN = "SequentialExecutor::Execute", "model_run"
_PRODUCT = re.compile(r"Conv|Gemm|MatMul")
_ADDED = re.compile(r"(_nchwc|_token_\d+|_quant|/.*)$")
"""What the runtime's optimizer adds to a name."""


def read(trace: Path, runs: int, ops: Sequence[FileOp]) -> tuple[OperatorTime, ...]:
    """The operators of the last `runs` inferences."""
    events = json.loads(trace.read_text(encoding="utf-8"))
    whole, *steps = mean_steps(last(_runs(events), runs))
    names = {op.name: n for n, op in enumerate(ops)}
    rows: list[OperatorTime] = []
    behind = ""
    for step in reversed(steps):
        # What the optimizer added, a change of layout say, it added for the op behind.
        behind = _source(step, ops, names) or behind
        rows.append(OperatorTime(name=step.name, op=step.op, us=step.us, delegated=step.delegated, source=behind))
    beyond = max(0.0, whole.us - sum(s.us for s in steps))
    between = OperatorTime(
        name="ONNX Runtime between its ops, and its profiler", op=OVERHEAD, us=beyond, delegated=True
    )
    return (*reversed(rows), between)


def _runs(events: Sequence[Mapping[str, Any]]) -> list[list[Step]]:
    """Of each inference the executor, then its kernels."""
    runs: list[list[Step]] = []
    steps: list[Step] = []
    executor = 0.0
    for event in events:
        name, us = event.get("name", ""), float(event.get("dur", 0))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            args = event["args"]
            inside = args.get("provider") == "CPUExecutionProvider"  # another would be a fallback of the other's
            steps.append(Step(name.removesuffix(_KERNEL), us, inside, op=args.get("op_name", "")))
        elif name == _EXECUTOR:
            executor = us
        elif name == _RUN:
            runs.append([Step(_EXECUTOR, executor or us, True), *steps])
            steps, executor = [], 0.0
    return runs


def _source(step: Step, ops: Sequence[FileOp], names: Mapping[str, int]) -> str:
    """The source of the node that a kernel is named after, or of the product that it was fused into."""
    place = _place(step.name, names)
    if place is None:
        return ""
    product = _PRODUCT.search(step.op)
    if product and not _PRODUCT.search(ops[place].op):
        # A product is named after what was fused into it: an activation, which is the smaller part.
        place = next((n for n in range(place, -1, -1) if product[0] in ops[n].op), place)
    return ops[place].source


def _place(name: str, names: Mapping[str, int]) -> int | None:
    while name not in names:
        shorter = _ADDED.sub("", name)
        if shorter == name:
            break
        name = shorter
    if name in names:
        return names[name]
    starts = [known for known in names if name.startswith(f"{known}_")]
    return names[max(starts, key=len)] if starts else None
