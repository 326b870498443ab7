"""Channel orders and folded weights: what turns MicroNet's layers into their deploy form.

An order is a tensor of indices: position i of the reordered channels holds channel order[i]. All weights are float64
until they are put into a layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekit.models._folding import affine, convolution
from edgekit.models._micronet_layers import Normed


def folded(layer: Normed) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its norm in it."""
    gain, shift = affine(layer.norm)
    return layer.conv.weight.double() * gain.reshape(-1, 1, 1, 1), shift


def dense(layer: Normed) -> tuple[Tensor, Tensor, Tensor]:
    """A grouped 1x1 convolution with its norm in it as a matrix (out, in), the mask of its blocks, and the bias."""
    weight, bias = folded(layer)
    blocks = weight.flatten(1).chunk(layer.conv.groups)
    return torch.block_diag(*blocks), torch.block_diag(*map(torch.ones_like, blocks)).bool(), bias


def pointwise(matrix: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> nn.Conv2d:
    """A 1x1 convolution by a matrix (out, in), in as many groups as the mask of its blocks has."""
    groups = 1 if mask is None else block_count(mask)
    rows, columns = matrix.shape[0] // groups, matrix.shape[1] // groups
    blocks = [matrix[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(groups)]
    return convolution(torch.cat(blocks), bias, groups=groups)


def reordering(order: Tensor) -> nn.Conv2d:
    """Channels in the given order, as a 1x1 convolution."""
    return pointwise((order[:, None] == torch.arange(len(order))).double())


def block_count(mask: Tensor) -> int:
    """The most equal blocks on the diagonal outside of which the mask is empty."""
    out, cin = mask.shape
    for groups in range(min(out, cin), 1, -1):
        if out % groups or cin % groups:
            continue
        block = torch.ones(out // groups, cin // groups)
        if not (mask & (torch.block_diag(*[block] * groups) == 0)).any():
            return groups
    return 1


def inverse(order: Tensor) -> Tensor:
    return torch.argsort(order)


def shuffled(channels: int, shuffles: Sequence[int]) -> Tensor:
    """The order that shuffles with these numbers of groups leave, one after the other."""
    order = torch.arange(channels)
    for groups in shuffles:
        order = order[torch.arange(channels).reshape(groups, -1).T.flatten()]
    return order


def cyclic(groups: Sequence[int], size: int) -> Tensor:
    """The groups in this sequence, group g from its own channel g on: the shift (g + 1, c + 1) moves whole groups.

    Only from the last group to the first it does not, where the number of groups is not divisible by `size`.
    """
    return torch.cat([torch.arange(size).roll(-g) + g * size for g in groups])


def inputs(channels: int, shuffle: int, shuffles: Sequence[int]) -> Tensor:
    """Which input of a full block's compression each channel of its expansion is."""
    return inverse(shuffled(channels, shuffles))[inverse(shuffled(channels, [shuffle]))]


def components(columns: Tensor, expand_groups: int, compress_groups: int) -> list[list[int]]:
    """The expansion's groups in parts that no group of the compression reads two of; `columns` is from `inputs`."""
    readers = (columns * compress_groups // len(columns)).reshape(expand_groups, -1).tolist()
    parts: list[tuple[list[int], set[int]]] = []
    for group, read in enumerate(map(set, readers)):
        joined = [part for part in parts if part[1] & read]
        parts = [part for part in parts if part not in joined]
        members = [member for part in joined for member in part[0]]
        parts.append(([*members, group], read.union(*(part[1] for part in joined))))
    return sorted(sorted(part[0]) for part in parts)
