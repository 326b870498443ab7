"""SLAB-PVT: pyramid vision transformers with simplified linear attention and folding norms.

Paper: Guo et al., ICML 2024 (see `prepbn` and `attention`), on the skeletons of PVT (Wang et al., 2021) and PVTv2
(Wang et al., 2022). Written from the papers' equations. Four stages; each halves the map (the first quarters it)::

    x = norm(Conv(x)) + pos_embed        tokens (B, N, C); PVT: kernel = stride; PVTv2: overlapping, no pos_embed
    x = Block(x), twice                  see `blocks`; PVTv2's MLP holds a 3x3 depthwise convolution
    x = norm(x)                          PVTv2 only
    logits = head(mean over tokens of x)
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from edgekit.models.slab.attention import SimplifiedLinearAttention
from edgekit.models.slab.blocks import (
    BackboneDeploy,
    Block,
    Mlp,
    Size,
    StageDeploy,
    constant_response,
    init_weights,
    resized,
    to_map,
    to_tokens,
)
from edgekit.models.slab.prepbn import PRepBN, fold_into_next, fold_into_previous, norm_pairs
from edgekit.types import Build, ModelSpec, Preprocess

STEPS = 300_000
STRIDES = (4, 8, 16, 32)


class PatchEmbed(nn.Module):
    """A strided convolution and a norm: (B, Cin, H, W) -> tokens (B, H/s * W/s, C); `overlap` widens the kernel."""

    def __init__(self, in_channels: int, dim: int, stride: int, overlap: bool, norm: partial[PRepBN]) -> None:
        super().__init__()
        kernel, padding = (2 * stride - 1, stride - 1) if overlap else (stride, 0)
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(to_tokens(self.proj(x)))


class SlabPvt(nn.Module):
    """SLAB-PVT, or with `overlap` SLAB-PVTv2: image (B, in_channels, H, W) of `image_size` -> logits (B, num_classes).

    `norm_steps` is the T of the norms' schedule, see `prepbn`.
    """

    feature_strides = STRIDES

    def __init__(
        self, dims: tuple[int, ...], heads: tuple[int, ...], ratios: tuple[int, ...] = (8, 8, 4, 4),
        depths: tuple[int, ...] = (2, 2, 2, 2), overlap: bool = False, num_classes: int = 1000, in_channels: int = 3,
        image_size: Size = (224, 224), norm_steps: int = STEPS,
    ) -> None:  # fmt: skip
        super().__init__()
        if image_size[0] % STRIDES[-1] or image_size[1] % STRIDES[-1]:
            raise ValueError(f"SLAB-PVT needs an image size divisible by {STRIDES[-1]}, got {image_size}")
        self.feature_channels = dims
        self.image_size, self.overlap = image_size, overlap
        self.resolutions = [(image_size[0] // s, image_size[1] // s) for s in STRIDES]
        norm = partial(PRepBN, steps=norm_steps, eps=1e-6)
        for i, (dim, size) in enumerate(zip(dims, self.resolutions, strict=True)):
            embed = PatchEmbed(dims[i - 1] if i else in_channels, dim, 2 if i else 4, overlap, norm)
            blocks = [
                Block(
                    SimplifiedLinearAttention(dim, heads[i], size, "separate"), Mlp(dim, ratios[i], size, overlap), norm
                )
                for _ in range(depths[i])
            ]
            # The published names: each kind numbered by its stage.
            setattr(self, f"patch_embed{i + 1}", embed)
            setattr(self, f"block{i + 1}", nn.ModuleList(blocks))
            if overlap:
                setattr(self, f"norm{i + 1}", norm(dim))
            else:
                table = nn.Parameter(torch.zeros(1, size[0] * size[1], dim))
                setattr(self, f"pos_embed{i + 1}", nn.init.trunc_normal_(table, std=0.02))
        self.head = nn.Linear(dims[-1], num_classes)
        init_weights(self, conv_fan_out=overlap)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.head(maps.mean((-1, -2)))

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """What each stage hands to the next, (B, C, H/s, W/s): its last block's tokens, in PVTv2 normalized."""
        if image.shape[-2:] != self.image_size:
            raise ValueError(f"this model was built for images of {self.image_size}, not {tuple(image.shape[-2:])}")
        maps = [image]
        for i, size in enumerate(self.resolutions, 1):
            x = self.get_submodule(f"patch_embed{i}")(maps[-1])
            if not self.overlap:
                x = x + self.get_parameter(f"pos_embed{i}")
            for block in self._blocks(i):
                x = block(x)
            if self.overlap:
                x = self._norm(i)(x)
            maps.append(to_map(x, size))
        return tuple(maps[1:])

    def _blocks(self, stage: int) -> list[Block]:
        return [block for block in self.get_submodule(f"block{stage}").children() if isinstance(block, Block)]

    def _norm(self, stage: int) -> PRepBN:
        norm = self.get_submodule(f"norm{stage}")
        assert isinstance(norm, PRepBN)
        return norm

    def deploy(self) -> nn.Module:
        stages = [self._deploy_stage(i) for i in range(1, 5)]
        norms = [self._norm(i) for i in range(1, 5)] if self.overlap else []
        head = fold_into_next(self._norm(4), self.head) if self.overlap else self.head
        return BackboneDeploy(stages, norms, head, self.feature_strides, self.feature_channels)

    def _deploy_stage(self, stage: int) -> StageDeploy:
        """The embedding with the norms on both sides folded in.

        A norm a x + b before a zero-padded convolution: its scale goes into the weights, and what the convolution
        makes of the constant map b, different at the border, is a constant map to add.
        """
        embed, size = self.get_submodule(f"patch_embed{stage}"), self.resolutions[stage - 1]
        assert isinstance(embed, PatchEmbed)
        proj, position = fold_into_previous(embed.proj, embed.norm), None
        if not self.overlap:
            position = to_map(self.get_parameter(f"pos_embed{stage}"), size)
        elif stage > 1:
            scale, shift = self._norm(stage - 1).affine()
            position = constant_response(proj, shift, self.resolutions[stage - 2])
            proj.weight = nn.Parameter(proj.weight * scale.reshape(-1, 1, 1).to(proj.weight.dtype))
        return StageDeploy(proj, position, self._blocks(stage))


def convert_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the published checkpoints -> ours: the same names, every norm as a LayerNorm and RepBN pair."""
    return norm_pairs(published, STEPS)


def fit_state(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tables of another image size, resized to the model's: `pos_embed` bilinearly, those of the keys bicubically."""
    assert isinstance(model, SlabPvt)
    own, fitted = model.state_dict(), dict(state)
    for stage, size in enumerate(model.resolutions, 1):
        for name in state.keys() & own.keys():
            if name == f"pos_embed{stage}":
                fitted[name] = resized(state[name], own[name], size, "bilinear")
            elif name.startswith(f"block{stage}.") and name.endswith("positional_encoding"):
                fitted[name] = resized(state[name], own[name], size, "bicubic")
    return fitted


def _pvt_tiny(num_classes: int, in_channels: int, image_size: Size) -> nn.Module:
    return SlabPvt(
        (64, 128, 320, 512), (1, 2, 5, 8), num_classes=num_classes, in_channels=in_channels, image_size=image_size
    )


def _pvtv2_b0(num_classes: int, in_channels: int, image_size: Size) -> nn.Module:
    return SlabPvt(
        (32, 64, 160, 256), (1, 2, 5, 8), overlap=True, num_classes=num_classes, in_channels=in_channels,
        image_size=image_size,
    )  # fmt: skip


def _spec(name: str, build: Build, params: int, macs: int, weights: str, notes: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="slab",
        build=build,
        params=params,
        macs=macs,
        paper="https://arxiv.org/abs/2405.11582",
        licence="Apache-2.0 (this implementation); the published weights come without a licence",
        preprocess=Preprocess(resize=256, crop=(224, 224)),
        convert_state=convert_state,
        fit_state=fit_state,
        labels="imagenet1k",
        weights=(weights,) if weights else (),
        notes=notes,
    )


MODELS = (
    _spec(
        "slab-pvt-tiny", _pvt_tiny, 12_157_692, 2_035_901_440,
        "published SLAB checkpoints (slab_pvt_tiny.pth), by their own names",
        "Published top-1 76.5 % on ImageNet-1k at 224. No norm is left after deploy().",
    ),
    _spec("slab-pvtv2-b0", _pvtv2_b0, 3_599_968, 579_813_888, "", "No weights are published."),
)  # fmt: skip
