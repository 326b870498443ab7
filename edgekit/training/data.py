"""Batches of photos: which ones and how they are augmented follows from the seed and the step alone.

So a run that is resumed at a step sees what it would have seen, and nothing of a random generator has to be saved.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgekit.calibration.photos import SPLITS
from edgekit.data import ImageSet, open_images, spread
from edgekit.data.shards import is_pattern, open_shards
from edgekit.errors import BadInput
from edgekit.training.augmentation import mixed
from edgekit.training.recipe import AugmentationSection, DataSection, Recipe
from edgekit.types import Preprocess

ORDER, _AUGMENTATION, _MIXING = 0, 1, 2
"""What a random number is for, beside the seed."""
Transform = Callable[[Image.Image, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Photos:
    """Some images of a set, prepared as the model takes them; `labels` are the model's classes, where known."""

    images: ImageSet
    places: tuple[int, ...]
    labels: tuple[int, ...] | None
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.places)

    @property
    def is_labelled(self) -> bool:
        return self.labels is not None

    def sample(self, number: int) -> tuple[Image.Image, int]:
        """A photo and its class, 0 where it has none. Raises `BadInput` where it cannot be read."""
        return self.images[self.places[number]].pixels, self.labels[number] if self.labels else 0

    def order(self, seed: int, epoch: int, start: int, stop: int) -> list[int]:
        """The numbers from `start` to `stop` in the order of an epoch."""
        return np.random.default_rng((seed, ORDER, epoch)).permutation(len(self))[start:stop].tolist()

    def at(self, numbers: Sequence[int]) -> "Photos":
        """Those of these numbers."""
        labels = None if self.labels is None else tuple(self.labels[n] for n in numbers)
        return replace(self, places=tuple(self.places[n] for n in numbers), labels=labels)


@dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W), their classes (N) or shares of classes (N, classes), and why others were left out."""

    images: Tensor
    labels: Tensor | None
    unreadable: dict[int, str] = field(default_factory=dict)


class Samples(Protocol):
    """What batches are made of: photos by number, and in which order an epoch takes them."""

    @property
    def is_labelled(self) -> bool: ...
    def __len__(self) -> int: ...
    def sample(self, number: int) -> tuple[Image.Image, int]: ...
    def order(self, seed: int, epoch: int, start: int, stop: int) -> list[int]: ...


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """`samples` in a new order each epoch, `size` at a time; what is left of an epoch is dropped.

    Of each batch this process takes the `rank`-th of `world` parts.
    """

    samples: Samples
    size: int
    seed: int
    transform: Transform
    mixing: AugmentationSection = field(default_factory=AugmentationSection)
    classes: int = 0
    rank: int = 0
    world: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        """Raises `BadInput` where the processes cannot have equal parts."""
        pairs = 2 if self._mixes else 1
        if self.size % (self.world * pairs):
            raise BadInput(
                f"data.batch_size: {self.size} is of all {self.world} processes together, and cannot be parted equally",
                f"Give a multiple of {self.world * pairs}.",
            )
        if self.world > 1 and len(self.samples) < self.size:
            raise BadInput(
                f"data.batch_size: {self.size} is more than the {len(self.samples)} samples there are",
                "Give less, or train in one process.",
            )

    @property
    def per_epoch(self) -> int:
        return max(1, len(self.samples) // self.size)

    def __len__(self) -> int:
        return self.per_epoch

    def __getitem__(self, step: int) -> Batch:
        """The augmented photos and classes of a step; what cannot be read is left out and named.

        Where not one can be read, the next photo that can be stands in. Raises `BadInput` where there is none at all.
        """
        part = self.numbers(step)
        found, unreadable = self._read(part, step)
        for number in range(part[0] + 1, part[0] + len(self.samples)) if not found else ():
            found, _ = self._read([number % len(self.samples)], step)
            if found:
                break
        if not found:
            raise BadInput(f"not one image can be read: {unreadable[part[0]]}", "Check them: edgekit data check")
        images, labels = torch.stack([x for x, _ in found]), torch.tensor([label for _, label in found])
        if not self.samples.is_labelled:
            return Batch(images, None, unreadable)
        if self._mixes:
            rng = np.random.default_rng((self.seed, _MIXING, step))
            images, labels = mixed(images, labels, self.classes, self.mixing, rng)
        return Batch(images, labels, unreadable)

    def numbers(self, step: int) -> list[int]:
        """The samples of this process's part of a step."""
        epoch, place = divmod(step, self.per_epoch)
        whole = self.samples.order(self.seed, epoch, place * self.size, (place + 1) * self.size)
        part = -(-len(whole) // self.world)
        return whole[self.rank * part : (self.rank + 1) * part]

    def _read(self, numbers: Sequence[int], step: int) -> tuple[list[tuple[Tensor, int]], dict[int, str]]:
        """What can be read, in the order of `numbers`, and why the others cannot."""
        read: dict[int, tuple[Tensor, int]] = {}
        unreadable: dict[int, str] = {}
        for number in sorted(numbers):  # in the order of the files, which is how a disk reads best
            try:
                pixels, label = self.samples.sample(number)
            except BadInput as error:
                unreadable[number] = error.message
                continue
            read[number] = self.transform(pixels, (self.seed, _AUGMENTATION, step, number)), label
        return [read[number] for number in numbers if number in read], unreadable

    @property
    def _mixes(self) -> bool:
        return bool(self.mixing.mixup or self.mixing.cutmix)

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of these steps, decoded ahead where there are workers."""
        if not self.workers:
            yield from (self[step] for step in range(start, stop))
            return
        yield from DataLoader(
            self, batch_size=None, sampler=range(start, stop), num_workers=self.workers,
            multiprocessing_context="forkserver", prefetch_factor=4,
        )  # fmt: skip


def open_training_data(data: DataSection) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on (or to hold out from), and those of `evaluation`. Raises `BadInput`."""
    images: ImageSet = open_shards(data.train) if is_pattern(data.train) else open_images(Path(data.train), SPLITS)
    return images, None if data.evaluation is None else open_images(Path(data.evaluation))


def parted(images: ImageSet, plan: Recipe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which images to train on, and which of the same set to evaluate on where `holdout` asks for some."""
    data, seed, number = plan.data, plan.seed, calibrating(plan, len(images))
    everything = tuple(range(len(images)))
    if not data.holdout:
        return _at_most(images, everything, data.train_limit, seed), ()
    reserved = set(spread(images.labels, number, seed)) if number else set()
    free = [i for i in everything if i not in reserved]
    chosen = spread([images.labels[i] for i in free], round(data.holdout * len(images)), seed)
    kept = tuple(free[i] for i in chosen)
    trained = tuple(sorted(set(everything) - set(kept)))
    if not kept or not trained:
        raise BadInput(
            f"data.holdout: {data.holdout:g} of {len(images)} images leaves {len(trained)} to train on and "
            f"{len(kept)} to evaluate on",
            "Change the share, or give data.evaluation a set of its own.",
        )
    return _at_most(images, trained, data.train_limit, seed), _at_most(images, kept, data.limit, 0)


def calibrating(plan: Recipe, images: int) -> int:
    """How many of the `images` that are trained on calibrate int8 too, those held out never among them."""
    section, data = plan.quantization, plan.data
    if section is None or section.calibration not in (None, data.train):
        return 0
    return min(section.num_calibration_samples, math.floor((1 - data.holdout) * images))


def _at_most(images: ImageSet, places: Sequence[int], limit: int | None, seed: int) -> tuple[int, ...]:
    chosen = spread([images.labels[i] for i in places], limit or len(places), seed)
    return tuple(places[i] for i in chosen)
