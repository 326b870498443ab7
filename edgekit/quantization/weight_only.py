"""Weights on a grid of integers, activations in float: `int8-dynamic`, `int8-weight` and `int4-weight`.

    w ~ s q       q = clip(round(w / s), -Q, Q),   Q = 2^(bits - 1) - 1

with one s an output channel for 8 bits and one s a block of 32 input channels for 4 bits. The rounded program keeps its
weights as floats that lie exactly on the grid, so it runs as it is, every rewrite applies to it, and it is the
simulation that artifacts are compared with. Whoever stores integers gets them back with `on_grid`, without an error:

    max |q| = Q in each group   and   s of few binary digits   =>   s = max |w| / Q   and   s q   are exact in float32
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape, without_writes
from edgekit.graph.batch_norm import fold_batch_norms
from edgekit.graph.constants import fold_constants
from edgekit.quantization._ops import matches

_aten = torch.ops.aten
BLOCK = 32
"""Input channels that share a scale in 4 bits: the least that every runtime with blocks has."""
# Of a scale, in binary: float16 has 11 (one is left for what rounding a weight to float16 may shift), bfloat16 8.
_DIGITS = {8: 10, 4: 8}
# Float16 has multiples of 2^-24 only: from here on a scale has four digits of them.
_LEAST = 2.0**-20
# Clipping the largest weights of a group a little can cost less than the coarser grid that holds them.
_SHRINK = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)}
# A scale takes four bytes: below this many weights it eats what the integers save.
_FEWEST = 8

LINEAR, POINTWISE, CONV, DEPTHWISE = "linear", "1x1 convolution", "convolution", "depthwise convolution"
EVERY = frozenset((LINEAR, POINTWISE, CONV, DEPTHWISE))


@dataclass(frozen=True, kw_only=True)
class WeightScheme:
    """Which weights are rounded to how many bits; kinds of neither stay float.

    A kind in `int4` whose input channels are no multiple of 32 is rounded to 8 bits where it is in `int8` too.
    """

    int8: frozenset[str] = frozenset()
    int4: frozenset[str] = frozenset()
    why_float: str = "its runtime stores it in float"


@dataclass(frozen=True)
class Grid:
    """`scale * ints` is the weight: `ints` (int8, in ±Q) as (outputs, groups, weights), `scale` (outputs, groups, 1).

    8 bits have one group an output channel, 4 bits one a block of input channels.
    """

    bits: int
    ints: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Weight:
    """A constant weight of a convolution or linear: its kind, its bits (32 if left float) and then why."""

    node: Node = field(repr=False)
    name: str
    kind: str
    value: Tensor = field(repr=False)
    bits: int
    reason: str = ""

    @property
    def bytes(self) -> int:
        return self.value.numel() * self.value.element_size()


def quantize_weights(
    program: ExportedProgram, scheme: WeightScheme, keep_float: tuple[str, ...] = ()
) -> ExportedProgram:
    """`program` with its weights rounded by `scheme`: it computes in float32 what an artifact computes in integers.

    Batch norms and constants are folded before, so that what is rounded is what a runtime stores. `keep_float` are
    shell patterns of module paths whose weights are left as they are.
    """
    editor = Editor(_folded(program))
    for weight in list(_weights(editor, scheme)):
        if weight.bits == 32 or any(matches(user, keep_float) for user in weight.node.users):
            continue
        grid = nearest(weight.value, weight.bits)
        rounded = (grid.scale * grid.ints).reshape(weight.value.shape)
        new = editor.constant(rounded, ("rounded", weight.node.name))
        for user in [u for u in weight.node.users if u.target in _MATMULS]:
            user.replace_input_with(weight.node, new)
        editor.fired += 1
    editor.drop_unused()
    return editor.finish()


def left_float(program: ExportedProgram, scheme: WeightScheme) -> tuple[str, ...]:
    """A sentence for each reason why constants of `program` stay float under `scheme`, with their number and bytes."""
    editor = Editor(_folded(program))
    editor.drop_unused()
    weights = list(_weights(editor, scheme))
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for weight in weights:
        if weight.bits == 32:
            groups[weight.kind, weight.reason].append(weight.bytes)
    others = editor.stored - sum(weight.bytes for weight in weights)
    notes = []
    for (kind, reason), sizes in sorted(groups.items()):
        which, stay = (f"{kind} weights", "stay") if len(sizes) > 1 else (f"{kind} weight", "stays")
        notes.append(f"{len(sizes)} {which} ({sum(sizes):,} bytes in float32) {stay} float: {reason}")
    return (*notes, f"biases, norms and tables ({others:,} bytes in float32) stay float")


def weight_bits(program: ExportedProgram, scheme: WeightScheme) -> dict[str, int]:
    """Bits by the name of each parameter of `program` that `scheme` rounds."""
    editor = Editor(without_writes(program))
    names = program.graph_signature.inputs_to_parameters
    return {names[w.node.name]: w.bits for w in _weights(editor, scheme) if w.bits < 32 and w.node.name in names}


def nearest(weight: Tensor, bits: int) -> Grid:
    """The grid of `bits` bits with the least squared error to `weight` (outputs first) among a few scales a group."""
    rows = _groups(weight.detach(), bits).float()
    high = _highest(bits)
    peak = rows.abs().amax(-1, keepdim=True)
    best, error = torch.ones_like(peak), torch.full_like(peak, torch.inf)
    for shrink in _SHRINK[bits]:
        scale = _few_digits(peak * shrink / high, bits, torch.floor)
        distance = (
            (rows - scale * (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().clamp(-high, high))
            .square()
            .sum(-1, keepdim=True)
        )
        best, error = torch.where(distance < error, scale, best), torch.minimum(distance, error)
    best = _not_too_small(best)
    return Grid(bits, (rows / best).round().clamp(-high, high).to(torch.int8), best)


def on_grid(weight: Tensor, bits: int) -> Grid | None:
    """The integers and scales of a weight (outputs first) that lies exactly on a grid of `bits` bits, else None.

    A float16 weight is one that was rounded to float16 after it had been rounded to the grid; None too where float16
    does not have one of the scales.
    """
    if weight.dim() < 2 or weight.dtype not in (torch.float32, torch.float16) or not weight.numel():
        return None
    if not _divides(weight, bits):
        return None
    rows = _groups(weight.detach(), bits).float()
    scale = _not_too_small(_few_digits(rows.abs().amax(-1, keepdim=True) / _highest(bits), bits, torch.round))
    ints = (rows / scale).round()
    held = torch.equal(scale.to(weight.dtype).float(), scale)
    exact = torch.equal((scale * ints).to(weight.dtype).float(), rows)
    return Grid(bits, ints.to(torch.int8), scale) if held and exact else None


def _few_digits(scale: Tensor, bits: int, coarse: Callable[[Tensor], Tensor]) -> Tensor:
    """Scales as every runtime can store them: few binary digits, and as float16 has them where that reaches so low.

    `coarse` rounds where float16 has fewer digits left.
    """
    mantissa, exponent = torch.frexp(scale)
    digits = torch.where(scale < _LEAST, _DIGITS[bits], torch.clamp(exponent + 24, max=_DIGITS[bits]))
    whole = torch.ldexp(mantissa, digits)
    return torch.ldexp(torch.where(digits < _DIGITS[bits], coarse(whole), whole.round()), exponent - digits)


def _not_too_small(scale: Tensor) -> Tensor:
    """A group far below the largest, such as a channel that training switched off, takes a scale that can be stored."""
    least = torch.clamp(scale.max() * 2.0**-8, torch.finfo(torch.float32).tiny * 2**24, _LEAST)
    return torch.maximum(scale, torch.ldexp(torch.ones(()), torch.frexp(least)[1] - 1))


def _folded(program: ExportedProgram) -> ExportedProgram:
    return fold_batch_norms(fold_constants(without_writes(program)))


_CONVS = (
    _aten.conv1d.default, _aten.conv1d.padding, _aten.conv2d.default, _aten.conv2d.padding, _aten.convolution.default,
)  # fmt: skip
_MATMULS = (_aten.linear.default, *_CONVS)


def _weights(editor: Editor, scheme: WeightScheme) -> Iterator[Weight]:
    """Each constant weight once, in graph order."""
    seen: set[Node] = set()
    for node in editor.nodes(*_MATMULS):
        weight = argument(node, 1, "weight")
        value = editor.constant_value(weight)
        if weight in seen or value is None or value.dtype != torch.float32:
            continue
        seen.add(weight)
        kind = _kind(node)
        bits, reason = _bits(value, kind, scheme)
        if not all(u.target in _MATMULS and argument(u, 1, "weight") is weight for u in weight.users):
            bits, reason = 32, "other ops read it too"
        yield Weight(weight, weight.name, kind, value.detach(), bits, reason)


def _kind(node: Node) -> str:
    if node.target is _aten.linear.default:
        return LINEAR
    channels, size = shape(argument(node, 0, "input")), shape(argument(node, 1, "weight"))
    assert channels is not None
    assert size is not None
    groups = channels[-len(size) + 1] // size[1]
    if node.target is _aten.convolution.default and argument(node, 6, "transposed"):
        return "transposed convolution"
    if groups > 1 and size[1] == 1:
        return DEPTHWISE
    return POINTWISE if groups == 1 and all(n == 1 for n in size[2:]) else CONV


def _bits(value: Tensor, kind: str, scheme: WeightScheme) -> tuple[int, str]:
    if kind in scheme.int4 and _divides(value, 4):
        return 4, ""
    if kind not in scheme.int8:
        uneven = f"{value.shape[1]} input channels are no multiple of {BLOCK}"
        return 32, uneven if kind in scheme.int4 else scheme.why_float
    if value[0].numel() < _FEWEST:
        return 32, f"fewer than {_FEWEST} weights an output channel"
    if not bool(value.isfinite().all()):
        return 32, "it is not finite"
    return 8, ""


def _divides(weight: Tensor, bits: int) -> bool:
    """Whether a weight can be cut into the groups of a grid: 4 bits take (outputs, inputs) or a 1x1 kernel alone."""
    return bits == 8 or (weight[0].numel() == weight.shape[1] and weight.shape[1] % BLOCK == 0)


def _groups(weight: Tensor, bits: int) -> Tensor:
    return weight.reshape(weight.shape[0], -1, BLOCK if bits == 4 else weight[0].numel())


def _highest(bits: int) -> int:
    return int(2 ** (bits - 1) - 1)
