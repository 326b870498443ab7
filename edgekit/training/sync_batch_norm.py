"""Batch norms whose statistics are of all processes' parts of a batch: N processes then compute what one would.

torch has this for GPUs alone; a gloo group of CPU processes needs it as much, and one definition serves both.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """As `nn.BatchNorm1d` and `2d`; mean and variance come from the sums over all processes, in float32."""

    kind: type[nn.BatchNorm1d | nn.BatchNorm2d] = nn.BatchNorm2d

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._normalized(x.float()).to(x.dtype)

    def _normalized(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        count = torch.tensor([x.numel() / x.shape[1]], dtype=x.dtype, device=x.device)
        sums = _Sum.apply(torch.cat([x.sum(axes), count]))
        mean, total = sums[:-1] / sums[-1], sums[-1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        centred = x - mean.reshape(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / total
        with torch.no_grad():
            self._track(mean, variance, float(total))
        normalized = centred * (variance + self.eps).rsqrt().reshape(shape)
        return normalized * self.weight.reshape(shape) + self.bias.reshape(shape) if self.affine else normalized

    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / max(1.0, count - 1), momentum)


def synchronize(model: nn.Module) -> nn.Module:
    """`model` with its batch norms replaced, in place: the same names, parameters and buffers."""
    for module, name, norm in _children(model):
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            module._modules[name] = synced = _copied(norm, SyncBatchNorm)
            synced.kind = type(norm)
    return model


def separate(model: nn.Module) -> nn.Module:
    """`model` with torch's own batch norms again, in place, which need no other process."""
    for module, name, norm in _children(model):
        if isinstance(norm, SyncBatchNorm):
            module._modules[name] = _copied(norm, norm.kind)
    return model


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module | None]]:
    return [(module, name, child) for module in model.modules() for name, child in module._modules.items()]


def _copied(norm: Any, kind: type[nn.Module]) -> Any:
    copy: Any = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    copy.load_state_dict(norm.state_dict())
    return copy.train(norm.training).to(next(norm.parameters(), torch.zeros(())).device)
