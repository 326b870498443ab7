"""From weights to integers: to the nearest, or so that what rounding adds to a sum cancels.

An input that is the same in all places of a kernel, or all channels of a layer, meets only the sum of the rounding
errors. `balanced` rounds as few elements as it takes, those nearest to the middle between two integers, to their other
neighbour, so that this sum is at most half a step in each kernel, and then in each output channel (the aim of SQuant,
Guo et al. 2022, sections 3.2 and 3.3).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edgekit.quantization._ops import WEIGHT_QMAX

Rounding = Callable[[Tensor, Tensor], Tensor]
"""(weight with its output channels first, their scales) -> int8 of the same shape."""


def _nearest(weight: Tensor, scales: Tensor) -> Tensor:
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    q: Tensor = torch.ops.quantized_decomposed.quantize_per_channel(
        weight, scales, zeros, 0, -WEIGHT_QMAX, WEIGHT_QMAX, torch.int8
    )
    return q


def _balanced(weight: Tensor, scales: Tensor) -> Tensor:
    steps = (weight / scales.reshape(-1, *[1] * (weight.dim() - 1))).double()
    kernels = steps.reshape(len(weight), weight.shape[1], -1)
    q = _nearest(weight, scales).reshape(kernels.shape).double()
    q = _less_error(q, kernels)
    # Of each kernel the one element that changes its sum at the least cost, for the sum over the channel.
    error = q - kernels
    sign = error.sum((1, 2)).sign()[:, None, None]
    place = _cost(q, error * sign).argmin(-1, keepdim=True)
    one_each, exact = (t.gather(-1, place)[..., 0] for t in (q, kernels))
    rest = (error.sum((1, 2)) - (one_each - exact).sum(1))[:, None]
    changed = _less_error(one_each[:, None], exact[:, None], rest)[:, 0]
    return q.scatter(-1, place, changed[..., None]).reshape(weight.shape).to(torch.int8)


def _less_error(q: Tensor, exact: Tensor, rest: Tensor | None = None) -> Tensor:
    """Integers whose errors, with the `rest` of a sum, add up to half a step at most over the last dimension."""
    error = q - exact
    total = error.sum(-1) if rest is None else error.sum(-1) + rest
    cost = _cost(q, error * total.sign()[..., None])
    rank = cost.argsort(dim=-1, stable=True).argsort(dim=-1)
    chosen = (rank < total.abs().round()[..., None]) & cost.isfinite()
    return q - chosen * total.sign()[..., None]


def _cost(q: Tensor, error: Tensor) -> Tensor:
    """How much worse an element is for one step less of `error`; infinite where its integer has no room for it."""
    return torch.where(q.abs() < WEIGHT_QMAX, (error - 1).square() - error.square(), torch.inf)


ROUNDINGS: Mapping[str, Rounding] = {"nearest": _nearest, "balanced": _balanced}
