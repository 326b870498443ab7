"""What int8 costs in each layer: how far the answers move from those of the float model.

The damage of a set S of layers in int8 is the divergence of the class probabilities, KL(float || S), in nats a sample
(as in ZeroQ, Cai et al. 2020, arXiv:2001.00281, equation 3). It is taken twice for a layer i of all the layers N:

    alone   D({i}) - D({})             the rest in float: what it does by itself
    spared  D(N) - D(N without i)      the others in int8: what is gained by keeping it in float

A tensor between two layers is rounded as long as one of them is in int8: `alone` blames both, `spared` neither. Their
mean is the sensitivity, which is the Shapley value (Shapley 1953) where layers interact by no more than two. Errors
also cancel: what keeping a layer in float gains depends on which others are, so `spared` is asked for with these.

Nothing is exported for it: the float graph is run with the scales and integers of the quantized one, and for each layer
only what comes after it.
"""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from edgekit.graph._edit import Editor, value
from edgekit.quantization._execution import constants
from edgekit.quantization._ops import COMPUTE, DEQUANTIZE, QUANTIZE, matches, module_path, op_name, weight_of
from edgekit.quantization.biases import is_quantized
from edgekit.quantization.placement import Unit, place

Values = Mapping[Node, Any]
_MOST = 1000.0


@dataclass(frozen=True)
class Layer:
    """A convolution or linear that runs in int8; `name` is the pattern that keeps it, and no other, in float.

    `macs` are multiplications of one call; `bytes` what its weight takes more in float32 than in int8.
    """

    name: str
    node: str
    macs: int
    bytes: int


@dataclass(frozen=True)
class _Int8:
    """Which nodes run in int8. A tensor is rounded for a reader that does, and for all where its writer does."""

    readers: frozenset[str]
    writers: frozenset[str]

    def rounds(self, tensor: Node, reader: Node) -> bool:
        return tensor.name in self.writers or reader.name in self.readers


class Sensitivity:
    """Measures the layers of `quantized`, a Q/DQ program, one sample a time.

    `prepared` is the float program that it was made of (`float_form`), with this `keep_float`.
    """

    def __init__(self, prepared: ExportedProgram, quantized: ExportedProgram, keep_float: tuple[str, ...] = ()) -> None:
        editor = Editor(prepared)
        units = place(editor, keep_float)
        self.layers = _layers(editor, units)
        self._inputs = prepared.graph_signature.user_inputs
        self._nodes = [n for n in editor.graph.nodes if n.op != "placeholder"]
        fixed = constants(prepared)
        self._constants = {n: fixed[n.name] for n in editor.graph.nodes if n.name in fixed}
        self._placeholders = {n.name: n for n in editor.graph.nodes if n.op == "placeholder"}
        self._read_scales(quantized)
        self._none, self._all = _int8(()), _int8(units)
        computing = {u.node for u in units if u.node.target in COMPUTE}
        self._alone = [
            _int8(place(editor, keep_float, {n for n in computing if n.name != layer.node})) for layer in self.layers
        ]
        self._place = cache(
            lambda kept: _int8([u for u in place(editor, (*keep_float, *kept)) if u.node.name in self._all.readers])
        )

    def in_float(self, kept: tuple[str, ...]) -> tuple[Layer, ...]:
        """The layers that are in float where those of `kept` stay so; those in between may no longer gain from int8."""
        return tuple(layer for layer in self.layers if layer.node not in self._place(kept).readers)

    def alone(self, sample: Sequence[Tensor]) -> list[float]:
        """What each layer does to the class scores of one call, the first output, all else in float: nats."""
        with torch.no_grad():
            values, scores = self._run(self._start(sample), self._none)
            return [divergence(scores, self._run(values, state, self._none)[1]) for state in self._alone]

    def spared(self, sample: Sequence[Tensor], kept: tuple[str, ...] = ()) -> list[float]:
        """What it takes off to keep each layer in float beside the layers `kept`; 0 for these."""
        with torch.no_grad():
            start, base = self._start(sample), self._place(kept)
            _, scores = self._run(start, self._none)
            values, rounded = self._run(start, base)
            whole, found = divergence(scores, rounded), []
            for layer in self.layers:
                if layer.name in kept:
                    found.append(0.0)
                    continue
                without = self._place((*kept, layer.name))
                found.append(whole - divergence(scores, self._run(values, without, base)[1]))
            return found

    def scores(self, sample: Sequence[Tensor]) -> Tensor:
        """The first output of the whole program in int8, as the Q/DQ program gives it."""
        with torch.no_grad():
            return self._run(self._start(sample), self._all)[1]

    def _start(self, sample: Sequence[Tensor]) -> Values:
        given = {self._placeholders[name]: x for name, x in zip(self._inputs, sample, strict=True)}
        return given | self._constants

    def _read_scales(self, quantized: ExportedProgram) -> None:
        """The grid of each operand that is rounded, and the integers of each layer, from the Q/DQ program."""
        fixed, ours = constants(quantized), {n.name: n for n in quantized.graph.nodes}
        self._grids: dict[tuple[str, int], tuple[Any, ...]] = {}
        self._calls: dict[str, tuple[Any, ...]] = {}
        for node in self._nodes:
            other = ours[node.name]
            operands = _operands(other)[:1] if node.target in COMPUTE else _operands(other)
            for place_, operand in enumerate(operands):
                if operand.target is DEQUANTIZE:
                    self._grids[node.name, place_] = operand.args[1:]
            if is_quantized(other):
                integers, *rest = other.args[1].args
                tensors = map_arg((integers, *rest), lambda n: fixed[n.name])
                weight = other.args[1].target(*tensors)
                self._calls[node.name] = (weight, *map_arg(other.args[2:], lambda n: fixed[n.name]))

    def _run(self, values: Values, now: _Int8, before: _Int8 | None = None) -> tuple[Values, Tensor]:
        """All values, and the first output, with `now` in int8.

        `values` are the program's inputs and constants or, where they are those of a run with `before` in int8, all
        values: then only what differs is computed, and returned.
        """
        fresh: dict[Node, Any] = {}

        def known(node: Node) -> Any:
            return fresh[node] if node in fresh else values[node]

        for node in self._nodes:
            operands = _operands(node)
            if node.op == "output":
                return {**values, **fresh}, self._rounded(node, 0, operands[0], known(operands[0]), now)
            if before is None or any(o in fresh for o in operands) or self._differs(node, operands, now, before):
                rounded = (self._rounded(node, i, o, known(o), now) for i, o in enumerate(operands))
                if node.name in self._calls and node.name in now.readers:
                    fresh[node] = node.target(next(rounded), *self._calls[node.name])
                else:
                    args, kwargs = map_arg((node.args, node.kwargs), lambda _: next(rounded))  # noqa: B023
                    fresh[node] = node.target(*args, **kwargs)
        raise AssertionError("a graph ends with its output")

    def _differs(self, node: Node, operands: list[Node], now: _Int8, before: _Int8) -> bool:
        return (node.name in now.readers) != (node.name in before.readers) or any(
            (node.name, i) in self._grids and now.rounds(o, node) != before.rounds(o, node)
            for i, o in enumerate(operands)
        )

    def _rounded(self, reader: Node, index: int, operand: Node, tensor: Any, now: _Int8) -> Any:
        grid = self._grids.get((reader.name, index))
        return DEQUANTIZE(QUANTIZE(tensor, *grid), *grid) if grid and now.rounds(operand, reader) else tensor


def divergence(expected: Tensor, actual: Tensor) -> float:
    """KL(p || q) in nats, the mean over the rows of two (N, classes) tensors of scores; at most 1000, as for NaN."""
    p, q = (scores.double().log_softmax(-1) for scores in (expected, actual))
    return float((p.exp() * (p - q)).sum(-1).nan_to_num(nan=_MOST).clamp(0, _MOST).mean())


def _int8(units: Sequence[Unit]) -> _Int8:
    results = frozenset(u.result.name for u in units)
    return _Int8(results | {u.node.name for u in units}, results)


def _operands(node: Node) -> list[Node]:
    """The operands in the order in which they are written, one as often as it is read."""
    found: list[Node] = []
    map_arg((node.args, node.kwargs), lambda n: found.append(n))
    return found


def _layers(editor: Editor, units: Sequence[Unit]) -> tuple[Layer, ...]:
    nodes = [u.node for u in units if u.node.target in COMPUTE]
    found = []
    for node in nodes:
        name = glob.escape(module_path(node))
        if not name or sum(matches(n, (name,)) for n in nodes) > 1:
            name = glob.escape(op_name(node))
        weight, result = weight_of(editor, node), value(node)
        assert weight is not None
        assert result is not None
        numel, channels = weight.numel(), len(weight)
        found.append(Layer(name, node.name, result.numel() * numel // channels, 3 * numel))
    return tuple(found)
