"""SmoothQuant: what is hard to quantize in activations moves into the weights behind them (Xiao et al. 2022, 4).

    (X diag(s)^-1) (diag(s) W) = X W          s_j = max|X_j|^a / max|W_j|^(1-a)      a = 1/2      (equation 4)

The division is absorbed by what computes X: the affine part of a layer norm, or the outputs of a linear or convolution.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape
from edgekit.quantization._execution import Values, Walk, in_parts
from edgekit.quantization._ops import COMPUTE
from edgekit.quantization.equalization import Layers, Pair, pair, readers_of

_aten = torch.ops.aten
_ALPHA = 0.5
# A channel that is nearly silent on the samples need not be so elsewhere: it is not blown up beyond this.
_LEAST = 1e-3


def smooth(program: ExportedProgram, samples: Sequence[Sequence[Tensor]]) -> ExportedProgram:
    """`program` with smoother activations in front of linears and 1x1 convolutions; itself where there are none."""
    editor = Editor(program)
    pairs = [p for n in editor.nodes(_aten.layer_norm.default, *COMPUTE) if (p := _pair(editor, n)) is not None]
    layers = Layers(editor, pairs)
    maxima = _maxima(program, pairs, samples)
    for p in pairs:
        silent = maxima[p.source.name]
        activation = silent.clamp(min=_LEAST * float(silent.max()))
        weight = layers.input_ranges(p)
        weight = weight.clamp(min=_LEAST * float(weight.max()))
        if float(silent.max()) and float(weight.max()):
            layers.scale(p, activation**_ALPHA / weight ** (1 - _ALPHA))
    return layers.written()


def _pair(editor: Editor, source: Node) -> Pair | None:
    found = _norm_pair(editor, source) if source.target is _aten.layer_norm.default else pair(editor, source)
    return found if found is not None and all(_is_pointwise(r.node) for r in found.readers) else None


def _norm_pair(editor: Editor, norm: Node) -> Pair | None:
    affine = [argument(norm, 2, "weight"), argument(norm, 3, "bias")]
    given = [n for n in affine if n is not None]
    if len(norm.args[1]) != 1 or any(editor.constant_value(n) is None or len(n.users) > 1 for n in given):  # type: ignore[arg-type]
        return None
    readers = readers_of(editor, norm, len(shape(norm) or ()) - 1)
    return Pair(norm, readers) if readers else None


def _is_pointwise(layer: Node) -> bool:
    size = shape(layer.args[1]) or ()
    return argument(layer, 6, "groups", 1) == 1 and size[2:] in ((), (1, 1))


def _maxima(program: ExportedProgram, pairs: Sequence[Pair], samples: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """The largest magnitude of each channel that layers read, by the name of what computes it."""
    sources = {r.node.name: (p.source.name, r.repeats) for p in pairs for r in p.readers}
    found: dict[str, Tensor] = {}

    def see(node: Node, _: Values) -> None:
        if node.name not in sources:
            return
        source, repeats = sources[node.name]
        channel = 1 if node.target is _aten.conv2d.default else -1
        for v in walk.values(node.args[0]):  # type: ignore[arg-type]
            largest = v.abs().movedim(channel, 0).reshape(v.shape[channel] // repeats, -1).amax(1).double()
            found[source] = torch.maximum(found[source], largest) if source in found else largest

    for part in in_parts(program, samples) if pairs else ():
        walk = Walk(program, part)
        walk.run(see)
    return found
