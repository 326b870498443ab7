"""Parameter groups, learning rates, what is frozen, and the average of the weights."""

import math
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import pairwise

import torch
from torch import nn

from edgekit.errors import BadInput
from edgekit.training.recipe import FineTuningSection, OptimizerSection, ScheduleSection

SCALE = "lr_scale"


def steps_of(schedule: ScheduleSection, per_epoch: int) -> int:
    """How many steps a run has."""
    return schedule.steps or max(1, round((schedule.epochs or 0) * per_epoch))


def cycle_ends(steps: int, cycles: int) -> tuple[int, ...]:
    """After how many steps each cycle ends, the last one after all."""
    return tuple(round(steps * (n + 1) / cycles) for n in range(cycles))


def rate_of(step: int, steps: int, base: float, schedule: ScheduleSection, per_epoch: int) -> float:
    """The learning rate of a step: a linear rise, then half a cosine down to `min_lr` in each cycle.

    Loshchilov and Hutter 2017, equation 5.
    """
    warmup = schedule.warmup_steps or round(schedule.warmup_epochs * per_epoch)
    rise = min(1.0, (step + 1) / (warmup + 1))
    if schedule.decay == "none":
        return base * rise
    ends = (0, *cycle_ends(steps, schedule.cycles))
    start, end = next((a, b) for a, b in pairwise(ends) if step < b)
    fall = 0.5 * (1 + math.cos(math.pi * (step - start) / (end - start)))
    return rise * (schedule.min_lr + (base - schedule.min_lr) * fall)


def optimizer_of(model: nn.Module, section: OptimizerSection, layer_decay: float = 1.0) -> torch.optim.Optimizer:
    """Groups by weight decay and by the block's share of the learning rate, which a group has as `lr_scale`."""
    scales = _scales(model, layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.numel():
            decay = section.weight_decay if parameter.dim() > 1 or section.decay_vectors else 0.0
            groups.setdefault((decay, scales[name]), []).append(parameter)
    listed = [{"params": p, "weight_decay": decay, SCALE: scale} for (decay, scale), p in groups.items()]
    if section.name == "adamw":
        return torch.optim.AdamW(listed, lr=section.lr)
    return torch.optim.SGD(listed, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group[SCALE]


def _scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """By parameter: `layer_decay` to the number of blocks behind its own, in the order of the model.

    A block is what a name counts: `features.3.conv.weight` is in block `features.3`, a stem and a head are their own.
    """
    blocks: dict[str, int] = {}
    for name, _ in model.named_parameters():
        blocks.setdefault(_block(name), len(blocks))
    return {name: layer_decay ** (len(blocks) - 1 - blocks[_block(name)]) for name, _ in model.named_parameters()}


def _block(name: str) -> str:
    counted = re.match(r"(.*?\.\d+(?:\.\d+)?)\.", name)
    return counted[1] if counted else name.rpartition(".")[0].split(".")[0]


class Frozen:
    """Modules that keep what they have learned, running statistics of batch norms too, until they are released."""

    def __init__(self, model: nn.Module, section: FineTuningSection, registered: bool = False) -> None:
        """`registered`: DDP is to know the parameters, so they get gradients, which `drop` takes away."""
        self._registered = registered
        names = [name for name, _ in model.named_modules() if name]
        for pattern in section.freeze:
            if not any(_matches(name, pattern) for name in names):
                tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
                raise BadInput(
                    f"fine_tuning.freeze: no module of the model is named {pattern!r}",
                    f"Its outermost modules are {tops}; deeper ones as {names[min(1, len(names) - 1)]}, or a pattern.",
                )
        self._modules = [m for n, m in model.named_modules() if any(_matches(n, p) for p in section.freeze)]
        self._parameters = [p for module in self._modules for p in module.parameters()]
        if self._parameters and len(set(self._parameters)) == len(set(model.parameters())):
            raise BadInput("fine_tuning.freeze: nothing is left to train", "Leave the head out: see `edgekit inspect`.")
        self.hold()

    def hold(self) -> None:
        """To be called where the model was put into train mode."""
        for module in self._modules:
            module.eval()
        for parameter in () if self._registered else self._parameters:
            parameter.requires_grad_(False)

    def drop(self) -> None:
        """To be called before the optimizer's step."""
        for parameter in self._parameters:
            parameter.grad = None

    def release(self) -> None:
        """From now on they train with the others."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        for module in self._modules:
            module.train()
        self._modules, self._parameters = [], []


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


@torch.no_grad()
def average(averaged: Iterable[torch.Tensor], current: Iterable[torch.Tensor], decay: float, step: int) -> None:
    """Move an exponential average of the weights on; at first it forgets faster: min(decay, (1 + t) / (10 + t))."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for a, c in zip(averaged, current, strict=True):
        if a.is_floating_point():
            a.lerp_(c.detach().to(a.dtype), share)
        else:
            a.copy_(c)
