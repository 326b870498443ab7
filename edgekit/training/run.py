"""A recipe, run: train in float, quantize, fine-tune the Q/DQ graph, export; each stage measured on the same photos."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from edgekit.artifacts import write_file
from edgekit.data import ImageSet, spread
from edgekit.data.checks import check
from edgekit.data.parts import Part
from edgekit.data.shards import Shards
from edgekit.errors import BadInput
from edgekit.evaluation import truth_of
from edgekit.evaluation.answers import in_torch
from edgekit.loading import Loaded, load
from edgekit.pipeline import export, targets_of
from edgekit.prediction import Classifier, classifier
from edgekit.targets import TARGETS
from edgekit.training import checkpoints, logs
from edgekit.training.accuracy import Accuracy, accuracy_of, best_classes, in_batches
from edgekit.training.data import Photos, open_training_data, parted
from edgekit.training.float_stage import BEST, LAST, FloatStage
from edgekit.training.int8_stage import QAT, RESULT, START, Int8Stage
from edgekit.training.reading import read_recipe
from edgekit.training.recipe import Recipe
from edgekit.training.students import FloatModel, classes_of, request_of, untrained
from edgekit.types import Artifact, Step

RECIPE, SUMMARY, ARTIFACTS = "recipe.json", "accuracy.json", "artifacts"
LAUNCH, LAUNCH_ID = "torchrun.id", "TORCHELASTIC_RUN_ID"
"""Which torchrun began the run: what it starts again goes on with that, and with nothing else."""
CHECKED = 50_000
"""The most images of a set that are looked at before training; of larger ones a part, spread over the classes."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run wrote: `path`, weights (.safetensors) or an int8 program (.pt2), and `artifacts` of it.

    `accuracy` is of "float", "ptq", "qat" and each target that was exported to, as far as the recipe has them.
    """

    name: str
    path: Path
    steps: int
    accuracy: dict[str, Accuracy]
    artifacts: tuple[Artifact, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def next_command(self) -> str:
        """What one would type now."""
        if self.artifacts:
            return f"edgekit profile {self.artifacts[0].path}"
        weights = "" if self.path.suffix == ".pt2" else f" --weights {self.path}"
        return f"edgekit export -m {self.path if not weights else self.name}{weights} -t all"


def train(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    force: bool = False,
    on_step: Step | None = None,
) -> Trained | None:
    """Run the recipe file, with `section.key=value` overrides; write the folder that its `out` names.

    `resume` goes on from the last checkpoint and ends as the run that was not interrupted would have, to the last bit
    on a CPU with as many threads. Under torchrun all processes but the first return None after the float stage.
    Raises an `EdgekitError`; a run that is there is only replaced with `force`.
    """
    plan = read_recipe(recipe, overrides)
    folder = Path(plan.out)
    if resume and force:
        raise BadInput("--resume goes on with the run that --force would replace", "Leave one of them out.")
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes; it alone looks after the folder
    again = _is_started_again(folder)
    if first:
        resume = _may_write(folder, plan, resume or again, force and not again) and (resume or again)
    _check_export(plan)
    images, evaluation = open_training_data(plan.data)
    student = untrained(plan, images) if plan.schedule else None
    loaded = student.loaded if student else load(request_of(plan.model, plan.seed))
    classes = student.classes if student else classes_of(loaded)
    photos, held = _photos(plan, loaded, classes, images, evaluation)
    notes = _checked(photos, held, classes, on_step) if first and not resume else ()
    run = _Run(plan, folder, photos, held, classes, first, resume, on_step)
    run.notes.extend(notes)
    return run.stages(loaded, student)


@dataclass
class _Run:
    """The stages in order; `accuracy` and `notes` grow."""

    plan: Recipe
    folder: Path
    photos: Photos
    held: Photos | None
    classes: int
    first: bool
    resume: bool
    on_step: Step | None

    def __post_init__(self) -> None:
        self.accuracy: dict[str, Accuracy] = {}
        self.notes: list[str] = []
        self.steps = 0
        self._reference: np.ndarray | None = None

    def begin(self) -> None:
        """The folder, with nothing of another run in it: to be called when all was found possible."""
        if self.resume or not self.first:
            return
        _clear(self.folder)
        write_file(self.folder / RECIPE, json.dumps(asdict(self.plan), indent=2).encode())
        if launch := os.environ.get(LAUNCH_ID):
            write_file(self.folder / LAUNCH, launch.encode())

    def stages(self, loaded: Loaded, student: FloatModel | None) -> Trained | None:
        path, quantized = Path(self.plan.model.weights or ""), None
        if student is not None:
            if student.new:
                self.notes.append(f"{', '.join(student.new)} start anew: {self.classes} classes")
            outcome = FloatStage(self.plan, student, self.photos, self.held, self.folder).run(self.begin, self.on_step)
            if outcome is None:
                return None
            self.steps += outcome.steps
            self._left_out("training", outcome.unreadable)
            path = self.folder / LAST
            loaded = load(replace(request_of(self.plan.model, self.plan.seed), weights=str(path), num_classes=None))
        elif self.first:
            self.begin()
        else:
            return None
        self._measure("float", loaded)
        if self.held is None:
            self.notes.append("nothing was evaluated: give data.evaluation a set, or data.holdout a share as 0.1")
        if self.plan.quantization is not None:
            stage = Int8Stage(self.plan, loaded, self.photos, self.folder, self.resume)
            start, result = stage.run(self.on_step)
            self._measure("ptq", start)
            if result is not None:
                self.steps += result.steps
                self._left_out("fine-tuning", result.unreadable)
                self._judge("qat", in_batches(result.model, self.photos, self.classes))
            path, quantized = stage.path, stage.quantized
        artifacts = self._exported(path) if self.plan.export else ()
        write_file(
            self.folder / SUMMARY, json.dumps({k: asdict(v) for k, v in self.accuracy.items()}, indent=2).encode()
        )
        notes = (*(quantized.notes if quantized else loaded.notes), *self.notes)
        return Trained(
            name=self.plan.model.name,
            path=path,
            steps=self.steps,
            accuracy=self.accuracy,
            artifacts=artifacts,
            notes=notes,
        )

    def _measure(self, name: str, loaded: Loaded) -> None:
        if self.held is not None:
            self._judge(name, in_torch(loaded, len(self.held)))

    def _judge(self, name: str, judge: Classifier, limit: int | None = None) -> None:
        """The accuracy of one stage; the first stage is the reference of the others."""
        if self.held is None:
            return
        chosen = list(spread(self.held.labels or [None] * len(self.held), limit or len(self.held)))
        held = self.held.at(chosen)
        best, unreadable = best_classes(held, judge, self.on_step)
        if self._reference is None:
            self._reference = best
            self._left_out("evaluation", dict(enumerate(unreadable)))
        self.accuracy[name] = accuracy_of(held, best, self._reference[chosen])

    def _left_out(self, where: str, unreadable: dict[int, str]) -> None:
        if unreadable:
            texts = list(unreadable.values())
            counted = "1 image is" if len(texts) == 1 else f"{len(texts)} images are"
            names = "; ".join(texts[:3]) + ("; …" if len(texts) > 3 else "")
            self.notes.append(f"{where}: {counted} left out: {names}")

    def _exported(self, path: Path) -> tuple[Artifact, ...]:
        """Artifacts of the last stage, each measured on the held-out photos."""
        section = self.plan.export
        assert section is not None
        program = path.suffix == ".pt2"
        artifacts = export(
            str(path) if program else self.plan.model.name,
            section.targets,
            weights=None if program else path,
            out=self.folder / ARTIFACTS,
            seed=self.plan.seed,
            compare_speed=False,
            force=True,
            on_step=self.on_step,
        )
        for artifact in artifacts:
            self._judge(
                f"{artifact.manifest.target} {artifact.manifest.precision}", classifier(artifact), section.limit
            )
        return artifacts


def _checked(photos: Photos, held: Photos | None, classes: int, on_step: Step | None) -> tuple[str, ...]:
    """What is to be known of the data. Raises `BadInput` for what makes training pointless."""
    found = check(
        photos.images if isinstance(photos.images, Shards) else Part(photos.images, photos.places),
        None if held is None else Part(held.images, held.places),
        num_classes=classes, channels=len(photos.preprocess.mean), limit=CHECKED, on_step=on_step,
    )  # fmt: skip
    found.refuse()
    return found.notes


def _photos(
    plan: Recipe, loaded: Loaded, classes: int, images: ImageSet, evaluation: ImageSet | None
) -> tuple[Photos, Photos | None]:
    """The photos to train on, and those to evaluate on where the recipe names any. Raises `BadInput`."""
    if isinstance(images, Shards):
        return _of_shards(plan, loaded, images), _evaluated(plan, loaded, classes, evaluation)
    trained, kept = parted(images, plan)
    photos = _with_classes(images, trained, loaded, classes)
    if photos.labels is None and _needs_labels(plan):
        raise BadInput(
            f"data.train: {plan.data.train} has no labels, which the loss needs",
            "Give labelled photos, or train on a teacher's answers alone: distillation.weight=1",
        )
    if kept:
        return photos, _with_classes(images, kept, loaded, classes)
    return photos, _evaluated(plan, loaded, classes, evaluation)


def _evaluated(plan: Recipe, loaded: Loaded, classes: int, images: ImageSet | None) -> Photos | None:
    if images is None:
        return None
    return _with_classes(images, spread(images.labels, plan.data.limit or len(images)), loaded, classes)


def _of_shards(plan: Recipe, loaded: Loaded, images: Shards) -> Photos:
    """Of shards no image is picked beforehand: they are read a few at a time."""
    quantization = plan.quantization
    for wrong, text, hint in (
        (plan.schedule is None or (quantization and quantization.qat), "train in float alone", "Leave qat out."),
        (plan.data.holdout or plan.data.train_limit, "are trained on whole", "Give data.evaluation a set of its own."),
        (
            quantization and quantization.calibration is None,
            "do not calibrate",
            "Give quantization.calibration photos.",
        ),
        (not images.is_labelled and _needs_labels(plan), "have no labels", "Add .cls files, or distil: weight=1."),
    ):
        if wrong:
            raise BadInput(f"data.train: tar shards ({plan.data.train}) {text}", hint)
    assert loaded.preprocess is not None
    return Photos(images, (), () if images.is_labelled else None, loaded.preprocess)


def _needs_labels(plan: Recipe) -> bool:
    taught, qat = plan.distillation, plan.quantization.qat if plan.quantization else None
    in_float = taught is None or taught.weight < 1 or taught.method in ("snapshot", "tolerant")
    in_int8 = qat is not None and (qat.distillation is None or qat.distillation.weight < 1)
    return (plan.schedule is not None and in_float) or in_int8


def _with_classes(images: ImageSet, places: Sequence[int], loaded: Loaded, classes: int) -> Photos:
    assert loaded.preprocess is not None
    labels = None
    if all(images.labels[i] is not None for i in places):
        labels = tuple(truth_of(images, places, loaded.labels, classes)[0].tolist())
    return Photos(images, tuple(places), labels, loaded.preprocess)


def _may_write(folder: Path, plan: Recipe, resume: bool, force: bool) -> bool:
    """Whether a run of this recipe is there to be resumed. Raises `BadInput` for what would be lost or mixed up."""
    try:
        before = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.exists() and any(folder.iterdir()):
            raise BadInput(f"out: {folder} holds other things than a run", "Give another folder: out=PATH") from None
        return False
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder / RECIPE} cannot be read ({error})", "Give another folder: out=PATH") from error
    if force:
        return False
    if not resume:
        raise BadInput(f"{folder} holds a run already", "Go on with it: --resume. Or replace it: --force.")
    now = json.loads(json.dumps(asdict(plan)))
    other = [f"{key}: {before.get(key)} there, {now[key]} now" for key in now if before.get(key) != now[key]]
    if other:
        raise BadInput(
            f"{folder} holds a run of another recipe:\n  " + "\n  ".join(other),
            "Resume with the same recipe, or give another folder: out=PATH",
        )
    return True


def _is_started_again(folder: Path) -> bool:
    """Whether torchrun has restarted this process, and its earlier attempt began the run in `folder`."""
    try:
        begun = (folder / LAUNCH).read_text(encoding="utf-8")
    except OSError:
        return False
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and begun == os.environ.get(LAUNCH_ID)


def _check_export(plan: Recipe) -> None:
    """Raises an `EdgekitError` for a target that there is not, or that cannot be lowered to here."""
    if plan.export is not None:
        for target in targets_of(plan.export.targets):
            target.check("int8" if plan.quantization else "fp32", TARGETS.values())


def _clear(folder: Path) -> None:
    """Nothing of another run is left; what is not a run's stays."""
    names = (RECIPE, LAUNCH, SUMMARY, checkpoints.CHECKPOINT, logs.LOG, logs.CURVES, BEST, LAST, START, RESULT)
    for place in (folder, folder / QAT):
        for name in names:
            (place / name).unlink(missing_ok=True)
    for place in (folder / logs.EVENTS, folder / QAT / logs.EVENTS, folder / ARTIFACTS):
        shutil.rmtree(place, ignore_errors=True)
