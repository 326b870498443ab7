"""Simplified linear attention: no softmax, cost linear in the number of tokens, a depthwise branch for locality.

Paper: "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch
Normalization", Guo et al., ICML 2024, section 3.2. Written from the paper's equations. Of the tokens x (B, N, C) of an
H x W map, for each head of width d::

    q, k, v = W_q x, W_k x + P, W_v x                      P: a learned table (N, C), one a block; no d^-1/2
    y = relu(q) (relu(k)^T v) / (relu(q) . sum_n relu(k_n) + 1e-6)
    SLA(x) = W_o (y + DWC(v))                              DWC: 5x5 depthwise, one (d, 5, 5) kernel for all heads

The deploy form keeps maps (B, C, H, W): projections are 1x1 convolutions, which take the norm before them along, the
kernel of DWC is repeated for all heads, P carries the bias of the keys, and a head is a range of channels, so that
splitting and joining heads moves nothing. The denominator is one more row of values, all ones::

    [num; den] = [v; 1] relu(k) relu(q)         (d+1, N) = (d+1, N) (N, d) (d, N), the cheaper product first
"""

import math

import torch
from torch import Tensor, nn

from edgekit.models.slab.prepbn import Norm, fold_into_next

EPS = 1e-6
SMALLEST_HALF = 2.0**-24


class SimplifiedLinearAttention(nn.Module):
    """SLA on the tokens (B, H*W, C) of a map, row by row -> the same shape. See the module's equations.

    `qkv` names the projections as published: "fused" (`qkv`: DeiT, Swin) or "separate" (`q` and `kv`: PVT).
    """

    def __init__(self, dim: int, heads: int, resolution: tuple[int, int], qkv: str = "fused") -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels cannot be split into {heads} heads")
        if qkv not in ("fused", "separate"):
            raise ValueError(f"qkv is 'fused' or 'separate', not {qkv!r}")
        self.heads, self.resolution = heads, resolution
        self.positional_encoding = nn.Parameter(torch.zeros(1, resolution[0] * resolution[1], dim))
        if qkv == "fused":
            self.qkv = nn.Linear(dim, 3 * dim)
        else:
            self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dwc = nn.Conv2d(dim // heads, dim // heads, 5, padding=2, groups=dim // heads)

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W_q x, W_k x, W_v x."""
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            q, (k, v) = self.q(x), self.kv(x).chunk(2, -1)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projections(x)
        q, k, v = (self._split(t) for t in (q.relu(), (k + self.positional_encoding).relu(), v))  # (B*heads, N, d)
        tokens, width = q.shape[1:]
        # Both orders are one product of three matrices; the cheaper one.
        mixed = q @ (k.transpose(1, 2) @ v) if tokens > width else (q @ k.transpose(1, 2)) @ v
        total = q @ k.sum(1, keepdim=True).transpose(1, 2)
        local = self.dwc(v.transpose(1, 2).unflatten(2, self.resolution)).flatten(2).transpose(1, 2)
        return self.proj(self._join(mixed / (total + EPS) + local))

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, heads * d) -> (B * heads, N, d)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

    def _join(self, x: Tensor) -> Tensor:
        """(B * heads, N, d) -> (B, N, heads * d)."""
        return x.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def deploy(self) -> nn.Module:
        return SimplifiedLinearAttentionDeploy(self)


class MapAttentionDeploy(nn.Module):
    """SLA on maps (B, C, H, W) -> the same shape, with the norm before it folded in: x -> SLA(norm(x))."""

    ones: Tensor

    @torch.no_grad()
    def __init__(self, attention: SimplifiedLinearAttention, norm: Norm | None = None) -> None:
        super().__init__()
        self.heads, self.resolution, dim = attention.heads, attention.resolution, attention.proj.in_features
        q, k, v = (layer if norm is None else fold_into_next(norm, layer) for layer in _split(attention))
        self.q, self.v, self.proj = conv1x1(q), conv1x1(v), conv1x1(attention.proj)
        # Powers of two in keys and queries, relu(s k) = s relu(k), make the sums over tokens and channels means, which
        # float16 holds; without the one in the queries, num overflows in SLAB-DeiT's last block. The quotient stays.
        # There eps must not vanish; next to a mean of products either value of it is below float16's rounding.
        tokens = attention.positional_encoding.shape[1]
        scale, shrink = (2.0 ** -round(math.log2(n)) for n in (tokens, dim // self.heads))
        self.eps = max(scale * shrink * EPS, SMALLEST_HALF)
        self.q.weight = nn.Parameter(shrink * q.weight[:, :, None, None])
        self.q.bias = nn.Parameter(shrink * q.bias)
        self.k = nn.Conv2d(dim, dim, 1, bias=False)
        self.k.weight = nn.Parameter(scale * k.weight[:, :, None, None])
        table = (scale * (attention.positional_encoding + k.bias)).unflatten(2, (self.heads, -1))  # (1, N, heads, d)
        self.tokens, self.width = table.shape[1], table.shape[3]
        order = (1, 2, 0) if self.heads == 1 else (1, 0, 2)
        self.position = nn.Parameter(table[0].permute(order).contiguous())
        ones = (1, self.tokens, 1) if self.heads == 1 else (self.heads, 1, self.tokens)
        self.register_buffer("ones", torch.ones(ones), persistent=False)
        self.dwc = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.dwc.weight = nn.Parameter(attention.dwc.weight.repeat(self.heads, 1, 1, 1))
        assert attention.dwc.bias is not None
        self.dwc.bias = nn.Parameter(attention.dwc.bias.repeat(self.heads))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x).relu(), self.k(x), self.v(x)
        return self.proj((self._one_head(q, k, v) if self.heads == 1 else self._heads(q, k, v)) + self.dwc(v))

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The quotient of the module's equations on maps (B, C, H, W): a head is a range of channels."""
        split = (-1, self.width, self.tokens)
        keys = k.reshape(split).permute(0, 2, 1)
        if len(k) == 1:
            keys = keys + self.position
        else:  # one more dimension for the constant to be added along
            each = keys.reshape(-1, self.heads, self.tokens, self.width) + self.position
            keys = each.reshape(-1, self.tokens, self.width)
        queries, keys, values = q.reshape(split), keys.relu(), torch.cat([v.reshape(split), self._ones(len(v))], 1)
        if self.tokens > self.width:
            mixed = torch.bmm(torch.bmm(values, keys), queries)
        else:
            mixed = torch.bmm(values, torch.bmm(keys, queries))
        return (mixed[:, : self.width] / (mixed[:, self.width :] + self.eps)).reshape(v.shape)

    def _one_head(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same, transposed, where the map as NHWC already is the head's (N, d).

        LiteRT lowers `_heads` of one head to a fully connected layer of dynamic weights, which XNNPACK does not take.
        """
        queries, values = (t.permute(0, 2, 3, 1).reshape(-1, self.tokens, self.width) for t in (q, v))
        keys = (k.reshape(-1, self.width, self.tokens) + self.position).relu()
        values = torch.cat([values, self._ones(len(v))], 2)
        if self.tokens > self.width:
            mixed = torch.bmm(queries, torch.bmm(keys, values))
        else:
            mixed = torch.bmm(torch.bmm(queries, keys), values)
        quotient = mixed[:, :, : self.width] / (mixed[:, :, self.width :] + self.eps)
        return quotient.reshape(-1, *self.resolution, self.width).permute(0, 3, 1, 2)

    def _ones(self, batch: int) -> Tensor:
        return self.ones if batch == 1 else torch.cat([self.ones] * batch)


class SimplifiedLinearAttentionDeploy(nn.Module):
    """`MapAttentionDeploy` for a caller that has tokens (B, H*W, C); one that has maps saves the two permutes."""

    def __init__(self, attention: SimplifiedLinearAttention, norm: Norm | None = None) -> None:
        super().__init__()
        self.on_maps, self.resolution = MapAttentionDeploy(attention, norm), attention.resolution

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        maps = self.on_maps(x.reshape(batch, *self.resolution, dim).permute(0, 3, 1, 2))
        return maps.permute(0, 2, 3, 1).reshape(batch, tokens, dim)


def conv1x1(linear: nn.Linear) -> nn.Conv2d:
    """A linear on channels-last tensors as a 1x1 convolution on maps."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None])
    conv.bias = nn.Parameter(linear.bias.detach())
    return conv


def _split(attention: SimplifiedLinearAttention) -> list[nn.Linear]:
    """The projections to queries, keys and values as three linears."""
    layers = [attention.qkv] if hasattr(attention, "qkv") else [attention.q, attention.kv]
    dim, parts = attention.proj.in_features, []
    for layer in layers:
        for weight, bias in zip(layer.weight.split(dim), layer.bias.split(dim), strict=True):
            part = nn.Linear(dim, dim)
            part.weight, part.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
            parts.append(part)
    return parts
