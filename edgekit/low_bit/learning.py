"""From a float program and images to a student of few bits: steps, then blocks, then a short distillation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from edgekit.low_bit.distillation import DistillationOptions, distil
from edgekit.low_bit.quantizers import LearnedWeight
from edgekit.low_bit.reconstruction import ReconstructionOptions, reconstruct
from edgekit.low_bit.scheme import Placement
from edgekit.low_bit.steps import start_steps
from edgekit.low_bit.student import Student
from edgekit.types import Step


@dataclass(frozen=True, kw_only=True)
class LowBitOptions:
    """How long each part takes; none of `reconstruction.steps` rounds to nearest instead."""

    reconstruction: ReconstructionOptions = field(default_factory=ReconstructionOptions)
    distillation: DistillationOptions = field(default_factory=DistillationOptions)


def learn(
    program: ExportedProgram,
    placement: Placement,
    images: Tensor,
    options: LowBitOptions,
    *,
    seed: int = 0,
    state: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
    on_step: Step | None = None,
) -> Student:
    """A student of `program`, which takes batches, that has learned from `images` (N, C, H, W) on their device.

    N is a whole number of batches. `keep` is given the state behind each block, and a run with such a `state` goes on
    there: whoever gives it knows that model, images and options are the same.
    """
    batch = options.reconstruction.batch
    teacher, student = Student(program).to(images.device), Student(program, placement)
    student.learn(start_steps(teacher, placement, images[:batch]))
    student.to(images.device)
    first = 0 if state is None else _restore(student, state)

    def done(blocks: int) -> None:
        if keep is not None:
            keep({"blocks": blocks, "state": student.state_dict()})

    if options.reconstruction.steps:
        reconstruct(student, teacher, images, options.reconstruction, seed, on_step, done, first)
    for weight in student.weights.values():
        assert isinstance(weight, LearnedWeight)
        weight.decide()
    distil(student, teacher, images, options.distillation, seed, on_step)
    return student


def _restore(student: Student, saved: Mapping[str, Any]) -> int:
    """Choices that were final are so again."""
    for name, weight in student.weights.items():
        if f"weights.{name}.choice" not in saved["state"]:
            weight.choice = None  # type: ignore[assignment]
    student.load_state_dict(saved["state"])
    return int(saved["blocks"])
