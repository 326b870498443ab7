"""Running a captured graph node by node on many samples at once, so that each tensor is seen as a whole."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

# Of the values of all samples that are seen at once, in bytes.
_MEMORY = 2**30
Samples = Sequence[Sequence[Tensor]]
Values = list[Any]
"""One value a sample."""


def constants(program: ExportedProgram) -> dict[str, Tensor]:
    """Parameters, buffers and constants by the name of the node that stands for them."""
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT and spec.target is not None:
            tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
            if isinstance(tensor, Tensor):
                found[spec.arg.name] = tensor.detach()
    return found


def at_once(program: ExportedProgram) -> int:
    """How many samples a walk may hold within the memory it is given; at least one."""
    return max(1, _MEMORY // max(1, live_bytes(program)))


def in_parts(program: ExportedProgram, samples: Samples) -> list[Samples]:
    """The samples in portions that a walk may hold."""
    size = at_once(program)
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def live_bytes(program: ExportedProgram) -> int:
    """The most that a walk holds of one sample at any node; the program's inputs and constants are held anyway."""
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    last = {operand: node for node in program.graph.nodes for operand in node.all_input_nodes}
    held, most = 0, 0
    for node in nodes:
        held += _bytes(node)
        most = max(most, held)
        done = (node, *node.all_input_nodes)
        held -= sum(_bytes(n) for n in done if n.op == "call_function" and last.get(n, node) is node)
    return most


def _bytes(node: Node) -> int:
    value = node.meta.get("val")
    tensors = value if isinstance(value, tuple | list) else (value,)
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


class Walk:
    """The values of a program's nodes for `samples`, computed in graph order and dropped after their last use."""

    def __init__(self, program: ExportedProgram, samples: Samples) -> None:
        self._samples = samples
        self._constants = constants(program)
        self._inputs = {name: i for i, name in enumerate(program.graph_signature.user_inputs)}
        self._values: dict[Node, Values] = {}
        self.nodes = list(program.graph.nodes)
        self._last = {operand: node for node in self.nodes for operand in node.all_input_nodes}

    def run(self, on_node: Callable[[Node, Values], None], on_step: Callable[[int, int], None] | None = None) -> None:
        """Compute every node; `on_node` sees each call's values, and may change them in place."""
        with torch.no_grad():
            for n, node in enumerate(self.nodes):
                if node.op == "output":
                    return
                self._values[node] = self.compute(node)
                if node.op == "call_function":
                    on_node(node, self._values[node])
                for used in (node, *node.all_input_nodes):
                    if self._last.get(used, node) is node:
                        del self._values[used]
                if on_step is not None:
                    on_step(n + 1, len(self.nodes))

    def compute(self, node: Node) -> Values:
        """The values of a node whose operands are known."""
        if node.op == "placeholder":
            if node.name in self._inputs:
                return [sample[self._inputs[node.name]] for sample in self._samples]
            return [self._constants[node.name]] * len(self._samples)
        results = []
        for i in range(len(self._samples)):
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: self._values[n][i])  # noqa: B023
            results.append(node.target(*args, **kwargs))  # type: ignore[operator]
        return results

    def values(self, node: Node) -> Values:
        """The values of an operand of the node that is being seen."""
        return self._values[node]
