"""A captured program that computes with rounded weights and activations, and trains: the simulation of wXaY."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from edgekit.graph._edit import argument
from edgekit.low_bit.quantizers import EmaMinMax, LearnedStep, LearnedWeight, MinMaxWeight
from edgekit.low_bit.scheme import Placement
from edgekit.quantization._execution import constants
from edgekit.quantization._ops import COMPUTE

_BATCH_NORM = torch.ops.aten.batch_norm.default
_AFFINE = (*COMPUTE, _BATCH_NORM)
Values = dict[Node, Any]
WeightQuantizer = MinMaxWeight | LearnedWeight
TensorQuantizer = EmaMinMax | LearnedStep


class Student(nn.Module):
    """`program` for batches of the size it was captured for, rounded as `placement` says.

    Weights and tensors without bits stay in float: with an empty placement it is the float model, in the same nodes.
    Biases, and the scales of batch norms that are not folded, are in `floats`.
    """

    def __init__(
        self,
        program: ExportedProgram,
        placement: Placement = Placement({}, {}),  # noqa: B008 (frozen)
        weight_quantizer: Callable[[Tensor, int], WeightQuantizer] = LearnedWeight,
    ) -> None:
        super().__init__()
        self.nodes = list(program.graph.nodes)
        stored = constants(program)
        self._inputs = set(program.graph_signature.user_inputs)
        self.weights, self.activations, self.floats = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        weights = {n.name: n.args[1].name for n in self.nodes if n.name in placement.weights}
        for layer, name in weights.items():
            self.weights[layer] = weight_quantizer(stored[name], placement.weights[layer])
        read = {
            n.name for n in self.nodes if n.op == "placeholder" and any(not _is_weight(n, u, weights) for u in n.users)
        }
        trained = {o.name for n in self.nodes if n.target in _AFFINE for o in _affine(n)}
        self._fixed = nn.Module()
        for name in sorted(read & set(stored)):
            if name in trained and stored[name].is_floating_point():
                self.floats[name] = nn.Parameter(stored[name].clone())
            else:
                self._fixed.register_buffer(name, stored[name].clone(), persistent=False)
        self._bits = dict(placement.activations)
        self._see: tuple[set[str], Callable[[str, Tensor], None]] | None = None
        self._last = {operand: node for node in self.nodes for operand in node.all_input_nodes}

    @property
    def rounded_weights(self) -> dict[str, WeightQuantizer]:
        """The rounded weight of each layer, by the layer's name."""
        return dict(self.weights.items())  # type: ignore[arg-type]

    @property
    def rounded_tensors(self) -> dict[str, TensorQuantizer]:
        """What rounds each tensor, by its name."""
        return dict(self.activations.items())  # type: ignore[arg-type]

    @property
    def image(self) -> Node:
        """The node of the images."""
        return next(n for n in self.nodes if n.op == "placeholder" and n.name in self._inputs)

    @property
    def output(self) -> Node:
        """The node of the program's first output."""
        return next(n for n in self.nodes if n.op == "output").args[0][0]

    def watch(self) -> None:
        """Give each tensor with bits a range that follows the batches (GDFQ's)."""
        for name, bits in self._bits.items():
            self.activations[name] = EmaMinMax(bits)

    def learn(self, steps: Mapping[str, tuple[float, int]]) -> None:
        """Give each tensor with bits a step that is learned, from these scales and zero points."""
        for name, bits in self._bits.items():
            self.activations[name] = LearnedStep(bits, *steps[name])

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to the program's first output, (N, ...)."""
        return self.run({self.image: images}, self.nodes, self.output)

    def observe(self, images: Tensor, names: set[str], see: Callable[[str, Tensor], None]) -> None:
        """Show `see` the values of the named nodes, before they are rounded, for one batch."""
        self._see = (names, see)
        try:
            self(images)
        finally:
            self._see = None

    def run(self, known: Mapping[Node, Any], nodes: Iterable[Node], wanted: Node, keep: float = 1.0) -> Tensor:
        """The value of `wanted`, computed by `nodes` from what is known.

        With `keep` below 1 each value of a rounded tensor stays in float with the probability 1 - keep (QDrop, Wei et
        al. 2022, equation 9).
        """
        values: Values = dict(known)
        for node in values:
            values[node] = self._rounded(node, values[node], keep) if node.name in self._inputs else values[node]
        for node in nodes:
            if node.op == "call_function" and node not in values:
                args, kwargs = map_arg((node.args, node.kwargs), lambda n: self._value(n, values))
                if node.name in self.weights:
                    args = (args[0], self.weights[node.name](), *args[2:])
                values[node] = self._rounded(node, node.target(*args, **kwargs), keep)  # type: ignore[operator]
            if node is wanted:
                break
            for operand in node.all_input_nodes:
                if self._last[operand] is node and operand is not wanted:
                    values.pop(operand, None)
        result: Tensor = values[wanted]
        return result

    def _value(self, node: Node, values: Values) -> Any:
        if node in values:
            return values[node]
        if node.name in self.floats:
            return self.floats[node.name]
        # The weight of a rounded layer is not held twice: what is asked for here is replaced.
        return getattr(self._fixed, node.name, None)

    def _rounded(self, node: Node, x: Any, keep: float) -> Any:
        if self._see is not None and node.name in self._see[0]:
            self._see[1](node.name, x)
        if node.name not in self.activations:
            return x
        rounded = self.activations[node.name](x)
        return rounded if keep == 1 else torch.where(torch.rand_like(x) < keep, rounded, x)


def _affine(node: Node) -> list[Node]:
    """The bias of a layer; the scale and bias of a batch norm."""
    given = [argument(node, 2, "bias"), *([argument(node, 1, "weight")] if node.target is _BATCH_NORM else [])]
    return [n for n in given if isinstance(n, Node)]


def _is_weight(placeholder: Node, user: Node, weights: Mapping[str, str]) -> bool:
    return weights.get(user.name) == placeholder.name
