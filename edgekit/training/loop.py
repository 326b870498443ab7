"""The loop: a loss, an optimizer, a schedule, a log, and checkpoints that a killed run goes on from, bit for bit."""

import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.artifacts import write_file
from edgekit.errors import BadInput, EdgekitError
from edgekit.training.data import Batches
from edgekit.training.recipe import DistillationSection, OptimizerSection, Recipe, ScheduleSection
from edgekit.types import Step

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


def steps_of(schedule: ScheduleSection, per_epoch: int) -> int:
    """How many steps a run has."""
    return schedule.steps or max(1, round((schedule.epochs or 0) * per_epoch))


def rate_of(step: int, steps: int, base: float, schedule: ScheduleSection) -> float:
    """The learning rate of a step: a linear rise, then half a cosine down to 0 (Loshchilov and Hutter 2017, eq. 5)."""
    rise = min(1.0, (step + 1) / (schedule.warmup_steps + 1))
    fall = 0.5 * (1 + math.cos(math.pi * step / steps)) if schedule.decay == "cosine" else 1.0
    return base * rise * fall


def loss_of(
    model: nn.Module,
    teacher: nn.Module,
    distillation: DistillationSection | None,
    images: Tensor,
    labels: Tensor | None,
) -> Tensor:
    """Cross entropy with the labels and T² KL(teacher || model) of softened answers (Hinton et al. 2015, section 2)."""
    logits = model(images)
    share = 0.0 if distillation is None else distillation.weight
    loss = logits.new_zeros(())
    if share < 1:
        assert labels is not None
        loss = (1 - share) * functional.cross_entropy(logits, labels)
    if distillation is not None and share > 0:
        with torch.no_grad():
            targets = (teacher(images) / distillation.temperature).log_softmax(1)
        answers = (logits / distillation.temperature).log_softmax(1)
        divergence = functional.kl_div(answers, targets, reduction="batchmean", log_target=True)
        loss = loss + share * distillation.temperature**2 * divergence
    return loss


def run(
    model: nn.Module, teacher: nn.Module, batches: Batches, recipe: Recipe, folder: Path, on_step: Step | None = None
) -> int:
    """Train `model` in place, from the checkpoint in `folder` where there is one; return the number of steps.

    Raises `EdgekitError` where the loss is no number any more.
    """
    steps = steps_of(recipe.schedule, batches.per_epoch)
    optimizer = _optimizer(model, recipe.optimizer)
    start = _restore(folder, model, optimizer)
    write_log = _log(folder / LOG, start)
    began = time.perf_counter()
    for step in range(start, steps):
        rate = rate_of(step, steps, recipe.optimizer.lr, recipe.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, labels = batches(step)
        loss = loss_of(model, teacher, recipe.distillation, images, labels)
        if not math.isfinite(loss.item()):
            raise EdgekitError(
                f"the loss is {loss.item()} at step {step + 1}", "Lower optimizer.lr, and start again with --force."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = step + 1
        if done % recipe.log_every == 0 or done == steps:
            speed = batches.size * (done - start) / (time.perf_counter() - began)
            write_log({"step": done, "loss": loss.item(), "lr": rate, "images_per_second": round(speed, 1)})
        if done % recipe.checkpoint_every == 0 or done == steps:
            _save(folder, done, model, optimizer)
        if on_step:
            on_step(f"training, loss {loss.item():.3f}", done, steps)
    return steps


def _optimizer(model: nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.numel()]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if section.name == "adamw":
        return torch.optim.AdamW(groups, lr=section.lr)
    return torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum)


def _save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    buffer = io.BytesIO()
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    write_file(folder / CHECKPOINT, buffer.getvalue())


def _restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise BadInput(f"{path} is no checkpoint of this run ({error})", "Start again with --force.") from error


def _log(path: Path, start: int) -> Callable[[dict[str, Any]], None]:
    """Writes a line at a time behind those up to step `start`; what was logged after the checkpoint comes again."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= start]
    write_file(path, "".join(f"{line}\n" for line in kept).encode())

    def write(entry: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    return write
