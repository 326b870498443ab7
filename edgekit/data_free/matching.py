"""What batch norms remember of the training data, against what a batch of images gives them.

    misfit of a layer = mean over channels of ((m - M)^2 + (s - S)^2) / (V + V0 / 20)

m, s are mean and deviation of what enters the layer, over batch and places; M, S = sqrt(V) what training has stored; V0
the mean of V over the layer's channels. (Yin et al. 2020, DeepInversion, equation 4, in the layer's own units; what is
added to V keeps channels that are nearly dead, whose V is nothing, from being all that counts.)

Layer norms remember nothing, but their scales and shifts were trained so that what they norm is of use: of the normed
values, mean 0 and deviation 1 in each channel hold about, not exactly (`consistency`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FLOOR = 0.05
_aten = torch.ops.aten
_BATCH_NORMS = (functional.batch_norm, torch.batch_norm, _aten.batch_norm.default)
_LAYER_NORMS = (functional.layer_norm, torch.layer_norm, _aten.layer_norm.default)
_TOKENS = 196
"""Of an image, how many places are compared with each other: their pairs are many."""


def holds_statistics(mean: Tensor, var: Tensor) -> bool:
    """Whether the buffers of a batch norm are more than the mean 0 and variance 1 that it is made with.

    Weights that come folded, or random, leave these: nothing was stored, and there is nothing to match.
    """
    return bool((mean != 0).any()) or bool((var != 1).any())


@dataclass
class Layer:
    """A batch norm: what it has stored, and (values, mean, variance) of each call since the last `clear`."""

    mean: Tensor
    var: Tensor
    calls: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel over all calls."""
        total = sum(n for n, _, _ in self.calls)
        mean = torch.stack([m * (n / total) for n, m, _ in self.calls]).sum(0)
        var = torch.stack([(v + (m - mean).square()) * (n / total) for n, m, v in self.calls]).sum(0)
        return mean, var

    def misfit(self) -> Tensor:
        """The layer's part of the loss, a scalar with a gradient."""
        mean, var = self.moments()
        deviation = var.clamp(min=1e-12).sqrt() - self.var.sqrt()
        scale = self.var + FLOOR * self.var.mean() + 1e-12
        return (((mean - self.mean).square() + deviation.square()) / scale).mean()


class StoredMoments:
    """While it is entered, sees what enters the norms of `module` in eval mode: of modules and of `.pt2` programs.

    Calls add up until `clear`, so that a batch may come in parts. With `keep_inputs` the tensors themselves are kept in
    `layers[name].inputs`. Names are those of the modules; `layers` are in the order in which they are called.
    """

    def __init__(self, module: nn.Module, keep_inputs: bool = False) -> None:
        self.layers: dict[str, Layer] = {}
        self._keep = keep_inputs
        self._names = {id(b): n.removesuffix(".running_mean") for n, b in module.named_buffers()}
        self._normed: list[Tensor] = []
        self._mode = _Norms(self)

    def __enter__(self) -> "StoredMoments":
        self._mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mode.__exit__(kind, error, trace)

    @property
    def has_layer_norms(self) -> bool:
        """Whether a layer norm was seen since the last `clear`."""
        return bool(self._normed)

    def clear(self) -> None:
        """Forget the calls so far."""
        self.layers.clear()
        self._normed.clear()

    def loss(self) -> Tensor:
        """The mean misfit of all batch norms; 0 where there are none."""
        found = [layer.misfit() for layer in self.layers.values()]
        return torch.stack(found).mean() if found else torch.zeros(())

    def misfits(self) -> Mapping[str, float]:
        """The misfit of each batch norm by name: 0 for a perfect fit, about 1 for a deviation."""
        return {name: float(layer.misfit().detach()) for name, layer in self.layers.items()}

    def consistency(self) -> Tensor:
        """How far channels behind layer norms are from mean 0 and deviation 1; 0 where there are none."""
        found = []
        for normed in self._normed:
            channels = normed.reshape(-1, normed.shape[-1])
            var, mean = torch.var_mean(channels, 0, correction=0)
            found.append((mean.square() + (var.clamp(min=1e-12).sqrt() - 1).square()).mean())
        return torch.stack(found).mean() if found else torch.zeros(())

    def diversity(self) -> Tensor:
        """The entropy of the cosines between the places of an image, behind layer norms, as of a Gaussian, in nats.

        PSAQ-ViT (Li et al. 2022, section 3.2) with H = log(2 pi e var) / 2 in place of a density estimate.
        """
        found = []
        for normed in self._normed:
            places = normed.reshape(normed.shape[0], -1, normed.shape[-1])
            if normed.dim() < 3 or places.shape[1] < 2:
                continue
            unit = functional.normalize(places[:, :: max(1, places.shape[1] // _TOKENS)], dim=-1)
            cosines = (unit @ unit.mT).flatten(1)
            found.append(0.5 * (2 * math.pi * math.e * cosines.var(1).clamp(min=1e-8)).log().mean())
        return torch.stack(found).mean() if found else torch.zeros(())

    def batch_norm(self, x: Tensor, mean: Tensor, var: Tensor) -> None:
        """See what enters a batch norm with these stored statistics."""
        if not holds_statistics(mean, var):
            return
        name = self._names.get(id(mean), f"batch_norm_{len(self.layers)}")
        layer = self.layers.setdefault(name, Layer(mean.detach(), var.detach()))
        now, at = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
        layer.calls.append((x.numel() // x.shape[1], at, now))
        if self._keep:
            layer.inputs.append(x)

    def layer_norm(self, normed: Tensor) -> None:
        """See what a layer norm gives before its scale and shift."""
        self._normed.append(normed)


class _Norms(TorchFunctionMode):
    """Calls of norms, however they are spelled: modules, functions, nodes of a captured graph."""

    def __init__(self, seen: StoredMoments) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            mean, var = (
                kwargs.get(n, args[i] if len(args) > i else None) for i, n in ((1, "running_mean"), (2, "running_var"))
            )
            if mean is not None and var is not None:
                self._seen.batch_norm(args[0], mean, var)
        elif func in _BATCH_NORMS and args[3] is not None and args[4] is not None:
            self._seen.batch_norm(args[0], args[3], args[4])
        elif func in _LAYER_NORMS and len(args[1]) == 1:
            self._seen.layer_norm(functional.layer_norm(args[0], args[1]))
        return func(*args, **kwargs)
