"""Artifacts with any name, labels and tensors, without an export: their model files hold no model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit.artifacts import MANIFEST, hash_files, write_golden
from edgekit.types import Artifact, Delegation, Manifest, ModelRequest, Preprocess, TensorSpec, Weights

SUFFIXES = {"coreml": ".mlpackage", "executorch": ".pte", "tflite": ".tflite", "onnx": ".onnx"}
PREPROCESS = Preprocess(resize=9, crop=(8, 8))


def made_artifact(
    folder: Path,
    target: str = "onnx",
    *,
    name: str = "made",
    labels: Sequence[str] = ("a", "b", "c"),
    precision: str = "fp32",
    image: TensorSpec | None = None,
    preprocess: Preprocess = PREPROCESS,
) -> Artifact:
    """One in `folder`, which must not exist; its golden vectors are random. `image` is NCHW float32 unless given."""
    folder.mkdir(parents=True)
    layout = "NHWC" if target == "tflite" else "NCHW"
    shape = (1, 8, 8, 3) if layout == "NHWC" else (1, 3, 8, 8)
    image = image or TensorSpec(name="image", shape=shape, layout=layout)
    file = "model.mlpackage/Manifest.json" if target == "coreml" else f"model{SUFFIXES[target]}"
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(b"no model")
    (folder / "labels.txt").write_bytes("".join(f"{label}\n" for label in labels).encode())
    rng = np.random.default_rng(0)
    draw = [[[rng.normal(size=s).astype(np.float32)] for _ in range(2)] for s in (image.shape, (1, len(labels)))]
    write_golden(folder, (draw[0], draw[1]))
    manifest = Manifest(
        edgekit="0", name=name, model=name, weights=Weights(source="seed:0", sha256=""), target=target,
        precision=precision, files=hash_files(folder), inputs=(image,),
        outputs=(TensorSpec(name="logits", shape=(1, len(labels))),), preprocess=preprocess,
        request=ModelRequest(model=name), delegation=Delegation(backend="", delegated=0), layers={}, environment={},
        labels="labels.txt",
    )  # fmt: skip
    (folder / MANIFEST).write_text("{}\n")  # names that no manifest can hold are tried, too
    return Artifact(path=folder, manifest=manifest)
