"""A stand-in whose activations have the stored statistics of the training data, on images that no one took.

Each batch norm of a copy of the network gets, in place of what it has stored, the moments m, v of what enters it on
these images:

    y = g (x - m) / sqrt(v (V + eps) / V) + b       mean of y: b      deviation: |g| sqrt(V / (V + eps)), as in training

The copy becomes a program as the network did, of the same nodes: batch norms that are merged into other layers on the
way keep what they are there for. Ranges are seen in the stand-in, and the mean of what enters each layer, which is what
bias correction takes: b_c + E[W - W_q] E[x] (Nagel et al. 2019, section 4.2; there E[x] is that of a clipped Gaussian,
here of what really arrives).
"""

import copy
import statistics
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional

from edgekit.data_free.matching import holds_statistics
from edgekit.graph.capture import capture
from edgekit.loading import Loaded
from edgekit.models import deploy
from edgekit.quantization._execution import Samples, Values, Walk

_BATCH_NORM = torch.ops.aten.batch_norm.default
_FLOOR = 0.05
TRUSTED = 0.35
"""Deviations that half of the norms may be off. Measured: 0.13 and 0.16 with trained weights, 0.56 and more where the
statistics are drawn at random."""


@dataclass(frozen=True)
class StandIn:
    """A program with the stored statistics, and how far these are from what the weights give, by batch norm.

    `off` is the root mean square over channels of the differences of means and deviations, in stored deviations.
    """

    program: ExportedProgram
    off: dict[str, float]

    @property
    def is_trusted(self) -> bool:
        """Whether what is stored was measured on this network: whatever its images, its layers agree with it."""
        return statistics.median(self.off.values()) < TRUSTED


def stand_in(loaded: Loaded, samples: Samples) -> StandIn | None:
    """The program of `loaded` with batch norms that give their stored statistics on `samples`; None without any."""
    is_program = loaded.request.model.endswith(".pt2")
    program = loaded.program if is_program else capture(loaded.module, loaded.inputs)
    buffers = recalibrated(program, samples)
    if not buffers:
        return None
    off = _off(dict(program.state_dict), buffers)
    if is_program:
        changed = copy.deepcopy(program)
        for name, value in buffers.items():
            changed.state_dict[name].copy_(value)
        return StandIn(changed, off)
    module = copy.deepcopy(loaded.module)
    with torch.no_grad():
        for name, value in buffers.items():
            module.get_buffer(name).copy_(value)
    return StandIn(capture(deploy(module), loaded.inputs), off)


def _off(stored: dict[str, Tensor], now: dict[str, Tensor]) -> dict[str, float]:
    found = {}
    for name in [n for n in now if n.endswith("mean")]:
        other = name.removesuffix("mean") + "var"
        var = stored[other].double()
        deviation = now[other].double().clamp(min=0).sqrt() - var.sqrt()
        distance = (now[name] - stored[name]).double().square() + deviation.square()
        found[name.rpartition(".")[0]] = float((distance / (var + _FLOOR * var.mean() + 1e-12)).mean().sqrt())
    return found


def recalibrated(program: ExportedProgram, samples: Samples) -> dict[str, Tensor]:
    """Running means and variances by buffer with which batch norms give on `samples` what they gave in training."""
    buffers = program.graph_signature.inputs_to_buffers
    found: dict[str, Tensor] = {}
    walk = Walk(program, samples)

    def see(node: Any, values: Values) -> None:
        if node.target is not _BATCH_NORM or node.args[3] is None or node.args[4] is None:
            return
        x, scale, shift, mean, var = (cast(Values, [None] if n is None else walk.values(n)) for n in node.args[:5])
        names = [buffers.get(n.name) for n in node.args[3:5]]
        if None in names or names[0] in found or not holds_statistics(mean[0], var[0]):
            return
        eps = float(node.args[7])
        now = _like_training(*_moments(x), var[0].double(), eps)
        found.update(zip(names, now, strict=True))
        for value, entering in zip(values, x, strict=True):
            value.copy_(functional.batch_norm(entering, *now, scale[0], shift[0], False, 0.0, eps))

    walk.run(see)
    return found


def _like_training(mean: Tensor, var: Tensor, stored: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Moments to norm by: so that what had no variance beside eps in training has none beside the others here."""
    share = (stored.clamp(min=0) / (stored + eps)).clamp(min=1e-12)
    var = var.clamp(min=1e-8 * float(var.mean()) + 1e-12) / share - eps
    return mean.float(), var.float()


def _moments(x: Values) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel (dimension 1) over all values, in float64."""
    channels = [v.movedim(1, 0).flatten(1).double() for v in x]
    mean = torch.stack([c.mean(1) for c in channels]).mean(0)
    var = torch.stack([(c - mean[:, None]).square().mean(1) for c in channels]).mean(0)
    return mean, var
