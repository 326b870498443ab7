"""Images that int8 was not calibrated with: of the same family, and of families that are made in another way."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgekit.data import apply, sample_photos
from edgekit.data_free import ENSEMBLE, DataFreeCalibration, calls, seconds_of
from edgekit.data_free.priors import prior_images
from edgekit.data_free.synthesis import synthesize
from edgekit.errors import MissingDependency
from edgekit.loading import Loaded
from edgekit.quantization._execution import Samples
from edgekit.types import Step

IN_FAMILY, CROSS_FAMILY = "in-family", "cross-family"
PHOTOS, COLLAGES = "crops of two stock photos", "collages"
OWN_PRIORS, FITTING = "image priors, another seed", "images that fit, another seed"
PRIORS = ("dead_leaves", "pink")
"""What is not compared on: white noise, which no camera sees and no calibration has to fit."""
_MOST, _LEAST = 16, 4
# About what a family may take, and how many passes of the float network its two walks and sums are worth.
_SECONDS, _PASSES = 6.0, 6
_CLOSEST = 0.35


@dataclass(frozen=True)
class Family:
    """Images by what made them, as calls of the captured program."""

    name: str
    relation: str
    samples: Samples


def affordable(loaded: Loaded) -> int:
    """How many images a family has: fewer of a large network, the same on every machine."""
    return max(_LEAST, min(_MOST, round(_SECONDS / (_PASSES * seconds_of(loaded)))))


def stock_photos(loaded: Loaded, count: int, seed: int) -> Tensor | None:
    """Crops of the photos that edgekit verifies with, prepared as the model takes them; None where it takes none."""
    if loaded.preprocess is None:
        return None
    try:
        photos = sample_photos()[::2]
    except MissingDependency:
        return None
    chance, found = random.Random(seed), []
    for n in range(count):
        photo = photos[n % len(photos)]
        side = round(min(photo.size) * chance.uniform(_CLOSEST, 1))
        left, top = (chance.randint(0, full - side) for full in photo.size)
        found.append(torch.from_numpy(apply(loaded.preprocess, photo.crop((left, top, left + side, top + side)))))
    return torch.stack(found)


def collages(images: Tensor) -> Tensor:
    """Images (N, C, H, W) of four quarters, each of another image: objects where they never were."""
    height, width = (n // 2 for n in images.shape[-2:])
    made = images.clone()
    places = ((slice(None, height), slice(width, None)), (slice(height, None), slice(None, width)),
              (slice(height, None), slice(width, None)))  # fmt: skip
    for shift, (rows, columns) in enumerate(places, 1):
        made[..., rows, columns] = images.roll(shift, 0)[..., rows, columns]
    return made


def held_out(loaded: Loaded, calibration: DataFreeCalibration, seed: int, on_step: Step | None = None) -> list[Family]:
    """Images as those of `calibration` with another seed first, then all that it has not seen the like of."""
    count = affordable(loaded)
    shape, seen = tuple(calibration.images.shape[1:]), tuple[str, ...]()
    if calibration.synthesis is not None:
        name = FITTING
        # They are looked at, not calibrated with: half the steps will do.
        steps = -(-calibration.synthesis.options.steps // 2)
        options = replace(calibration.synthesis.options, count=count, steps=steps, seed=seed)
        own = synthesize(loaded, options, on_step).images
        seen = () if calibration.trusted else ENSEMBLE
    elif len(shape) == 3:
        name, seen = OWN_PRIORS, ENSEMBLE
        own = torch.cat([_prior(loaded, kind, -(-count // len(seen)), shape, seed) for kind in seen])
    else:
        name = "normal numbers, another seed"
        own = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    found = [Family(name, IN_FAMILY, calls(loaded, own))]
    return found if len(shape) != 3 else found + others(loaded, own, seen, seed)


def others(loaded: Loaded, own: Tensor, seen: Sequence[str], seed: int) -> list[Family]:
    """As many images as `own` (N, C, H, W), of families that are made in another way; not of the priors `seen`."""
    count, shape = len(own), tuple(own.shape[1:])
    found = [(PHOTOS, stock_photos(loaded, count, seed)), (COLLAGES, collages(own) if len(own) > 3 else None)]
    found += [(kind, _prior(loaded, kind, count, shape, seed)) for kind in PRIORS if kind not in seen]
    return [Family(n.replace("_", " "), CROSS_FAMILY, calls(loaded, x)) for n, x in found if x is not None]


def _prior(loaded: Loaded, kind: str, count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    channels, height, width = shape
    return prior_images(kind, count, (channels, height, width), loaded.preprocess, seed)
