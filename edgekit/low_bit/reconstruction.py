"""Rounding and steps learned block by block: BRECQ (Li et al. 2021) with QDrop (Wei et al. 2022).

    min  E |B(x) - B'(x')|^2 + λ Σ (1 - |2h - 1|^β)          B a block, B' the rounded one, h the choices of AdaRound

x' comes from the rounded blocks in front; inside a block, and at its input, each value is taken in float with a
probability of one half. β falls, so that choices stay open at first and are all made at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.low_bit.blocks import Block, blocks
from edgekit.low_bit.quantizers import LearnedWeight
from edgekit.low_bit.student import Student
from edgekit.types import Step


@dataclass(frozen=True)
class ReconstructionOptions:
    """Steps of Adam a block and what they are made of; `keep` is the share of values that is rounded (QDrop)."""

    steps: int = 1000
    batch: int = 64
    rounding_rate: float = 1e-3
    step_rate: float = 1e-3
    bias_rate: float = 1e-3
    rounding_weight: float = 0.01
    keep: float = 0.5
    sharpness: tuple[float, float] = (20.0, 2.0)
    warm_up: float = 0.2


def reconstruct(
    student: Student,
    teacher: Student,
    images: Tensor,
    options: ReconstructionOptions,
    seed: int,
    on_step: Step | None = None,
    on_block: Callable[[int], None] | None = None,
    first: int = 0,
) -> None:
    """Train the rounding and steps of `student`, block after block, towards `teacher`, the float model of its nodes.

    `images` (N, C, H, W) are a whole number of the batches that the program was captured for; each block's tensors are
    held for all of them. Blocks before `first` are taken as done; `on_block` is called behind each.
    """
    todo = blocks(student.nodes, student.image, student.output, set(student.weights))
    exact = rounded = images
    for number, block in enumerate(todo):
        target = _outputs(teacher, block, exact, options.batch)
        if number >= first:
            # Of the block alone, so that a run that is resumed draws the same.
            with torch.random.fork_rng():
                torch.manual_seed(seed + number)
                _train(student, block, (rounded, exact, target), options, _named(on_step, number, len(todo)))
        rounded = _outputs(student, block, rounded, options.batch)
        exact = target
        if on_block is not None and number >= first:
            on_block(number + 1)


def _named(on_step: Step | None, number: int, count: int) -> Callable[[int, int], None]:
    def step(done: int, total: int) -> None:
        if on_step is not None:
            on_step(f"reconstructing block {number + 1} of {count}", number * total + done, count * total)

    return step


def _train(
    student: Student,
    block: Block,
    data: tuple[Tensor, Tensor, Tensor],
    options: ReconstructionOptions,
    on_step: Callable[[int, int], None],
) -> None:
    rounded, exact, target = data
    layers = [w for name in block.layers if isinstance(w := student.weights[name], LearnedWeight)]
    optimizer = torch.optim.Adam(_groups(student, block, layers, options))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for step in range(options.steps):
        chosen = torch.randint(len(target), (options.batch,), device=target.device)
        x = rounded[chosen]
        if options.keep < 1:
            x = torch.where(torch.rand_like(x) < options.keep, x, exact[chosen])
        y = student.run({block.source: x}, block.nodes, block.result, options.keep)
        loss = (y - target[chosen]).square().flatten(1).sum(1).mean()
        progress = step / options.steps
        if progress >= options.warm_up:
            start, end = options.sharpness
            sharpness = end + (start - end) * max(0.0, 1 - (progress - options.warm_up) / (1 - options.warm_up))
            loss = loss + options.rounding_weight * sum(w.indecision(sharpness) for w in layers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(step + 1, options.steps)
    for weight in layers:
        weight.decide()


def _groups(
    student: Student, block: Block, layers: list[LearnedWeight], options: ReconstructionOptions
) -> list[dict[str, object]]:
    inside = {n.name for n in block.nodes}
    steps = [p for name, q in student.activations.items() if name in inside for p in q.parameters()]
    biases = [student.floats[o.name] for n in block.nodes for o in n.all_input_nodes if o.name in student.floats]
    found: list[dict[str, object]] = [
        {"params": [w.choice for w in layers if w.choice is not None], "lr": options.rounding_rate},
        {"params": steps, "lr": options.step_rate},
        {"params": biases, "lr": options.bias_rate},
    ]
    return [group for group in found if group["params"]]


@torch.no_grad()
def _outputs(model: Student, block: Block, inputs: Tensor, batch: int) -> Tensor:
    parts = [model.run({block.source: x}, block.nodes, block.result) for x in inputs.split(batch)]
    return torch.cat(parts)
