"""LVT's blocks in their deploy form: the same functions as in `lvt.py`, in operations every runtime has.

What changes, each an identity:

- LN(x) = n * gamma + beta with n normalized: gamma and beta go into whatever linear map follows. Not before RASA's
  attention, whose second pass feeds the same weights with a value that did not come through the norm.
- CSA: a 3x3 window at stride 2 meets each pixel by the parity of its row and column, so W_j x_j is a linear map of
  one of four parity phases, moved by a pixel where the window's row or column is 0; zeros enter after the map.
- CSA's block takes its tokens in the order (row parity, column parity, B, h, w): norms and MLP do not care, a phase is
  a range of tokens, and the two permutes cancel between blocks. Parities are reached by views of three dimensions.
- RASA: linears are 1x1 convolutions, d^-1/2 goes into the keys. A shift common to all keys does not change softmax and
  one common to all values comes out of it unchanged, so the reduced map's norm has its shift in the last bias only.
- Class attention: the first query is a constant, so its keys are too; the class token is never concatenated to the
  patch tokens there; tokens are maximized over as a map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.models._folding import convolution, linear, plain

# Order of the nine taps (row, column) of a window, columns outer. In this order everything that moves by one pixel
# is contiguous: column 0 (the last three taps) belongs to the pixel on the left, row 0 (every third) to the one above.
TAPS = tuple((row, col) for col in (1, 2, 0) for row in (1, 2, 0))


def _after_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear map (O, I) that takes the norm's gain and shift along with it."""
    weight = weight.reshape(weight.shape[0], -1)
    shift = weight @ norm.bias
    return weight * norm.weight, shift if bias is None else shift + bias


def _affine(norm: nn.LayerNorm) -> nn.Conv2d:
    """The norm's gain and shift on (B, C, H, W): one depthwise convolution where a runtime keeps its own layout."""
    dim = norm.normalized_shape[0]
    layer = nn.Conv2d(dim, dim, 1, groups=dim)
    with torch.no_grad():
        layer.weight.copy_(norm.weight.reshape(-1, 1, 1, 1))
        if layer.bias is not None:
            layer.bias.copy_(norm.bias)
    return layer


def _silu(x: Tensor) -> Tensor:
    # F.silu computes in float32 when it is decomposed for a half-precision graph.
    return x * x.sigmoid()


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm over the channels of (B, C, H, W)."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EmbedDeploy(nn.Module):
    """Patch embedding: (B, H, W, Cin) -> (B, H/s, W/s, C).

    RASA's blocks, after every embedding of stride 2, add to the map as (B, C, H, W): there the norm's gain and shift
    are a depthwise convolution, so that the map is a convolution's result and stays in the layout they compute in.
    """

    def __init__(self, proj: nn.Conv2d, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.proj = proj
        inner = proj.stride[0] == 2
        self.norm = plain(norm) if inner else norm
        self.affine = _affine(norm) if inner else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        if self.affine is not None:
            x = self.affine(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x


class CsaBlockDeploy(nn.Module):
    """x + CSA(LN(x)), then x + MLP(LN(x)): (B, H, W, C) -> the same shape; H and W even."""

    def __init__(
        self, norm1: nn.LayerNorm, attn: nn.Linear, taps: nn.Conv2d, proj: nn.Linear,
        norm2: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear,
    ) -> None:  # fmt: skip
        super().__init__()
        with torch.no_grad():
            self.norm1, self.norm2 = plain(norm1), plain(norm2)
            self.attn = CsaDeploy(norm1, attn, taps, proj)
            self.fc1, self.fc2 = linear(*_after_norm(norm2, fc1.weight, fc1.bias)), fc2

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        h, w = height // 2, width // 2
        columns = x.reshape(-1, 2, dim).permute(1, 0, 2)  # (2, B*H*w, C)
        rows = columns.reshape(-1, 2, w * dim).permute(1, 0, 2)  # (2, 2*B*h, w*C)
        tokens = rows.reshape(-1, dim)
        tokens = tokens + self.attn(self.norm1(tokens), h, w)
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        rows = tokens.reshape(2, -1, w * dim).permute(1, 0, 2)
        columns = rows.reshape(2, -1, dim).permute(1, 0, 2)
        return columns.reshape(batch, height, width, dim)


class CsaDeploy(nn.Module):
    """Convolutional self-attention of normalized tokens (4*B*h*w, C), phase by phase, without unfold and fold."""

    def __init__(self, norm: nn.LayerNorm, attn: nn.Linear, taps: nn.Conv2d, proj: nn.Linear) -> None:
        super().__init__()
        dim = proj.in_features
        self.heads = attn.out_features // 81
        self.head_dim = dim // self.heads
        order = torch.tensor([3 * row + col for row, col in TAPS])
        # Logits: rows (head, i, j) in the order of TAPS; the mean over 2x2 pixels is two weights of a quarter each
        # on the two columns of the sum of two rows.
        weight, bias = _after_norm(norm, attn.weight, attn.bias)
        scale = self.head_dim**-0.5
        weight = weight.reshape(self.heads, 9, 9, dim)[:, order][:, :, order].reshape(-1, dim) * scale
        bias = bias.reshape(self.heads, 9, 9)[:, order][:, :, order].reshape(-1) * scale
        self.logits = linear(weight / 4, bias)
        matrices = taps.weight.reshape(9, dim, dim)
        self.values = nn.ModuleList(linear(*_after_norm(norm, matrices[j], None)) for j in order.tolist())
        self.proj = proj

    def forward(self, tokens: Tensor, h: int, w: int) -> Tensor:
        count = len(tokens) // 4
        phases = [tokens[i * count : (i + 1) * count] for i in range(4)]
        mix = self.logits(phases[0] + phases[1] + phases[2] + phases[3]).reshape(-1, 9, 9).softmax(-1)
        # Window row 1 lies on even image rows, rows 2 and (of the pixel below) 0 on odd ones; columns alike.
        values = [
            self._moved(linear(phases[2 * (row != 1) + (col != 1)]), h, w, row == 0, col == 0).reshape(
                -1, self.heads, self.head_dim
            )
            for linear, (row, col) in zip(self.values, TAPS, strict=True)
        ]
        mixed = mix @ torch.cat(values, 2).reshape(-1, 9, self.head_dim)
        return self.proj(self._fold(mixed, h, w))

    def _moved(self, value: Tensor, h: int, w: int, down: bool, right: bool) -> Tensor:
        """(B*h*w, C) moved one pixel down and/or right in its (h, w) map, zeros entering."""
        if not (down or right):
            return value
        maps = value.reshape(-1, h, w, value.shape[1])
        maps = maps[:, : h - down, : w - right]
        return F.pad(maps, (0, 0, int(right), 0, int(down), 0))

    def _fold(self, mixed: Tensor, h: int, w: int) -> Tensor:
        """Window values (B*h*w*heads, 9, d), added onto the map's pixels: (4*B*h*w, C)."""
        dim = self.heads * self.head_dim
        third = 3 * self.head_dim
        columns = mixed.reshape(-1, self.heads, 3 * third)
        left, right, moved = (
            columns[:, :, i * third : (i + 1) * third].reshape(-1, h, w, 3 * dim) for i in range(3)
        )  # columns 1, 2 and (of the window on the right) 0
        right = right + F.pad(moved[:, :, 1:], (0, 0, 0, 1))
        both = torch.cat([left, right]).reshape(-1, self.heads, third)
        d = self.head_dim
        upper, lower, moved = (both[:, :, i * d : (i + 1) * d].reshape(-1, h, w * dim) for i in range(3))
        lower = lower + F.pad(moved[:, 1:], (0, 0, 0, 1))
        return torch.cat([upper, lower]).reshape(-1, dim)


class RasaBlockDeploy(nn.Module):
    """x + RASA(LN(x)), then x + ConvMLP(LN(x)): (B, H, W, C) -> the same shape, (B, C, H, W) inside."""

    def __init__(
        self, norm1: nn.LayerNorm, q: nn.Linear, kv: nn.Linear, proj: nn.Linear, atrous: nn.Conv2d,
        reduce: tuple[nn.Conv2d, nn.LayerNorm] | None, rates: Sequence[int], recursions: int,
        norm2: nn.LayerNorm, fc1: nn.Conv2d, depconv: nn.Conv2d, fc2: nn.Conv2d,
    ) -> None:  # fmt: skip
        super().__init__()
        dim = q.out_features
        self.head_dim = 32
        self.heads = dim // self.head_dim
        self.rates, self.recursions = tuple(rates), recursions
        with torch.no_grad():
            self.norm1, self.norm2 = plain(norm1), plain(norm2)
            self.affine = _affine(norm1)
            self.q, self.atrous = convolution(q.weight), atrous
            key, value = kv.weight.chunk(2)
            keys_values, shift = torch.cat([key * self.head_dim**-0.5, value]), torch.zeros(dim)
            self.reduce: nn.Conv2d | None = None
            if reduce is not None:
                self.reduce, self.reduce_norm = reduce[0], plain(reduce[1])
                shift = value @ reduce[1].bias
                keys_values = keys_values * reduce[1].weight
            self.kv = convolution(keys_values)
            self.proj = convolution(proj.weight, proj(shift))
            self.fc1, self.depconv, self.fc2 = convolution(*_after_norm(norm2, fc1.weight, fc1.bias)), depconv, fc2

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        hidden = self.affine(_over_channels(self.norm1, x))
        for _ in range(self.recursions - 1):
            hidden = _silu(self.attend(hidden)) + hidden
        x = x + _silu(self.attend(hidden))
        hidden = self.depconv(self.fc1(_over_channels(self.norm2, x)))
        x = x + self.fc2(F.gelu(hidden))
        return x.permute(0, 2, 3, 1)

    def attend(self, x: Tensor) -> Tensor:
        """One atrous self-attention pass: (B, C, H, W) -> the same shape."""
        q = self.q(x)
        dim = q.shape[1]
        first, *others = (_silu(F.conv2d(q, self.atrous.weight, None, 1, r, r, dim)) for r in self.rates)
        for other in others:
            first = first + other
        source = x if self.reduce is None else _over_channels(self.reduce_norm, self.reduce(x))
        queries = self._heads(first).transpose(1, 2)  # (B*head, N, d)
        both = self.kv(source)
        keys, values = self._heads(both[:, :dim]), self._heads(both[:, dim:]).transpose(1, 2)
        mixed = (queries @ keys).softmax(-1) @ values
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B*head, d, H*W)."""
        return x.reshape(-1, self.head_dim, x.shape[2] * x.shape[3])


class PooledHeadDeploy(nn.Module):
    """LN, mean over the map, linear: (B, H, W, C) -> (B, classes)."""

    def __init__(self, norm: nn.LayerNorm, head: nn.Linear) -> None:
        super().__init__()
        self.norm = plain(norm)
        with torch.no_grad():
            self.head = linear(*_after_norm(norm, head.weight, head.bias))

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.norm(x).permute(0, 3, 1, 2).mean((-1, -2), keepdim=True)
        return self.head(pooled.flatten(1))


ClassBlockParts = tuple[nn.LayerNorm, nn.Linear, nn.Linear, nn.Linear, nn.LayerNorm, nn.Linear, nn.Linear]


class ClassHeadDeploy(nn.Module):
    """Class attention and both classifiers: (B, H, W, C) -> (B, classes).

    Patch tokens pass every block unchanged, so they are normalized once for all blocks and the classifier.
    """

    def __init__(
        self, token: Tensor, blocks: Sequence[ClassBlockParts], norm: nn.LayerNorm, head: nn.Linear, aux: nn.Linear
    ) -> None:
        super().__init__()
        with torch.no_grad():
            self.norm = plain(norm)
            first = ConstantQueryBlock(token.reshape(1, -1), *blocks[0])
            self.blocks = nn.ModuleList([first, *(ClassBlockDeploy(*parts) for parts in blocks[1:])])
            self.head = linear(*_after_norm(norm, head.weight, head.bias))
            weight, bias = _after_norm(norm, aux.weight, aux.bias)
            self.aux = convolution(weight / 2, bias / 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(x)
        patches = maps.reshape(x.shape[0], -1, x.shape[3])
        token = self.blocks[0](patches)
        for block in self.blocks[1:]:
            token = block(token, patches)
        dense = self.aux(maps.permute(0, 3, 1, 2))
        return self.head(self.norm(token)) + dense.amax((2, 3))


class TokenMlp(nn.Module):
    """x + MLP(LN(x)) for class tokens (B, C)."""

    def __init__(self, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> None:
        super().__init__()
        self.norm = plain(norm)
        self.fc1, self.fc2 = linear(*_after_norm(norm, fc1.weight, fc1.bias)), fc2

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class ConstantQueryBlock(nn.Module):
    """The first class block, whose query is a parameter: normalized patches (B, N, C) -> class token (B, C).

    The logit of patch n is q_h . (W_h n + b_h) = (W_h' q_h) . n + q_h . b_h: one row a head. Softmax does not see
    the class token's own logit subtracted from all, which makes it 0; a sum of a_j v_j with sum a_j = 1 is
    v_class + sum over patches of a_j (v_j - v_class), so its value enters the two biases.
    """

    def __init__(
        self, token: Tensor, norm: nn.LayerNorm, q: nn.Linear, kv: nn.Linear, proj: nn.Linear,
        norm2: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear,
    ) -> None:  # fmt: skip
        super().__init__()
        dim = q.out_features
        self.head_dim = 32
        self.heads = dim // self.head_dim
        own = norm(token)
        query = (q(own) * self.head_dim**-0.5).reshape(self.heads, 1, self.head_dim)
        own_key, own_value = kv(own).reshape(2, dim)
        (key, value), (key_bias, value_bias) = (t.chunk(2) for t in _after_norm(norm, kv.weight, None))
        weight = (query @ key.reshape(self.heads, self.head_dim, dim)).reshape(self.heads, dim)
        bias = (query.reshape(-1) * (key_bias - own_key)).reshape(self.heads, -1).sum(1)
        self.logits = linear(weight, bias)
        self.value = linear(value, value_bias - own_value)
        self.proj = linear(proj.weight, proj(own_value) + token[0])
        self.mlp = TokenMlp(norm2, fc1, fc2)

    def forward(self, patches: Tensor) -> Tensor:
        batch, count, dim = patches.shape
        logits = self.logits(patches).permute(0, 2, 1).reshape(-1, 1, count)
        mix = F.pad(logits, (0, 1)).softmax(-1)[:, :, :count]
        values = self.value(patches).reshape(batch, count, self.heads, -1).permute(0, 2, 1, 3)
        mixed = mix @ values.reshape(-1, count, self.head_dim)
        return self.mlp(self.proj(mixed.reshape(batch, dim)))


class ClassBlockDeploy(nn.Module):
    """A later class block: class token (B, C) and normalized patches (B, N, C) -> class token (B, C)."""

    def __init__(
        self, norm: nn.LayerNorm, q: nn.Linear, kv: nn.Linear, proj: nn.Linear,
        norm2: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear,
    ) -> None:  # fmt: skip
        super().__init__()
        self.head_dim = 32
        self.heads = q.out_features // self.head_dim
        self.norm = plain(norm)
        weight, bias = _after_norm(norm, q.weight, None)
        self.q = linear(weight * self.head_dim**-0.5, bias * self.head_dim**-0.5)
        (key, value), (key_bias, value_bias) = (t.chunk(2) for t in _after_norm(norm, kv.weight, None))
        self.k, self.v = linear(key, key_bias), linear(value, value_bias)
        self.proj = proj
        self.mlp = TokenMlp(norm2, fc1, fc2)

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        batch, count, dim = patches.shape
        own = self.norm(token)
        query = self.q(own).reshape(-1, 1, self.head_dim)
        tokens = torch.cat([own.reshape(batch, 1, dim), patches], 1)
        split = (batch, count + 1, self.heads, self.head_dim)
        keys = self.k(tokens).reshape(split).permute(0, 2, 3, 1).reshape(-1, self.head_dim, count + 1)
        values = self.v(tokens).reshape(split).permute(0, 2, 1, 3).reshape(-1, count + 1, self.head_dim)
        mixed = (query @ keys).softmax(-1) @ values
        return self.mlp(token + self.proj(mixed.reshape(batch, dim)))


class LvtDeploy(nn.Module):
    """Backbone and head: image (B, C, H, W) -> logits (B, classes)."""

    def __init__(self, backbone: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x.permute(0, 2, 3, 1)))

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        return stage_maps(self.backbone, x.permute(0, 2, 3, 1))


def stage_maps(backbone: nn.Sequential, x: Tensor) -> tuple[Tensor, ...]:
    """The output of each stage on x (B, H, W, C), as (B, C, H/s, W/s)."""
    maps = []
    for stage in backbone:
        x = stage(x)
        maps.append(x.permute(0, 3, 1, 2))
    return tuple(maps)
