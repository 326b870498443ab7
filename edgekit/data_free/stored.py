"""What norms of a model have stored of its training data, whether it fits together, and which tensors it describes.

Fit: a batch norm whose statistics are those of the weights in front of it finds them again on any images, once the
norms before it give what they gave in training (`analytic.recalibrated`). So whatever images are taken,

    mean = rms over channels of (m - M) / sqrt(V)        scale = median over channels of sqrt(v / V)

with M, V stored and m, v found. On ResNet-20 and MobileNetV1 as trained, no norm is beyond 0.27 and 1.5 times on dead
leaves, pink or white noise; where one norm's M is moved by three deviations or its V multiplied by 25, it is at 2.3 to
2.9, or 5 times. What was folded by others and put back as mean 0 and variance 1 has stored nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgekit.data_free.analytic import recalibrated
from edgekit.data_free.matching import holds_statistics
from edgekit.graph._edit import value
from edgekit.graph.capture import capture
from edgekit.loading import Loaded
from edgekit.quantization._execution import Samples, Values, Walk, constants
from edgekit.quantization._ops import CAT, COMPUTE, MEANS, MOVES
from edgekit.types import NormFit

_aten = torch.ops.aten
_BATCH_NORM = _aten.batch_norm.default
_OTHERS = {
    "layer norm": (_aten.layer_norm.default, _aten.native_layer_norm.default),
    "group norm": (_aten.group_norm.default, _aten.native_group_norm.default),
    "instance norm": (_aten.instance_norm.default,),
}
EMPTY = "batch norm without statistics"
# Beside the mean variance of a layer, a variance below this is that of a channel that is nearly dead.
_FLOOR = 0.05
_DEAD = 1e-6
_SAME = 1e-3
# They choose or sum up values: what is stored of their operand does not say what leaves them.
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
_NOT_ELEMENTWISE = (*COMPUTE, *MEANS, _aten.softmax.int, _aten._softmax.default, _aten.layer_norm.default,
                    _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default, _aten.sum.dim_IntList)  # fmt: skip


def train_form(loaded: Loaded) -> ExportedProgram:
    """The program of the module before `deploy()`, which may merge norms; of a `.pt2` file its own."""
    return loaded.program if loaded.request.model.endswith(".pt2") else capture(loaded.module, loaded.inputs)


def norm_inventory(program: ExportedProgram) -> dict[str, int]:
    """How many norms of each kind a program in train form calls."""
    fixed, found = constants(program), dict[str, int]()
    for node in program.graph.nodes:
        kind = next((name for name, targets in _OTHERS.items() if node.target in targets), None)
        if node.target is _BATCH_NORM:
            kind = "batch norm" if _stored(node, fixed) is not None else EMPTY
        if kind is not None:
            found[kind] = found.get(kind, 0) + 1
    return found


def _stored(norm: Node, fixed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """The mean and variance that a batch norm has stored; None where it has not."""
    mean, var = (fixed.get(n.name) if isinstance(n, Node) else None for n in norm.args[3:5])
    return (mean, var) if mean is not None and var is not None and holds_statistics(mean, var) else None


def norm_fits(program: ExportedProgram, samples: Samples) -> tuple[NormFit, ...]:
    """How far what each norm has stored is from what arrives there, in graph order; see above."""
    buffers, fixed = program.graph_signature.inputs_to_buffers, constants(program)
    norms = [n for n in program.graph.nodes if n.target is _BATCH_NORM and _stored(n, fixed) is not None]
    now, found = recalibrated(program, samples) if norms else {}, dict[str, NormFit]()
    for node in norms:
        stored = _stored(node, fixed)
        assert stored is not None
        names = [buffers.get(n.name, "") for n in node.args[3:5]]
        if names[0] not in now or names[0] in found:
            continue
        found[names[0]] = _fit(names[0].removesuffix(".running_mean"), *stored, *(now[n] for n in names))
    return tuple(found.values())


def _fit(name: str, mean: Tensor, var: Tensor, mean_now: Tensor, var_now: Tensor) -> NormFit:
    average = float(var.double().mean())
    off = (mean_now.double() - mean.double()) / (var.double() + _FLOOR * average + 1e-12).sqrt()
    dead = _DEAD * average + 1e-12
    ratio = ((var_now.double().clamp(min=0) + dead) / (var.double() + dead)).log() / 2
    return NormFit(
        name=name,
        mean=float(off.square().mean().sqrt().clamp(max=1e6)),
        scale=math.exp(float(ratio.median())),
        channel=float(off.abs().max().clamp(max=1e6)),
    )


class _Results(TorchFunctionMode):
    """The fingerprints of what batch norms with statistics return, however they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = {functional.batch_norm: 1, torch.batch_norm: 3, _BATCH_NORM: 3}.get(func)
        if first is not None and len(args) > first + 1:
            mean, var = args[first], args[first + 1]
            if mean is not None and var is not None and holds_statistics(mean, var):
                self.found.append(_fingerprint(result))
        return result


def _fingerprint(x: Tensor) -> tuple[float, ...]:
    """What stays of a tensor when its values are moved: their number, mean, deviation and extremes."""
    y = x.detach().double()
    return (float(y.numel()), *(float(f) for f in (y.mean(), y.std(correction=0), y.min(), y.max())))


def described(loaded: Loaded, prepared: ExportedProgram, sample: tuple[Tensor, ...]) -> set[str]:
    """The tensors of `prepared` whose distribution follows from what batch norms have stored, by name.

    These are: what a batch norm returns, found by its values, since `deploy()` and rewrites give it other names and
    merge it into what is in front of it; of such a tensor what acts on each value (activations, clamps, products with
    constants) or moves it; sums of two and concatenations, whose means add up whatever the correlation. Not: averages,
    whose mean alone is known; what a layer without a batch norm makes of such a tensor; products of two.
    """
    with torch.no_grad(), _Results() as results:
        loaded.module(*sample)
    known: set[str] = set()
    fixed = constants(prepared)

    def see(node: Node, values: Values) -> None:
        if not isinstance(values[0], Tensor) or not values[0].is_floating_point():
            return
        operands = [n for n in node.all_input_nodes if n.name not in fixed]
        stored = [n.name in known for n in operands]
        same_size = all(_numel(n) == values[0].numel() for n in operands)
        if node.target in (*_SUMS, CAT):
            follows = bool(stored) and all(stored)
        elif node.target in MOVES or _picks(node, fixed):
            follows = stored == [True]
        else:
            follows = stored == [True] and node.target not in _NOT_ELEMENTWISE and same_size
        if follows or any(_alike(_fingerprint(values[0]), f) for f in results.found):
            known.add(node.name)

    Walk(prepared, [sample]).run(see)
    return known


def _picks(node: Node, fixed: Mapping[str, Tensor]) -> bool:
    """Whether a convolution takes one value for each that it gives, as a shortcut with a stride does."""
    weight = fixed.get(node.args[1].name) if node.target in COMPUTE and isinstance(node.args[1], Node) else None
    return weight is not None and int((weight != 0).flatten(1).sum(1).max()) <= 1


def _numel(node: Node) -> int:
    found = value(node)
    return 0 if found is None else found.numel()


def _alike(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] == b[0] and all(abs(x - y) <= _SAME * (b[4] - b[3]) for x, y in zip(a[1:], b[1:], strict=True))
