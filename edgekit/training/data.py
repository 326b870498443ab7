"""Batches of photos: which ones and how they are augmented follows from the seed and the step alone.

So a run that is resumed at a step sees what it would have seen, and nothing of a random generator has to be saved.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgekit.calibration.photos import SPLITS
from edgekit.data import ImageSet, apply, open_images, spread
from edgekit.errors import BadInput
from edgekit.evaluation import truth_of
from edgekit.loading import Loaded
from edgekit.training.recipe import DataSection, Recipe
from edgekit.types import Preprocess

_ORDER, _AUGMENTATION = 0, 1


@dataclass(frozen=True)
class Photos:
    """Some images of a set, prepared as the model takes them; `labels` are the model's classes, where they are known.

    Images that cannot be read are left out of their batch; `unreadable` gathers why.
    """

    images: ImageSet
    places: tuple[int, ...]
    labels: tuple[int, ...] | None
    preprocess: Preprocess
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The photos of these numbers (N, C, H, W) and their classes (N). Raises `BadInput` where none can be read."""
        inputs, read = [], []
        for number in numbers:
            try:
                inputs.append(torch.from_numpy(apply(self.preprocess, self.images[self.places[number]].pixels)))
                read.append(number)
            except BadInput as error:
                self.unreadable[number] = error.message
        if not inputs:
            raise BadInput(
                f"not one of {len(numbers)} images can be read: {self.unreadable[numbers[0]]}",
                "Give .jpg or .png photos.",
            )
        labels = None if self.labels is None else torch.tensor([self.labels[n] for n in read])
        return torch.stack(inputs), labels


@dataclass(frozen=True)
class Batches:
    """`photos` in a new order each epoch, `size` at a time; what is left of an epoch is dropped."""

    photos: Photos
    size: int
    seed: int
    flip: bool
    crop_padding: int

    @property
    def per_epoch(self) -> int:
        return max(1, len(self.photos) // self.size)

    def __call__(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The augmented photos (N, C, H, W) and classes (N) of a step."""
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(len(self.photos))
        images, labels = self.photos.read(order[place * self.size : (place + 1) * self.size].tolist())
        return self._augmented(images, np.random.default_rng((self.seed, _AUGMENTATION, step))), labels

    def _augmented(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        if self.flip:
            mirrored = torch.from_numpy(rng.random(len(images)) < 0.5)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.crop_padding:
            height, width = images.shape[2:]
            padded = torch.nn.functional.pad(images, (self.crop_padding,) * 4)
            corners = rng.integers(0, 2 * self.crop_padding + 1, (len(images), 2)).tolist()
            crops = [p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)]
            images = torch.stack(crops)
        return images


def photos_of(recipe: Recipe, loaded: Loaded, classes: int) -> tuple[Photos, Photos | None]:
    """The photos to train on, and those to evaluate on where the recipe names any. Raises `BadInput`.

    Held-out photos are taken from those that do not calibrate either.
    """
    data, quantization = recipe.data, recipe.quantization
    images = open_images(Path(data.train), SPLITS)
    everything = tuple(range(len(images)))
    if data.evaluation is not None:
        held = open_images(Path(data.evaluation))
        shown = _limited(held, tuple(range(len(held))), data, loaded, classes)
        return _photos(images, everything, loaded, classes), shown
    if not data.holdout:
        return _photos(images, everything, loaded, classes), None
    calibrating: set[int] = set()
    if quantization.calibration in (None, data.train):
        calibrating = set(spread(images.labels, quantization.num_calibration_samples, recipe.seed))
    free = [i for i in everything if i not in calibrating]
    chosen = spread([images.labels[i] for i in free], round(data.holdout * len(images)), recipe.seed)
    kept = tuple(free[i] for i in chosen)
    trained = tuple(sorted(set(everything) - set(kept)))
    if not kept or not trained:
        raise BadInput(
            f"data.holdout: {data.holdout:g} of {len(images)} images leaves {len(trained)} to train on and "
            f"{len(kept)} to evaluate on",
            "Change the share, or give data.evaluation a set of its own.",
        )
    return _photos(images, trained, loaded, classes), _limited(images, kept, data, loaded, classes)


def _limited(images: ImageSet, places: tuple[int, ...], data: DataSection, loaded: Loaded, classes: int) -> Photos:
    chosen = spread([images.labels[i] for i in places], data.limit or len(places))
    return _photos(images, tuple(places[i] for i in chosen), loaded, classes)


def _photos(images: ImageSet, places: tuple[int, ...], loaded: Loaded, classes: int) -> Photos:
    assert loaded.preprocess is not None
    labels = None
    if all(images.labels[i] is not None for i in places):
        labels = tuple(truth_of(images, places, loaded.labels, classes)[0].tolist())
    return Photos(images, places, labels, loaded.preprocess)
