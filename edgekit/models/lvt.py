"""LVT, the Lite Vision Transformer: a 3.4M-parameter backbone with two enhanced self-attentions.

Paper: "Lite Vision Transformer with Enhanced Self-Attention", Yang et al., CVPR 2022. Written from the paper's
equations. Every module takes and returns maps (B, H, W, C); H and W of the image must be divisible by 32.

Convolutional self-attention (CSA, stage 1). On every second pixel p, with the nine pixels j of its 3x3 window::

    v_j = W_j x_j                                  nine matrices: a convolution kernel whose taps are not summed
    A   = softmax_j(d^-1/2 (U mean2x2(x) + b))     9x9 per pixel and head
    y_i = sum_j A_ij v_j                           added back onto the window's pixels i, then projected

Recursive atrous self-attention (RASA, stages 2-4), one weight set unrolled twice::

    q = sum over r in 1, 3, 5 of SiLU(DW_r(W_q x))         one 3x3 depthwise kernel at three dilations
    k, v = W_kv LN(Conv_sr(x))                             keys and values on a reduced map
    A(x) = W_o softmax(d^-1/2 q k^T) v + b_o
    x_1 = SiLU(A(x_0)) + x_0,  output = SiLU(A(x_1))

Two heads: `lvt` (a class token read out by two class-attention blocks, plus half of the maximum over the patch
tokens' own logits: the published ImageNet model) and `lvt_gap` (mean over the map).

`deploy()` on a block gives the same function without unfold, fold, gather, concatenated class token or tensors
of more than four dimensions.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.models._lvt_deploy import (
    ClassHeadDeploy,
    CsaBlockDeploy,
    EmbedDeploy,
    LvtDeploy,
    PooledHeadDeploy,
    RasaBlockDeploy,
    stage_maps,
)
from edgekit.types import Build, ModelSpec, Preprocess

HEAD_DIM = 32
ATROUS_RATES = (1, 3, 5)


class PatchEmbed(nn.Module):
    """Overlapping patches: a strided convolution, then LayerNorm over channels. (B, H, W, Cin) -> (B, H/s, W/s, C)."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def deploy(self) -> nn.Module:
        return EmbedDeploy(self.proj, self.norm)


class ConvSelfAttention(nn.Module):
    """CSA with a 3x3 window at stride 2: (B, H, W, C) -> the same shape; H and W even. See the module's equations."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.attn = nn.Linear(dim, self.heads * 81)
        # Nine dim x dim matrices, rows j*dim..(j+1)*dim for tap j; a grouped 1x1 convolution in the published state.
        self.weight = nn.Conv2d(9 * dim, 9 * dim, 1, groups=9, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        nchw = x.permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(nchw, 2).permute(0, 2, 3, 1).flatten(1, 2)  # (B, hw, C)
        logits = self.attn(pooled).unflatten(-1, (self.heads, 9, 9))  # (B, hw, head, i, j)
        mix = (logits * HEAD_DIM**-0.5).softmax(-1)

        patches = F.unfold(nchw, 3, padding=1, stride=2).unflatten(1, (dim, 9))  # (B, C, j, hw)
        taps = patches.transpose(1, 2).reshape(batch, 9 * dim, height // 2, width // 2)
        values = self.weight(taps).reshape(batch, 9, self.heads, HEAD_DIM, -1).permute(0, 4, 2, 1, 3)
        mixed = mix @ values  # (B, hw, head, i, d)

        columns = mixed.permute(0, 2, 4, 3, 1).reshape(batch, dim * 9, -1)
        folded = F.fold(columns, (height, width), 3, padding=1, stride=2)
        return self.proj(folded.permute(0, 2, 3, 1))


class RecursiveAtrousAttention(nn.Module):
    """RASA: (B, H, W, C) -> the same shape, two passes of one weight set. See the module's equations."""

    def __init__(self, dim: int, sr_ratio: int, recursions: int = 2) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.sr_ratio = sr_ratio
        self.recursions = recursions
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(dim)
        self.ds = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.recursions - 1):
            x = F.silu(self.attend(x)) + x
        return F.silu(self.attend(x))

    def attend(self, x: Tensor) -> Tensor:
        """One atrous self-attention pass A(x)."""
        q = self.q(x).permute(0, 3, 1, 2)
        dim = q.shape[1]
        branches = [F.silu(F.conv2d(q, self.ds.weight, None, 1, r, r, dim)) for r in ATROUS_RATES]
        q = sum(branches[1:], branches[0]).permute(0, 2, 3, 1)
        k, v = self.kv(self.reduced(x)).chunk(2, -1)
        q, k, v = (_split_heads(t, self.heads) for t in (q, k, v))  # (B, head, N, d)
        mix = (q @ k.transpose(-2, -1) * HEAD_DIM**-0.5).softmax(-1)
        return self.proj((mix @ v).transpose(1, 2).reshape(x.shape))

    def reduced(self, x: Tensor) -> Tensor:
        """The map keys and values are read from."""
        if self.sr_ratio == 1:
            return x
        return self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, ..., heads * d) -> (B, heads, N, d)."""
    return x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear over the last dimension."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ConvMlp(nn.Module):
    """1x1 convolution, 3x3 depthwise, exact GELU, 1x1 convolution: (B, H, W, C) -> the same shape."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        hidden = ratio * dim
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.depconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depconv(self.fc1(x.permute(0, 3, 1, 2)))
        return self.fc2(F.gelu(x)).permute(0, 2, 3, 1)


class CsaBlock(nn.Module):
    """x + CSA(LN(x)), then x + MLP(LN(x)): (B, H, W, C) -> the same shape."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ConvSelfAttention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def deploy(self) -> nn.Module:
        attn, mlp = self.attn, self.mlp
        return CsaBlockDeploy(self.norm1, attn.attn, attn.weight, attn.proj, self.norm2, mlp.fc1, mlp.fc2)


class RasaBlock(nn.Module):
    """x + RASA(LN(x)), then x + ConvMLP(LN(x)): (B, H, W, C) -> the same shape."""

    def __init__(self, dim: int, ratio: int, sr_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = RecursiveAtrousAttention(dim, sr_ratio)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ConvMlp(dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def deploy(self) -> nn.Module:
        attn, mlp = self.attn, self.mlp
        reduce = (attn.sr, attn.norm) if attn.sr_ratio > 1 else None
        return RasaBlockDeploy(
            self.norm1, attn.q, attn.kv, attn.proj, attn.ds, reduce, ATROUS_RATES, attn.recursions,
            self.norm2, mlp.fc1, mlp.depconv, mlp.fc2,
        )  # fmt: skip


class ClassAttention(nn.Module):
    """The class token (first of T) attends to all tokens: (B, T, C) -> (B, 1, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.q = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q = _split_heads(self.q(x[:, :1]), self.heads) * HEAD_DIM**-0.5
        k, v = (_split_heads(t, self.heads) for t in self.kv(x).chunk(2, -1))
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v  # (B, head, 1, d)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape[0], 1, -1))


class ClassBlock(nn.Module):
    """Class attention and MLP on the class token alone; patch tokens pass unchanged: (B, T, C) -> the same shape."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ClassAttention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        token = x[:, :1] + self.attn(self.norm1(x))
        token = token + self.mlp(self.norm2(token))
        return torch.cat([token, x[:, 1:]], 1)


# (channels, kernel, stride, MLP ratio, key/value reduction); two blocks each, stage 1 with CSA.
_STAGES = ((64, 7, 4, 4, 0), (64, 3, 2, 8, 4), (160, 3, 2, 4, 2), (256, 3, 2, 4, 1))


def _backbone(in_chans: int) -> nn.Sequential:
    """Stages of [patch embedding, blocks]: (B, H, W, Cin) -> (B, H/32, W/32, 256)."""
    stages = []
    for dim, kernel, stride, ratio, sr_ratio in _STAGES:
        blocks = [RasaBlock(dim, ratio, sr_ratio) if sr_ratio else CsaBlock(dim, ratio) for _ in range(2)]
        stages.append(nn.Sequential(PatchEmbed(in_chans, dim, kernel, stride), nn.Sequential(*blocks)))
        in_chans = dim
    return nn.Sequential(*stages)


class LvtGap(nn.Module):
    """LVT with a pooled head: image (B, C, H, W) -> logits (B, num_classes)."""

    feature_strides = (4, 8, 16, 32)
    feature_channels = tuple(stage[0] for stage in _STAGES)

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        dim = _STAGES[-1][0]
        self.backbone = _backbone(in_channels)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        _init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.head(self.norm(maps.permute(0, 2, 3, 1)).mean((1, 2)))

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps (B, C, H/s, W/s) that each stage ends with, before any norm."""
        return stage_maps(self.backbone, _channels_last(x))

    def deploy(self) -> nn.Module:
        return LvtDeploy(self.backbone, PooledHeadDeploy(self.norm, self.head))


class Lvt(nn.Module):
    """LVT with the class-attention head: image (B, C, H, W) -> logits (B, num_classes).

    logits = head(class token) + 0.5 * max over patch tokens of aux_head(patch token). Training from dense token
    labels needs the two terms apart: `forward_dense`.
    """

    feature_strides = (4, 8, 16, 32)
    feature_channels = tuple(stage[0] for stage in _STAGES)

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        dim = _STAGES[-1][0]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.backbone = _backbone(in_channels)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.post_network = nn.Sequential(ClassBlock(dim), ClassBlock(dim))
        self.aux_head = nn.Linear(dim, num_classes)
        _init_weights(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        logits, dense = self.forward_dense(x)
        return logits + 0.5 * dense.amax(1)

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps (B, C, H/s, W/s) that each stage ends with, before any norm."""
        return stage_maps(self.backbone, _channels_last(x))

    def forward_dense(self, x: Tensor, exchange: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The class token's logits (B, num_classes) and every patch token's (B, tokens, num_classes).

        `exchange` mixes maps (B, h, w, C) across the batch, of the first patch embedding and back those of the logits.
        """
        embed, blocks = self.backbone[0].children()
        maps = embed(_channels_last(x))
        maps = blocks(maps if exchange is None else exchange(maps))
        for stage in list(self.backbone)[1:]:
            maps = stage(maps)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), maps.flatten(1, 2)], 1)
        tokens = self.norm(self.post_network(tokens))
        dense = self.aux_head(tokens[:, 1:])
        if exchange is not None:
            dense = exchange(dense.unflatten(1, maps.shape[1:3])).flatten(1, 2)
        return self.head(tokens[:, 0]), dense

    def deploy(self) -> nn.Module:
        blocks = [
            (b.norm1, b.attn.q, b.attn.kv, b.attn.proj, b.norm2, b.mlp.fc1, b.mlp.fc2)
            for b in self.post_network.children()
            if isinstance(b, ClassBlock)
        ]
        return LvtDeploy(self.backbone, ClassHeadDeploy(self.cls_token, blocks, self.norm, self.head, self.aux_head))


def _channels_last(image: Tensor) -> Tensor:
    """Image (B, C, H, W) -> map (B, H, W, C); refuses sizes on which the published paddings would differ."""
    if image.shape[-2] % 32 or image.shape[-1] % 32:
        raise ValueError(f"LVT needs an image size divisible by 32, got {tuple(image.shape[-2:])}")
    return image.permute(0, 2, 3, 1)


def _init_weights(model: nn.Module) -> None:
    """Truncated normal 0.02 for linears, N(0, 2/fan_out) for attention convolutions; other convolutions torch's own."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and name.endswith((".attn.weight", ".attn.sr")):
            # CSA's nine matrices are one 576-channel 1x1 convolution here, so its fan out is 9 * dim.
            kernel_size = module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / (kernel_size * module.out_channels)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and name.endswith(".attn.ds"):
            nn.init.kaiming_uniform_(module.weight)


def _lvt(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return Lvt(num_classes, in_channels)  # no parameter of LVT depends on the size of the image


def _lvt_gap(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return LvtGap(num_classes, in_channels)


def convert_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the published checkpoints -> state of `lvt` or `lvt_gap`: the same names, less a `module.` prefix."""
    state: dict[str, Tensor] = {}
    for name, value in published.items():
        ours = name.removeprefix("module.")
        if ours in state:
            raise ValueError(f"two entries for {ours!r} in the published state")
        state[ours] = value
    return state


def _spec(name: str, build: Build, params: int, macs: int, notes: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="lvt",
        build=build,
        params=params,
        macs=macs,
        paper="https://arxiv.org/abs/2112.10809",
        licence="Apache-2.0 (this implementation); the published weights are for research only",
        preprocess=Preprocess(resize=233, crop=(224, 224)),  # crop_pct 0.96, bicubic, ImageNet statistics
        convert_state=convert_state,
        labels="imagenet1k",
        weights=("published LVT checkpoints, by their own names",),
        notes=notes,
    )


MODELS = (
    _spec("lvt", _lvt, 5_521_844, 888_816_128, "Class-attention head; published top-1 74.8 % on ImageNet-1k at 224."),
    _spec("lvt-gap", _lvt_gap, 3_686_604, 861_803_008, "Pooled head on the same backbone."),
)
