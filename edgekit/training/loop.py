"""The loop: batches, a loss, an optimizer, a schedule; a log, and checkpoints to go on from, bit for bit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.errors import EdgekitError
from edgekit.training import checkpoints
from edgekit.training.data import Batches
from edgekit.training.logs import Log
from edgekit.training.objectives import Loss
from edgekit.training.optimization import (
    Frozen,
    average,
    cycle_ends,
    optimizer_of,
    rate_of,
    set_rate,
    steps_of,
)
from edgekit.training.recipe import FineTuningSection, OptimizerSection, ScheduleSection
from edgekit.types import Step

if TYPE_CHECKING:
    from lightning_fabric import Fabric

DENSE = "forward_dense"
"""What token labelling calls beside `forward`."""
Evaluate = Callable[[nn.Module], float | None]


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a stage of training does; `every` how often it saves, logs and evaluates, in steps."""

    optimizer: OptimizerSection
    schedule: ScheduleSection
    fine_tuning: FineTuningSection = field(default_factory=FineTuningSection)
    seed: int = 0
    checkpoint_every: int = 100
    evaluate_every: int = 0
    log_every: int = 10
    compile: bool = False


@dataclass(frozen=True)
class Outcome:
    """`unreadable` says why images were left out, of all processes."""

    steps: int
    model: nn.Module
    unreadable: dict[int, str]


class Loop:
    """One training of `model`, in place; `run` returns what is to be kept: the model, or the average of its weights."""

    def __init__(
        self,
        model: nn.Module,
        objective: Loss,
        batches: Batches,
        course: Course,
        fabric: "Fabric",
        folder: Path,
        evaluate: Evaluate | None = None,
        on_best: Callable[[nn.Module], None] | None = None,
    ) -> None:
        self._objective, self._batches, self._course = objective, batches, course
        self._fabric, self._folder, self._evaluate, self._on_best = fabric, folder, evaluate, on_best
        self.steps = steps_of(course.schedule, batches.per_epoch)
        self._bare = model
        self._frozen = Frozen(model, course.fine_tuning, registered=fabric.world_size > 1)
        optimizer = optimizer_of(model, course.optimizer, course.fine_tuning.layer_decay)
        self._model, self._optimizer = fabric.setup(model, optimizer)
        if hasattr(model, DENSE):
            self._model.mark_forward_method(DENSE)
        self._run: nn.Module = torch.compile(self._model) if course.compile else self._model  # type: ignore[assignment]
        self._average = {k: v.detach().clone() for k, v in model.state_dict().items()} if course.schedule.ema else {}
        self._best: tuple[float, int] | None = None
        self._unreadable: dict[int, str] = {}

    def run(self, on_step: Step | None = None) -> Outcome:
        """Train from the checkpoint in the folder where there is one. Raises `EdgekitError` for a loss that is none."""
        with torch.random.fork_rng():  # what a step draws follows from the step; the caller's generator stays
            return self._steps(on_step)

    def _steps(self, on_step: Step | None) -> Outcome:
        start = self._restore()
        log = Log(self._folder, start) if self._fabric.is_global_zero else None
        ends = set(cycle_ends(self.steps, self._course.schedule.cycles)[:-1])
        began = time.perf_counter()
        for step, batch in enumerate(self._batches.stream(start, self.steps), start):
            self._unreadable |= batch.unreadable
            loss, rate = self._step(step, batch.images, batch.labels)
            done = step + 1
            if done in ends:
                self._objective.cycle_ended(self._bare)
            entry: dict[str, Any] = {}
            if done % self._course.log_every == 0 or done == self.steps:
                speed = self._batches.size * (done - start) / (time.perf_counter() - began)
                entry = {"loss": loss, "lr": rate, "images_per_second": round(speed, 1)}
            entry |= self._evaluated(done)
            if log is not None and entry:
                log.write({"step": done, **entry})
            if done % self._course.checkpoint_every == 0 or done == self.steps:
                self._save(done)
            if on_step:
                on_step(f"training, loss {loss:.3f}", done, self.steps)
        if log is not None:
            log.close()
        self._take_average()
        return Outcome(self.steps, self._bare.eval(), self._all_unreadable())

    def _all_unreadable(self) -> dict[int, str]:
        """Each process reads its own part of a batch."""
        if self._fabric.world_size == 1:
            return self._unreadable
        parts: list[dict[int, str]] = [{}] * self._fabric.world_size
        torch.distributed.all_gather_object(parts, self._unreadable)
        return {k: text for part in parts for k, text in part.items()}

    def _step(self, step: int, images: Tensor, labels: Tensor | None) -> tuple[float, float]:
        """One step of the optimizer: the loss over all processes, and the learning rate."""
        course, fabric = self._course, self._fabric
        rate = rate_of(step, self.steps, course.optimizer.lr, course.schedule, self._batches.per_epoch)
        set_rate(self._optimizer, rate)
        # What the model itself draws (dropout) follows from the step too.
        drawn = np.random.SeedSequence((course.seed, step, fabric.global_rank)).generate_state(1)
        torch.manual_seed(int(drawn[0]))
        until = course.fine_tuning.unfreeze_epoch
        if until is not None and step >= until * self._batches.per_epoch:
            self._frozen.release()
        self._bare.train()
        self._frozen.hold()
        images = fabric.to_device(images)
        labels = None if labels is None else fabric.to_device(labels)
        loss = self._objective(self._run, images, labels, step)
        mean = fabric.all_reduce(loss.detach(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        value = float(mean)
        if not math.isfinite(value):
            raise EdgekitError(
                f"the loss is {value} at step {step + 1}", "Lower optimizer.lr, and start again with --force."
            )
        self._optimizer.zero_grad()
        fabric.backward(loss)
        self._frozen.drop()
        if course.optimizer.clip_norm is not None:
            fabric.clip_gradients(
                self._model, self._optimizer, max_norm=course.optimizer.clip_norm, error_if_nonfinite=False
            )
        self._optimizer.step()
        if course.schedule.ema:
            average(self._average.values(), self._bare.state_dict().values(), course.schedule.ema, step)
        return value, rate

    def _evaluated(self, done: int) -> dict[str, float]:
        """Top-1 where it is time to measure it, of the weights that would be kept."""
        every = self._course.evaluate_every
        due = done == self.steps or (every and done % every == 0)
        if not due or self._evaluate is None or not self._fabric.is_global_zero:
            return {}
        current = {k: v.clone() for k, v in self._bare.state_dict().items()}
        self._take_average()
        self._bare.eval()
        top1 = self._evaluate(self._bare)
        if top1 is not None and (self._best is None or top1 > self._best[0]):
            self._best = (top1, done)
            if self._on_best is not None:
                self._on_best(self._bare)
        self._bare.load_state_dict(current)
        return {} if top1 is None else {"top1": round(top1, 3)}

    def _take_average(self) -> None:
        if self._average:
            self._bare.load_state_dict(self._average)

    def _save(self, step: int) -> None:
        if self._fabric.is_global_zero:
            state = {
                "step": step,
                "model": self._bare.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "average": self._average,
                "objective": self._objective.state(),
                "best": list(self._best) if self._best else None,
                "unreadable": self._unreadable,
                "precision": self._fabric.strategy.precision.state_dict(),
            }
            checkpoints.save(self._folder, state)
        self._fabric.barrier()

    def _restore(self) -> int:
        state = checkpoints.read(self._folder)
        if state is None:
            return 0
        try:
            self._objective.restore(state["objective"], self._bare)
            self._bare.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            for name, value in state["average"].items():
                self._average[name].copy_(value)
            self._unreadable = dict(state["unreadable"])
            self._best = (float(state["best"][0]), int(state["best"][1])) if state["best"] else None
            self._fabric.strategy.precision.load_state_dict(state["precision"])
        except Exception as error:  # a state of another model has other names, shapes or none
            raise checkpoints.damaged(self._folder, error) from error
        return int(state["step"])
