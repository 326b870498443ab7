"""Augmentation of training images; what happens to one follows from its seed alone.

So the number of workers or processes changes nothing, and a run that is resumed sees what it would have seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from edgekit.data import apply, normalize, resampling, upright
from edgekit.training.recipe import AugmentationSection
from edgekit.types import Preprocess

_ASPECT = (3 / 4, 4 / 3)
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
_TRIES = 10


@dataclass(frozen=True)
class ImageTransform:
    """A photo as the model takes it, augmented: called with the photo and the seed of this sight of it."""

    preprocess: Preprocess
    section: AugmentationSection

    def __call__(self, image: Image.Image, seed: Sequence[int]) -> Tensor:
        """(C, H, W), normalized."""
        rng = np.random.default_rng(seed)
        section = self.section
        values = self._cropped(image, rng) if section.random_resized_crop else apply(self.preprocess, image)
        x = torch.from_numpy(values)
        if section.flip and rng.random() < 0.5:
            x = x.flip(2)
        if section.rand_augment or section.color_jitter:
            x = self._recoloured(x, int(rng.integers(2**31)))
        if section.crop_padding:
            x = _shifted(x, section.crop_padding, rng)
        if rng.random() < section.random_erasing:
            x = _erased(x, rng)
        return x.contiguous()

    def _cropped(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.float32]:
        image = upright(self.preprocess, image)
        height, width = self.preprocess.crop
        assert self.section.random_resized_crop is not None
        box = _box(image.size, (self.section.random_resized_crop, 1.0), _ASPECT, rng)
        resized = image.resize((width, height), resampling(self.preprocess), box=box, reducing_gap=2.0)
        return normalize(self.preprocess, np.asarray(resized, np.float32))

    def _recoloured(self, x: Tensor, seed: int) -> Tensor:
        """Kornia works on colours from 0 to 1 and draws from torch's generator."""
        mean = torch.tensor(self.preprocess.mean)[:, None, None]
        std = torch.tensor(self.preprocess.std)[:, None, None]
        largest = 255 * self.preprocess.scale
        colours = ((x * std + mean) / largest).clamp(0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            colours = self._operations(colours[None])[0]
        return (colours.clamp(0, 1) * largest - mean) / std

    @cached_property
    def _operations(self) -> nn.Module:
        from kornia.augmentation import ColorJitter
        from kornia.augmentation.auto import RandAugment

        by = self.section.color_jitter
        chosen: list[nn.Module] = []
        if self.section.rand_augment:
            chosen.append(RandAugment(n=2, m=self.section.rand_augment))
        if by:
            chosen.append(ColorJitter(brightness=by, contrast=by, saturation=by, p=1.0))
        return nn.Sequential(*chosen)


def mixed(
    images: Tensor, labels: Tensor, classes: int, section: AugmentationSection, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Neighbours in the batch mixed with each other: images (N, C, H, W), and targets (N, classes) that sum to 1.

    A pair, not the batch turned round: processes that have a part of the batch each then mix as one would.
    """
    targets = functional.one_hot(labels, classes).to(images.dtype)
    cut = section.cutmix > 0 and (section.mixup == 0 or rng.random() < 0.5)
    alpha = section.cutmix if cut else section.mixup
    kept = float(rng.beta(alpha, alpha))
    partner = torch.arange(len(images)) ^ 1
    partner[partner == len(images)] = len(images) - 1
    if not cut:
        images = kept * images + (1 - kept) * images[partner]
    else:
        height, width = images.shape[2:]
        top, bottom = _span(height, math.sqrt(1 - kept), rng)
        left, right = _span(width, math.sqrt(1 - kept), rng)
        other = images[partner]
        images = images.clone()
        images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        kept = 1 - (bottom - top) * (right - left) / (height * width)
    return images, kept * targets + (1 - kept) * targets[partner]


def _span(length: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """From, to: `share` of `length` around a centre anywhere in it, cut off at the edges."""
    centre, half = int(rng.integers(length)), round(length * share) // 2
    return max(0, centre - half), min(length, centre + half)


def _box(
    size: tuple[int, int], areas: tuple[float, float], aspects: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a part of an image of this (width, height); the largest centre where none fits."""
    width, height = size
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*areas)
        aspect = math.exp(rng.uniform(math.log(aspects[0]), math.log(aspects[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, height * aspects[1]), min(height, width / aspects[0])
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def _shifted(x: Tensor, padding: int, rng: np.random.Generator) -> Tensor:
    height, width = x.shape[1:]
    top, left = rng.integers(0, 2 * padding + 1, 2).tolist()
    return functional.pad(x, (padding,) * 4)[:, top : top + height, left : left + width]


def _erased(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Normal noise in a rectangle: what is normalized has mean 0 and variance 1."""
    height, width = x.shape[1:]
    box = _box((width, height), _ERASED_AREA, _ERASED_ASPECT, rng)
    left, top, right, bottom = (round(v) for v in box)
    x = x.clone()
    noise = rng.standard_normal((len(x), bottom - top, right - left), np.float32)
    x[:, top:bottom, left:right] = torch.from_numpy(noise)
    return x
