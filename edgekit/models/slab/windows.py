"""Swin's blocks: attention inside windows of a map, and the blocks that hold it or linear attention.

Paper: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", Liu et al., ICCV 2021, section 3.2.
Written from the paper's equations. Inside each window of h x w tokens, for each head of width d::

    softmax(d^-1/2 q k^T + B) v         B: a learned bias, one of (2h-1)(2w-1) values a head for each relative position

In every second block the windows are moved by half their size, along the axes that more than one window covers: the
map wraps around, and tokens that are together only by that get -100 added to their logits.

Windows are 7x7 wherever 7 divides the last stage's map, as it does at 224x224. For other images their sides divide
that map too, so that all sizes divisible by 32 can be built; 384x384 has the 12x12 of Swin's own models for it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgekit.models.slab._swin_deploy import BlockDeploy, Strips, WindowAttentionDeploy
from edgekit.models.slab.attention import SimplifiedLinearAttention, SimplifiedLinearAttentionDeploy
from edgekit.models.slab.blocks import Mlp, Size
from edgekit.models.slab.prepbn import Norm, fold_into_next

HEAD_DIM = 32
APART = -100.0

MakeNorm = Callable[[int], Norm]


def window_side(side: int) -> int:
    """The side of windows where the last stage's map has `side`: 7, or its largest divisor in 4..12, or all of it."""
    if side % 7 == 0:
        return 7
    return max((n for n in range(4, 13) if side % n == 0), default=side)


def window_shift(resolution: Size, window: Size) -> Size:
    """How far shifted windows are moved: half their size, along the axes that more than one covers."""
    row, column = (w // 2 if n > w else 0 for n, w in zip(resolution, window, strict=True))
    return row, column


def relative_index(window: Size) -> Tensor:
    """Row of the bias table for each pair of a window's tokens, (h*w, h*w): row and column offset as one number."""
    rows, columns = (torch.arange(n) for n in window)
    row = rows.reshape(-1, 1, 1, 1) - rows.reshape(1, 1, -1, 1) + window[0] - 1
    column = columns.reshape(1, -1, 1, 1) - columns.reshape(1, 1, 1, -1) + window[1] - 1
    return (row * (2 * window[1] - 1) + column).reshape(window[0] * window[1], -1)


def regions(resolution: Size, window: Size, shift: Size) -> Tensor:
    """A number for each pixel (H, W), equal for those that share a moved window without wrapping around the map."""
    row, column = (
        torch.div(torch.arange(n) + w - s, w, rounding_mode="floor")
        for n, w, s in zip(resolution, window, shift, strict=True)
    )
    return row[:, None] * (resolution[1] + 1) + column


class WindowAttention(nn.Module):
    """Softmax attention with a relative position bias in windows of h*w tokens: (B * windows, h*w, C) -> the same."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: Size) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        offsets = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, heads))
        self.register_buffer("relative_position_index", relative_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (windows, h*w, h*w) is added to the logits."""
        batch, count, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = q * (dim // self.heads) ** -0.5 @ k.transpose(-2, -1) + self.bias()  # (B * windows, head, h*w, h*w)
        if mask is not None:
            logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))

    def bias(self) -> Tensor:
        """B: (heads, h*w, h*w)."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class Block(nn.Module):
    """Attention and MLP, each on the normalized tokens and added to them: (B, N, C) -> the same shape.

    In training each is left out for an image with probability `drop` (stochastic depth).
    """

    def __init__(self, dim: int, attn: nn.Module, resolution: Size, norm: MakeNorm, drop: float) -> None:
        super().__init__()
        self.norm1, self.attn = norm(dim), attn
        self.norm2, self.mlp = norm(dim), Mlp(dim, 4, resolution)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.kept(self.attend(self.norm1(x)))
        return x + self.kept(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        """Attention on normalized tokens."""
        return self.attn(x)

    def kept(self, branch: Tensor) -> Tensor:
        """`branch` in eval mode; in training 0 for some images and as much more for the others."""
        if not self.training or self.drop == 0:
            return branch
        keep = 1 - self.drop
        return branch * torch.bernoulli(torch.full_like(branch[:, :1, :1], keep)) / keep


class LinearBlock(Block):
    """A block whose attention is simplified linear attention over the whole map."""

    attn: SimplifiedLinearAttention

    def __init__(self, dim: int, resolution: Size, norm: MakeNorm, drop: float) -> None:
        super().__init__(dim, SimplifiedLinearAttention(dim, dim // HEAD_DIM, resolution), resolution, norm, drop)

    def deploy(self) -> nn.Module:
        attn = SimplifiedLinearAttentionDeploy(self.attn, self.norm1)
        return BlockDeploy(attn, fold_into_next(self.norm2, self.mlp.fc1), self.mlp.fc2)


class WindowBlock(Block):
    """A block whose attention is inside windows of a map, moved by `shift` down and right."""

    attn: WindowAttention
    attn_mask: Tensor | None

    def __init__(self, dim: int, resolution: Size, window: Size, shift: Size, norm: MakeNorm, drop: float) -> None:
        super().__init__(dim, WindowAttention(dim, dim // HEAD_DIM, window), resolution, norm, drop)
        self.resolution, self.window, self.shift = resolution, window, shift
        mask = None
        if any(shift):
            region = self.taken_apart(regions(resolution, window, shift).reshape(1, -1, 1)).squeeze(-1)
            mask = torch.where(region[:, :, None] == region[:, None], 0.0, APART)
        self.register_buffer("attn_mask", mask, persistent=False)

    def attend(self, x: Tensor) -> Tensor:
        return self.put_together(self.attn(self.taken_apart(x), self.attn_mask))

    def taken_apart(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) by windows: (B * windows, h*w, C)."""
        (height, width), (h, w), dim = self.resolution, self.window, x.shape[2]
        x = x.unflatten(1, self.resolution).roll((-self.shift[0], -self.shift[1]), (1, 2))
        x = x.reshape(-1, height // h, h, width // w, w, dim).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, h * w, dim)

    def put_together(self, x: Tensor) -> Tensor:
        """The inverse of `taken_apart`."""
        (height, width), (h, w), dim = self.resolution, self.window, x.shape[2]
        x = x.reshape(-1, height // h, width // w, h, w, dim).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, height, width, dim).roll(self.shift, (1, 2)).flatten(1, 2)

    def deployed(self, strips: Strips) -> BlockDeploy:
        """The block on tokens in strips."""
        attn = self.attn
        bias = strips.bias(attn.bias(), regions(self.resolution, self.window, self.shift), self.shift, APART)
        inner = WindowAttentionDeploy(fold_into_next(self.norm1, attn.qkv), attn.proj, attn.heads, bias)
        return BlockDeploy(inner, fold_into_next(self.norm2, self.mlp.fc1), self.mlp.fc2)
