"""The transformer block of SLAB's DeiT and PVT backbones, train form and deploy form.

On tokens x (B, N, C), with RepBN in eval mode and PRepBN in training as the norms::

    x = x + SLA(norm1(x))
    x = x + fc2(GELU(DW(fc1(norm2(x)))))        DW, a 3x3 depthwise convolution, in PVTv2 only
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import BadInput
from edgekit.models.slab.attention import MapAttentionDeploy, SimplifiedLinearAttention, conv1x1
from edgekit.models.slab.prepbn import ChannelAffine, PRepBN, fold_into_next

Size = tuple[int, int]


def to_map(tokens: Tensor, resolution: Size) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W)."""
    return tokens.unflatten(1, resolution).permute(0, 3, 1, 2)


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C)."""
    return maps.flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, exact GELU, linear on tokens (B, N, C); a 3x3 depthwise convolution before GELU where `conv`."""

    def __init__(self, dim: int, ratio: int, resolution: Size, conv: bool = False) -> None:
        super().__init__()
        hidden = ratio * dim
        self.resolution = resolution
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else None
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.dwconv is not None:
            x = to_tokens(self.dwconv(to_map(x, self.resolution)))
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    """SLA and MLP, each on the normalized tokens and added to them: (B, N, C) -> the same shape."""

    def __init__(self, attn: SimplifiedLinearAttention, mlp: Mlp, norm: Callable[[int], PRepBN]) -> None:
        super().__init__()
        dim = mlp.fc1.in_features
        self.norm1, self.attn = norm(dim), attn
        self.norm2, self.mlp = norm(dim), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class BlockDeploy(nn.Module):
    """`Block` on maps (B, C, H, W), its norms folded into the 1x1 convolutions that its linears have become."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.attn = MapAttentionDeploy(block.attn, block.norm1)
        self.fc1 = conv1x1(fold_into_next(block.norm2, block.mlp.fc1))
        self.dwconv = nn.Identity() if block.mlp.dwconv is None else block.mlp.dwconv
        self.fc2 = conv1x1(block.mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class StageDeploy(nn.Module):
    """A strided convolution, a constant map added to it, blocks: (B, Cin, H, W) -> (B, C, H/s, W/s)."""

    def __init__(self, proj: nn.Conv2d, position: Tensor | None, blocks: Iterable[Block]) -> None:
        super().__init__()
        self.proj = proj
        self.blocks = nn.ModuleList(BlockDeploy(block) for block in blocks)
        if position is None:
            self.register_parameter("position", None)
        else:
            assert proj.bias is not None
            self.position = nn.Parameter((position + proj.bias.reshape(-1, 1, 1)).detach())
            proj.bias = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if self.position is not None:
            x = x + self.position
        for block in self.blocks:
            x = block(x)
        return x


class BackboneDeploy(nn.Module):
    """Stages and a pooled head: image (B, C, H, W) -> logits (B, classes).

    `norms` are the stages' last ones where there are any: for the features, what follows a stage has them folded in.
    """

    def __init__(
        self, stages: list[StageDeploy], norms: list[PRepBN], head: nn.Linear,
        strides: tuple[int, ...], channels: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__()
        self.stages, self.head = nn.ModuleList(stages), head
        self.norms = nn.ModuleList(ChannelAffine(*(t[:, None, None] for t in norm.affine())) for norm in norms)
        self.feature_strides, self.feature_channels = strides, channels

    def forward(self, image: Tensor) -> Tensor:
        x = self._maps(image)[-1]
        return self.head(x.mean((-1, -2), keepdim=True).flatten(1))

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self._maps(image)
        return tuple(norm(x) for norm, x in zip(self.norms, maps, strict=True)) if self.norms else tuple(maps)

    def _maps(self, image: Tensor) -> list[Tensor]:
        maps = [image]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


def init_weights(model: nn.Module, conv_fan_out: bool) -> None:
    """Truncated normal 0.02 for linears; convolutions N(0, 2/fan_out) where asked, torch's own otherwise."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and conv_fan_out:
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resized(table: Tensor, like: Tensor, resolution: Size, mode: str) -> Tensor:
    """A table (1, n*n, C) of a square, resized to (1, H*W, C) where `like` has another length.

    `BadInput` where n*n = H*W and H is not W: the table may be of either map, and the wrong one would be scrambled.
    """
    if table.dim() != 3:
        return table
    side = math.isqrt(table.shape[1])
    square = side * side == table.shape[1]
    if table.shape == like.shape and square and resolution[0] != resolution[1]:
        raise BadInput(
            f"a position table of {side * side} places may be of {side}x{side} or of {resolution[0]}x{resolution[1]}",
            "Load the weights at the size they were made for, or choose an image with another number of patches.",
        )
    if table.shape == like.shape or not square:
        return table
    maps = to_map(table.float(), (side, side))
    return to_tokens(F.interpolate(maps, resolution, mode=mode, align_corners=False)).to(table.dtype)


@torch.no_grad()
def constant_response(layer: nn.Conv2d, shift: Tensor, resolution: Size) -> Tensor:
    """What a convolution makes, its bias aside, of a map that is `shift` (C,) everywhere: (1, C', H', W')."""
    flat = shift.reshape(1, -1, 1, 1).expand(1, -1, *resolution)
    response = F.conv2d(flat.double(), layer.weight.double(), None, layer.stride, layer.padding)
    return response.to(layer.weight.dtype)
