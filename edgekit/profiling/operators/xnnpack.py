"""XNNPACK tells what it ran by the kind of kernel alone: which op of the model file was each?

It keeps the order of the ops it is given, fuses some (a clamp into the convolution before it), leaves some out (a
reshape that moves nothing) and adds some (a conversion before a product of dynamic range). So the two sequences are
aligned as two texts are: in order, with gaps, as many pairs of one kind as can be.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.profiling.operators._means import Step
from edgekit.types import FileOp
from edgekit.types.profile import OperatorTime

# What XNNPACK calls a kernel, before the layout and the types, and the ops that become it. Others are called alike.
_PRODUCT = ("conv", "depthwiseconv", "convtranspose", "transposeconv", "fullyconnected", "batchmatrixmultiply",
            "batchmatmul")  # fmt: skip
_MOVE = ("copy", "reshape", "expanddims", "squeeze", "concatenate", "concatenation", "pack", "unpack", "split")
_REDUCE = ("mean", "sum", "globalavgpooling", "reducemin", "reducemax")
_MADE_OF: Mapping[str, tuple[str, ...]] = {
    "convolution": _PRODUCT,
    "deconvolution": _PRODUCT,
    "fullyconnected": _PRODUCT,
    "dynamicfullyconnected": _PRODUCT,
    "batchmatrixmultiply": _PRODUCT,
    "mean": _REDUCE,
    "sum": _REDUCE,
    "copy": (*_MOVE, "slice", "stridedslice", "transpose"),
    "reshape": _MOVE,
    "slice": ("slice", "stridedslice", "split"),
    "convert": ("convert", "quantize", "dequantize", "cast"),
    "clamp": ("clamp", "relu", "relun", "minimum", "maximum"),
    "square": ("square", "multiply", "mul"),
    "constantpad": ("constantpad", "pad", "padv"),
    "multiply": ("multiply", "mul"),
    "subtract": ("subtract", "sub"),
    "divide": ("divide", "div"),
    "negate": ("negate", "neg"),
    "sigmoid": ("sigmoid", "logistic"),
    "squareroot": ("squareroot", "sqrt"),
    "reciprocalsquareroot": ("reciprocalsquareroot", "rsqrt"),
    "maxpooling": ("maxpooling", "maxpool"),
    "averagepooling": ("avgpooling", "averagepool", "globalavgpooling", "mean"),
    "resizebilinear": ("resizebilinear",),
    "approxgelu": ("gelu",),
}
_ONE, _EXACT, _AGAIN, _UNKNOWN = 2.0, 0.5, 1.5, 1.0


def operators(steps: Sequence[Step], ops: Sequence[FileOp]) -> tuple[OperatorTime, ...]:
    """`steps` of one delegate as rows, each with the source of the op of `ops` that it most likely is."""
    found = align([s.name for s in steps], [o.op for o in ops])
    rows: list[OperatorTime] = []
    behind = ""
    for step, place in zip(reversed(steps), reversed(found), strict=True):
        if place is not None:
            behind = ops[place].source
        # What it added by itself it added for the op behind.
        op = step.op or (ops[place].op if place is not None else step.name.partition(" (")[0])
        rows.append(OperatorTime(name=step.name, op=op, us=step.us, delegated=True, source=behind))
    return tuple(reversed(rows))


def align(kernels: Sequence[str], ops: Sequence[str]) -> list[int | None]:
    """For each kernel the place of the op that it is, or None; places never decrease.

    Several kernels may be one op only where that is joined of several parts.
    """
    if not kernels or not ops:
        return [None] * len(kernels)
    kinds = [_plain(op) for op in ops]
    joined = np.array([kind.startswith("concat") or kind in ("pack", "split") for kind in kinds])
    scores = np.array([_scores(_plain(name), name, kinds) for name in kernels])
    best = np.zeros((len(kernels) + 1, len(ops) + 1))
    for i, score in enumerate(scores):
        again = np.where(joined & (score > 0), best[i, 1:] + _AGAIN, best[i, 1:])
        best[i + 1, 1:] = np.maximum(again, np.where(score > 0, best[i, :-1] + score, 0))
        np.maximum.accumulate(best[i + 1], out=best[i + 1])
    places: list[int | None] = [None] * len(kernels)
    i, j = len(kernels), len(ops)
    while i and j:
        here, score = best[i, j], scores[i - 1, j - 1]
        if here == best[i, j - 1]:
            j -= 1
        elif score > 0 and here == best[i - 1, j - 1] + score:
            i, j = i - 1, j - 1
            places[i] = j
        elif joined[j - 1] and score > 0 and here == best[i - 1, j] + _AGAIN:
            i -= 1
            places[i] = j - 1
        else:
            i -= 1
    return places


def _scores(kernel: str, name: str, kinds: Sequence[str]) -> list[float]:
    """How well a kernel fits each op."""
    made_of = _MADE_OF.get(kernel, (kernel,))
    depthwise = "DWConv" in name
    scores = []
    for kind in kinds:
        if kernel.endswith(("elementwise", "unaryop")):  # of a table, say, which has no name of its own
            scores.append(_UNKNOWN if kind not in _PRODUCT else 0.0)
        elif kind not in made_of:
            scores.append(0.0)
        else:
            same = kind == kernel or (depthwise and kind == "depthwiseconv") or (kind == "conv" and not depthwise)
            scores.append(_ONE + _EXACT * same)
    return scores


def _plain(name: str) -> str:
    """`Constant Pad (ND, X32) #1`, `XNNStaticConstantPad` and `CONV_2D` without layout, types, numbers and case."""
    letters = re.sub(r"[^a-z]", "", re.sub(r"\d+d\b|2d\d*$|_2d", "", name.partition(" (")[0].lower()))
    return letters.removeprefix("xnn").removeprefix("static")
