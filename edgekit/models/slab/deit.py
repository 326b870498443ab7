"""SLAB-DeiT: a plain vision transformer with simplified linear attention and folding norms.

Paper: Guo et al., ICML 2024 (see `prepbn` and `attention`), on the DeiT skeleton of Touvron et al., 2021. Written from
the papers' equations. With the image as 16x16 patches of C channels::

    x = Conv16x16(image) + pos_embed                 tokens (B, N, C); no class token takes part
    x = Block(x), 12 times                           see `blocks`
    logits = head(mean over tokens of norm(x))
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
    init_weights,
    resized,
    to_map,
    to_tokens,
)
from edgekit.models.slab.prepbn import PRepBN, fold_into_next, norm_pairs
from edgekit.types import ModelSpec, Preprocess

PATCH = 16
STEPS = 60_000


class PatchEmbed(nn.Module):
    """Image (B, Cin, H, W) -> tokens (B, H/16 * W/16, C)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, PATCH, PATCH)

    def forward(self, image: Tensor) -> Tensor:
        return to_tokens(self.proj(image))


class SlabDeit(nn.Module):
    """SLAB-DeiT: image (B, in_channels, H, W) of `image_size` -> logits (B, num_classes).

    `norm_steps` is the T of the norms' schedule, see `prepbn`.
    """

    feature_strides = (PATCH,)

    def __init__(
        self, dim: int, heads: int, depth: int = 12, ratio: int = 4, num_classes: int = 1000, in_channels: int = 3,
        image_size: Size = (224, 224), norm_steps: int = STEPS,
    ) -> None:  # fmt: skip
        super().__init__()
        if image_size[0] % PATCH or image_size[1] % PATCH:
            raise ValueError(f"SLAB-DeiT needs an image size divisible by {PATCH}, got {image_size}")
        self.feature_channels = (dim,)
        self.image_size = image_size
        self.resolution = (image_size[0] // PATCH, image_size[1] // PATCH)
        norm = partial(PRepBN, steps=norm_steps, eps=1e-6)
        self.patch_embed = PatchEmbed(in_channels, dim)
        # In the published state, and counted; the forward reads the mean of the patch tokens instead.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.resolution[0] * self.resolution[1], dim))
        self.blocks = nn.ModuleList(
            Block(SimplifiedLinearAttention(dim, heads, self.resolution), Mlp(dim, ratio, self.resolution), norm)
            for _ in range(depth)
        )
        self.norm = norm(dim)
        self.head = nn.Linear(dim, num_classes)
        init_weights(self, conv_fan_out=False)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.head(self.norm(to_tokens(maps)).mean(1))

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The last block's tokens as a map (B, C, H/16, W/16), before the norm."""
        if image.shape[-2:] != self.image_size:
            raise ValueError(f"this model was built for images of {self.image_size}, not {tuple(image.shape[-2:])}")
        x = self.patch_embed(image) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return (to_map(x, self.resolution),)

    def deploy(self) -> nn.Module:
        position = to_map(self.pos_embed, self.resolution)
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        stage = StageDeploy(self.patch_embed.proj, position, blocks)
        head = fold_into_next(self.norm, self.head)
        return BackboneDeploy([stage], [], head, self.feature_strides, self.feature_channels)


def convert_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the published checkpoints -> ours: the same names, every norm as a LayerNorm and RepBN pair."""
    return norm_pairs(published, STEPS)


def fit_state(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`pos_embed` and the tables of the keys of another image size, resized bicubically to the model's."""
    assert isinstance(model, SlabDeit)
    own = model.state_dict()
    tables = [name for name in state if name in own and name.endswith(("pos_embed", "positional_encoding"))]
    return state | {name: resized(state[name], own[name], model.resolution, "bicubic") for name in tables}


def _tiny(num_classes: int, in_channels: int, image_size: Size) -> nn.Module:
    return SlabDeit(192, 3, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


MODELS = (
    ModelSpec(
        name="slab-deit-tiny",
        family="slab",
        build=_tiny,
        params=6_198_401,
        macs=1_139_086_848,
        paper="https://arxiv.org/abs/2405.11582",
        licence="Apache-2.0 (this implementation); the published weights come without a licence",
        preprocess=Preprocess(resize=256, crop=(224, 224)),
        convert_state=convert_state,
        fit_state=fit_state,
        stride=PATCH,
        labels="imagenet1k",
        weights=("published SLAB checkpoints (slab_deit_tiny.pth), by their own names",),
        notes="Published top-1 74.3 % on ImageNet-1k at 224. No norm is left after deploy().",
    ),
)
