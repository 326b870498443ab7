"""The float stage: a model trained, and kept as weights that say what they are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgekit.artifacts import write_file
from edgekit.compression import LowRankTerms, low_rank
from edgekit.data.shards import Shards
from edgekit.models import WeightsCard, weights_bytes
from edgekit.models.slab.prepbn import PRepBN, recalibrate, set_schedule
from edgekit.training.accuracy import top1_of
from edgekit.training.augmentation import ImageTransform
from edgekit.training.data import Batches, Photos, Samples
from edgekit.training.distillation import Objective
from edgekit.training.loop import Course, Loop, Outcome
from edgekit.training.objectives import Compressed, Loss, TokenLabelled
from edgekit.training.optimization import steps_of
from edgekit.training.processes import fabric_of
from edgekit.training.recipe import AugmentationSection, Recipe
from edgekit.training.shards import ShardSamples
from edgekit.training.students import FloatModel, dense_teacher_of, teacher_of
from edgekit.training.sync_batch_norm import separate, synchronize
from edgekit.training.token_labelling import check_student
from edgekit.types import Step

BEST, LAST = "best.safetensors", "last.safetensors"
_RECALIBRATION_BATCHES = 20


@dataclass(frozen=True)
class FloatStage:
    """The float stage of a recipe, on `photos`; `held` are evaluated on."""

    plan: Recipe
    student: FloatModel
    photos: Photos
    held: Photos | None
    folder: Path

    def run(self, begin: Callable[[], None], on_step: Step | None) -> Outcome | None:
        """Train, after `begin`, and write the weights; None in all processes but the first."""
        plan, schedule = self.plan, self.plan.schedule
        assert schedule is not None
        fabric = fabric_of(plan.hardware)
        model = self._smaller(self.student.loaded.module).train()
        if fabric.world_size > 1 and plan.hardware.sync_batch_norm:
            model = synchronize(model)
        batches = self._batches(plan.augmentation, fabric.global_rank, fabric.world_size)
        self._schedule_norms(model, round(schedule.prepbn_share * steps_of(schedule, batches.per_epoch)))
        if plan.hardware.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        loss = self._loss(model, fabric.device)
        # Norms on their way to batch norm are not yet what eval mode computes: no best before the end.
        keep = None if _has_prepbn(model) else self._keep_best
        loop = Loop(model, loss, batches, self._course(), fabric, self.folder, self._evaluate, keep)
        begin()
        fabric.barrier()
        outcome = loop.run(on_step)
        if not fabric.is_global_zero:
            return None
        separate(outcome.model)
        outcome.model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if _has_prepbn(outcome.model):
            plain = self._batches(AugmentationSection(flip=False), 0, 1)
            count = min(_RECALIBRATION_BATCHES, plain.per_epoch)
            recalibrate(outcome.model, (b.images for b in plain.stream(0, count)))
        self.write(LAST, outcome.model)
        return outcome

    def _smaller(self, model: nn.Module) -> nn.Module:
        return model if self.plan.compression is None else low_rank(model, self.plan.compression.ratio)

    def _loss(self, model: nn.Module, device: torch.device) -> Loss:
        plan, student, schedule = self.plan, self.student, self.plan.schedule
        assert schedule is not None
        loss: Loss
        if plan.token_labelling is not None:
            check_student(model)
            dense = dense_teacher_of(plan.token_labelling.teacher, student, plan.seed).to(device)
            loss = TokenLabelled(plan.token_labelling, dense, schedule.label_smoothing, plan.seed)
        else:
            taught = plan.distillation
            teacher = teacher_of(taught.teacher, student, plan.seed).to(device) if taught and taught.teacher else None
            loss = Objective(taught, teacher, schedule.label_smoothing)
        if plan.compression is None:
            return loss
        original = student.loaded.module.to(device)
        terms = LowRankTerms(
            model.to(device), original, plan.compression.feature_weight, plan.compression.perturbation_weight
        )
        return Compressed(loss, original, terms)

    def write(self, name: str, model: nn.Module) -> None:
        """The weights of `model` as a file that says what they are."""
        loaded = self.student.loaded
        assert loaded.preprocess is not None
        card = WeightsCard(
            model=self.plan.model.name,
            num_classes=self.student.classes,
            image_size=loaded.preprocess.crop,
            labels=loaded.labels,
            preprocess=loaded.preprocess,
            low_rank=None if self.plan.compression is None else self.plan.compression.ratio,
            trained=f"on {Path(self.plan.data.train).name}, seed {self.plan.seed}",
        )
        write_file(self.folder / name, weights_bytes(model.state_dict(), card))

    def _batches(self, augmentation: AugmentationSection, rank: int, world: int) -> Batches:
        data, seed, classes, images = self.plan.data, self.plan.seed, self.student.classes, self.photos.images
        transform = ImageTransform(self.photos.preprocess, augmentation)
        samples: Samples = self.photos
        if isinstance(images, Shards):
            samples = ShardSamples(images, classes, _numbers(images.classes, self.student.loaded.labels))
        return Batches(samples, data.batch_size, seed, transform, augmentation, classes, rank, world, data.workers)

    def _course(self) -> Course:
        plan = self.plan
        assert plan.schedule is not None
        return Course(
            optimizer=plan.optimizer,
            schedule=plan.schedule,
            fine_tuning=plan.fine_tuning,
            seed=plan.seed,
            checkpoint_every=plan.checkpoint_every,
            evaluate_every=plan.evaluate_every,
            log_every=plan.log_every,
            compile=plan.hardware.compile,
        )

    def _schedule_norms(self, model: nn.Module, steps: int) -> None:
        if _has_prepbn(model):
            set_schedule(model, max(1, steps))

    def _evaluate(self, model: nn.Module) -> float | None:
        if self.held is None:
            return None
        return top1_of(model, self.held, self.student.classes, next(model.parameters()).device)

    def _keep_best(self, model: nn.Module) -> None:
        self.write(BEST, model)


def _has_prepbn(model: nn.Module) -> bool:
    return any(isinstance(m, PRepBN) for m in model.modules())


def _numbers(names: tuple[str, ...], labels: tuple[str, ...]) -> tuple[int, ...]:
    """The model's number of each class of the data, where both name the same."""
    return tuple(labels.index(name) for name in names) if set(names) <= set(labels) else ()
