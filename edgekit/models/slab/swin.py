"""Swin Transformers of SLAB: Swin-T whose norms fold away, with and without linear attention in its early stages.

Papers: Guo et al., ICML 2024 (see `prepbn` and `attention`); "Swin Transformer", Liu et al., ICCV 2021. Written from
the papers' equations. Four stages on tokens (B, N, C)::

    x = norm(Conv4x4(image))                                  stage 1: a quarter of the image's side
    x = x + Attention(norm(x)),  x = x + MLP(norm(x))         2, 2, 6 and 2 times
    x = W norm(the channels of a 2x2 square, 4C)              C -> 2C; between stages
    logits = head(mean over tokens of norm(x))

`slab-swin-tiny` has SLAB's linear attention over the whole map in stages 1 and 2 and attention inside windows in 3
and 4; `swin-tiny-prepbn` has windows in all four. See `windows` for these, and for their sizes; `_swin_deploy` for
the deploy form.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from edgekit.models.slab._swin_deploy import LinearStageDeploy, MergeDeploy, Strips, SwinDeploy, WindowStageDeploy
from edgekit.models.slab.attention import SimplifiedLinearAttention
from edgekit.models.slab.blocks import Size, resized, to_map, to_tokens
from edgekit.models.slab.prepbn import PRepBN, RepBN, fold_into_next, fold_into_previous, norm_pairs
from edgekit.models.slab.windows import (
    Block,
    LinearBlock,
    MakeNorm,
    WindowAttention,
    WindowBlock,
    window_shift,
    window_side,
)
from edgekit.types import Build, ModelSpec, Preprocess

DROP_PATH = 0.2  # of the last block; it grows linearly from 0 at the first
STEPS = 60_000


class PatchMerging(nn.Module):
    """The four tokens of each 2x2 square become one: (B, H*W, C) -> (B, H*W/4, 2C)."""

    def __init__(self, dim: int, resolution: Size, norm: MakeNorm) -> None:
        super().__init__()
        self.resolution = resolution
        self.norm = norm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (height, width), (batch, _, dim) = self.resolution, x.shape
        squares = x.reshape(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)  # columns outer
        return self.reduction(self.norm(squares.reshape(batch, -1, 4 * dim)))


class PatchEmbed(nn.Module):
    """4x4 patches and a norm: image (B, Cin, H, W) -> tokens (B, H/4 * W/4, C)."""

    def __init__(self, in_channels: int, dim: int, norm: MakeNorm) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, 4, 4)
        self.norm = norm(dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(to_tokens(self.proj(image)))


class Stage(nn.Module):
    """Blocks on one resolution: tokens (B, N, C) -> the same shape. `downsample` leads to the next stage."""

    def __init__(self, blocks: Sequence[Block], resolution: Size, downsample: PatchMerging | None) -> None:
        super().__init__()
        self.resolution = resolution
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)

    def deployed(self) -> nn.Module:
        """The blocks on a map (B, H, W, C)."""
        windowed = [block for block in self.blocks if isinstance(block, WindowBlock)]
        if not windowed:
            return LinearStageDeploy([block.deploy() for block in self.blocks if isinstance(block, LinearBlock)])
        strips = Strips(self.resolution, windowed[0].window)
        return WindowStageDeploy([b.deployed(strips) for b in windowed], [b.shift for b in windowed], strips)


class Swin(nn.Module):
    """Swin-T: image (B, in_channels, H, W) of `image_size`, which 32 divides -> logits (B, num_classes).

    Linear attention in the first `linear_stages` stages, window attention in the others. `norm(channels)` makes a norm.
    """

    feature_strides = (4, 8, 16, 32)
    feature_channels = (96, 192, 384, 768)
    depths = (2, 2, 6, 2)

    def __init__(
        self, linear_stages: int, norm: MakeNorm, num_classes: int = 1000, in_channels: int = 3,
        image_size: Size = (224, 224),
    ) -> None:  # fmt: skip
        super().__init__()
        if image_size[0] % 32 or image_size[1] % 32:
            raise ValueError(f"Swin needs an image size divisible by 32, got {image_size}")
        self.image_size = image_size
        window = (window_side(image_size[0] // 32), window_side(image_size[1] // 32))
        drops = torch.linspace(0, DROP_PATH, sum(self.depths)).split(self.depths)
        self.patch_embed = PatchEmbed(in_channels, self.feature_channels[0], norm)
        stages = []
        for i, (dim, stride) in enumerate(zip(self.feature_channels, self.feature_strides, strict=True)):
            size = (image_size[0] // stride, image_size[1] // stride)
            shifts = ((0, 0), window_shift(size, window))
            blocks = [
                LinearBlock(dim, size, norm, drop)
                if i < linear_stages
                else WindowBlock(dim, size, window, shifts[j % 2], norm, drop)
                for j, drop in enumerate(drops[i].tolist())
            ]
            stages.append(Stage(blocks, size, PatchMerging(dim, size, norm) if i < 3 else None))
        self.layers = nn.ModuleList(stages)
        self.norm = norm(self.feature_channels[-1])
        self.head = nn.Linear(self.feature_channels[-1], num_classes)
        _init_weights(self)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.head(self.norm(to_tokens(maps)).mean(1))

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """What each stage's last block gives, (B, C, H/s, W/s): before patches are merged, before any norm."""
        if image.shape[-2:] != self.image_size:
            raise ValueError(f"this model was built for images of {self.image_size}, not {tuple(image.shape[-2:])}")
        x, maps = self.patch_embed(image), []
        for stage in self._stages():
            x = stage(x)
            maps.append(to_map(x, stage.resolution))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(maps)

    def _stages(self) -> list[Stage]:
        return [stage for stage in self.layers if isinstance(stage, Stage)]

    def deploy(self) -> nn.Module:
        stages = self._stages()
        merges = [s.downsample for s in stages if s.downsample is not None]
        return SwinDeploy(
            fold_into_previous(self.patch_embed.proj, self.patch_embed.norm),
            [stage.deployed() for stage in stages],
            [MergeDeploy(fold_into_next(m.norm, m.reduction)) for m in merges],
            fold_into_next(self.norm, self.head),
        )


def _init_weights(model: nn.Module) -> None:
    """Truncated normal 0.02 for linears and bias tables, biases 0; convolutions torch's own."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, WindowAttention):
            nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


def convert_pairs(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the published checkpoints -> ours: the same names, every norm as a LayerNorm and RepBN pair."""
    return norm_pairs(_parameters(published), STEPS)


def convert_plain(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`convert_pairs` for norms that are RepBN alone: of a pair, the half that eval mode computes with."""
    state = _parameters(published)
    for norm in [k.removesuffix("norm2.alpha") for k in state if k.endswith("norm2.alpha")]:
        if f"{norm}norm1.weight" not in state:
            continue  # not a pair's second half, but a block's second norm
        for key in [k for k in state if k.startswith(norm)]:
            value, inner = state.pop(key), key.removeprefix(norm)
            if inner.startswith("norm2."):
                state[norm + inner.removeprefix("norm2.")] = value
            elif inner not in ("norm1.weight", "norm1.bias", "warm", "iter", "total_step"):
                state[key] = value
    return state


def _parameters(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`published` less the indices and masks that modules compute."""
    return {k: v for k, v in published.items() if not k.endswith((".relative_position_index", ".attn_mask"))}


def fit_state(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tables of another image size, resized bicubically: those of the keys, and the biases where windows differ."""
    own, fitted = model.state_dict(), dict(state)
    for path, module in model.named_modules():
        if isinstance(module, WindowAttention):
            name, (h, w) = f"{path}.relative_position_bias_table", module.window
            if name in state:
                fitted[name] = resized(state[name][None], own[name][None], (2 * h - 1, 2 * w - 1), "bicubic")[0]
        elif isinstance(module, SimplifiedLinearAttention):
            name = f"{path}.positional_encoding"
            if name in state:
                fitted[name] = resized(state[name], own[name], module.resolution, "bicubic")
    return fitted


def slab_swin_tiny(num_classes: int = 1000, in_channels: int = 3, image_size: Size = (224, 224)) -> Swin:
    """Linear attention in stages 1 and 2, windows in 3 and 4; norms go from LayerNorm to RepBN in training."""
    return Swin(2, partial(PRepBN, steps=STEPS), num_classes, in_channels, image_size)


def swin_tiny_prepbn(num_classes: int = 1000, in_channels: int = 3, image_size: Size = (224, 224)) -> Swin:
    """Window attention in all stages; every norm is RepBN from the start."""
    return Swin(0, RepBN, num_classes, in_channels, image_size)


def _spec(
    name: str, build: Build, convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], params: int, macs: int,
    weights: str, notes: str,
) -> ModelSpec:  # fmt: skip
    return ModelSpec(
        name=name,
        family="slab",
        build=build,
        params=params,
        macs=macs,
        paper="https://arxiv.org/abs/2405.11582",
        licence="Apache-2.0 (this implementation); the published weights come without a licence",
        preprocess=Preprocess(resize=256, crop=(224, 224)),
        convert_state=convert,
        fit_state=fit_state,
        labels="imagenet1k",
        weights=(f"published SLAB checkpoints ({weights}), by their own names",),
        notes=notes,
    )


MODELS = (
    _spec(
        "slab-swin-tiny", slab_swin_tiny, convert_pairs, 29_216_605, 4_483_341_312, "slab_swin_tiny.pth",
        "Published top-1 81.8 % on ImageNet-1k at 224. No norm is left after deploy().",
    ),
    _spec(
        "swin-tiny-prepbn", swin_tiny_prepbn, convert_plain, 28_288_383, 4_490_566_656, "swin_tiny_prepbn.pth",
        "Published top-1 81.4 % on ImageNet-1k at 224. No norm is left after deploy().",
    ),
)  # fmt: skip
