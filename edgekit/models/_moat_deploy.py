"""MOAT's blocks in their deploy form: the same functions as in `moat.py`, in operations every runtime has.

What changes, each an identity:

- The batch norm in front of the expansion is an affine map of each channel, which a 1x1 convolution takes into its
  weight and bias. The norms behind convolutions fold later, in the graph.
- LN(x) = n * gamma + beta with n normalized: gamma and beta go into q, k and v, and d^-1/2 into q.
- A key's bias adds the same to all logits of a query, which softmax does not see; a value's bias comes out of the
  mean over values as it is and goes through W_o into b_o.
- The position logits of a map of known size are a constant.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.models._folding import affine, convolution, linear, plain

HEAD_DIM = 32


def _after_batch_norm(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> nn.Conv2d:
    """The 1x1 convolution `conv` without bias, with the norm in front of it folded in."""
    gain, shift = affine(norm)
    weight = conv.weight.double().flatten(1)
    return convolution(weight * gain, weight @ shift)


class ShortcutDeploy(nn.Module):
    """Average pooling of whole windows only, then the 1x1 convolution: (B, Cin, H, W) -> (B, Cout, H/s, W/s).

    The last 3x3 windows of TensorFlow's padding miss a row or a column; its mean over the others, put in its place,
    leaves the window's mean as it is.
    """

    def __init__(self, stride: int, pool_size: int, symmetric: bool, conv: nn.Conv2d | None) -> None:
        super().__init__()
        self.stride, self.pool_size, self.symmetric = stride, pool_size, symmetric
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2 and self.pool_size == 3 and not self.symmetric:
            x = torch.cat([x, F.avg_pool2d(x[:, :, :, -2:], (1, 2))], 3)
            x = torch.cat([x, F.avg_pool2d(x[:, :, -2:], (2, 1))], 2)
        if self.stride == 2:
            x = F.avg_pool2d(x, self.pool_size, 2, int(self.symmetric), count_include_pad=False)
        return x if self.conv is None else self.conv(x)


class MBConvDeploy(nn.Module):
    """Inverted bottleneck: (B, Cin, H, W) -> (B, Cout, H / stride, W / stride)."""

    def __init__(
        self, shortcut: nn.Module, pre_norm: nn.BatchNorm2d, expansion: nn.Conv2d, expansion_norm: nn.BatchNorm2d,
        depthwise: nn.Conv2d, depthwise_norm: nn.BatchNorm2d, squeeze_excite: nn.Module | None, projection: nn.Conv2d,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shortcut = shortcut
        self.expansion = nn.Sequential(_after_batch_norm(pre_norm, expansion), expansion_norm)
        self.depthwise = nn.Sequential(depthwise, depthwise_norm)
        self.squeeze_excite = squeeze_excite
        self.projection = projection

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.depthwise(F.gelu(self.expansion(x))))
        if self.squeeze_excite is not None:
            hidden = self.squeeze_excite(hidden)
        return self.shortcut(x) + self.projection(hidden)


class MoatBlockDeploy(nn.Module):
    """MBConv, then attention over the map it gives; with position logits `bias` only maps of `size`.

    Attention takes tokens (B*N, C): a runtime that computes convolutions in NHWC has them already, and behind a linear
    layer one transpose splits the heads off where a 1x1 convolution in NHWC needs two.
    """

    def __init__(
        self, mbconv: nn.Module, norm: nn.LayerNorm, q: nn.Linear, k: nn.Linear, v: nn.Linear, out: nn.Linear,
        heads: int, bias: Tensor | None, size: tuple[int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.mbconv = mbconv
        self.norm = plain(norm)
        self.heads, self.size = heads, size
        scale = HEAD_DIM**-0.5
        self.q = linear(q.weight * norm.weight * scale, (q.bias + q.weight @ norm.bias) * scale)
        self.k, self.v = linear(k.weight * norm.weight), linear(v.weight * norm.weight)
        self.out = linear(out.weight, out(v.bias + v.weight @ norm.bias))
        self.bias: Tensor | None
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        x = self.mbconv(x)
        height, width = x.shape[2:]
        if self.bias is not None and (height, width) != self.size:
            raise ValueError(
                f"this deploy form of MOAT has the position logits of {self.size[0]}x{self.size[1]} maps, not of "
                f"{height}x{width}: build the model with the image_size to export"
            )
        tokens = self.norm(x.permute(0, 2, 3, 1)).flatten(0, 2)
        attended = self.attend(tokens, x.shape[0]).reshape(-1, height, width, x.shape[1])
        return x + attended.permute(0, 3, 1, 2)

    def attend(self, x: Tensor, batch: int) -> Tensor:
        """Attention among each image's own of the normalized tokens (B*N, C) -> the same shape."""
        # One image has no batch dimension: products of three dimensions, and no reshape between them and the constant.
        split = (*((batch,) if batch > 1 else ()), -1, self.heads, HEAD_DIM)
        q, k, v = (linear(x).reshape(split).transpose(-3, -2) for linear in (self.q, self.k, self.v))  # (B, head, N, d)
        logits = q @ k.transpose(-2, -1)
        if self.bias is not None:
            logits = logits + self.bias
        mixed = logits.softmax(-1) @ v
        return self.out(mixed.transpose(-3, -2).reshape(x.shape))


class HeadDeploy(nn.Module):
    """Mean over the map, LayerNorm, linear: (B, C, H, W) -> (B, classes)."""

    def __init__(self, norm: nn.LayerNorm, classifier: nn.Linear) -> None:
        super().__init__()
        self.norm = plain(norm)
        shift = classifier.bias + classifier.weight @ norm.bias
        self.classifier = linear(classifier.weight * norm.weight, shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(x.mean((-1, -2), keepdim=True).flatten(1)))
