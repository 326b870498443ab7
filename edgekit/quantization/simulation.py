"""A Q/DQ program computed as integer kernels compute it: the reference of every int8 artifact.

    y_q = clamp(round((Σ (x_q - z_x) w_q + b_q) m) + z_y, -128, 127)        m = s_x s_w / s_y

Two computations of this that differ in the last place of a float put a value that lies between two steps on different
ones, and behind fifty layers that one step has grown to a third of quantization's own error. So the sum is one of
integers here, exact in float32 below 2^24, and it is rescaled with the arithmetic of the runtime that is compared.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map, tree_unflatten

from edgekit.graph.quantized import clamp_ends
from edgekit.quantization._execution import constants
from edgekit.quantization._ops import CLAMPS, COMPUTE, DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE

_aten = torch.ops.aten
_ELEMENTWISE = (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor)
KERNELS = ("float32", "exact")
"""How sums are rescaled: in float32, as on CPUs (XNNPACK, ONNX Runtime); or without an error."""


class Simulation(nn.Module):
    """The module of a Q/DQ program; takes and returns what the program does, with the rounding of `kernels`."""

    def __init__(self, program: ExportedProgram, kernels: str = "float32") -> None:
        super().__init__()
        self._kernels = kernels
        self._nodes = list(program.graph.nodes)
        self._constants = constants(program)
        self._inputs = {name: i for i, name in enumerate(program.graph_signature.user_inputs)}
        self._spec = program.call_spec.out_spec
        self._units = {n: unit for n in self._nodes if n.target is QUANTIZE and (unit := _unit(n))}
        inside = {n for unit in self._units.values() for n in unit}
        # What is computed when its result is quantized, and what only feeds that.
        self._skipped = inside | {n for n in self._nodes if n.target in (DEQUANTIZE, DEQUANTIZE_WEIGHT) and n.users
                                  and all(user in inside for user in n.users)}  # fmt: skip
        self._last = {operand: node for node in self._nodes for operand in self._reads(node)}

    def forward(self, *inputs: Tensor) -> Any:
        values: dict[Node, Any] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                known = node.name in self._inputs
                values[node] = inputs[self._inputs[node.name]] if known else self._constants[node.name]
            elif node.op == "output":
                results = map_arg(node.args[0], lambda n: _float32(values[n]))
                return tree_unflatten(list(results), self._spec) if self._spec is not None else results
            elif node not in self._skipped:
                values[node] = self._call(node, values)
            for operand in self._reads(node):
                if self._last[operand] is node:
                    values.pop(operand, None)
        raise ValueError("the program returns nothing")

    def _reads(self, node: Node) -> list[Node]:
        """The nodes whose values a call takes: of a unit, the integers behind its dequantize nodes."""
        if node not in self._units:
            return [] if node in self._skipped else node.all_input_nodes
        operands = self._units[node][0].all_input_nodes
        return [n for o in operands for n in (o.all_input_nodes if o in self._skipped or _is_widening(o) else [o])]

    def _call(self, node: Any, values: dict[Node, Any]) -> Any:
        if node in self._units:
            return self._integers(node, values)
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        if node.target is QUANTIZE:
            return _quantize(*args)
        if node.target is DEQUANTIZE:
            return (args[0].double() - args[2]) * args[1]
        args, kwargs = tree_map(_float32, (args, kwargs))
        return node.target(*args, **kwargs)

    def _integers(self, quantize: Any, values: dict[Node, Any]) -> Tensor:
        """The int8 result of the unit that ends in `quantize`."""
        scale, zero_point, low, high = quantize.args[1:5]
        node, *clamps = self._units[quantize]
        if node.target in COMPUTE:
            steps = _product(node, values, scale, exact=self._kernels == "exact")
        else:
            steps = _elementwise(node, values, scale)
        steps = steps + zero_point
        for clamp in clamps:
            ends = (round(end / scale) + zero_point if math.isfinite(end) else end for end in clamp_ends(clamp) or ())
            steps = steps.clamp(*ends)
        return steps.clamp(low, high).to(torch.int8)


def _unit(quantize: Any) -> list[Node]:
    """The operation of integers whose result `quantize` makes integers again, and the clamps between; [] for none."""
    chain: list[Node] = []
    node: Any = quantize.args[0]
    while isinstance(node, Node) and node.target in CLAMPS and len(node.users) == 1:
        chain.insert(0, node)
        node = node.args[0]
    if not isinstance(node, Node) or len(node.users) != 1:
        return []
    arguments: Any = node.args
    if node.target in COMPUTE:
        source, weight = arguments[:2]
        integers = source.target is DEQUANTIZE and weight.target is DEQUANTIZE_WEIGHT
    else:
        sources = node.all_input_nodes
        integers = node.target in _ELEMENTWISE and len(sources) == 2 and all(map(_is_widening, sources))
    return [node, *chain] if integers else []


def _is_widening(node: Node) -> bool:
    return node.target in (DEQUANTIZE, DEQUANTIZE_WEIGHT)


def _product(node: Any, values: dict[Node, Any], result: float, exact: bool) -> Tensor:
    """Σ (x_q - z_x) w_q + b_q, in steps of the result."""
    source, weight = node.args[:2]
    q, (scale, zero_point) = values[source.args[0]], source.args[1:3]
    steps, scales = values[weight.args[0]], values[weight.args[1]]
    total = node.target(q.float() - zero_point, steps.float(), None, *node.args[3:])
    along = (-1, 1, 1) if node.target is _aten.conv2d.default else (-1,)
    product = scales.double() * scale
    if len(node.args) > 2 and isinstance(node.args[2], Node):
        bias = (values[node.args[2]].double() / product).round()
        total = total.double() + bias.reshape(along)
    if exact:
        return (total.double() * (product / result).reshape(along)).round()
    ratio = scales * torch.tensor(scale, dtype=torch.float32) / torch.tensor(result, dtype=torch.float32)
    return (total.float() * ratio.reshape(along)).round()


def _elementwise(node: Any, values: dict[Node, Any], result: float) -> Tensor:
    """A sum or product of two tensors, in steps of the result."""
    reals = [(values[d.args[0]].double() - d.args[2]) * d.args[1] for d in node.args[:2]]
    return (node.target(*reals) / result).round()


def _quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return ((x.double() / scale).round() + zero_point).clamp(low, high).to(dtype)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value
