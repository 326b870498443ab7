"""Losses of a step that are more than labels and a teacher's answers, around or instead of `distillation.Objective`."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.compression import LowRankTerms
from edgekit.training import token_labelling
from edgekit.training.recipe import TokenLabellingSection

_MIXED_TOKENS = 3


class Loss(Protocol):
    """What the loop minimizes; `labels` are classes (N) or their shares (N, classes)."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor | None, step: int) -> Tensor: ...
    def cycle_ended(self, model: nn.Module) -> None:
        """To be called when a cycle of the learning rate has ended."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any], model: nn.Module) -> None: ...


class TokenLabelled:
    """The loss of token labelling, what is mixed following from the seed and the step."""

    def __init__(
        self, section: TokenLabellingSection, teacher: token_labelling.DenseTeacher, label_smoothing: float, seed: int
    ) -> None:
        self._section, self._teacher, self._label_smoothing, self._seed = section, teacher, label_smoothing, seed

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor | None, step: int) -> Tensor:
        assert labels is not None
        rng = np.random.default_rng((self._seed, _MIXED_TOKENS, step))
        return token_labelling.loss(model, images, labels, self._section, self._teacher, rng, self._label_smoothing)

    def cycle_ended(self, model: nn.Module) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any], model: nn.Module) -> None:
        pass


class Compressed:
    """Another loss, and the terms that keep a factored model near its `original`; both see each batch."""

    def __init__(self, loss: Loss, original: nn.Module, terms: LowRankTerms) -> None:
        self._loss, self._original, self._terms = loss, original, terms

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor | None, step: int) -> Tensor:
        self._terms.clear()
        loss = self._loss(model, images, labels, step)
        with torch.no_grad():
            self._original(images)
        return loss + self._terms.loss()

    def cycle_ended(self, model: nn.Module) -> None:
        self._loss.cycle_ended(model)

    def state(self) -> dict[str, Any]:
        return self._loss.state()

    def restore(self, state: dict[str, Any], model: nn.Module) -> None:
        self._loss.restore(state, model)
