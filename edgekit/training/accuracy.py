"""What each stage of a run is worth, on the same held-out photos."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.evaluation.answers import MAX_BATCH, answers_of
from edgekit.prediction import Classifier
from edgekit.training.data import Photos
from edgekit.types import Step


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """In percent, on the `n` photos that were evaluated; `top1` is None where they have no labels.

    `agreement` is how often the best class is the float model's.
    """

    top1: float | None
    agreement: float
    n: int


def in_batches(run: Callable[[Tensor], Tensor], photos: Photos, classes: int) -> Classifier:
    """What turns images (N, C, H, W) of any N into logits, as a judge of photos."""

    def numpy(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return run(torch.from_numpy(batch)).float().cpu().numpy()

    return Classifier(preprocess=photos.preprocess, batch_size=MAX_BATCH, classes=classes, runtime="torch", run=numpy)


def best_classes(photos: Photos, judge: Classifier, on_step: Step | None = None) -> tuple[np.ndarray, list[str]]:
    """The best class of each photo, -1 of those that cannot be read, and why not."""
    answers = answers_of(photos.images, photos.places, [judge], on_step)
    best = np.full(len(photos), -1)
    best[answers.read] = answers.ranked[0][:, 0]
    return best, answers.unreadable


def accuracy_of(photos: Photos, best: np.ndarray, reference: np.ndarray) -> Accuracy:
    """Of the photos that could be read."""
    read = reference >= 0
    n = int(read.sum())
    hits = None if photos.labels is None else (best == np.array(photos.labels))[read]
    return Accuracy(
        top1=None if hits is None else 100 * float(hits.mean()),
        agreement=100 * float((best == reference)[read].mean()),
        n=n,
    )


def top1_of(model: nn.Module, photos: Photos, classes: int, device: torch.device) -> float | None:
    """Top-1 in percent; None where there are no labels."""
    if photos.labels is None:
        return None
    best, _ = best_classes(photos, in_batches(lambda x: model(x.to(device)), photos, classes))
    return accuracy_of(photos, best, best).top1
