"""Samples of tar shards, a few shards at a time; which come when follows from the seed and the epoch alone.

An epoch takes the shards in a new order, `MIXED` of them at a time, and the samples of these in a new order: reading
stays within a few files, memory within one batch. Neither workers nor processes change what a step is made of.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from edgekit.data.shards import Shards
from edgekit.errors import BadInput
from edgekit.training.data import ORDER

MIXED = 8
"""Shards that are shuffled together."""


@dataclass(frozen=True)
class ShardSamples:
    """What `Batches` are made of, out of shards.

    `to_class` are the model's numbers of the shards' classes where these differ. A sample that cannot be read, has no
    label or one beyond `classes` (0: any) raises `BadInput`.
    """

    shards: Shards
    classes: int = 0
    to_class: tuple[int, ...] = ()

    @property
    def is_labelled(self) -> bool:
        return self.shards.is_labelled

    def __len__(self) -> int:
        return len(self.shards)

    def sample(self, number: int) -> tuple[Image.Image, int]:
        """An image and its class, 0 where the shards have no labels."""
        image = self.shards[number]
        if not self.is_labelled:
            return image.pixels, 0
        if image.label is None:
            raise BadInput(f"{image.name} has no label (.cls, or .json with `label`)", "Add one.")
        known = len(self.to_class) or self.classes
        if known and image.label >= known:
            raise BadInput(f"{image.name} has the label {image.label}, beyond the {known} classes", "Correct it.")
        return image.pixels, self.to_class[image.label] if self.to_class else image.label

    def order(self, seed: int, epoch: int, start: int, stop: int) -> list[int]:
        """From `start` to `stop` in the order of an epoch, of which only the shards that are met are put in order."""
        starts = self.shards.starts
        shards = np.random.default_rng((seed, ORDER, epoch)).permutation(len(starts) - 1)
        ends = np.cumsum(np.add.reduceat(np.diff(starts)[shards], np.arange(0, len(shards), MIXED)))
        met = range(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop, "left")) + 1)
        parts = []
        for group in met:
            chosen = shards[group * MIXED : (group + 1) * MIXED]
            numbers = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in chosen])
            parts.append(np.random.default_rng((seed, ORDER, epoch, group)).permutation(numbers))
        before = int(ends[met[0] - 1]) if met[0] else 0
        return np.concatenate(parts)[start - before : stop - before].tolist()
