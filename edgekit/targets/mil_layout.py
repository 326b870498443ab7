"""The Core ML (MIL) operations that move, pick or resize values, in torch.

Continues `mil_ops.py`: the same rules hold (the signature is the op's own; anything not implemented is an error).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekit.targets.mil_ops import HOLDERS, Ints, OpRule, Result, Tensors, UnknownMilOp, read_rule

# ------------------------------------------------------------------------------------------ shapes


def reshape(x: Tensor, shape: Ints) -> Tensor:
    if len(shape) == x.dim():  # only then does 0 mean "as it was"
        shape = [n or old for n, old in zip(shape, x.shape, strict=True)]
    return x.reshape(shape)


def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: list[bool]) -> Tensor:
    parts = zip(ref_tensors, begins, ends, end_masks, strict=True)
    return x.reshape([n for ref, b, e, whole in parts for n in (ref.shape[b:] if whole else ref.shape[b:e])])


def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    for axis in sorted(a % (x.dim() + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), -1)


def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.flip(list(range(x.dim())) if axes is None else axes)


def tile(x: Tensor, reps: Ints) -> Tensor:
    return x.repeat(reps)


def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    if not interleave:
        return torch.cat(list(values), axis)
    axis %= values[0].dim()
    return torch.stack(list(values), axis + 1).flatten(axis, axis + 1)


def stack(values: Tensors, axis: int) -> Tensor:
    return torch.stack(list(values), axis)


def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> Result:
    if split_sizes is not None:
        return tuple(x.split(split_sizes, axis))
    if num_splits is None or x.shape[axis] % num_splits:
        raise ValueError(f"cannot split {x.shape[axis]} evenly in {num_splits}")
    return tuple(x.chunk(num_splits, axis))


def slice_by_index(x: Tensor, begin: Ints, end: Ints, stride: Ints | None = None, begin_mask: list[bool] | None = None,
                   end_mask: list[bool] | None = None, squeeze_mask: list[bool] | None = None) -> Tensor:  # fmt: skip
    no = [False] * x.dim()
    keys = zip(begin, end, stride or [1] * x.dim(), begin_mask or no, end_mask or no, squeeze_mask or no, strict=True)
    for axis, (first, last, step, from_start, to_end, single) in reversed(list(enumerate(keys))):
        if single:  # from the last axis back, so that a dropped axis renumbers none still to come
            x = x.select(axis, 0 if from_start else first)
            continue
        picked = range(*slice(None if from_start else first, None if to_end else last, step).indices(x.shape[axis]))
        if step > 0:
            x = x[(slice(None),) * axis + (slice(picked.start, picked.stop, step),)]
        else:  # torch has no negative stride
            x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
    return x


def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    for axis, (first, length) in enumerate(zip(begin, size, strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if length == -1 else length)
    return x


def slice_update(x: Tensor, update: Tensor, begin: Ints, end: Ints, stride: Ints | None = None,
                 begin_mask: list[bool] | None = None, end_mask: list[bool] | None = None,
                 squeeze_mask: list[bool] | None = None) -> Tensor:  # fmt: skip
    places = torch.arange(x.numel()).reshape(x.shape)
    taken = slice_by_index(places, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return x.flatten().index_put((taken.flatten(),), update.expand(taken.shape).flatten()).reshape(x.shape)


def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    first = x.dim() - len(pad) // 2
    amounts = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return F.pad(x, [p for pair in reversed(amounts) for p in pair], value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise UnknownMilOp(f"mode {mode!r}")
    for axis, (before, after) in enumerate(amounts, first):
        if before or after:
            last = x.shape[axis] - 1
            places = torch.arange(-before, last + 1 + after)
            if mode == "reflect":
                places = last - (last - places.abs()).abs()
            x = x.index_select(axis, places.clamp(0, last))
    return x


def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    axis %= x.dim()
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape  # unlike pixel_shuffle, the block is the slow part of the channel, as in TensorFlow
    y = x.reshape(n, block_size, block_size, -1, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // block_size**2, h * block_size, w * block_size)


def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block_size, block_size, w // block_size, block_size).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * block_size**2, h // block_size, w // block_size)


def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    x = x if lower < 0 else x.triu(-lower)
    return x if upper < 0 else x.tril(upper)


def fill(shape: Ints, value: Tensor) -> Tensor:
    return value.reshape([1] * len(shape)).expand(shape)


def fill_like(ref_tensor: Tensor, value: Tensor) -> Tensor:
    return fill(list(ref_tensor.shape), value)


def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def one_hot(indices: Tensor, one_hot_vector_size: int, on_value: Tensor, off_value: Tensor, axis: int = -1) -> Tensor:
    hot = indices.unsqueeze(-1) == torch.arange(one_hot_vector_size)
    return torch.where(hot, on_value, off_value).movedim(-1, axis)


def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True).to(torch.int32)


def topk(x: Tensor, k: int = 1, axis: int = -1, ascending: bool = False, sort: bool = True,
         return_indices: bool = True, output_indices_dtype: str = "int32") -> Result:  # fmt: skip
    values, indices = torch.topk(x, k, axis, largest=not ascending, sorted=sort)
    return (values, indices.to(HOLDERS[output_indices_dtype])) if return_indices else values


# ------------------------------------------------------------------------------------------ gather, scatter


def _positive(indices: Tensor, size: int) -> Tensor:
    places = indices.long()
    return torch.where(places < 0, places + size, places)


def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    axis %= x.dim()
    places = _positive(indices, x.shape[axis])
    if batch_dims == 0:
        y = x.index_select(axis, places.flatten())
        return y.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    lead = math.prod(x.shape[:batch_dims])
    rows, picks = x.reshape(lead, *x.shape[batch_dims:]), places.reshape(lead, *places.shape[batch_dims:])
    y = torch.stack([gather(row, pick, axis - batch_dims) for row, pick in zip(rows, picks, strict=True)])
    return y.reshape(*x.shape[:batch_dims], *y.shape[1:])


def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    return torch.take_along_dim(x, _positive(indices, x.shape[axis]), axis)


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    if batch_dims:
        pairs = zip(x, indices, strict=True)
        return torch.stack([gather_nd(row, pick, batch_dims - 1) for row, pick in pairs])
    return x[tuple(_positive(column, x.shape[axis]) for axis, column in enumerate(indices.unbind(-1)))]


_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_flat(data: Tensor, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Combine `updates` into the flattened `data` at flat indices `places`."""
    flat, places, updates = data.flatten(), places.flatten(), updates.flatten()
    if mode == "update":
        return flat.index_put((places,), updates).reshape(data.shape)
    if mode == "sub":
        mode, updates = "add", -updates
    if mode not in _SCATTER:
        raise UnknownMilOp(f"mode {mode!r}")
    return flat.scatter_reduce(0, places, updates, _SCATTER[mode]).reshape(data.shape)


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add",
               validate_indices: bool = False) -> Tensor:  # fmt: skip
    numbers = torch.arange(data.numel()).reshape(data.shape)
    return _scatter_flat(data, gather_nd(numbers, indices), updates, mode)


def scatter_along_axis(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add",
                       validate_indices: bool = False) -> Tensor:  # fmt: skip
    numbers = torch.arange(data.numel()).reshape(data.shape)
    return _scatter_flat(data, gather_along_axis(numbers, indices, axis), updates, mode)


def scatter(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add",
            validate_indices: bool = False) -> Tensor:  # fmt: skip
    numbers = torch.arange(data.numel()).reshape(data.shape)
    return _scatter_flat(data, gather(numbers, indices, axis), updates, mode)


# ------------------------------------------------------------------------------------------ resizing


def _grid(mode: str, size: int, wanted: int) -> Tensor:
    """Where the `wanted` samples fall on an axis of `size` pixels, by the table of MIL's `resize_bilinear`."""
    steps = torch.arange(wanted, dtype=torch.float64)
    if mode == "UNALIGN_CORNERS":
        places = steps * (size / wanted) + (0.5 * size / wanted - 0.5)
    elif mode == "DEFAULT":
        places = steps * (size / wanted)
    elif mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS") and wanted > 1:
        places = steps * ((size - 1) / (wanted - 1))
    elif mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        places = steps + ((size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0)
    elif mode == "OFFSET_CORNERS":
        places = (steps + 0.5) * (max(1, size - 1) / wanted)
    else:
        raise UnknownMilOp(f"sampling_mode {mode!r}")
    return places.clamp(0, size - 1)


def _resize_linear(x: Tensor, sizes: Ints, mode: str) -> Tensor:
    for axis, wanted in enumerate(sizes, x.dim() - len(sizes)):
        size = x.shape[axis]
        if size == wanted and mode != "OFFSET_CORNERS":
            continue
        places = _grid(mode, size, wanted)
        low = places.long()
        weight = (places - low).float().reshape([-1] + [1] * (x.dim() - axis - 1))
        below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1))
        x = below * (1 - weight) + above * weight
    return x


def _resize_nearest(x: Tensor, sizes: Ints) -> Tensor:
    for axis, wanted in enumerate(sizes, x.dim() - len(sizes)):
        if x.shape[axis] != wanted:
            x = x.index_select(axis, torch.arange(wanted) * x.shape[axis] // wanted)
    return x


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    return _resize_nearest(x, _scaled(x, scale_factor_height, scale_factor_width))


def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    return _resize_nearest(x, [target_size_height, target_size_width])


def upsample_bilinear(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1,
                      align_corners: bool = True, half_pixel_centers: bool | None = None) -> Tensor:  # fmt: skip
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise UnknownMilOp("align_corners together with half_pixel_centers")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _resize_linear(x, _scaled(x, scale_factor_height, scale_factor_width), mode)


def resize_bilinear(x: Tensor, target_size_height: int = 1, target_size_width: int = 1,
                    sampling_mode: str = "DEFAULT") -> Tensor:  # fmt: skip
    return _resize_linear(x, [target_size_height, target_size_width], sampling_mode)


def resize(x: Tensor, shape: Ints, resized_dims: int, interpolation_mode: str = "LINEAR",
           sampling_mode: str = "DEFAULT") -> Tensor:  # fmt: skip
    if not resized_dims:
        return x
    sizes = [n or old for n, old in zip(shape[-resized_dims:], x.shape[-resized_dims:], strict=True)]
    if interpolation_mode == "LINEAR":
        return _resize_linear(x, sizes, sampling_mode)
    if interpolation_mode != "NEAREST_NEIGHBOR" or sampling_mode != "DEFAULT":
        raise UnknownMilOp(f"interpolation_mode {interpolation_mode!r} with sampling_mode {sampling_mode!r}")
    return _resize_nearest(x, sizes)


def _scaled(x: Tensor, height: float, width: float) -> Ints:
    # a float32 factor such as 7/3 lies just under the ratio it stands for: without the nudge its floor loses a row
    return [math.floor(x.shape[-2] * height + 1e-4), math.floor(x.shape[-1] * width + 1e-4)]


def resample(x: Tensor, coordinates: Tensor, sampling_mode: str, padding_mode: str, padding_value: float,
             coordinates_mode: str, align_corners: bool) -> Tensor:  # fmt: skip
    paddings = {"constant": "zeros", "border": "border", "reflection": "reflection"}
    if coordinates_mode != "normalized_minus_one_to_one" or padding_value != 0 or padding_mode not in paddings:
        raise UnknownMilOp(f"{coordinates_mode!r} coordinates, {padding_mode!r} padding with {padding_value}")
    if sampling_mode not in ("bilinear", "nearest"):
        raise UnknownMilOp(f"sampling_mode {sampling_mode!r}")
    return F.grid_sample(x, coordinates, sampling_mode, paddings[padding_mode], align_corners)


_FUNCTIONS: Sequence[Callable[..., Result]] = (
    fill, fill_like, one_hot, pad, range_1d, resample, resize, resize_bilinear, scatter, scatter_along_axis,
    scatter_nd, upsample_bilinear,
)  # fmt: skip
_FUNCTIONS_EXACT: Sequence[Callable[..., Result]] = (
    argsort, band_part, concat, crop, depth_to_space, expand_dims, flatten2d, gather, gather_along_axis, gather_nd,
    pixel_shuffle, pixel_unshuffle, reshape, reshape_like, resize_nearest_neighbor, reverse, slice_by_index,
    slice_by_size, slice_update, sliding_windows, space_to_depth, split, squeeze, stack, tile, topk, transpose,
    upsample_nearest_neighbor,
)  # fmt: skip


def layout_rules() -> Iterable[tuple[str, OpRule]]:
    """(name, rule) of every op of this file."""
    for functions, exact in ((_FUNCTIONS, False), (_FUNCTIONS_EXACT, True)):
        for function in functions:
            yield function.__name__, read_rule(function, exact)
