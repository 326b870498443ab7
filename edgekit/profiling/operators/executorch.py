"""ExecuTorch's ETDump, as its Python bindings and its C++ runtime write it; read without importing ExecuTorch.

A block of events is one inference: a call for each instruction of the program, and in a delegate's call each op inside.
XNNPACK counts whole microseconds, rounded down: in a network of tiny ops that is much, and goes to the row of the call.
"""

from collections.abc import Sequence
from pathlib import Path

from edgekit.profiling.operators import xnnpack
from edgekit.profiling.operators._means import OVERHEAD, Step, last, mean_steps
from edgekit.targets._flatbuffer import Table, root
from edgekit.types import FileOp
from edgekit.types.profile import OperatorTime

_MAGIC = b"ED00"
# Fields of the tables ETDump, RunData, Event and ProfileEvent of its schema.
_RUN_DATA, _NAME, _EVENTS, _PROFILE = 1, 0, 3, 0
_INSTRUCTION, _NUMBER_INSIDE, _NAME_INSIDE, _START, _END = 2, 3, 4, 6, 7
_CALLS = ("OPERATOR_CALL", "DELEGATE_CALL")


def read(trace: Path, runs: int, ops: Sequence[FileOp]) -> tuple[OperatorTime, ...]:
    """The operators of the last `runs` inferences of an ETDump."""
    steps = mean_steps(last([_steps(block) for block in _blocks(trace.read_bytes(), runs)], runs))
    rows: list[OperatorTime] = []
    while steps:
        number = steps[0].index
        here = [s for s in steps if s.index == number]
        steps = [s for s in steps if s.index != number]
        op = ops[number] if number is not None and number < len(ops) else None
        rows += _rows(here, op)
    return tuple(rows)


def _rows(steps: Sequence[Step], op: FileOp | None) -> list[OperatorTime]:
    """The rows of one instruction: one op, or those inside a delegate and what the call took beyond them."""
    *inside, call = steps
    if not call.delegated:
        name = op.op if op else call.name
        return [OperatorTime(name=name, op=name, us=call.us, delegated=False, source=op.source if op else "")]
    beyond = max(0.0, call.us - sum(s.us for s in inside))
    backend = op.op if op else "the delegate"
    return [
        *xnnpack.operators(inside, op.inside if op else ()),
        OperatorTime(name=f"{backend} beyond its ops", op=OVERHEAD, us=beyond, delegated=True),
    ]


def _blocks(content: bytes, runs: int) -> list[Table]:
    if content[8:12] == _MAGIC:  # with its size in front
        dump = root(content, 4)
    elif content[4:8] == _MAGIC:
        dump = root(content)
    else:
        raise ValueError("it is no ETDump")
    return [block for block in dump.tables(_RUN_DATA) if block.text(_NAME) == "Execute"][-runs:]


def _steps(block: Table) -> list[Step]:
    """The calls of a block, each behind the ops inside it; `index` is the number of the instruction."""
    inside: dict[int, list[Step]] = {}
    steps: list[Step] = []
    for event in block.tables(_EVENTS):
        profile = event.table(_PROFILE)
        if profile is None:
            continue
        number = int(profile.scalar(_INSTRUCTION, "i", -1))
        us = (profile.scalar(_END, "Q") - profile.scalar(_START, "Q")) / 1e3  # ticks of the POSIX platform: ns
        name, within = profile.text(_NAME), profile.text(_NAME_INSIDE)
        if within or profile.scalar(_NUMBER_INSIDE, "i", -1) >= 0:
            inside.setdefault(number, []).append(Step(within.partition(" #")[0] or name, us, True, number))
        elif name in _CALLS:
            steps += [*inside.pop(number, []), Step(name, us, name == "DELEGATE_CALL", number)]
    return steps
