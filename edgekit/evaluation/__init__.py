"""Accuracy on labelled photos, of a model in torch or of an artifact run by its runtime, and what it lost."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.artifacts import load_artifact, read_labels
from edgekit.data import ImageSet, open_images, spread
from edgekit.errors import BadInput, UsageError
from edgekit.evaluation.answers import answers_of, in_torch
from edgekit.evaluation.statistics import result_of
from edgekit.loading import Loaded, load
from edgekit.prediction import Classifier, classifier
from edgekit.types import Artifact, Evaluation, ModelRequest, Step
from edgekit.verification import float_model, reference_of

Name = str | Path | Artifact
Opened = Artifact | Loaded


def evaluate(
    subject: Name,
    data: str | Path,
    *,
    weights: str | Path | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    model: str | None = None,
    against: Name | None = None,
    limit: int | None = None,
    on_step: Step | None = None,
) -> Evaluation:
    """Top-1 and top-5 of `subject`, an artifact or a model as `export` takes it, on the labelled images at `data`.

    It is compared, image by image, with `against` or else with the float model that it was made from, where that can be
    loaded again; one that is Python code must be named as `model`. `weights` go to the subject, or to `against` where
    the subject has its own; `mean` and `std` are for models whose preprocessing is not known. `limit` takes a sample
    spread over the classes, the same each time. Images that cannot be read are left out, counted and named.
    Raises `BadInput` where the data has no labels, labels of other classes, or not one image that can be read.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"--limit is at least 1, not {limit}", "Leave it out to use all the images.")
    if against is not None and model is not None:
        raise BadInput("--against and --model both say what to compare with", "Leave one of them out.")
    images = labelled(data)
    chosen = spread(images.labels, limit or len(images))
    given = ModelRequest(model="", weights=None if weights is None else str(weights), mean=mean, std=std)
    reference: Opened | None
    if against is None:
        opened = _open(subject, given)
        reference, notes = _float_reference(opened, model)
    else:
        of_subject, of_against = _requests(subject, against, given)
        opened, reference = _open(subject, of_subject), _open(against, of_against)
        notes = [*_notes(opened), *(f"{_text(against)}: {note}" for note in _notes(reference))]
    judges = [classifier(o) if isinstance(o, Artifact) else in_torch(o, len(chosen)) for o in (opened, reference) if o]
    notes += _comparable(_text(subject), _text(against), judges)
    labels = read_labels(opened) if isinstance(opened, Artifact) else opened.labels
    truth, mismatch = truth_of(images, chosen, labels, judges[0].classes)
    answers = answers_of(images, chosen, judges, on_step)
    return result_of(
        answers,
        truth[answers.read],
        labels or images.classes,
        judges[0],
        against=None if reference is None else "float" if against is None else _text(against),
        notes=(*notes, *mismatch, *answers.notes(len(chosen))),
    )


def labelled(data: str | Path) -> ImageSet:
    """The images at `data`. Raises `BadInput` where one of them has no label."""
    images = open_images(Path(data))
    missing = sum(label is None for label in images.labels)
    if missing:
        some = f"has no labels for {missing} of its {len(images)} images"
        raise BadInput(
            f"{data} has no labels" if missing == len(images) else f"{data} {some}",
            "Put the images into one folder a class, or give a .npz or .tar with labels.",
        )
    return images


def _is_artifact(name: Name) -> bool:
    return isinstance(name, Artifact) or Path(name).is_dir() or Path(name).name == "edgekit.json"


def _text(name: Name | None) -> str:
    return str(name.path) if isinstance(name, Artifact) else str(name or "its float model")


def _requests(subject: Name, against: Name, given: ModelRequest) -> tuple[ModelRequest, ModelRequest]:
    """What is asked of each: weights go to the subject if it takes any, statistics to what is no artifact."""
    nothing, statistics = ModelRequest(model=""), replace(given, weights=None)
    if _is_artifact(subject):
        return nothing, given
    if _is_artifact(against):
        return given, nothing
    return (statistics, given) if _text(subject).endswith(".pt2") else (given, statistics)


def _open(name: Name, given: ModelRequest) -> Opened:
    if not _is_artifact(name):
        return load(replace(given, model=_text(name)))
    if given.weights or given.mean or given.std:
        option, what = ("--weights", "weights are") if given.weights else ("--mean or --std", "preprocessing is")
        raise BadInput(f"{option} cannot change an artifact: its {what} inside", f"Leave {option} out.")
    return name if isinstance(name, Artifact) else load_artifact(name)


def _notes(opened: Opened) -> tuple[str, ...]:
    return opened.manifest.notes if isinstance(opened, Artifact) else opened.notes


def _comparable(subject: str, against: str, judges: Sequence[Classifier]) -> list[str]:
    """Raises `BadInput` for other classes; says aloud where a drop may come from other preprocessing."""
    first, last = judges[0], judges[-1]
    if first.classes != last.classes:
        raise BadInput(
            f"{subject} has {first.classes} classes, {against} {last.classes}",
            "Compare it with a model of the same classes.",
        )
    a, b = asdict(first.preprocess), asdict(last.preprocess)
    other = [f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b[key]]
    return [f"{subject} and {against} prepare photos differently: {', '.join(other)}"] if other else []


def _float_reference(opened: Opened, model: str | None) -> tuple[Loaded | None, list[str]]:
    try:
        return _float_of(opened, model), list(_notes(opened))
    except UsageError as error:
        if model is not None:
            raise
        why = f"not compared with its float model: {error.message}. Name that with --model or with --against."
        return None, [*_notes(opened), why]


def _float_of(opened: Opened, model: str | None) -> Loaded | None:
    """The float model that it was made from, or None where it is float itself; raises as `reference_of` does."""
    if isinstance(opened, Artifact):
        return reference_of(opened, model)
    if opened.quantized is not None:
        return float_model(opened, trusted=model is not None)
    if model is not None:
        raise BadInput(
            f"--model names what an artifact was exported from, and {opened.request.model} is a model itself",
            "Leave --model out, or compare the two with --against.",
        )
    return None


def truth_of(
    images: ImageSet, chosen: Sequence[int], labels: Sequence[str], classes: int
) -> tuple[NDArray[np.int64], list[str]]:
    """The model's class of each chosen image: by name where both name their classes, else by number, said aloud.

    Raises `BadInput` where the data has other classes than the model.
    """
    found = np.array([images.labels[i] for i in chosen], np.int64)
    names, by_name = images.classes, {name: i for i, name in enumerate(labels)}
    unknown = [name for name in names if name not in by_name]
    if names and not unknown:
        return np.array([by_name[names[label]] for label in found]), []
    odd = [label for label in found.tolist() if not 0 <= label < classes]
    if odd or (names and len(names) != classes):
        has = f"{len(names)} classes" if names else f"a label {odd[0]}, so more than {odd[0]} classes"
        also = f" (and none of the model's is called {', '.join(unknown[:3])})" if labels and unknown else ""
        raise BadInput(
            f"the data has {has}{also}, the model {classes}",
            "Evaluate on the data that the model was trained for, or name its classes with --labels at export.",
        )
    if not names or not labels:
        return found, []
    return found, [
        f"the data and the model name their classes differently ({names[0]}, … and {labels[0]}, …): "
        "they are matched by number, in alphabetical order where they are folders"
    ]
