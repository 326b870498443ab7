"""Progressive re-parameterized batch normalization: train with LayerNorm, deploy an affine map that folds away.

Paper: "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch
Normalization", Guo et al., ICML 2024, section 3.1. Written from the paper's equations. On x (..., C)::

    RepBN(x)  = BN(x) + alpha x                         alpha: one learned scalar
    PRepBN(x) = lam LN(x) + (1 - lam) RepBN(x)          lam = 1 - t/T at training step t, 0 from step T on

In eval mode PRepBN is RepBN, whatever the step, and RepBN is an affine map of each channel::

    RepBN(x) = a x + b,    a = gamma / s + alpha,    b = beta - gamma mean / s,    s = sqrt(var + eps)

which folds into a linear map or convolution, before (diag(a) W x + a c + b) or after it (W diag(a) x + W b + c).

**The schedule.** T has to be less than all training steps, so that the model ends on RepBN alone, and large enough
that it gets there gently: published runs took 16 to 80 % of them (60,000 steps for DeiT and Swin, 300,000 for PVT),
and 60,000 diverged in others' hands where 4/5 did not. `set_schedule(model, steps)` fits it to a run. Then
`recalibrate(model, batches)`: drop path and augmentation leave running statistics that are not those of eval mode.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from edgekit.errors import BadInput

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class RepBN(nn.Module):
    """BN(x) + alpha x over the last dimension of x (..., C); statistics over all others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.reshape(-1, x.shape[-1])).reshape(x.shape) + self.alpha * x

    def affine(self) -> tuple[Tensor, Tensor]:
        """(a, b) in float64 with a x + b what the norm computes in eval mode."""
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        return scale + self.alpha.double(), bn.bias.double() - scale * bn.running_mean.double()

    def deploy(self) -> nn.Module:
        return ChannelAffine(*self.affine())


class PRepBN(nn.Module):
    """From LayerNorm to RepBN in `steps` training steps, over the last dimension of x (..., C). See the equations.

    The schedule is part of the state: `iter` counts down from `total_step` to 0, one a training forward, after `warm`
    forwards of LayerNorm alone; a resumed run continues where it stopped.
    """

    warm: Tensor
    iter: Tensor
    total_step: Tensor

    def __init__(self, channels: int, steps: int = 300_000, eps: float = 1e-5, warm: int = 0) -> None:
        super().__init__()
        for name in ("warm", "iter", "total_step"):
            self.register_buffer(name, torch.tensor(0))
        self.norm1 = nn.LayerNorm(channels, eps)
        self.norm2 = RepBN(channels)
        self.set_schedule(steps, warm)

    def set_schedule(self, steps: int, warm: int = 0) -> None:
        """Start anew: `warm` steps of LayerNorm, then `steps` towards RepBN. See the module's advice."""
        if steps < 1 or warm < 0:
            raise BadInput(
                f"a schedule of {steps} steps after {warm} is not possible",
                "steps is 1 or more, warm 0 or more; 4/5 of all training steps is a good start.",
            )
        self.warm.fill_(warm)
        self.iter.fill_(steps)
        self.total_step.fill_(steps)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm2(x)
        if torch.compiler.is_exporting():
            raise BadInput(
                "PRepBN in training mode changes with every step and cannot be exported",
                "Type model.eval() first: the exported norm is then RepBN, an affine map.",
            )
        # Tensor arithmetic, not branches: the counters stay on the device and the step stays one graph.
        warming = self.warm > 0
        share = torch.where(warming, 1.0, self.iter / self.total_step)
        self.iter.copy_(torch.where(warming, self.iter, (self.iter - 1).clamp(min=0)))
        self.warm.copy_((self.warm - 1).clamp(min=0))
        return share * self.norm1(x) + (1 - share) * self.norm2(x)

    def affine(self) -> tuple[Tensor, Tensor]:
        """(a, b) in float64 with a x + b what the norm computes in eval mode; `BadInput` in mid-schedule.

        A fresh norm (nothing trained yet) and a finished one are what eval mode says they are. One that is to warm up
        is refused: nothing in a weights file tells a warm phase that has begun from one that has not.
        """
        left, total, warming = int(self.iter), int(self.total_step), int(self.warm)
        if 0 < left < total or warming:
            raise BadInput(
                f"a PRepBN norm is at step {total - left} of {total} of its way from LayerNorm to RepBN: "
                "eval mode is RepBN alone, which is not what was trained",
                f"Train the {left + warming} steps that are left, then recalibrate(model, batches) and deploy. "
                "To export it all the same, set_schedule(model, steps) starts the schedule anew.",
            )
        return self.norm2.affine()

    def deploy(self) -> nn.Module:
        return ChannelAffine(*self.affine())


Norm = RepBN | PRepBN


class ChannelAffine(nn.Module):
    """a x + b on x (..., C): a norm in deploy form that no neighbour could take in."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale.float()), nn.Parameter(shift.float())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def set_schedule(model: nn.Module, steps: int, warm: int = 0) -> None:
    """Start the schedule of every PRepBN in `model` anew: call it before a training run, with T = `steps`."""
    for module in model.modules():
        if isinstance(module, PRepBN):
            module.set_schedule(steps, warm)


@torch.no_grad()
def fold_into_next(norm: Norm, layer: Layer) -> Layer:
    """The linear or unpadded convolution that computes layer(norm(x)); `layer` itself is left as it is.

    With norm(x) = a x + b: W' = W diag(a), bias' = bias + W b. `ValueError` for a padded convolution: the shift does
    not enter where the padding's zeros do.
    """
    scale, shift = norm.affine()
    weight = layer.weight.double()
    if isinstance(layer, nn.Conv2d):
        if layer.padding == "same" or (layer.padding != "valid" and any(layer.padding)):
            raise ValueError(f"a norm's shift cannot be folded into a convolution with padding {layer.padding}")
        # Output channel o of group g reads the g-th share of the input channels.
        repeats = layer.out_channels // layer.groups
        scale, shift = (
            t.reshape(layer.groups, -1).repeat_interleave(repeats, 0)[:, :, None, None] for t in (scale, shift)
        )
    added = (weight * shift).flatten(1).sum(1)
    return _replaced(layer, weight * scale, added if layer.bias is None else layer.bias.double() + added)


@torch.no_grad()
def fold_into_previous(layer: Layer, norm: Norm) -> Layer:
    """The linear or convolution that computes norm(layer(x)); `layer` itself is left as it is.

    With norm(x) = a x + b: W' = diag(a) W, bias' = a bias + b. (All of a applies to the bias, alpha too.)
    """
    scale, shift = norm.affine()
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    return _replaced(layer, weight, shift if layer.bias is None else scale * layer.bias.double() + shift)


def _replaced(layer: Layer, weight: Tensor, bias: Tensor) -> Layer:
    """A layer of the same geometry with other values."""
    new = copy.deepcopy(layer)
    new.weight = nn.Parameter(weight.to(layer.weight.dtype))
    new.bias = nn.Parameter(bias.to(layer.weight.dtype))
    return new


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch norm by those of `batches` of images, as eval mode will see them.

    The last step of SLAB's training: all in eval mode but the batch norms, which normalize by each batch while mean
    and unbiased variance over all of `batches` are pooled exactly, so that one pass over training images is enough.
    Nothing else changes, modes included. `BadInput` where there is no batch, or one that is no tensor.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    modes = {module: module.training for module in model.modules()}
    pooled = {norm: _Moments() for norm in norms}
    handles = [norm.register_forward_pre_hook(lambda m, args: pooled[m].add(args[0])) for norm in norms]
    device = next(model.parameters()).device
    kept = {norm: (norm.momentum, norm.num_batches_tracked) for norm in norms}
    try:
        model.eval()
        for norm in norms:
            norm.train()
            # What fails half-way leaves the statistics as they were, and the counter counts training steps only.
            norm.momentum, norm.num_batches_tracked = 0.0, None
        with torch.no_grad():
            for batch in batches:
                if not isinstance(batch, Tensor):
                    raise BadInput(
                        f"a batch is a {type(batch).__name__}, not a tensor of images (B, C, H, W)",
                        "Of a loader of pairs give the images alone: (images for images, _ in loader).",
                    )
                model(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = kept[norm]
        for module, mode in modes.items():
            module.training = mode
    if not all(pooled[norm].count > 1 for norm in norms):
        raise BadInput("there are no images to take statistics of", "Give an iterable of batches (B, C, H, W).")
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(pooled[norm].mean)
        norm.running_var.copy_(pooled[norm].squares / (pooled[norm].count - 1))


class _Moments:
    """Count, mean and sum of squared deviations of each channel, pooled over batches (B, C, ...)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        rows = x.double().transpose(0, 1).flatten(1)
        mean = rows.mean(1)
        squares = (rows - mean[:, None]).square().sum(1)
        if self.count:
            moved, total = mean - self.mean, self.count + rows.shape[1]
            squares = self.squares + squares + moved.square() * (self.count * rows.shape[1] / total)
            mean = self.mean + moved * (rows.shape[1] / total)
        self.mean, self.squares = mean, squares
        self.count += rows.shape[1]


def norm_pairs(published: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """`published` with every norm as a PRepBN pair: what a state lacks for it is filled in.

    A pair without counters gets a fresh schedule of `steps`. A plain RepBN (`<norm>.alpha`, `<norm>.bn.*`) becomes
    the second half of a pair whose schedule has ended, beside a LayerNorm that was never trained.
    """
    state = dict(published)
    for name in published:
        if name.rpartition(".")[2] != "alpha":
            continue
        stem = name.removesuffix("alpha")
        norm = stem.removesuffix("norm2.")
        plain = norm == stem or f"{norm}norm1.weight" not in published
        if plain:
            norm = stem
            moved = [key for key in published if key == name or key.startswith(f"{norm}bn.")]
            for key in moved:
                state[f"{norm}norm2.{key.removeprefix(norm)}"] = state.pop(key)
            if (gain := published.get(f"{norm}bn.weight")) is not None:
                state[f"{norm}norm1.weight"], state[f"{norm}norm1.bias"] = torch.ones_like(gain), torch.zeros_like(gain)
        for counter, value in (("warm", 0), ("iter", 0 if plain else steps), ("total_step", steps)):
            state.setdefault(f"{norm}{counter}", torch.tensor(value))
    return state
