"""The model to train, with a class for each of the data's, and the teachers that it is shown."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from edgekit.data import ImageSet
from edgekit.errors import BadInput
from edgekit.loading import Loaded, load
from edgekit.models import ZOO, check_owner, load_body, read_card, read_state, weights_file
from edgekit.training.recipe import ModelSection, Recipe
from edgekit.training.token_labelling import DenseTeacher
from edgekit.types import ModelRequest
from edgekit.user_code import takes_classes


@dataclass(frozen=True)
class FloatModel:
    """A model to train: its class names, and which of its tensors are new (the head, where classes were replaced)."""

    loaded: Loaded
    classes: int
    new: tuple[str, ...] = ()


def request_of(model: ModelSection, seed: int) -> ModelRequest:
    return ModelRequest(
        model=model.name,
        weights=model.weights,
        num_classes=model.num_classes,
        image_size=model.image_size,
        seed=seed,
        labels=model.labels,
        mean=model.mean,
        std=model.std,
    )


def classes_of(loaded: Loaded) -> int:
    """How many scores the model returns for a photo. Raises `BadInput` for one that is no classifier of photos."""
    scores = None
    if loaded.preprocess is not None and len(loaded.inputs) == 1:
        with torch.no_grad():
            scores = loaded.module(*loaded.inputs)
    if not isinstance(scores, torch.Tensor) or scores.dim() != 2:
        raise BadInput(
            f"{loaded.name} does not turn one photo into a row of class scores",
            "Only classifiers of photos can be trained: see `edgekit models`.",
        )
    return scores.shape[1]


def untrained(plan: Recipe, images: ImageSet) -> FloatModel:
    """The model of the recipe with a class for each of `images`, and of its weights all that fits."""
    section = plan.model
    path = weights_file(section.name, section.weights)
    card = None if path is None else read_card(path)
    choosable = section.name in ZOO or takes_classes(section.name)
    classes = section.num_classes or ((len(images.classes) or None) if choosable else None)
    size = section.image_size or (card.image_size[0] if card else None)
    loaded = load(replace(request_of(section, plan.seed), weights=None, num_classes=classes, image_size=size))
    new: tuple[str, ...] = ()
    if path is not None:
        state = read_state(path)
        if (spec := ZOO.get(section.name)) is not None:
            check_owner(path, section.name)
            state = spec.convert_state(state)
            state = spec.fit_state(state, loaded.module) if spec.fit_state else state
        new = load_body(loaded.module, loaded.name, state, str(path))
    # Classes are numbered as the data has them, unless the recipe names them itself.
    labels = loaded.labels if section.labels or not images.classes else images.classes
    preprocess = loaded.preprocess
    if card and card.preprocess and preprocess and preprocess.crop == card.preprocess.crop:
        seen = card.preprocess
        preprocess = replace(seen, mean=section.mean or seen.mean, std=section.std or seen.std)
    if preprocess is not None and section.crop_pct is not None:
        preprocess = replace(preprocess, resize=round(min(preprocess.crop) / section.crop_pct))
    notes = tuple(n for n in loaded.notes if "random weights" not in n)
    loaded = replace(loaded, labels=labels, preprocess=preprocess, notes=notes)
    return FloatModel(loaded, classes_of(loaded), new)


def teacher_of(section: ModelSection, student: FloatModel, seed: int) -> nn.Module:
    """A model that answers the student's images with scores of the student's classes. Raises `BadInput`."""
    loaded = _teacher(section, student, seed, "distillation")
    return nn.Sequential(_prepared(loaded, student), loaded.module.requires_grad_(False)).eval()


def dense_teacher_of(section: ModelSection, student: FloatModel, seed: int) -> DenseTeacher:
    """A model that answers for each place of the student's images. Raises `BadInput`."""
    loaded = _teacher(section, student, seed, "token_labelling")
    return DenseTeacher(loaded.module, _prepared(loaded, student))


def _teacher(section: ModelSection, student: FloatModel, seed: int, of: str) -> Loaded:
    loaded = load(request_of(section, seed))
    classes = classes_of(loaded)
    if classes != student.classes:
        raise BadInput(
            f"{of}.teacher: {section.name} has {classes} classes, the model {student.classes}",
            "Give a teacher that was trained on the same classes.",
        )
    return loaded


def _prepared(teacher: Loaded, student: FloatModel) -> nn.Module:
    """The student's images as the teacher was trained to see them."""
    assert teacher.preprocess is not None
    assert student.loaded.preprocess is not None
    seen, made = teacher.preprocess, student.loaded.preprocess
    return _AsSeen(seen.crop, _affine(made.mean, made.std, seen.mean, seen.std))


def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], other_mean: tuple[float, ...], other_std: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a, b) with a x + b normalized as the other wants it, where x is normalized by `mean` and `std`."""
    m, s, om, os_ = (torch.tensor(v)[:, None, None] for v in (mean, std, other_mean, other_std))
    return s / os_, (m - om) / os_


class _AsSeen(nn.Module):
    """Images at another size and with another normalization."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, size: tuple[int, ...], affine: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self._size = size
        self.register_buffer("scale", affine[0])
        self.register_buffer("shift", affine[1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if tuple(images.shape[2:]) != tuple(self._size):
            # Images that were enlarged for the student come back nearly as they were; antialiasing would blur them.
            images = nn.functional.interpolate(images, self._size, mode="bicubic")
        return images * self.scale + self.shift
