"""The calibration set: which photos are taken, and what can be seen of them without the network."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.calibration.doubts import doubts
from edgekit.data import apply, open_images, spread
from edgekit.errors import BadInput
from edgekit.loading import Loaded
from edgekit.types import Calibration, Preprocess, Step

SPLITS = ("train", "training", "val", "validation", "test")
"""Held-out images are for measuring what int8 costs, so those that were trained on come first."""
FEW = 32
MAX_UNREADABLE = 0.1
MAX_COPIES = 0.05
MOST = 0.5
FLAT = 1.0
"""Grey levels: a photo that deviates less within itself shows nothing, one that does between channels is grey."""


@dataclass(frozen=True)
class CalibrationSet:
    """Inputs of the captured program, one tuple a call, and how they came about; `warnings` say what looks wrong."""

    samples: tuple[tuple[Tensor, ...], ...]
    record: Calibration
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Photos:
    inputs: NDArray[np.float32]
    unreadable: tuple[str, ...]


def calibration_set(
    loaded: Loaded, path: Path, *, samples: int = 128, seed: int = 0, on_step: Step | None = None
) -> CalibrationSet:
    """`samples` photos of the data at `path`, spread over its classes, as inputs (N, C, H, W) of the model.

    The same seed takes the same photos; only these are decoded. The last batch is filled with photos from the first.
    Raises `BadInput` where there is nothing to calibrate with: no photos, too many that cannot be read, only constant
    ones, or a model that takes no photos. What may be wrong is in `warnings`.
    """
    if loaded.preprocess is None or len(loaded.inputs) != 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in loaded.inputs)
        raise BadInput(
            f"{loaded.name} cannot be calibrated with photos: its input ({shapes}) is no image",
            "Photos fit one input of N,1,H,W or N,3,H,W. Use a precision that needs no calibration: fp32, fp16, "
            "or int8 or int4 of the weights alone.",
        )
    if samples < 1:
        raise BadInput(
            f"{samples} photos cannot calibrate", "Type e.g. --num-calibration-samples 128, or leave it out."
        )
    photos = _read(path, loaded.preprocess, samples, seed, on_step)
    n = len(photos.inputs)
    record = Calibration(kind="images", source=path.name or str(path), samples=n, seed=seed)
    constant = int((_levels(photos.inputs, loaded.preprocess).std((2, 3)).max(1) < FLAT).sum())
    if constant == n:
        raise BadInput(
            f"all the {n} photos of {path} are of one colour each: they show no range of values to calibrate with",
            "Give photos like those the model will see: --calibration PATH",
        )
    batch = loaded.inputs[0].shape[0]
    filled = torch.from_numpy(photos.inputs[np.arange(-(-n // batch) * batch) % n]).to(loaded.inputs[0].dtype)
    calls = tuple((call,) for call in filled.split(batch))
    seen = _seen(photos, loaded.preprocess, samples, constant)
    return CalibrationSet(calls, record, (*seen, *doubts(loaded, calls, n, on_step)))


def _read(path: Path, preprocess: Preprocess, samples: int, seed: int, on_step: Step | None) -> _Photos:
    images = open_images(path, SPLITS)
    chosen = spread(images.labels, samples, seed)
    inputs: list[NDArray[np.float32]] = []
    unreadable: list[str] = []
    # In an order of chance, so that the first photos are as mixed as all of them.
    for done, index in enumerate(np.random.default_rng(seed).permutation(chosen).tolist(), 1):
        try:
            image = images[index]
        except BadInput as error:
            unreadable.append(error.message)
            if len(unreadable) > MAX_UNREADABLE * len(chosen):
                raise BadInput(
                    f"{len(unreadable)} of the {done} images of {path} that were opened cannot be read\n  "
                    + _listed(unreadable),
                    "Remove or replace them, or give another set: --calibration PATH",
                ) from error
            continue
        inputs.append(apply(preprocess, image.pixels))
        if on_step:
            on_step("reading photos to calibrate with", done, len(chosen))
    return _Photos(np.stack(inputs), tuple(unreadable))


def _levels(inputs: NDArray[np.float32], preprocess: Preprocess) -> NDArray[np.float32]:
    """The pixels (0 to 255) that `apply` made the inputs (N, C, H, W) of."""
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    levels: NDArray[np.float32] = (inputs * std + mean) / np.float32(preprocess.scale)
    return levels


def _seen(photos: _Photos, preprocess: Preprocess, samples: int, constant: int) -> tuple[str, ...]:
    n = len(photos.inputs)
    different = len({hashlib.sha256(x.tobytes()).digest() for x in photos.inputs})
    found = []
    if photos.unreadable:
        found.append(f"{len(photos.unreadable)} images cannot be read and are left out: {_listed(photos.unreadable)}")
    if different < FEW:
        count = f"only {different} different photo{'s' if different > 1 else ''}"
        found.append(
            f"{count} to calibrate with: ranges seen on so few are too narrow, and values outside them are cut off. "
            f"Give {FEW} or more (128 is usual)."
        )
    elif n + len(photos.unreadable) < samples:
        found.append(f"{samples} photos were asked for; there are {n}, and all are used")
    if n - different > MAX_COPIES * n:
        found.append(f"{n - different} of the {n} photos are copies of others among them")
    if constant:
        found.append(f"{constant} of the {n} photos are of one colour each (black, say) and show nothing")
    # The channels are looked at, for files that say RGB may yet be grey.
    grey = int((_levels(photos.inputs, preprocess).std(1).mean((1, 2)) < FLAT).sum())
    if len(preprocess.mean) == 3 and grey > MOST * n:
        found.append(f"{grey} of the {n} photos are grey, and the model takes RGB: give photos in colour")
    return tuple(found)


def _listed(names: Sequence[str], most: int = 5) -> str:
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")
