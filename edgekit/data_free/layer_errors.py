"""What int8 does to each tensor of a model, on images: error, saturation, steps that are used, range by estimator.

SQNR = 10 log10(Σ y² / Σ (y - ŷ)²)        y of the float program, ŷ of the quantized one, with all errors before it
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from edgekit.quantization._execution import Samples, Values, Walk, constants
from edgekit.quantization._ops import CLAMPS, COMPUTE, DEQUANTIZE_WEIGHT, MOVES, QMAX, QMIN, QUANTIZE, module_path
from edgekit.quantization.ranges import ESTIMATORS, Histogram, Range, histogram
from edgekit.quantization.sensitivity import divergence

CEILING_DB = 120.0
# Values of one walk that are kept until the other program has been walked, in bytes.
_MEMORY = 2**28
# What lies further out is not the bulk.
_RARE = 1e-3
# A value that is rounded to the last step is not cut off.
_HALF = 0.5


@dataclass(frozen=True)
class Grid:
    """A tensor of the float program that is quantized: `layer` names it to a person, `compute` is what makes it."""

    layer: str
    tensor: str
    compute: str
    scale: float
    zero_point: int

    @property
    def range(self) -> Range:
        """What the 256 steps represent."""
        return Range((QMIN - self.zero_point) * self.scale, (QMAX - self.zero_point) * self.scale)

    def steps_of(self, values: Range) -> int:
        """How many of the 256 steps lie within `values`."""
        low, high = max(values.low, self.range.low), min(values.high, self.range.high)
        return round(max(0.0, high - low) / self.scale) + 1 if values.span else 0


@dataclass
class TensorErrors:
    """Sums over all values of a tensor."""

    values: int = 0
    signal: float = 0.0
    noise: float = 0.0
    outside: int = 0
    own: float = 0.0
    seen: Histogram | None = None

    @property
    def sqnr_db(self) -> float:
        return sqnr(self.signal, self.noise)

    @property
    def own_db(self) -> float:
        """The SQNR of the float values in these 256 steps: cut off and rounded, without the errors before."""
        return sqnr(self.signal, self.own)

    @property
    def estimate(self) -> Range:
        """What calibration on these images would choose."""
        return Range(0.0, 0.0) if self.seen is None else ESTIMATORS["mse"](self.seen)

    @property
    def saturation(self) -> float:
        """The share of the float values that lie outside of the range."""
        return self.outside / max(self.values, 1)

    @property
    def bulk(self) -> Range:
        """Where all values but one in a thousand lie; zeros do not count."""
        if self.seen is None or not float(self.seen.counts.sum()):
            return Range(0.0, 0.0)
        share = self.seen.counts.cumsum(0) / self.seen.counts.sum()
        inside = self.seen.centres[
            (share > _RARE / 2) & (share - self.seen.counts / self.seen.counts.sum() < 1 - _RARE / 2)
        ]
        return Range(float(inside[0]), float(inside[-1]))


@dataclass
class OutputErrors:
    """Of the first output: agreeing classes and divergence where it is a row of scores."""

    rows: int = 0
    same: int = 0
    nats: float = 0.0
    signal: float = 0.0
    noise: float = 0.0


def sqnr(signal: float, noise: float) -> float:
    """In dB; 120 at most, and at least -120."""
    if noise <= 0:
        return CEILING_DB
    return max(-CEILING_DB, min(CEILING_DB, 10 * math.log10(max(signal, 1e-300) / noise)))


def grids(quantized: ExportedProgram) -> list[Grid]:
    """The tensors of a Q/DQ program that are quantized, in graph order; one that only moves values is left out."""
    found, fixed = [], constants(quantized)
    for node in quantized.graph.nodes:
        if node.target is not QUANTIZE or node.args[0].name in fixed or node.args[0].target in MOVES:
            continue
        tensor, scale, zero_point = node.args[:3]
        found.append(Grid(layer_name(tensor), tensor.name, _source(tensor).name, float(scale), int(zero_point)))
    return found


def layer_name(tensor: Node) -> str:
    """The module that computes a tensor, with the operation where it is none that a module stands for."""
    source = _source(tensor)
    if source.op == "placeholder":
        return "input"
    path = module_path(source)
    return path if source.target in COMPUTE and path else f"{path}:{tensor.name}" if path else tensor.name


def _source(tensor: Node) -> Node:
    """What computes a tensor, before the clamp."""
    return tensor.args[0] if tensor.target in CLAMPS and isinstance(tensor.args[0], Node) else tensor


def errors(
    prepared: ExportedProgram,
    quantized: ExportedProgram,
    samples: Samples,
    on_call: Callable[[], None] | None = None,
) -> tuple[dict[str, TensorErrors], OutputErrors]:
    """What differs on `samples`, by the tensor's name, and of the first output.

    `prepared` is the float program that `quantized` was made of (`float_form`): their tensors have the same names.
    """
    found = {g.tensor: (g, TensorErrors()) for g in grids(quantized)}
    answers = OutputErrors()
    held = sum(_bytes(n) for n in prepared.graph.nodes if n.name in found)
    size = max(1, _MEMORY // max(held, 1))
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        floats = tensors_of(prepared, part, set(found))
        expected = floats.pop(_OUTPUT)

        def see(node: Node, values: Values) -> None:
            source = node.args[0] if node.target is QUANTIZE else None
            if isinstance(source, Node) and (name := source.name) in found:
                for y, steps in zip(floats.pop(name), values, strict=True):  # noqa: B023
                    _add(*found[name], y, steps)

        for a, b in zip(expected, _outputs(quantized, part, see), strict=True):
            _compare(answers, a, b)
            if on_call is not None:
                on_call()
    return {name: sums for name, (_, sums) in found.items()}, answers


def answer_errors(exact: nn.Module, quantized: nn.Module, samples: Samples) -> OutputErrors:
    """What differs in the first output of two models that take the same calls."""
    answers = OutputErrors()
    with torch.no_grad():
        for sample in samples:
            a, b = (pytree.tree_leaves(model(*sample))[0] for model in (exact, quantized))
            _compare(answers, a, b)
    return answers


_OUTPUT = "the first output"


def tensors_of(program: ExportedProgram, samples: Samples, names: set[str]) -> dict[str, Values]:
    """The values of the named tensors, and of the first output."""
    kept: dict[str, Values] = {}

    def see(node: Node, values: Values) -> None:
        if node.name in names:
            kept[node.name] = [v.clone() if node.target in CLAMPS else v for v in values]

    inputs = list(program.graph_signature.user_inputs)
    kept.update({name: [s[inputs.index(name)] for s in samples] for name in names if name in inputs})
    kept[_OUTPUT] = _outputs(program, samples, see)
    return kept


def _outputs(program: ExportedProgram, samples: Samples, see: Callable[[Node, Values], None]) -> Values:
    """The first output of each call."""
    walk = Walk(program, samples)
    (last,) = [n for n in walk.nodes if n.op == "output"]
    first = last.all_input_nodes[0]
    kept: Values = []

    def look(node: Node, values: Values) -> None:
        see(node, values)
        if node is first:
            kept.extend(values)

    walk.run(look)
    return kept or walk.compute(first)


def _add(grid: Grid, sums: TensorErrors, y: Tensor, steps: Tensor) -> None:
    ends, half = grid.range, _HALF * grid.scale
    over = (y - ends.high).clamp(min=0) + (ends.low - y).clamp(min=0)
    sums.values += y.numel()
    sums.signal += _energy(y)
    sums.noise += _energy((steps.float() - grid.zero_point) * grid.scale - y)
    sums.outside += int((over > half).sum())
    own = ((y / grid.scale).round() + (grid.zero_point - QMIN)).clamp(0, QMAX - QMIN)
    sums.own += _energy((own + (QMIN - grid.zero_point)) * grid.scale - y)
    seen = histogram([y])
    sums.seen = seen if sums.seen is None else sums.seen | seen


def _compare(sums: OutputErrors, a: Tensor, b: Tensor) -> None:
    sums.signal += _energy(a)
    sums.noise += _energy(a - b)
    if is_scores(a):
        sums.rows += len(a)
        sums.same += int((a.argmax(-1) == b.argmax(-1)).sum())
        sums.nats += len(a) * divergence(a, b)


def is_scores(output: Tensor) -> bool:
    """Whether an output is rows of class scores (N, classes)."""
    return output.dim() == 2 and output.shape[1] > 1


def _energy(x: Tensor) -> float:
    return float(x.double().square().sum())


def _bytes(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def weight_errors(quantized: ExportedProgram, prepared: ExportedProgram) -> dict[str, float]:
    """The SQNR in dB of each layer's rounded weight, by the name of the layer's node."""
    floats, fixed = constants(prepared), constants(quantized)
    before = {n.name: n for n in prepared.graph.nodes}
    found = {}
    for node in quantized.graph.nodes:
        weight: Any = node.args[1] if node.target in COMPUTE else None
        if weight is None or weight.target is not DEQUANTIZE_WEIGHT or node.name not in before:
            continue
        w = floats.get(before[node.name].args[1].name)
        if w is None:
            continue
        steps, scales = (fixed[n.name] for n in weight.args[:2])
        error = w - steps.float() * scales.reshape(-1, *[1] * (w.dim() - 1))
        found[node.name] = sqnr(_energy(w), _energy(error))
    return found


def disagreement(estimates: Iterable[Range]) -> float:
    """How many times the widest estimate spans the narrowest, at most 1000; 1 where there are less than two."""
    spans = [r.span for r in estimates]
    if len(spans) < 2 or not max(spans) > 0:
        return 1.0
    return min(1e3, max(spans) / max(min(spans), 1e-30))
