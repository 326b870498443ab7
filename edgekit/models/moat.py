"""tiny-MOAT: mobile convolution and attention in one block.

Paper: "MOAT: Alternating Mobile Convolution and Attention Brings Strong Vision Models", Yang et al., ICLR 2023,
arXiv:2210.01820. Written from the paper's equations. Maps are (B, C, H, W); H and W of the image must be divisible
by 32. A stem at stride 2, two stages of MBConv blocks, two of MOAT blocks; each stage starts with stride 2::

    MBConv(x) = S(x) + P SE(gelu(BN(DW(gelu(BN(E BN(x)))))))      E 1x1 to 4 x the output's width, DW 3x3 depthwise
    SE(x)     = x sigmoid(W_2 silu(W_1 mean(x)))                  stages 1 and 2 only
    S(x)      = x, averaged over 2x2 pixels where the block strides, through a 1x1 convolution where widths differ
    MOAT(x)   = y + MHSA(LN(y)),   y = MBConv(x)                  no MLP: the expansion of MBConv is one
    MHSA(x)   = W_o softmax(d^-1/2 q k^T + R) v + b_o             over all pixels of the map, d = 32 a head

R[i, j] is read from a table by the offset of pixel j from pixel i. Tables have the size that a map of 14x14 (stage 3)
or 7x7 (stage 4) needs, as in the published weights; for other maps they are resized bilinearly.

`deploy()` on a block gives the same function with its norms folded and R as a constant for `image_size`.
"""

import re
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.models._layers import SamePadConv2d
from edgekit.models._moat_deploy import HeadDeploy, MBConvDeploy, MoatBlockDeploy, ShortcutDeploy
from edgekit.types import ModelSpec, Preprocess

HEAD_DIM = 32
DEPTHS = (2, 3, 7, 2)
# Stages of attention: the side of the map that the position tables are made for.
TABLE_MAPS = {2: 14, 3: 7}


def conv3x3(cin: int, cout: int, stride: int, groups: int = 1, bias: bool = True, padding: str = "same") -> nn.Conv2d:
    """A 3x3 convolution to 1/stride of the size; `padding` is "same" (TensorFlow) or "symmetric" (PyTorch)."""
    if padding == "same":
        return SamePadConv2d(cin, cout, 3, stride, groups=groups, bias=bias)
    return nn.Conv2d(cin, cout, 3, stride, padding=1, groups=groups, bias=bias)


def batch_norm(dim: int) -> nn.BatchNorm2d:
    """Batch norm with Keras's defaults, which the published weights were trained with."""
    return nn.BatchNorm2d(dim, eps=1e-3, momentum=0.01)


class DropPath(nn.Module):
    """Stochastic depth: in training each sample is kept with probability `survival` and scaled by its inverse."""

    def __init__(self, survival: float) -> None:
        super().__init__()
        self.survival = survival

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.survival == 1:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < self.survival
        return x * (kept.to(x.dtype) / self.survival)


class SqueezeExcite(nn.Module):
    """Each channel times a gate computed from the means of all: (B, C, H, W) -> the same shape."""

    def __init__(self, dim: int, reduced: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, reduced, 1)
        self.expansion = nn.Conv2d(reduced, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expansion(F.silu(self.reduction(x.mean((-1, -2), keepdim=True))))
        return x * gate.sigmoid()


class Shortcut(nn.Module):
    """What a block adds its result to: average pooling if it strides, a 1x1 convolution if it changes the width.

    `pool_size` 3 has TensorFlow's padding, whose pixels the mean leaves out, or PyTorch's.
    """

    def __init__(self, cin: int, cout: int, stride: int, pool_size: int, padding: str) -> None:
        super().__init__()
        self.stride, self.pool_size = stride, pool_size
        self.symmetric = padding == "symmetric" and pool_size == 3
        self.conv = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def deploy(self) -> nn.Module:
        return ShortcutDeploy(self.stride, self.pool_size, self.symmetric, self.conv)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            # On even sizes TensorFlow pads a 3x3 window at the far border only: the window that ceil_mode cuts off.
            x = F.avg_pool2d(x, self.pool_size, 2, int(self.symmetric), not self.symmetric, count_include_pad=False)
        return x if self.conv is None else self.conv(x)


class MBConv(nn.Module):
    """Inverted bottleneck: (B, Cin, H, W) -> (B, Cout, H / stride, W / stride). See the module's equations."""

    def __init__(
        self, cin: int, cout: int, stride: int, squeeze: bool, survival: float, pool_size: int, padding: str
    ) -> None:
        super().__init__()
        hidden = 4 * cout
        self.shortcut = Shortcut(cin, cout, stride, pool_size, padding)
        self.pre_norm = batch_norm(cin)
        self.expansion = nn.Conv2d(cin, hidden, 1, bias=False)
        self.expansion_norm = batch_norm(hidden)
        self.depthwise = conv3x3(hidden, hidden, stride, hidden, False, padding)
        self.depthwise_norm = batch_norm(hidden)
        self.squeeze_excite = SqueezeExcite(hidden, cout // 4) if squeeze else None
        self.projection = nn.Conv2d(hidden, cout, 1)
        self.drop_path = DropPath(survival)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.expansion_norm(self.expansion(self.pre_norm(x))))
        hidden = F.gelu(self.depthwise_norm(self.depthwise(hidden)))
        if self.squeeze_excite is not None:
            hidden = self.squeeze_excite(hidden)
        return self.shortcut(x) + self.drop_path(self.projection(hidden))

    def deploy(self) -> nn.Module:
        return MBConvDeploy(
            self.shortcut, self.pre_norm, self.expansion, self.expansion_norm, self.depthwise, self.depthwise_norm,
            self.squeeze_excite, self.projection,
        )  # fmt: skip


class Attention(nn.Module):
    """Multi-head self-attention over a map: (B, H, W, C) -> the same shape. See the module's equations.

    `table_map` is the side of the square map that the position table fits, or None for attention without one.
    """

    def __init__(self, dim: int, table_map: int | None) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.position_table: nn.Parameter | None = None
        if table_map is not None:
            side = 2 * table_map - 1
            self.position_table = nn.Parameter(torch.zeros(self.heads, side, side))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(linear(x)) for linear in (self.q, self.k, self.v))  # (B, head, N, d)
        logits = (q * HEAD_DIM**-0.5) @ k.transpose(-2, -1)
        if self.position_table is not None:
            logits = logits + self.position_logits(x.shape[1], x.shape[2])
        mixed = logits.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(x.shape))

    def position_logits(self, height: int, width: int) -> Tensor:
        """R as (heads, N, N) for a map of `height` x `width`: row is the query's pixel, column the key's."""
        assert self.position_table is not None
        table: Tensor = self.position_table
        size = (2 * height - 1, 2 * width - 1)
        if table.shape[1:] != size:
            table = F.interpolate(table[None], size, mode="bilinear", align_corners=False)[0]
        # Key minus query, shifted to start at 0: (query, key) of the rows and of the columns.
        rows, cols = (
            torch.arange(n, device=table.device) - torch.arange(n, device=table.device)[:, None] + n - 1
            for n in (height, width)
        )
        bias = table[:, rows[:, None, :, None], cols[None, :, None, :]]
        return bias.reshape(self.heads, height * width, height * width)

    def _split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, head, N, d)."""
        return x.reshape(x.shape[0], -1, self.heads, HEAD_DIM).transpose(1, 2)


class MoatBlock(nn.Module):
    """MBConv, then attention over the map it gives; `size` is that map's for which `deploy()` computes R."""

    def __init__(self, mbconv: MBConv, dim: int, table_map: int | None, survival: float, size: tuple[int, int]) -> None:
        super().__init__()
        self.mbconv = mbconv
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, table_map)
        self.drop_path = DropPath(survival)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        x = self.mbconv(x)
        attended = self.attention(self.norm(x.permute(0, 2, 3, 1)))
        return x + self.drop_path(attended.permute(0, 3, 1, 2))

    def deploy(self) -> nn.Module:
        a = self.attention
        bias = None if a.position_table is None else a.position_logits(*self.size)
        return MoatBlockDeploy(self.mbconv, self.norm, a.q, a.k, a.v, a.out, a.heads, bias, self.size)


class Stem(nn.Module):
    """Two 3x3 convolutions, nothing after the second: (B, Cin, H, W) -> (B, C, H / 2, W / 2)."""

    def __init__(self, in_channels: int, dim: int, padding: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, dim, 2, padding=padding)
        self.norm = batch_norm(dim)
        self.conv2 = conv3x3(dim, dim, 1, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm(self.conv1(x))))


class Head(nn.Module):
    """Mean over the map, LayerNorm, linear: (B, C, H, W) -> (B, classes)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(x.mean((-2, -1))))

    def deploy(self) -> nn.Module:
        return HeadDeploy(self.norm, self.classifier)


class Moat(nn.Module):
    """tiny-MOAT of `width` channels at stride 4: image (B, in_channels, H, W) -> logits (B, num_classes).

    The train form takes any image whose sides 32 divides; with `position_bias` the deploy form takes `image_size`.
    """

    feature_strides = (4, 8, 16, 32)

    def __init__(
        self, width: int, position_bias: bool = True, survival: float = 1.0, pool_size: int = 2, padding: str = "same",
        num_classes: int = 1000, in_channels: int = 3, image_size: tuple[int, int] = (256, 256),
    ) -> None:  # fmt: skip
        super().__init__()
        if padding not in ("same", "symmetric"):
            raise ValueError(f"padding is 'same' or 'symmetric', not {padding!r}")
        if pool_size not in (2, 3):
            raise ValueError(f"pool_size is 2 or 3, not {pool_size}")
        _check_size(image_size)
        self.feature_channels = tuple(width * 2**i for i in range(len(DEPTHS)))
        self.stem = Stem(in_channels, width, padding)
        stages: list[nn.Module] = []
        cin, done = width, 0
        for i, (cout, depth) in enumerate(zip(self.feature_channels, DEPTHS, strict=True)):
            table_map = TABLE_MAPS.get(i) if position_bias else None
            size = (image_size[0] // self.feature_strides[i], image_size[1] // self.feature_strides[i])
            blocks: list[nn.Module] = []
            for j in range(depth):
                keep = 1 - (1 - survival) * done / sum(DEPTHS)  # of both residual branches, lower block by block
                squeeze = i not in TABLE_MAPS
                mbconv = MBConv(cin, cout, 1 if j else 2, squeeze, keep, pool_size, padding)
                blocks.append(mbconv if squeeze else MoatBlock(mbconv, cout, table_map, keep, size))
                cin, done = cout, done + 1
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = Head(cin, num_classes)
        for name, parameter in self.named_parameters():
            _init(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x)[-1])

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) from the last of the maps."""
        return self.head(maps)

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps (B, C, H/s, W/s) that each stage ends with."""
        _check_size(tuple(x.shape[-2:]))
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


def _check_size(size: tuple[int, ...]) -> None:
    if size[0] % 32 or size[1] % 32:
        raise ValueError(f"MOAT needs an image size divisible by 32, got {size}")


def _init(name: str, parameter: nn.Parameter) -> None:
    """Kernels and position tables N(0, 0.02^2), not truncated; biases 0; norms as they are."""
    if parameter.dim() > 1:
        nn.init.normal_(parameter, std=0.02)
    elif name.endswith("bias"):
        nn.init.zeros_(parameter)


# What follows a variable's layer in TensorFlow's names -> in ours.
_LEAVES = {
    "gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var",
    "kernel": "weight", "depthwise_kernel": "weight", "weight": "weight", "bias": "bias",
    "relative_position_embedding": "position_table",
}  # fmt: skip
_OUTER = {
    "stem/conv_0": "stem.conv1", "stem/norm_0": "stem.norm", "stem/conv_1": "stem.conv2",
    "final_layer_norm": "head.norm", "logits_head": "head.classifier",
}  # fmt: skip
_MBCONV = {
    "shortcut_conv": "shortcut.conv", "pre_norm": "pre_norm", "expand_conv": "expansion",
    "expand_norm": "expansion_norm", "depthwise_conv": "depthwise", "depthwise_norm": "depthwise_norm",
    "se/reduce_conv2d": "squeeze_excite.reduction", "se/expand_conv2d": "squeeze_excite.expansion",
    "shrink_conv": "projection",
}  # fmt: skip
_ATTENTION = {
    "attention_norm": "norm", "attention": "attention", "attention/q": "attention.q", "attention/k": "attention.k",
    "attention/v": "attention.v", "attention/o": "attention.out",
}  # fmt: skip
_BLOCK = re.compile(r"block_(\d\d)_(\d\d)/(.+)")
_AVERAGE = "/ExponentialMovingAverage"


def convert_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State under TensorFlow's names (`moat/block_02_00/attention/q/weight`) and layouts -> ours; ours pass unchanged.

    Where a variable is there both as trained and as its `/ExponentialMovingAverage`, the one as trained is taken, as
    the published loader does; an average alone is taken for the variable. `global_step` counts training steps: dropped.
    """
    state: dict[str, Tensor] = {}
    for name, value in published.items():
        variable = name.removesuffix(_AVERAGE)
        if (variable != name and variable in published) or name == "global_step":
            continue
        ours = _name(variable)
        state[ours or name] = _layout(variable, value) if ours else value
    return state


def _name(variable: str) -> str | None:
    """Our name of a TensorFlow variable, or None where it is none that MOAT has."""
    path, _, leaf = variable.removeprefix("moat/").rpartition("/")
    if leaf not in _LEAVES or not variable.startswith("moat/"):
        return None
    block = _BLOCK.fullmatch(path)
    if block is None:
        return f"{_OUTER[path]}.{_LEAVES[leaf]}" if path in _OUTER else None
    stage, index, layer = int(block[1]), int(block[2]), block[3]
    if layer in _MBCONV:
        layer = ("mbconv." if stage in TABLE_MAPS else "") + _MBCONV[layer]
    elif layer in _ATTENTION:
        layer = _ATTENTION[layer]
    else:
        return None
    return f"stages.{stage}.{index}.{layer}.{_LEAVES[leaf]}"


def _layout(variable: str, value: Tensor) -> Tensor:
    """The value as torch's layers hold it; one of another rank stays, for the strict loader to name its shape."""
    layer, leaf = variable.split("/")[-2:]
    if leaf == "kernel" and value.dim() == 4:
        value = value.permute(3, 2, 0, 1)  # height, width, in, out
        return (value.flatten(1) if layer == "logits_head" else value).contiguous()
    if leaf == "depthwise_kernel" and value.dim() == 4:
        return value.permute(2, 3, 0, 1).contiguous()  # height, width, channel, 1
    if leaf == "weight" and value.dim() == 3:  # out: head, d, C; q, k, v: C, head, d
        return (value.flatten(0, 1) if layer == "o" else value.flatten(1)).t().contiguous()
    return value.flatten() if layer in ("q", "k", "v") and leaf == "bias" else value


# Channels at stride 4, and the probability that the last block survives in training.
_WIDTHS = ((32, 1.0), (40, 1.0), (56, 1.0), (80, 0.9))


def _spec(size: int, position_bias: bool, params: int, macs: int, top1: float) -> ModelSpec:
    width, survival = _WIDTHS[size]
    tables = "With" if position_bias else "Without"
    return ModelSpec(
        name=f"tiny-moat-{size}" + ("" if position_bias else "-nope"),
        family="moat",
        build=partial(Moat, width, position_bias, survival, 2, "same"),
        params=params,
        macs=macs,
        paper="https://arxiv.org/abs/2210.01820",
        licence="Apache-2.0 (this implementation); weights are published by the Apache-2.0 project deeplab2",
        preprocess=Preprocess(resize=292, crop=(256, 256)),
        convert_state=convert_state,
        input=(3, 256, 256),
        labels="imagenet1k",
        weights=("deeplab2's variables, by their TensorFlow names and in its layouts",),
        notes=f"{tables} position tables. Published top-1 {top1} % on ImageNet-1k at 256; "
        "how its images were cropped is not documented: 256 of 292 pixels is our choice. TensorFlow's padding.",
    )


MODELS = (
    _spec(0, True, 3_355_348, 1_040_734_208, 76.6),
    _spec(1, True, 5_122_895, 1_575_522_560, 79.2),
    _spec(2, True, 9_772_741, 2_974_625_024, 81.7),
    _spec(3, True, 19_534_390, 5_897_093_120, 83.3),
    _spec(0, False, 3_332_232, 1_040_734_208, 76.0),
    _spec(1, False, 5_094_000, 1_575_522_560, 78.9),
    _spec(2, False, 9_732_288, 2_974_625_024, 81.3),
    _spec(3, False, 19_476_600, 5_897_093_120, 83.0),
)
