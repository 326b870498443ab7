"""What a step minimizes: labels, and a teacher's answers beside or instead of them.

    kd        T² KL(p_T || q_T), of answers softened by T          Hinton et al. 2015, section 2
    ssld      (KL(p || q) + KL(q || p)) / 2, no temperature        Cui et al. 2021 (SSLD), of its code
    snapshot  kd; the teacher is the model itself at the end of the last cycle, the first has none
                                                                   Yang et al. 2019 (Snapshot Distillation)
    tolerant  f_1 - mean(f_2 … f_K) of the sorted scores, made small, so that second classes survive in what is to
              teach a next generation                              Yang et al. 2019 (Training in Generations)

The loss is (1 - weight) CE(labels) + weight times one of these. A teacher's weights are no part of the state of the
run but for a snapshot's.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.training.recipe import DistillationSection

Answers = Callable[[Tensor], Tensor]


def kd(answers: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher || model) of logits (N, classes), the mean over N."""
    divergence = functional.kl_div(
        (answers / temperature).log_softmax(1), (targets / temperature).log_softmax(1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    return temperature**2 * divergence


def symmetrized_kl(answers: Tensor, targets: Tensor) -> Tensor:
    """(KL(teacher || model) + KL(model || teacher)) / 2 of logits (N, classes), the mean over N."""
    p, q = targets.log_softmax(1), answers.log_softmax(1)
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(1).mean()


def top_score_difference(answers: Tensor, top_k: int) -> Tensor:
    """How far the best of the `top_k` scores (after softmax) is above the mean of the others, the mean over N."""
    scores = answers.softmax(1).topk(min(top_k, answers.shape[1]), 1).values
    return (scores[:, 0] - scores[:, 1:].mean(1)).mean()


class Objective:
    """The loss of a step. `teacher` turns images into logits; a snapshot is taken when a cycle ends."""

    def __init__(
        self, section: DistillationSection | None, teacher: Answers | None = None, label_smoothing: float = 0.0
    ) -> None:
        self._section, self._teacher, self._label_smoothing = section, teacher, label_smoothing
        self._snapshot: nn.Module | None = None

    def __call__(self, model: Answers, images: Tensor, labels: Tensor | None, step: int = 0) -> Tensor:
        """`labels` are classes (N) or their shares (N, classes); None where the weight of the teacher is 1."""
        answers = model(images)
        section = self._section
        if section is None or (section.method == "snapshot" and self._snapshot is None):
            return self._labelled(answers, labels)
        loss = answers.new_zeros(())
        if section.weight < 1:
            loss = (1 - section.weight) * self._labelled(answers, labels)
        return loss + section.weight * self._taught(section, answers, images) if section.weight else loss

    def _labelled(self, answers: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return functional.cross_entropy(answers, labels, label_smoothing=self._label_smoothing)

    def _taught(self, section: DistillationSection, answers: Tensor, images: Tensor) -> Tensor:
        if section.method == "tolerant":
            return top_score_difference(answers, section.top_k)
        teacher = self._snapshot if section.method == "snapshot" else self._teacher
        assert teacher is not None
        with torch.no_grad():
            targets = teacher(images)
        if section.method == "ssld":
            return symmetrized_kl(answers, targets)
        return kd(answers, targets, section.temperature)

    def cycle_ended(self, model: nn.Module) -> None:
        """The weights of now teach the next cycle, where they do."""
        if self._section is not None and self._section.method == "snapshot":
            self._snapshot = copy.deepcopy(model).eval().requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on."""
        return {} if self._snapshot is None else {"snapshot": self._snapshot.state_dict()}

    def restore(self, state: dict[str, Any], model: nn.Module) -> None:
        """`model` is one of the same architecture."""
        if "snapshot" in state:
            self.cycle_ended(model)
            assert self._snapshot is not None
            self._snapshot.load_state_dict(state["snapshot"])
