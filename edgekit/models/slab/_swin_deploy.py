"""Swin's blocks in their deploy form: the same functions as in `swin` and `windows`, in operations every runtime has.

What changes, each an identity:

- Eval-mode norms are affine: they go into the linear map that follows, the patch embedding's into its convolution, the
  last into the classifier. d^-1/2 goes into the queries; a bias common to all keys does not change softmax and one
  common to all values comes out of it unchanged, so the keys' is dropped and the values' is in the last bias.
- A stage keeps its tokens in strips: (B, band, column, row of the band), where a band is as many rows as a window has.
  A window is then a run of tokens, and a strip a run of h tokens: two dimensions are enough for everything below.
- Windows moved by (s, t): strip n takes its lower h - s rows from strip n + t and its upper s from strip n + t + W,
  the strips of the whole batch being numbered in one row. Where that passes the end of a band, strips meet others than
  when the map wraps around; but whole regions do, and regions do not see each other: the mask is made for this order.
- Relative bias and mask are one constant: exp(-100) next to 1 is 0 in float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.models._folding import linear

Size = tuple[int, int]


class Strips:
    """The order of tokens in which windows (h, w) of a map (H, W) are runs."""

    def __init__(self, resolution: Size, window: Size) -> None:
        self.resolution, self.window = resolution, window

    def taken(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) -> tokens (B*H*W, C) in strips."""
        (_, width), h, dim = self.resolution, self.window[0], x.shape[3]
        return x.reshape(-1, h, width, dim).permute(0, 2, 1, 3).reshape(-1, dim)

    def put_back(self, x: Tensor) -> Tensor:
        """The inverse of `taken`."""
        (height, width), h, dim = self.resolution, self.window[0], x.shape[1]
        return x.reshape(-1, width, h, dim).permute(0, 2, 1, 3).reshape(-1, height, width, dim)

    def shifted(self, x: Tensor, shift: Size) -> Tensor:
        """Tokens in strips -> tokens in the strips that windows moved by `shift` consist of."""
        return self._moved(x, shift[0], shift[1], shift[1] + self.resolution[1])

    def unshifted(self, x: Tensor, shift: Size) -> Tensor:
        """The inverse of `shifted`."""
        return self._moved(x, self.window[0] - shift[0], -shift[1] - self.resolution[1], -shift[1])

    def _moved(self, x: Tensor, split: int, lower: int, upper: int) -> Tensor:
        """Each strip from the tokens after its first `split`, `lower` strips on, and those first ones, `upper` on."""
        h, dim = self.window[0], x.shape[1]
        strips = x.reshape(-1, h * dim)
        if split in (0, h):
            return _rolled(strips, lower if split == 0 else upper).reshape(-1, dim)
        at = split * dim
        return torch.cat([_rolled(strips[:, at:], lower), _rolled(strips[:, :at], upper)], 1).reshape(-1, dim)

    def bias(self, bias: Tensor, regions: Tensor, shift: Size, floor: float) -> Tensor:
        """Relative bias (heads, h*w, h*w) in this order, with `floor` added between regions of a map (H, W).

        (heads, h*w, h*w) where no window holds two regions, else (windows * heads, h*w, h*w).
        """
        h, w = self.window
        bias = bias.reshape(-1, h, w, h, w).permute(0, 2, 1, 4, 3).reshape(-1, h * w, h * w)
        if not any(shift):
            return bias
        own = self.shifted(self.taken(regions[None, :, :, None]), shift).reshape(-1, 1, h * w)
        mask = torch.where(own.transpose(1, 2) == own, 0.0, floor)
        return (mask[:, None] + bias).reshape(-1, h * w, h * w)


def _rolled(x: Tensor, count: int) -> Tensor:
    """Row n of the result is row n + count of x (M, K), modulo M."""
    count %= len(x)
    return torch.cat([x[count:], x[:count]]) if count else x


class WindowAttentionDeploy(nn.Module):
    """Attention in windows that are runs of n tokens: (B*N, C) -> the same shape, the norm before it folded into `qkv`.

    `bias` is (heads, n, n) or (windows * heads, n, n).
    """

    bias: Tensor

    def __init__(self, qkv: nn.Linear, proj: nn.Linear, heads: int, bias: Tensor) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, proj.in_features // heads
        scale = self.head_dim**-0.5
        (query, key, value), (query_bias, _, value_bias) = qkv.weight.chunk(3), qkv.bias.chunk(3)
        self.q, self.k, self.v = linear(query * scale, query_bias * scale), linear(key), linear(value)
        self.proj = linear(proj.weight, proj(value_bias))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        count = self.bias.shape[1]
        split = (-1, count, self.heads, self.head_dim)
        q = self.q(x).reshape(split).permute(0, 2, 1, 3).reshape(-1, count, self.head_dim)
        k = self.k(x).reshape(split).permute(0, 2, 3, 1).reshape(-1, self.head_dim, count)
        v = self.v(x).reshape(split).permute(0, 2, 1, 3).reshape(-1, count, self.head_dim)
        logits = (q @ k).reshape(-1, *self.bias.shape) + self.bias
        mixed = logits.reshape(-1, count, count).softmax(-1) @ v  # (B * windows * heads, n, d)
        mixed = mixed.reshape(-1, self.heads, count, self.head_dim).permute(0, 2, 1, 3)
        return self.proj(mixed.reshape(x.shape))


class BlockDeploy(nn.Module):
    """x + Attention(norm1(x)), then x + MLP(norm2(x)) on tokens (..., C), the norms folded into `attn` and `fc1`."""

    def __init__(self, attn: nn.Module, fc1: nn.Linear, fc2: nn.Linear) -> None:
        super().__init__()
        self.attn, self.fc1, self.fc2 = attn, fc1, fc2

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.fc2(F.gelu(self.fc1(x)))


class LinearStageDeploy(nn.Module):
    """Blocks of linear attention, which takes tokens (B, N, C), on a map (B, H, W, C) -> the same shape."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x.reshape(x.shape[0], -1, x.shape[3])).reshape(x.shape)


class WindowStageDeploy(nn.Module):
    """Blocks of window attention on a map (B, H, W, C) -> the same shape; `shifts[i]` is that of block i's windows."""

    def __init__(self, blocks: Sequence[nn.Module], shifts: Sequence[Size], strips: Strips) -> None:
        super().__init__()
        self.blocks, self.shifts, self.strips = nn.ModuleList(blocks), tuple(shifts), strips

    def forward(self, x: Tensor) -> Tensor:
        x = self.strips.taken(x)
        for block, shift in zip(self.blocks, self.shifts, strict=True):
            x = self.strips.unshifted(block(self.strips.shifted(x, shift)), shift)
        return self.strips.put_back(x)


class MergeDeploy(nn.Module):
    """Patch merging on a map (B, H, W, C) -> (B, H/2, W/2, 2C).

    `linear`, the norm folded in, takes a square's tokens columns outer; here they come rows outer, so that each row of
    a square is a run of 2C channels.
    """

    def __init__(self, reduction: nn.Linear) -> None:
        super().__init__()
        columns_outer = reduction.weight.reshape(reduction.out_features, 2, 2, -1)
        self.linear = linear(columns_outer.transpose(1, 2).reshape(reduction.weight.shape), reduction.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        rows = x.reshape(-1, 2, width // 2, 2 * dim).permute(0, 2, 1, 3)
        return self.linear(rows.reshape(-1, 4 * dim)).reshape(batch, height // 2, width // 2, 2 * dim)


class SwinDeploy(nn.Module):
    """Patch embedding, stages, merging and classifier: image (B, C, H, W) -> logits (B, classes).

    Stages and what merges their outputs take and give maps (B, H, W, C). No norm is left.
    """

    def __init__(
        self, embed: nn.Conv2d, stages: Sequence[nn.Module], merges: Sequence[nn.Module], head: nn.Linear
    ) -> None:
        super().__init__()
        self.embed, self.head = embed, head
        self.stages, self.merges = nn.ModuleList(stages), nn.ModuleList([nn.Identity(), *merges])
        dim = embed.out_channels
        self.feature_strides = (4, 8, 16, 32)
        self.feature_channels = (dim, 2 * dim, 4 * dim, 8 * dim)

    def forward(self, image: Tensor) -> Tensor:
        pooled = self.forward_features(image)[-1].mean((-1, -2), keepdim=True)
        return self.head(pooled.flatten(1))

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The maps (B, C, H/s, W/s) that each stage ends with."""
        x, maps = self.embed(image).permute(0, 2, 3, 1), []
        for merge, stage in zip(self.merges, self.stages, strict=True):
            x = stage(merge(x))
            maps.append(x.permute(0, 3, 1, 2))
        return tuple(maps)
