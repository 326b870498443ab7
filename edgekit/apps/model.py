"""What an app has to know of an artifact, and what a platform has to give for it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.apps.naming import identifier, type_name
from edgekit.artifacts import read_labels
from edgekit.errors import BadInput
from edgekit.types import Artifact, Manifest, Preprocess, TensorSpec


@dataclass(frozen=True, kw_only=True)
class AppModel:
    """An artifact that classifies one photo at a time.

    `classifier` is a name for the class of an app ("LvtClassifier"), `resource` one for files and packages
    ("lvt_tflite_int8"); both are plain ASCII and no word of a language, whatever the model is called. `min_sqnr_db` is
    how near a device's outputs have to be to the golden ones.
    """

    artifact: Artifact
    classifier: str
    resource: str
    input: TensorSpec
    output: TensorSpec
    preprocess: Preprocess
    labels: tuple[str, ...]
    min_sqnr_db: float

    @property
    def target(self) -> str:
        return self.artifact.manifest.target

    @property
    def classes(self) -> int:
        return self.output.shape[1]

    @property
    def is_of_integers(self) -> bool:
        """Whether its golden vectors are compared as those of integers: over all samples together."""
        return self.artifact.manifest.precision not in ("fp32", "fp16")


@dataclass(frozen=True, kw_only=True)
class Platform:
    """Where apps run: `files(model, package)` are the files of a module by relative path.

    `targets` are those it runs; `package(model)` is the name where the user gives none, `checked_package` raises
    `BadInput` for what is none; `steps` say what to do with the module, `notes` what could matter later.
    """

    name: str
    title: str
    targets: tuple[str, ...]
    files: Callable[[AppModel, str], Mapping[str, str | bytes | Path]]
    package: Callable[[AppModel], str]
    checked_package: Callable[[str], str]
    steps: Callable[[AppModel, str, Path], tuple[str, ...]]
    notes: Callable[[AppModel], tuple[str, ...]]


def _numbers(manifest: Manifest) -> Iterator[float]:
    if p := manifest.preprocess:
        yield from (*p.mean, *p.std, p.scale)
    for spec in (*manifest.inputs, *manifest.outputs):
        yield from (spec.quantization or {}).values()
    yield from (v.min_sqnr_db for v in manifest.verification)


def app_model(artifact: Artifact) -> AppModel:
    """Raises `BadInput` for an artifact that does not give one photo its class scores."""
    manifest = artifact.manifest
    labels = read_labels(artifact) or tuple(str(n) for n in range(manifest.outputs[0].shape[-1]))
    why = ""
    if manifest.preprocess is None:
        why = "its manifest does not say how a photo becomes its input"
    elif len(manifest.inputs) != 1 or len(manifest.outputs) != 1:
        why = f"it has {len(manifest.inputs)} inputs and {len(manifest.outputs)} outputs"
    elif len(manifest.inputs[0].shape) != 4 or len(manifest.outputs[0].shape) != 2:
        why = "it does not turn an image into a row of scores"
    elif manifest.inputs[0].shape[0] != 1:
        why = f"it takes {manifest.inputs[0].shape[0]} photos at a time"
    elif len(labels) != manifest.outputs[0].shape[1]:
        why = f"it has {len(labels)} labels for {manifest.outputs[0].shape[1]} classes"
    elif not all(map(math.isfinite, _numbers(manifest))):
        why = "its manifest has numbers that are none"
    if why or manifest.preprocess is None:
        raise BadInput(
            f"{artifact.path} is no classifier of single photos: {why}",
            "Export a classifier with --batch-size 1; use others through their runtime (see `edgekit inspect`).",
        )
    return AppModel(
        artifact=artifact,
        classifier=type_name(manifest.name) + "Classifier",
        resource=identifier(f"{manifest.name}-{manifest.target}-{manifest.precision}"),
        input=manifest.inputs[0],
        output=manifest.outputs[0],
        preprocess=manifest.preprocess,
        labels=labels,
        min_sqnr_db=manifest.verification[0].min_sqnr_db if manifest.verification else 30.0,
    )
