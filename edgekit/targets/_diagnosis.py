"""Which op of a program stopped an exporter, and the source line it came from."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from edgekit.errors import LoweringFailed
from edgekit.graph.capture import capture
from edgekit.targets._base import Target
from edgekit.targets._graph import op_name, sources
from edgekit.types import TensorSpec

# How the exporters name the op that stopped them.
_NAMED = (
    r"No ONNX function found for (?:<OpOverload\(op=')?([\w.:]+)",
    r"[Ll]owering (?:is )?not (?:found|implemented)[^:]*: *([\w.:]+)",
    r"(?:No lowering found for|lowering for) *([\w.:]+)",
    r"Operator torch\._ops\.([\w.]+) is not in Core ATen",
    r"Missing out variants: \{'([\w.:]+)'",
    r"call_function\[target=torch\.ops\.([\w.]+)\]",
)


def cannot_lower(target: str, op: str, where: str, reason: str = "") -> LoweringFailed:
    """The error for an op that a target has no way to express, with the source line it came from."""
    return LoweringFailed(
        f"{target} cannot lower {op}" + (f": {reason}" if reason else "") + (f"\n  at {where}" if where else ""),
        "Write it with other torch ops, or export to a target that has it.",
    )


def cannot_lower_graph(target: str, error: BaseException) -> LoweringFailed:
    """The error for an exporter that failed without saying at which op."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return LoweringFailed(
        f"{target} cannot lower the graph: {lines[0][:300]}", "Run again with --debug for all it says."
    )


def explain(target: Target, program: ExportedProgram, error: BaseException) -> LoweringFailed:
    """The op of `program` that `error` is about and the source line it came from, as far as they can be found."""
    text, cause = str(error), error.__cause__
    while cause is not None:
        text, cause = f"{text}\n{cause}", cause.__cause__
    names = [found[1] for pattern in _NAMED if (found := re.search(pattern, text))]
    nodes = [n for name in names[:1] for n in _named(program, name)] or _refused_alone(target, program)
    if nodes:
        return cannot_lower(target.name, op_name(nodes[0]), sources(nodes))
    return cannot_lower_graph(target.name, error)


def _named(program: ExportedProgram, name: str) -> list[Node]:
    """The calls of the op `name`, in the program or in what its ops decompose into (those keep their source lines)."""
    name = name.replace("::", ".").removesuffix(".default")
    for decompose in (lambda p: p, lambda p: p.run_decompositions({}), lambda p: p.run_decompositions()):
        try:
            nodes = [n for n in decompose(program).graph.nodes if n.op == "call_function" and op_name(n) == name]
        except Exception:  # what cannot be decomposed either: another error is being reported here
            continue
        if nodes:
            return nodes
    return []


def _refused_alone(target: Target, program: ExportedProgram) -> list[Node]:
    """The calls of the first op that `target` does not even lower by itself; [] where each of them is fine alone."""
    calls = [
        n for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload) and n.meta.get("val") is not None
    ]
    if len(calls) < 2:
        return calls
    tried: set[object] = set()
    for node in calls:
        if node.target in tried:
            continue
        tried.add(node.target)
        try:
            alone, inputs, outputs = _alone(program, node)
        except Exception:  # not every call can be made by itself: the search goes on
            continue
        try:
            with TemporaryDirectory() as folder:
                target.lower(alone, "fp32", Path(folder) / f"model{target.suffix}", inputs, outputs)
        except Exception:  # it fails alone too, whatever the exporter calls that
            return [n for n in calls if n.target == node.target]
    return []


class _Call(nn.Module):
    """One call of a graph with its parameters in place and its other tensors as inputs."""

    def __init__(self, program: ExportedProgram, node: Node) -> None:
        super().__init__()
        self.target: Any = node.target
        leaves, self.form = tree_flatten((node.args, node.kwargs))
        known = {**program.state_dict, **program.constants}
        signature = program.graph_signature
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.leaves: list[Any] = []
        self.inputs: list[Tensor] = []
        self.places: list[int] = []
        for place, leaf in enumerate(leaves):
            self.leaves.append(leaf)
            if isinstance(leaf, Node) and leaf.name in names:
                self.register_buffer(f"weight_{place}", known[names[leaf.name]].detach())
            elif isinstance(leaf, Node):
                value = leaf.meta["val"]
                self.inputs.append(torch.ones(tuple(value.shape), dtype=value.dtype))
                self.places.append(place)

    def forward(self, *inputs: Tensor) -> Any:
        leaves = [getattr(self, f"weight_{n}", leaf) for n, leaf in enumerate(self.leaves)]
        for place, value in zip(self.places, inputs, strict=True):
            leaves[place] = value
        args, kwargs = tree_unflatten(leaves, self.form)
        return self.target(*args, **kwargs)


def _alone(
    program: ExportedProgram, node: Node
) -> tuple[ExportedProgram, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    call = _Call(program, node)
    captured = capture(call, call.inputs)
    inputs = tuple(TensorSpec(name=f"input_{n}", shape=tuple(x.shape)) for n, x in enumerate(call.inputs))
    outputs = tuple(TensorSpec(name=f"output_{n}", shape=()) for n in range(len(captured.graph_signature.user_outputs)))
    return captured, inputs, outputs
