"""Photos through several classifiers at once, each read and prepared once."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.data import ImageSet, apply
from edgekit.errors import BadInput
from edgekit.golden import flat_outputs
from edgekit.loading import Loaded
from edgekit.prediction import Classifier, Floats
from edgekit.types import Preprocess, Step

Ints = NDArray[np.int64]

MAX_BATCH = 32
BATCH_PIXELS = 4 * 224 * 224
"""Of one batch in torch: four images of 224; the activations of more leave the cache, and each image takes longer."""
TOP = 5


@dataclass(frozen=True)
class Answers:
    """For each judge the best classes of each image that was read, best first: (images, TOP); -1 for scores of NaN."""

    ranked: list[Ints]
    read: list[int]
    unreadable: list[str]
    images_per_second: float

    def notes(self, total: int) -> list[str]:
        """What should be said aloud: images left out, scores that are no numbers."""
        said = []
        if self.unreadable:
            names = "; ".join(self.unreadable[:3]) + ("; …" if len(self.unreadable) > 3 else "")
            said.append(f"{len(self.unreadable)} of {total} images are left out: {names}")
        if nan := int((self.ranked[0][:, 0] < 0).sum()):
            said.append(f"the scores of {nan} images are no numbers (NaN), which counts as wrong")
        return said


def in_torch(loaded: Loaded, images: int) -> Classifier:
    """The module in torch, in batches that suit it and `images` where that changes no scores, else in its own.

    Raises `BadInput` for what does not turn one image into a row of class scores.
    """
    (example, *others), preprocess = loaded.inputs, loaded.preprocess
    if preprocess is None or others or not example.is_floating_point():
        raise BadInput(f"{loaded.name} does not take images", "Only classifiers of images can be evaluated.")

    def run(batch: Floats) -> Floats:
        with torch.no_grad():
            return flat_outputs(loaded.module(torch.from_numpy(batch).to(example.dtype)))[0].float().numpy()

    scores = run(example.float().numpy())
    if scores.ndim != 2:
        raise BadInput(
            f"{loaded.name} returns {scores.shape}, not a row of class scores for each image",
            "Only classifiers of images can be evaluated.",
        )
    suits = min(MAX_BATCH, max(1, BATCH_PIXELS // (example.shape[2] * example.shape[3])), images)
    return Classifier(
        preprocess=preprocess,
        batch_size=suits if _takes_any_batch(run, example) else example.shape[0],
        classes=scores.shape[1],
        runtime="torch",
        run=run,
    )


def _takes_any_batch(run: Callable[[Floats], Floats], example: torch.Tensor) -> bool:
    """Whether two images in one batch get the scores that each gets alone: shapes may be fixed in the module."""
    pair = torch.randn((2, *example.shape[1:]), generator=torch.Generator().manual_seed(0)).numpy()
    try:
        alone = np.concatenate([run(pair[:1]), run(pair[1:])])
        return np.allclose(run(pair), alone, rtol=1e-3, atol=1e-3 * float(np.abs(alone).max()))
    except Exception:  # a module may raise anything for a shape that it was not made for
        return False


def answers_of(images: ImageSet, chosen: Sequence[int], judges: Sequence[Classifier], on_step: Step | None) -> Answers:
    """Show the chosen images to every judge. Raises `BadInput` where none can be read.

    Only the runs of the first judge are timed, and its first run only where there is no other: in it runtimes allocate
    and choose their kernels.
    """
    report = on_step or (lambda what, done, total: None)
    step = -(-MAX_BATCH // judges[0].batch_size) * judges[0].batch_size
    ranked: list[list[Ints]] = [[] for _ in judges]
    seconds: list[float] = []
    read: list[int] = []
    unreadable: list[str] = []
    for start in range(0, len(chosen), step):
        prepared: dict[Preprocess, list[Floats]] = {judge.preprocess: [] for judge in judges}
        for place in range(start, min(start + step, len(chosen))):
            try:
                photo = images[chosen[place]].pixels
            except BadInput as error:
                unreadable.append(error.message)
                continue
            read.append(place)
            for preprocess, arrays in prepared.items():
                arrays.append(apply(preprocess, photo))
        for judge, best in zip(judges, ranked, strict=True):
            for rows, took in _runs(judge, prepared[judge.preprocess]):
                best.append(rows)
                if judge is judges[0]:
                    seconds.append(took)
                    report("evaluating", sum(map(len, best)) + len(unreadable), len(chosen))
    if not read:
        raise BadInput(
            f"not one of {len(chosen)} images can be read, e.g. {unreadable[0]}", "Give .jpg or .png photos."
        )
    timed = seconds[1:] or seconds
    return Answers(
        [np.concatenate(best) for best in ranked], read, unreadable, judges[0].batch_size * len(timed) / sum(timed)
    )


def _runs(judge: Classifier, inputs: Sequence[Floats]) -> Iterator[tuple[Ints, float]]:
    """The best classes of each input and the seconds it took, a batch at a time; copies fill up the last one."""
    for start in range(0, len(inputs), judge.batch_size):
        batch = list(inputs[start : start + judge.batch_size])
        filled = np.stack(batch + batch[-1:] * (judge.batch_size - len(batch)))
        began = time.perf_counter()
        scores = judge.run(filled)
        took = time.perf_counter() - began
        # Stable: of equal scores, which int8 often gives, the first class counts, in every runtime alike.
        best = np.argsort(-scores[: len(batch)], axis=1, kind="stable")[:, :TOP]
        yield np.where(np.isnan(scores[: len(batch)]).any(1, keepdims=True), -1, best), took
