"""The Core ML (MIL) operations that quantize values or unpack compressed weights, in torch.

Continues `mil_ops.py`: the same rules hold (the signature is the op's own; anything not implemented is an error).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from edgekit.targets.mil_ops import HOLDERS, Ints, OpRule, UnknownMilOp, read_rule


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar as it is; a vector lying along `axis` of `x`."""
    if values.dim() == 0 or axis is None:
        return values.float()
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.float().reshape(shape)


_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def quantize(input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None,
             axis: int | None = None) -> Tensor:  # fmt: skip
    if output_dtype not in _RANGES:
        raise UnknownMilOp(f"output_dtype {output_dtype!r}")
    q = torch.round(input / _along(scale, input, axis))
    q = q if zero_point is None else q + _along(zero_point, input, axis)
    return q.clamp(*_RANGES[output_dtype]).to(HOLDERS[output_dtype])


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    x = input.float() if zero_point is None else input.float() - _along(zero_point, input, axis)
    return x * _along(scale, input, axis)


def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    return dequantize(quantized_data, scale, zero_point, axis)


def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    x = data.float() if offset is None else data.float() - _repeated(offset.float(), data)
    return x * _repeated(scale.float(), data)


def _repeated(values: Tensor, data: Tensor) -> Tensor:
    """`values` (one per block) spread over the blocks of `data`; a size 1 is left to broadcasting."""
    for axis, (count, size) in enumerate(zip(values.shape, data.shape, strict=True)):
        if count not in (1, size):
            values = values.repeat_interleave(size // count, axis)
    return values


def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    return source_val.to(HOLDERS[output_dtype])


def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, shape: Ints | None = None,
                           vector_axis: int | None = None) -> Tensor:  # fmt: skip
    if shape is not None:  # iOS16: one table, indices packed in bytes
        return lut[unpack_bits(indices, int(math.log2(lut.numel())), math.prod(shape)).long()].reshape(shape)
    if lut.shape[-1] == 1:
        tables = lut.squeeze(-1)
        for axis, (count, size) in enumerate(zip(tables.shape[:-1], indices.shape, strict=True)):
            tables = tables.repeat_interleave(size // count, axis)
        return tables.gather(-1, indices.long().unsqueeze(-1)).squeeze(-1)
    if vector_axis is None or any(n != 1 for n in lut.shape[:-2]):
        raise UnknownMilOp(f"vector palettes of shape {tuple(lut.shape)}")
    axis = vector_axis % indices.dim()
    vectors = lut.reshape(lut.shape[-2:])[indices.long()].movedim(-1, axis + 1)
    return vectors.flatten(axis, axis + 1)


def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Ints | None = None) -> Tensor:
    if shape is not None:  # iOS16: the mask is packed in bytes
        mask = unpack_bits(mask, 1, math.prod(shape)).reshape(shape)
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask.bool()] = nonzero_data
    return dense


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """`count` unsigned numbers of `bits` bits from bytes filled from the least significant bit up."""
    if bits == 8:
        return packed[:count]
    stream = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    digits = stream.flatten()[: count * bits].reshape(count, bits)
    return (digits << torch.arange(bits, dtype=torch.uint8)).sum(-1).to(torch.uint8)


_FUNCTIONS: Sequence[Callable[..., Tensor]] = (
    constexpr_affine_dequantize, constexpr_blockwise_shift_scale, constexpr_cast, constexpr_lut_to_dense,
    constexpr_sparse_to_dense, dequantize, quantize,
)  # fmt: skip


def quantized_rules() -> Iterable[tuple[str, OpRule]]:
    """(name, rule) of every op of this file."""
    for function in _FUNCTIONS:
        yield function.__name__, read_rule(function, exact=False)
