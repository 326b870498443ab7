"""Cross-layer equalization: channels of one range, at the cost of the next layer's inputs (Nagel et al. 2019, 4.1).

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1)      f(s x) = s f(x) for s > 0: ReLU, pooling, moves, nothing
    s_i = sqrt(r1_i r2_i) / r2_i                         r1_i, r2_i: the largest weight of output / input channel i

A ReLU6 clips each channel at 6, scaled or not: it stays as it is, and so do the layers on both sides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, dims, permutation, shape
from edgekit.quantization._ops import COMPUTE, weight_of

_aten = torch.ops.aten
# Whatever the channel: f(s x) = s f(x), and no value of one channel reaches another.
_POINTWISE = (
    _aten.relu.default, _aten.constant_pad_nd.default, _aten.dropout.default, _aten.leaky_relu.default,
    _aten.clone.default, _aten.contiguous.default,
)  # fmt: skip
_POOLS = (_aten.max_pool2d.default, _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default)
_VIEWS = (
    _aten.reshape.default, _aten.view.default, _aten.flatten.using_ints, _aten.squeeze.dim, _aten.squeeze.dims,
    _aten.unsqueeze.default,
)  # fmt: skip
_SWEEPS = 20
_CONVERGED = 0.01
# A channel this much weaker than the strongest is dead: what is left of it must not be blown up.
_DEAD = 1e-6
_MOST = 1e3


@dataclass(frozen=True)
class Reader:
    """A convolution or linear that contracts over the channels of a tensor; each takes `repeats` of its inputs."""

    node: Node
    repeats: int = 1


@dataclass(frozen=True)
class Pair:
    """A layer and all that reads what it computes."""

    source: Node
    readers: tuple[Reader, ...]


def equalize(program: ExportedProgram) -> ExportedProgram:
    """`program` with equal ranges on both sides of each channel between two layers; itself where there are none."""
    editor = Editor(program)
    pairs = [p for node in editor.nodes(*COMPUTE) if (p := pair(editor, node)) is not None]
    layers = Layers(editor, pairs)
    for _ in range(_SWEEPS):
        furthest = 1.0
        for p in pairs:
            scales = _scales(layers.output_ranges(p), layers.input_ranges(p))
            layers.scale(p, scales)
            furthest = max(furthest, float(torch.maximum(scales, 1 / scales).max()))
        if furthest < 1 + _CONVERGED:
            break
    return layers.written()


def _scales(first: Tensor, second: Tensor) -> Tensor:
    alive = (first > _DEAD * first.max()) & (second > _DEAD * second.max())
    return torch.where(alive, (first / second).sqrt(), 1.0).clamp(1 / _MOST, _MOST)


class Layers:
    """The weights and biases of the layers of some pairs in float64, to be scaled and then written, rounded once."""

    def __init__(self, editor: Editor, pairs: Sequence[Pair]) -> None:
        self._editor = editor
        self._weights: dict[Node, Tensor] = {}
        self._biases: dict[Node, Tensor] = {}
        for layer in dict.fromkeys(n for p in pairs for n in (p.source, *(r.node for r in p.readers))):
            weight, bias = (editor.constant_value(n) for n in layer_constants(layer))
            self._weights[layer] = _ones(layer) if weight is None else weight.detach().double()
            if bias is not None:
                self._biases[layer] = bias.detach().double()

    def output_ranges(self, p: Pair) -> Tensor:
        """The largest weight of each output channel of the source."""
        return self._weights[p.source].flatten(1).abs().amax(1)

    def input_ranges(self, p: Pair) -> Tensor:
        """The largest weight of each input channel, over all layers that read it."""
        each = [_inputs(r, self._weights[r.node]).abs().amax((1, 3)).flatten() for r in p.readers]
        return torch.stack(each).amax(0)

    def scale(self, p: Pair, scales: Tensor) -> None:
        """Divide the channels between source and readers by their scales."""
        weight = self._weights[p.source]
        self._weights[p.source] = weight / scales.reshape(-1, *[1] * (weight.dim() - 1))
        if p.source in self._biases:
            self._biases[p.source] = self._biases[p.source] / scales
        for reader in p.readers:
            weight = self._weights[reader.node]
            view = _inputs(reader, weight)
            self._weights[reader.node] = (view * scales.reshape(len(view), 1, -1, 1)).reshape(weight.shape)

    def written(self) -> ExportedProgram:
        """The program with these weights; itself where there are none."""
        for layer, weight in self._weights.items():
            _set_argument(layer, _first_constant(layer), self._editor.constant(weight.float()))
            if layer in self._biases:
                bias = self._editor.constant(self._biases[layer].float())
                _set_argument(layer, _first_constant(layer) + 1, bias)
            self._editor.fired += 1
        if self._weights:
            self._editor.drop_unused()
        return self._editor.finish()


def layer_constants(layer: Node) -> tuple[Node | None, Node | None]:
    """Where a layer's weight and bias are; None for what it does without."""
    first = _first_constant(layer)
    return argument(layer, first, "weight"), argument(layer, first + 1, "bias")


def _first_constant(layer: Node) -> int:
    return 1 if layer.target in COMPUTE else 2  # a norm has its shape in between


def _set_argument(layer: Node, index: int, new: Node) -> None:
    arguments = [*layer.args, *[None] * (index + 1 - len(layer.args))]
    arguments[index] = new
    layer.args = tuple(arguments)


def _ones(norm: Node) -> Tensor:
    """What a norm without a weight multiplies by."""
    return torch.ones((shape(norm) or ())[-1], dtype=torch.float64)


def _inputs(reader: Reader, weight: Tensor) -> Tensor:
    """A weight as (groups, outputs, channels, repeats x kernel): its input channels are groups x channels."""
    groups = argument(reader.node, 6, "groups", 1) if reader.node.target is _aten.conv2d.default else 1
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1] // reader.repeats, -1)


def pair(editor: Editor, source: Node) -> Pair | None:
    """`source` and what reads it, where each channel of it can be scaled there and back; else None."""
    if weight_of(editor, source) is None or _shared(source):
        return None
    rank = len(shape(source) or ())
    readers = readers_of(editor, source, 1 if source.target is _aten.conv2d.default else rank - 1)
    return Pair(source, readers) if readers else None


def readers_of(editor: Editor, node: Node, channel: int, repeats: int = 1) -> tuple[Reader, ...]:
    """The layers that all paths from `node` end in, through what keeps channels apart; () if one ends elsewhere.

    `channel` is the dimension of the channels, each `repeats` long.
    """
    found: list[Reader] = []
    for user in node.users:
        if user.target in COMPUTE:
            along = 1 if user.target is _aten.conv2d.default else len(shape(node) or ()) - 1
            alone = user.args[0] is node and node not in user.args[1:]
            if not alone or channel != along or weight_of(editor, user) is None or _shared(user):
                return ()
            found.append(Reader(user, repeats))
            continue
        moved = _moved(user, node, channel, repeats)
        further = () if moved is None else readers_of(editor, user, *moved)
        if not further:
            return ()
        found.extend(further)
    return tuple(found)


def _shared(layer: Node) -> bool:
    """Whether something else has the same weight: what is right for one would be wrong for the other."""
    return any(n is not None and len(n.users) > 1 for n in layer_constants(layer))


def _moved(user: Node, node: Node, channel: int, repeats: int) -> tuple[int, int] | None:
    """Where the channels of `node` are in `user`, and how long; None where they are mixed, or not only scaled."""
    if not user.args or user.args[0] is not node or user.all_input_nodes != [node]:
        return None
    before, after = shape(node), shape(user)
    if before is None or after is None:
        return None
    if user.target in _POOLS:
        return None if channel >= len(before) - 2 else (channel, repeats)
    if user.target in _POINTWISE:
        padded = user.target is _aten.constant_pad_nd.default and (argument(user, 2, "value", 0) or channel != 1)
        return None if padded or after[channel] != before[channel] else (channel, repeats)
    if user.target is _aten.mean.dim:
        gone = dims(argument(user, 1, "dim"), len(before))
        if channel in gone:
            return None
        return (channel if argument(user, 2, "keepdim", False) else channel - sum(d < channel for d in gone)), repeats
    order = permutation(user)
    if order is not None:
        return order.index(channel), repeats
    return _viewed(before, after, channel, repeats) if user.target in _VIEWS else None


def _viewed(before: tuple[int, ...], after: tuple[int, ...], channel: int, repeats: int) -> tuple[int, int] | None:
    """The channels in another shape: alone in a dimension, or in front of what was behind them."""
    outer, inner = math.prod(before[:channel]), math.prod(before[channel + 1 :])
    for place, size in enumerate(after):
        if math.prod(after[:place]) != outer:
            continue
        if size == before[channel]:
            return place, repeats
        if size == before[channel] * inner and place == len(after) - 1:
            return place, repeats * inner
    return None
