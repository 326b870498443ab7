"""A photo through an artifact, by its manifest alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.artifacts import load_artifact, read_labels
from edgekit.data import apply, read_image
from edgekit.errors import BadInput
from edgekit.targets import TARGETS
from edgekit.types import Artifact, Prediction
from edgekit.verification import to_layout

Classifier = Callable[[Image.Image], NDArray[np.float32]]


def predict(
    artifact: str | Path | Artifact, images: Sequence[str | Path], *, top: int = 5
) -> tuple[tuple[Prediction, ...], ...]:
    """The `top` classes of each photo, most probable first.

    Raises `BadInput` for what is no photo, or for an artifact that does not classify images.
    """
    if top < 1:
        raise BadInput(f"--top is at least 1, not {top}", "Type e.g. --top 5")
    if not isinstance(artifact, Artifact):
        artifact = load_artifact(artifact)
    classify = classifier(artifact)
    labels = read_labels(artifact)
    photos = [read_image(Path(image)) for image in images]
    return tuple(_ranked(classify(photo), labels, top) for photo in photos)


def classifier(artifact: Artifact) -> Classifier:
    """A function from a photo to the class scores (logits) that the artifact's runtime gives it."""
    manifest = artifact.manifest
    if manifest.preprocess is None or len(manifest.outputs[0].shape) != 2:
        raise BadInput(
            f"{artifact.path} does not classify images", "Use its runtime directly; `edgekit inspect` shows its inputs."
        )
    preprocess, spec = manifest.preprocess, manifest.inputs[0]
    target = TARGETS[manifest.target]
    target.require_runtime()
    run = target.runner(artifact.model_path, manifest.inputs, manifest.outputs)

    def classify(photo: Image.Image) -> NDArray[np.float32]:
        one = apply(preprocess, photo)[None]
        batch = np.repeat(one, spec.shape[0], axis=0)  # the shape is static: a larger batch holds copies
        outputs: list[NDArray[Any]] = run([to_layout(batch, spec)])
        return outputs[0][0]

    return classify


def _ranked(logits: NDArray[np.float32], labels: Sequence[str], top: int) -> tuple[Prediction, ...]:
    scores = logits.astype(np.float64)
    shifted = np.exp(scores - scores.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-scores, kind="stable")[:top]
    return tuple(
        Prediction(label=labels[i] if i < len(labels) else str(i), index=int(i), probability=float(probabilities[i]))
        for i in order
    )
