"""The Core ML (MIL) operations in torch: one small function per op, its signature being the op's own.

Source of every formula: the op definitions of coremltools 9 (`converters/mil/mil/ops/defs/iOS15 … iOS18`).
The function's parameter names and annotations are what the interpreter binds by, so a parameter that a future
opset adds is an error here, never ignored. Floating point values arrive and leave in float32 whatever the program
declares: the interpreter rounds to the declared type, once, when the op is done.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekit.errors import UsageError

Tensors: TypeAlias = Sequence[Tensor]
Ints: TypeAlias = list[int]
Result: TypeAlias = Tensor | tuple[Tensor, ...]

#: Types that MIL names in a string parameter (`cast.dtype`), and the torch type that holds their values here.
#: float16 is held in float32, and the unsigned types that torch can hardly compute with in a wider signed one.
HOLDERS: Mapping[str, torch.dtype] = MappingProxyType({
    "bool": torch.bool, "fp16": torch.float32, "fp32": torch.float32, "fp64": torch.float64,
    "int4": torch.int8, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
    "uint1": torch.uint8, "uint2": torch.uint8, "uint3": torch.uint8, "uint4": torch.uint8, "uint6": torch.uint8,
    "uint8": torch.uint8, "uint16": torch.int32, "uint32": torch.int64, "uint64": torch.int64,
})  # fmt: skip


class UnknownMilOp(UsageError):
    """A Core ML program uses an op, a parameter or an option that the evaluator does not implement."""


@dataclass(frozen=True)
class OpRule:
    """How to compute one MIL op. `exact`: the result only copies or selects inputs, so it needs no rounding."""

    compute: Callable[..., Result]
    params: Mapping[str, Any]
    required: frozenset[str]
    exact: bool


def read_rule(compute: Callable[..., Result], exact: bool) -> OpRule:
    """Read an op's parameters from the signature of the function that computes it."""
    hints = get_type_hints(compute)
    parameters = inspect.signature(compute).parameters
    required = frozenset(name for name, p in parameters.items() if p.default is inspect.Parameter.empty)
    return OpRule(compute, {name: hints[name] for name in parameters}, required, exact)


# ------------------------------------------------------------------------------------------ linear algebra


def _pads(kind: str, pad: Ints | None, sizes: Ints, kernel: Ints, strides: Ints) -> Ints:
    """[before, after] per spatial axis for MIL's `pad_type`; `kernel` is the dilated extent."""
    if kind == "valid":
        return [0] * (2 * len(sizes))
    if kind == "custom":
        return pad if pad is not None else [0] * (2 * len(sizes))
    if kind not in ("same", "same_lower"):
        raise UnknownMilOp(f"pad_type {kind!r}")
    pads: Ints = []
    for size, extent, stride in zip(sizes, kernel, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
        pads += [total // 2, total - total // 2] if kind == "same" else [total - total // 2, total // 2]
    return pads


def _torch_pads(pads: Ints) -> Ints:
    """MIL's pads (first axis first) in the order of `F.pad` (last axis first)."""
    return [p for axis in reversed(range(len(pads) // 2)) for p in pads[2 * axis : 2 * axis + 2]]


def conv(x: Tensor, weight: Tensor, pad_type: str, bias: Tensor | None = None, strides: Ints | None = None,
         pad: Ints | None = None, dilations: Ints | None = None, groups: int = 1) -> Tensor:  # fmt: skip
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = _pads(pad_type, pad, list(x.shape[2:]), extents, strides)
    if pads[::2] != pads[1::2]:  # torch pads both sides alike, so an uneven padding is made beforehand
        x, pads = F.pad(x, _torch_pads(pads)), [0] * (2 * rank)
    run: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return run(x, weight, bias, strides, pads[::2], dilations, groups)


def conv_transpose(x: Tensor, weight: Tensor, bias: Tensor | None = None, pad: Ints | None = None,
                   output_shape: Ints | None = None, pad_type: str = "valid", strides: Ints | None = None,
                   dilations: Ints | None = None, groups: int = 1) -> Tensor:  # fmt: skip
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    run: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    y = run(x, weight, None, strides, 0, 0, groups, dilations)
    full, crop = list(y.shape[2:]), [0] * (2 * rank)
    if pad_type == "same":
        totals = [max(f - n * s, 0) for f, n, s in zip(full, x.shape[2:], strides, strict=True)]
        crop = [c for total in totals for c in (total // 2, total - total // 2)]
    elif pad_type == "custom":
        crop = pad if pad is not None else crop
    elif pad_type != "valid":
        raise UnknownMilOp(f"pad_type {pad_type!r}")
    if output_shape is not None:  # fixes the far side: rows past the full result hold the bias alone
        wanted = output_shape[2:] if len(output_shape) == rank + 2 else output_shape
        for axis in range(rank):
            crop[2 * axis + 1] = full[axis] - crop[2 * axis] - wanted[axis]
    y = F.pad(y, _torch_pads([-c for c in crop]))
    return y if bias is None else y + bias.reshape([1, -1] + [1] * rank)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    x = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
    return x @ (y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y)


def einsum(values: Tensors, equation: str) -> Tensor:
    return torch.einsum(equation, *values)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


# ------------------------------------------------------------------------------------------ normalisation, pooling


def batch_norm(x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None,
               epsilon: float = 1e-5) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)


def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, None, None, gamma, beta, True, 0.0, epsilon)


def layer_norm(x: Tensor, axes: Ints | None = None, gamma: Tensor | None = None, beta: Tensor | None = None,
               epsilon: float = 1e-5) -> Tensor:  # fmt: skip
    axes = sorted(a % x.dim() for a in (range(x.dim()) if axes is None else axes))
    if axes == list(range(x.dim() - len(axes), x.dim())):
        return F.layer_norm(x, [x.shape[a] for a in axes], gamma, beta, epsilon)
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    shape = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    return F.local_response_norm(x, size, alpha, beta, k)


def _pool(mode: str, x: Tensor, kernel: Ints, strides: Ints | None, pad_type: str, pad: Ints | None, ceil: bool,
          count_padding: bool) -> Tensor:  # fmt: skip
    rank, strides = len(kernel), strides or [1] * len(kernel)
    pads = _pads(pad_type, pad, list(x.shape[2:]), kernel, strides)
    before = pads[::2]
    run: Any = {"max": (F.max_pool1d, F.max_pool2d, F.max_pool3d), "avg": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)}
    if before == pads[1::2] and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        if mode == "max":
            return run["max"][rank - 1](x, kernel, strides, before, 1, ceil)
        return run["avg"][rank - 1](x, kernel, strides, before, ceil, count_padding)
    if ceil:
        raise UnknownMilOp(f"ceil_mode with padding {pads}")
    padded = F.pad(x, _torch_pads(pads), value=-math.inf if mode == "max" else 0.0)
    pooled = run[mode][rank - 1](padded, kernel, strides)
    if mode == "max" or count_padding:
        return pooled
    return pooled / run["avg"][rank - 1](F.pad(torch.ones_like(x), _torch_pads(pads)), kernel, strides)


def max_pool(x: Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints | None = None, pad: Ints | None = None,
             ceil_mode: bool = False) -> Tensor:  # fmt: skip
    return _pool("max", x, kernel_sizes, strides, pad_type, pad, ceil_mode, True)


def avg_pool(x: Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints | None = None, pad: Ints | None = None,
             ceil_mode: bool = False, exclude_padding_from_average: bool = False) -> Tensor:  # fmt: skip
    return _pool("avg", x, kernel_sizes, strides, pad_type, pad, ceil_mode, not exclude_padding_from_average)


def l2_pool(x: Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints | None = None, pad: Ints | None = None,
            ceil_mode: bool = False) -> Tensor:  # fmt: skip
    mean = _pool("avg", x.square(), kernel_sizes, strides, pad_type, pad, ceil_mode, True)
    return (mean * math.prod(kernel_sizes)).sqrt()


# ------------------------------------------------------------------------------------------ activations


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return x.softmax(axis)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise UnknownMilOp(f"mode {mode!r}")
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * x)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, _by_channel(alpha, x) * x)


def elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x))


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return _by_channel(alpha, x) * F.softplus(_by_channel(beta, x) * x)


def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x * alpha + beta


def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(beta * x)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= alpha, x, torch.zeros_like(x))


def threshold(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=alpha)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape([1, -1] + [1] * (x.dim() - 2))


# ------------------------------------------------------------------------------------------ elementwise


def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return torch.reciprocal(x + epsilon)


def real_div(x: Tensor, y: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise UnknownMilOp("integer operands: the op's definition does not say how it rounds")
    return x / y


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


def cast(x: Tensor, dtype: str) -> Tensor:
    if dtype not in HOLDERS:
        raise UnknownMilOp(f"dtype {dtype!r}")
    return x != 0 if dtype == "bool" else x.to(HOLDERS[dtype])


# ------------------------------------------------------------------------------------------ reductions


def _reduction(compute: Callable[[Tensor, Ints, bool], Tensor]) -> Callable[..., Result]:
    def reduce(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        return compute(x, list(range(x.dim())) if axes is None else axes, keep_dims)

    return reduce


def _prod(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmax(axis, keepdim=keep_dims).to(HOLDERS[output_dtype])


def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmin(axis, keepdim=keep_dims).to(HOLDERS[output_dtype])


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    y = x.flip(axis) if reverse else x
    y = y.cumsum(axis, dtype=y.dtype) - y if exclusive else y.cumsum(axis, dtype=y.dtype)
    return y.flip(axis) if reverse else y


_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "acos": torch.acos, "asin": torch.asin, "atan": torch.atan, "atanh": torch.atanh, "cos": torch.cos,
    "cosh": torch.cosh, "erf": torch.erf, "exp": torch.exp, "exp2": torch.exp2, "sigmoid": torch.sigmoid,
    "silu": F.silu, "sin": torch.sin, "sinh": torch.sinh, "softplus": F.softplus, "softsign": F.softsign,
    "sqrt": torch.sqrt, "square": torch.square, "tan": torch.tan, "tanh": torch.tanh,
}  # fmt: skip
_UNARY_EXACT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs, "ceil": torch.ceil, "floor": torch.floor, "identity": lambda x: x,
    "logical_not": torch.logical_not, "relu": torch.relu, "relu6": F.relu6, "round": torch.round, "sign": torch.sign,
    "non_zero": lambda x: torch.nonzero(x).to(torch.int32),
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
}  # fmt: skip
_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "floor_div": torch.floor_divide, "mod": torch.remainder, "mul": torch.mul, "pow": torch.pow,
    "real_div": real_div, "sub": torch.sub,
}  # fmt: skip
_BINARY_EXACT: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": torch.eq, "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt, "less_equal": torch.le,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor,
    "maximum": torch.maximum, "minimum": torch.minimum, "not_equal": torch.ne,
}  # fmt: skip
_REDUCTIONS: Mapping[str, Callable[[Tensor, Ints, bool], Tensor]] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep, dtype=x.dtype),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_prod": _prod,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep, dtype=x.dtype),
}
_FUNCTIONS: Sequence[Callable[..., Result]] = (
    avg_pool, batch_norm, cast, clamped_relu, clip, conv, conv_transpose, cumsum, einsum, elu, gelu,
    instance_norm, inverse, l2_norm, l2_pool, layer_norm, leaky_relu, linear, linear_activation, local_response_norm,
    log, matmul, prelu, rsqrt, scaled_dot_product_attention, scaled_tanh, sigmoid_hard, softmax, softplus_parametric,
    threshold,
)  # fmt: skip
_FUNCTIONS_EXACT: Sequence[Callable[..., Result]] = (
    max_pool, reduce_argmax, reduce_argmin, select, thresholded_relu,
)  # fmt: skip


def _one(function: Callable[[Tensor], Tensor]) -> Callable[..., Result]:
    def compute(x: Tensor) -> Tensor:  # gives torch's function the parameter name that MIL uses
        return function(x)

    return compute


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Result]:
    def compute(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return compute


def numeric_rules() -> Iterable[tuple[str, OpRule]]:
    """(name, rule) of every op of this file."""
    for unary, exact in ((_UNARY, False), (_UNARY_EXACT, True)):
        for name, of_one in unary.items():
            yield name, read_rule(_one(of_one), exact)
    for binary, exact in ((_BINARY, False), (_BINARY_EXACT, True)):
        for name, of_two in binary.items():
            yield name, read_rule(_two(of_two), exact)
    for name, reduce in _REDUCTIONS.items():
        yield name, read_rule(_reduction(reduce), name in ("reduce_max", "reduce_min"))
    for functions, exact in ((_FUNCTIONS, False), (_FUNCTIONS_EXACT, True)):
        for function in functions:
            yield function.__name__, read_rule(function, exact)
