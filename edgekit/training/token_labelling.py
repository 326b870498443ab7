"""Token labelling and mix-token: every patch token learns what a teacher sees at its place.

Paper: "All Tokens Matter: Token Labeling for Training Better Vision Transformers", Jiang et al., NeurIPS 2021, sections
3.1 and 3.2; LVT was trained so. Written from the papers. With M the share of tokens that are the image's own::

    loss = CE(class token, M y + (1 - M) y') + weight * mean over tokens of CE(patch token, its dense label)

Mix-token exchanges one box of tokens between two images after the first patch embedding, so that no patch holds parts
of both. The patch logits are exchanged back: CE of those with an image's own dense labels is that of the mixed ones
with mixed labels, summed in another order. Images are paired with their neighbour in the batch, as mixup's are.

Dense labels are made of the augmented images themselves, so none are stored and no box of them is cropped out. As
published, they came from files that an NFNet made once (weight 0.5, Beta(1, 1)); any classifier whose head reads a map
of features answers place by place here, without its pooling.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import BadInput
from edgekit.training.recipe import TokenLabellingSection

TOKEN_HEADS = ("lvt",)
"""Models of the zoo with `forward_dense`: logits of a class token and of each patch token."""


@dataclass(frozen=True)
class TokenMix:
    """Exchange of the places where `box` (h, w) is true between each image and its `partner` (B)."""

    box: Tensor
    partner: Tensor

    def __call__(self, maps: Tensor) -> Tensor:
        """Maps (B, k h, k w, C), mixed; those that were mixed come apart again."""
        times = maps.shape[1] // self.box.shape[0], maps.shape[2] // self.box.shape[1]
        box = self.box.repeat_interleave(times[0], 0).repeat_interleave(times[1], 1)
        return torch.where(box[:, :, None], maps[self.partner], maps)

    def classes(self, targets: Tensor) -> Tensor:
        """Shares of classes (B, K), mixed as the tokens are."""
        return targets.lerp(targets[self.partner], self.box.float().mean().item())


class DenseTeacher(nn.Module):
    """What `teacher` sees at each place of an image: its head reads a place of its last map as it reads their mean.

    `prepare` turns the student's images into the teacher's. Raises `BadInput` for one without such a head.
    """

    def __init__(self, teacher: nn.Module, prepare: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        if not (hasattr(teacher, "forward_dense") or _has(teacher, "forward_features", "forward_head")):
            raise BadInput(
                f"token_labelling.teacher: {type(teacher).__name__} has no answers for places of the image",
                "Give one of the zoo but for mobile-former-*, or a module with forward_features and forward_head.",
            )
        self._teacher: Any = teacher.eval().requires_grad_(False)
        self._prepare = prepare

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images (B, C, H, W) -> shares of classes (B, h w, K) at the places of `grid` (h, w); each sums to 1.

        The scores are resampled to the grid, then softmax.
        """
        teacher, images = self._teacher, images if self._prepare is None else self._prepare(images)
        if hasattr(teacher, "forward_dense"):
            scores = teacher.forward_dense(images)[1].unflatten(1, (images.shape[2] // teacher.feature_strides[-1], -1))
        else:
            features = teacher.forward_features(images)
            maps = (features if isinstance(features, Tensor) else features[-1]).permute(0, 2, 3, 1)
            scores = teacher.forward_head(maps.flatten(0, 2)[:, :, None, None]).unflatten(0, maps.shape[:3])
        scores = scores.permute(0, 3, 1, 2).float()
        if scores.shape[2:] != grid:
            scores = functional.interpolate(scores, grid, mode="bilinear", antialias=True)
        return scores.flatten(2).transpose(1, 2).softmax(-1)

    def train(self, mode: bool = True) -> "DenseTeacher":
        """It stays in eval mode."""
        return super().train(False)


def check_student(model: nn.Module) -> None:
    """Raises `BadInput` where `model` has no logits of its patch tokens."""
    if not _has(model, "forward_dense"):
        raise BadInput(
            f"token_labelling: {type(model).__name__} has no logits of its patch tokens",
            f"Models with a token head: {', '.join(TOKEN_HEADS)}. Others learn from a teacher with distillation.",
        )


def _has(model: nn.Module, *methods: str) -> bool:
    return all(callable(getattr(model, method, None)) for method in methods)


def loss(
    model: Any,
    images: Tensor,
    labels: Tensor,
    section: TokenLabellingSection,
    teacher: DenseTeacher,
    rng: np.random.Generator,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of a step: images (B, C, H, W), `labels` classes (B) or their shares (B, K).

    What is mixed follows from `rng` alone. `label_smoothing` is of the class token. Raises `BadInput` for a model
    without a token head and for a teacher of other classes.
    """
    check_student(model)
    stride: int = model.feature_strides[-1]
    grid = (images.shape[2] // stride, images.shape[3] // stride)
    mix = token_mix(len(images), grid, section.mix_token, rng, images.device) if section.mix_token else None
    dense = teacher(images, grid)
    logits, tokens = model.forward_dense(images, mix)
    if dense.shape[-1] != logits.shape[1]:
        raise BadInput(
            f"token_labelling.teacher: it knows {dense.shape[-1]} classes, and the model {logits.shape[1]}",
            "Give a teacher that was trained on the same classes.",
        )
    targets = labels if labels.dim() == 2 else functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    whole = functional.cross_entropy(
        logits, targets if mix is None else mix.classes(targets), label_smoothing=label_smoothing
    )
    parts = functional.cross_entropy(tokens.flatten(0, 1), dense.flatten(0, 1).to(tokens.dtype))
    return whole + section.weight * parts


def token_mix(
    batch: int, grid: tuple[int, int], alpha: float, rng: np.random.Generator, device: torch.device | str = "cpu"
) -> TokenMix:
    """A box of `grid` (h, w) whose share of the area is 1 - Beta(alpha, alpha) before the edges cut it off.

    CutMix's box (Yun et al. 2019, equation 2) on whole tokens of the last stage. The last image of an odd batch has
    itself as its partner.
    """
    side = math.sqrt(1 - rng.beta(alpha, alpha))
    rows, columns = (_span(length, round(side * length), int(rng.integers(length))) for length in grid)
    box = torch.zeros(grid, dtype=torch.bool, device=device)
    box[rows, columns] = True
    partner = torch.arange(batch, device=device) ^ 1
    return TokenMix(box, partner.where(partner < batch, batch - 1))


def _span(length: int, size: int, centre: int) -> slice:
    """`size` places around `centre`, cut off at the edges of `length`."""
    start = centre - size // 2
    return slice(max(0, start), min(length, max(0, start + size)))
