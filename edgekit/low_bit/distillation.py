"""A short distillation of the whole student: the divergence from the teacher and nothing else (AIT, Choi et al. 2022).

    min  T² KL(teacher(x) / T || student(x) / T)         on synthetic images, without labels and without weight decay

Weights are trained straight through their rounding, from inside the steps that were chosen; steps and biases too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.low_bit.quantizers import LearnedWeight, divergence
from edgekit.low_bit.student import Student
from edgekit.types import Step


@dataclass(frozen=True)
class DistillationOptions:
    """Steps of Adam; rates of weights are in steps of their own size, of steps relative, of biases absolute."""

    steps: int = 0
    batch: int = 64
    weight_rate: float = 1e-3
    step_rate: float = 1e-3
    bias_rate: float = 1e-4
    temperature: float = 4.0
    jitter: int = 2


def distil(
    student: Student,
    teacher: Student,
    images: Tensor,
    options: DistillationOptions,
    seed: int,
    on_step: Step | None = None,
) -> None:
    """Train `student` towards the class scores of `teacher` on `images` (N, C, H, W), flipped and rolled by chance."""
    generator = torch.Generator().manual_seed(seed)
    weights = [w.ratio for w in student.weights.values() if isinstance(w, LearnedWeight)]
    adam = torch.optim.Adam(
        [
            {"params": weights, "lr": options.weight_rate},
            {"params": list(student.activations.parameters()), "lr": options.step_rate},
            {"params": list(student.floats.values()), "lr": options.bias_rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, options.steps))
    for step in range(options.steps):
        x = images[torch.randint(len(images), (options.batch,), generator=generator)]
        if torch.rand((), generator=generator) < 0.5:
            x = x.flip(-1)
        by = torch.randint(-options.jitter, options.jitter + 1, (2,), generator=generator).tolist()
        x = x.roll(by, (-2, -1))
        with torch.no_grad():
            wanted = teacher(x)
        loss = options.temperature**2 * divergence(student(x), wanted, options.temperature)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        if on_step is not None:
            on_step("distilling", step + 1, options.steps)
