"""Running a captured graph node by node on many samples at once, so that each tensor is seen as a whole."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

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


class Walk:
    """The values of a program's nodes for `samples`, computed in graph order and dropped after their last use."""

    def __init__(self, program: ExportedProgram, samples: Sequence[Sequence[Tensor]]) -> None:
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
                for operand in node.all_input_nodes:
                    if self._last[operand] is node:
                        del self._values[operand]
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
