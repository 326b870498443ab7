"""A photo through an artifact, by its manifest alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.artifacts import load_artifact, read_labels
from edgekit.data import apply, read_image
from edgekit.errors import BadInput
from edgekit.golden import to_layout
from edgekit.targets import TARGETS
from edgekit.types import Artifact, Prediction, Preprocess

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """What gives images their class scores (logits), `batch_size` at a time.

    `run` takes images as `preprocess` makes them, (batch_size, C, H, W), and returns (batch_size, classes).
    """

    preprocess: Preprocess
    batch_size: int
    classes: int
    runtime: str
    run: Callable[[Floats], Floats]

    def __call__(self, photo: Image.Image) -> Floats:
        """The scores of one photo, (classes,); it fills the whole batch."""
        return self.run(np.repeat(apply(self.preprocess, photo)[None], self.batch_size, axis=0))[0]


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
    """The classifier that the artifact's runtime runs. Raises `BadInput` where it does not classify images."""
    manifest = artifact.manifest
    if manifest.preprocess is None or len(manifest.outputs[0].shape) != 2:
        raise BadInput(
            f"{artifact.path} does not classify images", "Use its runtime directly; `edgekit inspect` shows its inputs."
        )
    spec, target = manifest.inputs[0], TARGETS[manifest.target]
    target.require_runtime()
    run = target.runner(artifact.model_path, manifest.inputs, manifest.outputs)
    return Classifier(
        preprocess=manifest.preprocess,
        batch_size=spec.shape[0],
        classes=manifest.outputs[0].shape[1],
        runtime=target.runtime,
        run=lambda batch: run([to_layout(batch, spec)])[0],
    )


def _ranked(logits: NDArray[np.float32], labels: Sequence[str], top: int) -> tuple[Prediction, ...]:
    scores = logits.astype(np.float64)
    shifted = np.exp(scores - scores.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-scores, kind="stable")[:top]
    return tuple(
        Prediction(label=labels[i] if i < len(labels) else str(i), index=int(i), probability=float(probabilities[i]))
        for i in order
    )
