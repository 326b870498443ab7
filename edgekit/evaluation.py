"""Accuracy on labelled photos, of a float model or of an artifact run by its runtime."""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgekit.artifacts import load_artifact, read_labels
from edgekit.data import ImageSet, apply, open_images
from edgekit.errors import BadInput, UsageError
from edgekit.loading import Loaded, load
from edgekit.prediction import Classifier, classifier
from edgekit.types import Artifact, Evaluation, ModelRequest, Step
from edgekit.verification import flat_outputs, reference_of


def evaluate(
    subject: str | Path | Artifact,
    data: str | Path,
    *,
    weights: str | Path | None = None,
    model: str | None = None,
    limit: int | None = None,
    on_step: Step | None = None,
) -> Evaluation:
    """top-1 and top-5 of `subject`, an artifact or a model as `export` takes it, on the labelled images at `data`.

    For an artifact whose float model is still there, `agreement` is the share of images with the same top-1 class;
    a float model that is Python code must be named as `model`.
    Raises `BadInput` where the data has no labels, or labels of other classes.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"--limit is at least 1, not {limit}", "Leave it out to use all the images.")
    images = open_images(Path(data))
    classify, float_classify, labels, notes = _subject(subject, weights, model)
    to_class = _class_map(images, labels)
    report = on_step or (lambda what, done, total: None)
    total = min(len(images), limit or len(images))
    first = fifth = agree = n = 0
    seconds = 0.0
    for image in islice(images, total):
        if image.label is None:
            raise BadInput(
                f"{data} has no labels", "Put the images into one folder a class, or give a .npz or .tar with labels."
            )
        start = time.perf_counter()
        scores = classify(image.pixels)
        seconds += time.perf_counter() - start
        truth = to_class(image.label, len(scores))
        order = np.argsort(-scores, kind="stable")
        first += int(order[0] == truth)
        fifth += int(truth in order[:5])
        agree += int(float_classify is not None and float_classify(image.pixels).argmax() == order[0])
        n += 1
        report("evaluating", n, total)
    return Evaluation(
        top1=100 * first / n,
        top5=100 * fifth / n,
        n=n,
        agreement=None if float_classify is None else 100 * agree / n,
        images_per_second=n / seconds,
        ci95=wilson(first, n),
        notes=notes,
    )


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % Wilson score interval of hits / n, in percent (Wilson 1927)."""
    p, zz = hits / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * (p * (1 - p) / n + zz / (4 * n * n)) ** 0.5
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def _subject(
    subject: str | Path | Artifact, weights: str | Path | None, model: str | None
) -> tuple[Classifier, Classifier | None, tuple[str, ...], tuple[str, ...]]:
    if isinstance(subject, Artifact) or Path(subject).is_dir() or Path(subject).name == "edgekit.json":
        if weights is not None:
            raise BadInput("--weights cannot change an artifact: its weights are inside", "Leave --weights out.")
        artifact = subject if isinstance(subject, Artifact) else load_artifact(subject)
        try:
            float_classify = _float_classifier(reference_of(artifact, model))
        except UsageError:
            if model is not None:
                raise
            float_classify = None  # the float model's files are not here, or not to be run: nothing to agree with
        return classifier(artifact), float_classify, read_labels(artifact), artifact.manifest.notes
    loaded = load(ModelRequest(model=str(subject), weights=None if weights is None else str(weights)))
    return _float_classifier(loaded), None, loaded.labels, loaded.notes


def _float_classifier(loaded: Loaded) -> Classifier:
    preprocess = loaded.preprocess
    if preprocess is None:
        raise BadInput(f"{loaded.name} does not take images", "Only classifiers of images can be evaluated.")
    batch = loaded.inputs[0].shape[0]

    def classify(photo: Image.Image) -> NDArray[np.float32]:
        with torch.no_grad():
            one = torch.from_numpy(apply(preprocess, photo))[None]
            return flat_outputs(loaded.module(one.expand(batch, -1, -1, -1)))[0][0].numpy()

    return classify


def _class_map(images: ImageSet, labels: Sequence[str]) -> Callable[[int, int], int]:
    """From a data set's label to the model's class: by name where both name their classes, else the same number."""
    by_name = {name: i for i, name in enumerate(labels)}
    names = images.classes
    named = bool(names) and all(name in by_name for name in names)

    def to_class(label: int, classes: int) -> int:
        if named:
            return by_name[names[label]]
        if not 0 <= label < classes or (names and len(names) != classes):
            raise BadInput(
                f"the data has {len(names) or f'a label {label}, so more than {label}'} classes, the model {classes}",
                "Evaluate on the data that the model was trained for, or name its classes with --labels at export.",
            )
        return label

    return to_class
