"""Evaluate a saved Core ML program op by op in torch, so that its numbers can be checked without a Mac.

What is read is the package on disk (its own protobuf and weight files), not the program that coremltools had in
memory, so a fault in writing the package shows too. Neither coremltools nor a Mac is needed to read or run it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from edgekit.targets.mil_layout import layout_rules
from edgekit.targets.mil_ops import HOLDERS, OpRule, UnknownMilOp, numeric_rules
from edgekit.targets.mil_package import NUMPY_TYPES, Constant, Operation, Program, TensorInfo, Value, read
from edgekit.targets.mil_quant import quantized_rules

__all__ = ["RULES", "MilProgram", "TensorInfo", "UnknownMilOp", "load"]

#: Every op that the evaluator knows, by its MIL name.
RULES: Mapping[str, OpRule] = MappingProxyType(dict([*numeric_rules(), *layout_rules(), *quantized_rules()]))


@dataclass
class _Step:
    """One op made ready: constants converted, the names of the values it waits for, and what may be forgotten."""

    op: Operation
    rule: OpRule
    fixed: dict[str, Any]
    awaited: dict[str, tuple[str, ...]]
    finished: list[str] = field(default_factory=list)


class MilProgram:
    """A Core ML program ready to run on the CPU through torch.

    Half precision follows the program: each op's result is rounded to the type that the program declares for it.
    Inside an op the arithmetic is float32, as Apple's hardware accumulates; so a result may differ from a device's in
    the last bit of a half, never by more than the order of summation explains.
    """

    def __init__(self, program: Program, rules: Mapping[str, OpRule]) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._operations = program.operations
        self._constants = dict(program.constants)
        self._rules = rules
        self._steps: list[_Step] | None = None

    def ops(self) -> dict[str, int]:
        """How many ops of each type compute something (constants and compressed weights excluded), most first."""
        kinds = Counter(op.kind for op in self._operations if not op.kind.startswith("constexpr_"))
        return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the program on {input name: array} and return {output name: array}.

        Raises ValueError for inputs that do not fit the program, UnknownMilOp for an op that is not implemented.
        """
        with torch.inference_mode():
            if self._steps is None:
                self._steps = self._prepare()
            values: dict[str, Value] = {**self._constants, **self._checked(inputs)}
            for step in self._steps:
                arguments = dict(step.fixed)
                for name, sources in step.awaited.items():
                    arguments[name] = _converted(step.rule.params[name], [values[s] for s in sources])
                values.update(_computed(step, arguments))
                for name in step.finished:
                    del values[name]
            return {o.name: _exported(values[o.name], o) for o in self.outputs}

    def _checked(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        expected = {i.name: i for i in self.inputs}
        if set(inputs) != set(expected):
            raise ValueError(f"inputs are {sorted(expected)}, got {sorted(inputs)}")
        ready: dict[str, Tensor] = {}
        for name, info in expected.items():
            array = np.ascontiguousarray(inputs[name])
            if not _fits(array.shape, info.shape):
                raise ValueError(f"input {name!r} has shape {list(info.shape)}, got {list(array.shape)}")
            if array.dtype != np.dtype(NUMPY_TYPES[info.dtype]):
                raise ValueError(f"input {name!r} is {info.dtype}, got {array.dtype}")
            ready[name] = torch.from_numpy(array.copy()).to(HOLDERS[info.dtype])
        return ready

    def _prepare(self) -> list[_Step]:
        """Bind every op to its rule and fold those that depend on constants alone (compressed weights)."""
        steps: list[_Step] = []
        for op in self._operations:
            step = self._bound(op)
            if step.awaited:
                steps.append(step)
            else:
                self._constants.update(_computed(step, step.fixed))
        kept = {o.name for o in self.outputs}
        for step in reversed(steps):  # a value is forgotten after the last op that reads it
            named = {n for names in step.awaited.values() for n in names} | {o.name for o in step.op.outputs}
            step.finished = sorted(named - kept - self._constants.keys())
            kept |= named
        used = {n for s in steps for names in s.awaited.values() for n in names} | {o.name for o in self.outputs}
        self._constants = {name: value for name, value in self._constants.items() if name in used}
        return steps

    def _bound(self, op: Operation) -> _Step:
        rule = self._rules.get(op.kind)
        if rule is None or op.nested:
            raise UnknownMilOp(f"{_place(op)}: the evaluator does not know this op")
        unknown = op.arguments.keys() - rule.params.keys()
        if unknown:
            raise UnknownMilOp(f"{_place(op)}: the evaluator does not know its parameter {', '.join(sorted(unknown))}")
        missing = rule.required - op.arguments.keys()
        if missing:
            raise ValueError(f"{_place(op)}: parameter {', '.join(sorted(missing))} is missing")
        step = _Step(op, rule, {}, {})
        for name, sources in op.arguments.items():
            values = [s.value if isinstance(s, Constant) else self._constants.get(s) for s in sources]
            ready = [v for v in values if v is not None]
            if len(ready) == len(values):
                step.fixed[name] = _converted(rule.params[name], ready)
            else:  # a constant among values that are not (a concat) stays in `_constants` under its name
                step.awaited[name] = tuple(str(s) for s in sources)
        return step


def _place(op: Operation) -> str:
    return f"{op.kind} -> {', '.join(o.name for o in op.outputs)}"


def _converted(hint: Any, values: Sequence[Value]) -> Any:
    """Bring MIL values into the form that an op's function declares: tensors, or plain Python values."""
    if isinstance(hint, UnionType):
        hint = next(a for a in get_args(hint) if a is not type(None))
    if hint is Tensor:
        return values[0]
    if get_args(hint) == (Tensor,):
        return values
    if hint is str:
        return values[0]
    flat = [v for value in values if isinstance(value, Tensor) for v in value.flatten().tolist()]
    return flat if get_args(hint) else hint(flat[0])


def _computed(step: _Step, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Run one op and give its results their declared types. Raises ValueError where the result does not fit them."""
    try:
        result = step.rule.compute(**arguments)
    except UnknownMilOp as error:
        raise UnknownMilOp(f"{_place(step.op)}: the evaluator does not know {error}") from error
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{_place(step.op)}: cannot be computed: {error}") from error
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(step.op.outputs):
        raise ValueError(f"{_place(step.op)}: gives {len(results)} results, the program names {len(step.op.outputs)}")
    named: dict[str, Tensor] = {}
    for value, info in zip(results, step.op.outputs, strict=True):
        if not _fits(value.shape, info.shape):
            raise ValueError(f"{_place(step.op)}: shape {list(value.shape)}, the program says {list(info.shape)}")
        named[info.name] = _typed(value, info, step)
    return named


def _typed(value: Tensor, info: TensorInfo, step: _Step) -> Tensor:
    holder = HOLDERS[info.dtype]
    if value.is_floating_point() != holder.is_floating_point or (value.dtype == torch.bool) != (holder == torch.bool):
        raise ValueError(f"{_place(step.op)}: a result of {value.dtype}, the program says {info.dtype}")
    if info.dtype == "fp16" and not step.rule.exact:
        return value.half().to(holder)
    return value.to(holder)


def _fits(shape: Sequence[int], declared: Sequence[int | None]) -> bool:
    return len(shape) == len(declared) and all(d is None or d == n for n, d in zip(shape, declared, strict=True))


def _exported(value: Value, info: TensorInfo) -> np.ndarray:
    if isinstance(value, str):
        raise ValueError(f"output {info.name!r} is a string")
    return value.contiguous().numpy().astype(NUMPY_TYPES[info.dtype])


def load(package: Path, rules: Mapping[str, OpRule] = RULES) -> MilProgram:
    """Read a .mlpackage into a program that can run here. `rules`: the ops to run it with.

    Raises ValueError, saying what is wrong, for a package that is incomplete, damaged or not an ML program, and
    UnknownMilOp for one with lists or states. An op that `rules` lacks is an error when the program is first run.
    """
    return MilProgram(read(package), rules)
