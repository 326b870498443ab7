"""Mobile-Former in its deploy form: the same function as in `mobile_former.py`, in operations every runtime has.

What changes, each an identity:

- Between blocks the map is rows of channels (B, C, HW): a head is a range of rows, and both bridges are batched
  products with the heads in the batch, whose large operand is never transposed.
- Tokens are rows of a matrix (B T, d): linear layers and norms take it as it is, and batch 1 is no case of its own.
- A pixel's softmax over T tokens is written out along the pixels, where runtimes can vectorize; theirs go row by row,
  and rows of T = 3 to 6 cost several times as much.
- Scales are in the weights of queries or keys; a bias of the keys adds the same to all logits of a pixel and goes.
- hsigmoid is a clamp: 2 hsigmoid(u) = clamp(u/3 + 1, 0, 2) and 2 hsigmoid(u) - 1 = clamp(u/3, -1, 1). What is
  before the clamp is a linear layer's result.
- The first bridge reads the learned tokens, so its queries are the kernel of a convolution and its gate is a constant.
  The last one computes the first token alone.
- A depthwise convolution with m kernels a channel is a plain one of m copies. Its channels come out in the order
  (kernel, channel), which the next layers' weights take on. At stride 2 the copies would cost what they save.
- A grouped pointwise convolution and the shuffle next to it are one dense convolution with zeros, which costs less time
  at the published sizes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.models._folding import affine, convolution, linear

BRIDGE_HEADS = 2
FORMER_HEADS = 4
# From this many pixels on, a softmax over tokens is cheaper written out.
_MANY = 128


def _normed(weight: Tensor, bias: Tensor | float, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution or linear layer followed by batch norm."""
    gain, shift = affine(norm)
    return (weight.double() * gain.reshape(-1, *[1] * (weight.dim() - 1))).float(), (shift + bias * gain).float()


def _shuffle(channels: int, groups: int) -> Tensor:
    """Entry i is the channel that a shuffle puts in place i."""
    return torch.arange(channels).reshape(groups, -1).T.flatten()


def _pointwise(layers: Any, order: Tensor | None = None, shuffle: int = 1) -> nn.Conv2d:
    """[1x1 convolution, batch norm] on channels that lie in `order`, and a shuffle of the result: one convolution."""
    conv, norm = layers[0], layers[1]
    weight, bias = _normed(conv.weight, 0.0, norm)
    if conv.groups > 1:
        weight = torch.block_diag(*weight.flatten(1).chunk(conv.groups))[:, :, None, None]
    rows = _shuffle(len(weight), shuffle)
    return convolution((weight if order is None else weight[:, order])[rows], bias[rows])


class DepthwiseDeploy(nn.Module):
    """3x3 depthwise convolution and batch norm: (B, C, H, W) -> (B, m C, H/s, W/s).

    Channel i is `order[i]` of the published layers' result, which is shuffled where `groups` > 1.
    """

    def __init__(self, layers: Any, groups: int = 1) -> None:
        super().__init__()
        conv, norm = layers[0], layers[1]
        channels, out, stride = conv.in_channels, conv.out_channels, conv.stride
        self.copies = out // channels if stride == (1, 1) else 1
        kernels = _shuffle(out, channels if self.copies > 1 else 1)
        weight, bias = (t[kernels] for t in _normed(conv.weight, 0.0, norm))
        self.conv = convolution(weight, bias, stride, channels * self.copies)
        self.order = torch.argsort(_shuffle(out, channels))[kernels] if groups > 1 else kernels

    def forward(self, x: Tensor) -> Tensor:
        if self.copies > 1:
            x = torch.cat([x] * self.copies, 1)
        return self.conv(x)


class DynamicReluDeploy(nn.Module):
    """max(a_1 x, a_2 x) for a map (B, C, H, W) and the first token (B, d, 1, 1); hidden channels in `order`."""

    def __init__(self, hyper: Any, order: Tensor | None = None) -> None:
        super().__init__()
        squeeze, excite = hyper[0], hyper[2]
        self.squeeze = convolution(squeeze.weight[:, :, None, None], squeeze.bias)
        weights = [w if order is None else w[order] for w in excite.weight[:, :, None, None].chunk(2)]
        biases = [b if order is None else b[order] for b in excite.bias.chunk(2)]
        self.first = convolution(weights[0] / 3, biases[0] / 3 + 1)
        self.second = convolution(weights[1] / 3, biases[1] / 3)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        hidden = F.relu(self.squeeze(token))
        first = F.hardtanh(self.first(hidden), 0.0, 2.0)
        second = F.hardtanh(self.second(hidden), -1.0, 1.0)
        return torch.maximum(x * first, x * second)


def _heads(x: Tensor, batch: int, heads: int) -> Tensor:
    """(B T, C) -> (B heads, T, C / heads)."""
    tokens, width = x.shape[0] // batch, x.shape[1] // heads
    return x.reshape(batch, tokens, heads, width).permute(0, 2, 1, 3).reshape(batch * heads, tokens, width)


class MobileToFormerDeploy(nn.Module):
    """Tokens (B T, d) and the map (B, C, HW) -> tokens."""

    def __init__(self, bridge: Any) -> None:
        super().__init__()
        scale = (bridge.q.out_features // BRIDGE_HEADS) ** -0.5
        self.q = linear(bridge.q.weight * scale, bridge.q.bias * scale)
        self.gate = linear(bridge.alpha[0].weight / 3, bridge.alpha[0].bias / 3 + 1)
        self.proj, self.norm = bridge.proj, bridge.layer_norm

    def forward(self, rows: Tensor, tokens: Tensor) -> Tensor:
        batch, channels, pixels = rows.shape
        keys = rows.reshape(batch * BRIDGE_HEADS, channels // BRIDGE_HEADS, pixels)
        logits = torch.bmm(_heads(self.q(tokens), batch, BRIDGE_HEADS), keys)
        read = _read(keys, logits).reshape(-1, channels)
        return self.norm(tokens + self.proj(read * F.hardtanh(self.gate(tokens), 0.0, 2.0)))


def _read(keys: Tensor, logits: Tensor) -> Tensor:
    """Keys, which are the values, (2 B, C/2, HW) by the softmax of logits (2 B, T, HW): (B, T, C)."""
    read = torch.bmm(keys, logits.softmax(-1).permute(0, 2, 1))  # (2 B, C/2, T)
    return read.reshape(-1, BRIDGE_HEADS * keys.shape[1], logits.shape[1]).permute(0, 2, 1)


class FirstBridgeDeploy(nn.Module):
    """The bridge that reads the learned tokens (T, d): map (B, C, H, W) and the same as (B, C, HW) -> (B T, d)."""

    tokens: Tensor
    gate: Tensor

    def __init__(self, bridge: Any, tokens: Tensor) -> None:
        super().__init__()
        folded = MobileToFormerDeploy(bridge)
        self.proj, self.norm = bridge.proj, bridge.layer_norm
        self.register_buffer("tokens", tokens)
        self.register_buffer("gate", F.hardtanh(folded.gate(tokens), 0.0, 2.0))
        queries = _heads(folded.q(tokens), 1, BRIDGE_HEADS)  # (heads, T, C/2)
        # Rows (head, token), zero on the other head's channels.
        kernel = torch.cat([F.pad(q, (i * q.shape[1], (1 - i) * q.shape[1])) for i, q in enumerate(queries)])
        self.logits = convolution(kernel[:, :, None, None])

    def forward(self, maps: Tensor, rows: Tensor) -> Tensor:
        batch, channels, pixels = rows.shape
        count, dim = self.tokens.shape
        keys = rows.reshape(batch * BRIDGE_HEADS, channels // BRIDGE_HEADS, pixels)
        read = _read(keys, self.logits(maps).reshape(batch * BRIDGE_HEADS, count, pixels))
        change = self.proj((read * self.gate).reshape(-1, channels)).reshape(batch, count, dim)
        return self.norm((change + self.tokens).reshape(-1, dim))


class FormerDeploy(nn.Module):
    """Self-attention among tokens and a feed-forward network, norms after: (B T, d) -> the same shape."""

    def __init__(self, former: Any) -> None:
        super().__init__()
        scale = (former.q.out_features // FORMER_HEADS) ** -0.5
        self.q = linear(former.q.weight * scale, former.q.bias * scale)
        self.channel_mlp, self.layer_norm = former.channel_mlp, former.layer_norm
        self.ffn, self.ffn_norm = former.ffn, former.ffn_norm

    def forward(self, tokens: Tensor, batch: int) -> Tensor:
        queries, keys = _heads(self.q(tokens), batch, FORMER_HEADS), _heads(tokens, batch, FORMER_HEADS)
        mixed = torch.bmm(torch.bmm(queries, keys.permute(0, 2, 1)).softmax(-1), keys)
        mixed = mixed.reshape(batch, FORMER_HEADS, -1, keys.shape[2]).permute(0, 2, 1, 3).reshape(tokens.shape)
        tokens = self.layer_norm(tokens + self.channel_mlp(mixed))
        return self.ffn_norm(tokens + self.ffn(tokens))


class FormerToMobileDeploy(nn.Module):
    """The map (B, C, HW) and tokens (B T, d) -> the map."""

    def __init__(self, bridge: Any) -> None:
        super().__init__()
        self.k = linear(bridge.k.weight * (bridge.k.out_features // BRIDGE_HEADS) ** -0.5)
        self.v = bridge.proj

    def forward(self, rows: Tensor, tokens: Tensor) -> Tensor:
        batch, channels, pixels = rows.shape
        queries = rows.reshape(batch * BRIDGE_HEADS, channels // BRIDGE_HEADS, pixels)
        mix = _softmax_over_rows(torch.bmm(_heads(self.k(tokens), batch, BRIDGE_HEADS), queries))
        values = self.v(tokens).reshape(batch, -1, channels).permute(0, 2, 1)
        read = torch.bmm(values.reshape(batch * BRIDGE_HEADS, channels // BRIDGE_HEADS, -1), mix)
        return (queries + read).reshape(rows.shape)


def _softmax_over_rows(logits: Tensor) -> Tensor:
    """Softmax over dimension 1 of (N, T, pixels)."""
    if logits.shape[2] < _MANY:
        return logits.permute(0, 2, 1).softmax(-1).permute(0, 2, 1)
    powers = torch.exp(logits - _over_rows(torch.maximum, logits))
    return powers / _over_rows(torch.add, powers)


def _over_rows(operation: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
    """A commutative operation over dimension 1: (N, T, pixels) -> (N, 1, pixels)."""
    while x.shape[1] % 2 == 0:
        half = x.shape[1] // 2
        x = operation(x[:, :half], x[:, half:])
    result = x[:, :1]
    for i in range(1, x.shape[1]):
        result = operation(result, x[:, i : i + 1])
    return result


class BottleneckDeploy(nn.Module):
    """Pointwise, depthwise, pointwise with dynamic ReLUs, residual where the block has one."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        groups = block.conv1[0].groups
        self.conv1 = _pointwise(block.conv1, shuffle=groups)
        self.act1 = DynamicReluDeploy(block.hyper1.hyper)
        self.conv2 = DepthwiseDeploy(block.conv2)
        self.act2 = DynamicReluDeploy(block.hyper2.hyper)
        self.conv3 = _pointwise(block.conv3, shuffle=groups)
        self.residual = block.residual

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        y = self.conv3(self.act2(self.conv2(self.act1(self.conv1(x), token)), token))
        return x + y if self.residual else y


class DownDeploy(nn.Module):
    """Two widening depthwise-pointwise pairs with dynamic ReLUs, a residual around the second."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        groups = block.conv2[0].groups
        self.conv1 = DepthwiseDeploy(block.conv1, groups)
        self.act1 = DynamicReluDeploy(block.hyper1.hyper, self.conv1.order)
        self.conv2 = _pointwise(block.conv2, self.conv1.order)
        self.conv3 = DepthwiseDeploy(block.conv3, groups)
        self.act3 = DynamicReluDeploy(block.hyper3.hyper, self.conv3.order)
        self.conv4 = _pointwise(block.conv4, self.conv3.order)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        y = self.conv2(self.act1(self.conv1(x), token))
        return y + self.conv4(self.act3(self.conv3(y), token))


class LiteDeploy(nn.Module):
    """Depthwise, ReLU6, pointwise, residual where the block has one."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        conv = block.conv
        self.depthwise = DepthwiseDeploy(conv, conv[4].groups)
        self.pointwise = _pointwise(conv[4:], self.depthwise.order)
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(F.relu6(self.depthwise(x)))
        return x + y if self.residual else y


class ClassifierDeploy(nn.Module):
    """Last map (B, C, H, W) and first token (B, d) -> logits."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        conv, fc = classifier.conv, classifier.fc
        # The shuffle is in front of this convolution.
        self.conv = _pointwise(conv[1:3], torch.argsort(_shuffle(conv[1].in_channels, conv[1].groups)))
        self.fc = linear(*_normed(fc[0].weight, fc[0].bias, fc[1]))
        self.classifier = classifier.classifier[1]

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        pooled = F.hardswish(F.relu6(self.conv(x)).mean((-1, -2), keepdim=True)).flatten(1)
        return self.classifier(F.hardswish(self.fc(torch.cat([pooled, token], 1))))


class MobileFormerDeploy(nn.Module):
    """Image (B, C, H, W) -> logits (B, classes)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.feature_strides, self.feature_channels = model.feature_strides, model.feature_channels
        self.ends = model.ends
        with torch.no_grad():
            self.stem, (lite, *blocks) = model.stem, model.features
            self.lite = LiteDeploy(lite)
            self.first = FirstBridgeDeploy(blocks[0].local_global, model.tokens.weight)
            bridges = [b.local_global for b in blocks[1:]] + [model.local_global]
            self.reads = nn.ModuleList(MobileToFormerDeploy(b) for b in bridges)
            self.formers = nn.ModuleList(FormerDeploy(b.global_block) for b in blocks)
            self.bodies = nn.ModuleList((DownDeploy if hasattr(b, "conv4") else BottleneckDeploy)(b) for b in blocks)
            self.writes = nn.ModuleList(FormerToMobileDeploy(b.global_local) for b in blocks)
            self.classifier = ClassifierDeploy(model.classifier)

    def forward(self, image: Tensor) -> Tensor:
        maps, rows, tokens = self._maps_rows_and_tokens(image)
        # A bridge treats tokens one by one, and the classifier reads the first.
        token = _first(tokens, len(image))
        return self.classifier(maps[-1], self.reads[-1](rows, token))

    def forward_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The last block's maps (B, C, H/s, W/s) at strides 4, 8, 16 and 32."""
        return self._maps_rows_and_tokens(image)[0]

    def _maps_rows_and_tokens(self, image: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        outputs = [self.lite(self.stem(image))]
        rows = outputs[0].flatten(2)
        tokens = self.first(outputs[0], rows)
        for i, (former, body, write) in enumerate(zip(self.formers, self.bodies, self.writes, strict=True)):
            tokens = former(self.reads[i - 1](rows, tokens) if i else tokens, len(image))
            y = body(outputs[-1], _first(tokens, len(image))[:, :, None, None])
            rows = write(y.flatten(2), tokens)
            outputs.append(rows.reshape(y.shape))
        return tuple(outputs[i] for i in self.ends), rows, tokens


def _first(tokens: Tensor, batch: int) -> Tensor:
    """The first token of each image: (B T, d) -> (B, d)."""
    return tokens.reshape(batch, -1)[:, : tokens.shape[1]]
