"""A recipe, run: load, quantize after training (PTQ), fine-tune the Q/DQ graph, fold it, measure, write."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from edgekit.artifacts import write_file
from edgekit.errors import BadInput
from edgekit.loading import Loaded, load
from edgekit.programs import quantized_bytes
from edgekit.quantization import prepare
from edgekit.quantizing import with_precision
from edgekit.training import loop
from edgekit.training.data import Batches, Photos, photos_of
from edgekit.training.fake_quant import FakeQuantized
from edgekit.training.recipe import Recipe, read_recipe
from edgekit.types import ModelRequest, QuantizationOptions, Quantized, Step

RECIPE, START, RESULT = "recipe.json", "ptq.pt2", "model.pt2"


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """In percent, on the `n` photos that were evaluated; `top1` is None where they have no labels.

    `agreement` is how often the best class is the float model's.
    """

    top1: float | None
    agreement: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run wrote: `path`, an int8 `.pt2` file for `export`; `accuracy` of "float", "ptq" and "qat"."""

    path: Path
    quantized: Quantized
    steps: int
    accuracy: dict[str, Accuracy]
    notes: tuple[str, ...] = ()


def train(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    force: bool = False,
    on_step: Step | None = None,
) -> Trained:
    """Run the recipe file, with `section.key=value` overrides; write the folder that its `out` names.

    `resume` goes on from the last checkpoint and ends as the run that was not interrupted would have, to the last bit
    on a CPU with as many threads. Raises an `EdgekitError`; a run that is there is only replaced with `force`.
    """
    plan = read_recipe(recipe, overrides)
    folder = Path(plan.out)
    resume = _may_write(folder, plan, resume, force) and resume
    loaded = load(_request(plan))
    classes = _classes(loaded)
    photos, held = photos_of(plan, loaded, classes)
    if photos.labels is None and (plan.distillation is None or plan.distillation.weight < 1):
        raise BadInput(
            f"data.train: {plan.data.train} has no labels, which the loss needs",
            "Give labelled photos, or train on the float model's answers alone: distillation.weight=1",
        )
    start = load(ModelRequest(model=str(folder / START))) if resume else _start(folder, plan, loaded, on_step)
    model = FakeQuantized(start.program, prepare(loaded.program), plan.quantization.learn_ranges)
    before = _answers(model, held, plan.data.batch_size)
    batches = Batches(photos, plan.data.batch_size, plan.seed, plan.data.flip, plan.data.crop_padding)
    steps = loop.run(model, loaded.module, batches, plan, folder, on_step)
    assert start.quantized is not None
    quantized = replace(start.quantized, notes=(*start.quantized.notes, _note(plan, steps)))
    write_file(folder / RESULT, quantized_bytes(model.folded(), quantized, start.float_outputs))
    after = _answers(model, held, plan.data.batch_size)
    reference = _answers(loaded.module, held, plan.data.batch_size)
    return Trained(
        path=folder / RESULT,
        quantized=quantized,
        steps=steps,
        accuracy=_accuracy(held, {"float": reference, "ptq": before, "qat": after}),
        notes=(*quantized.notes, *_unreadable(photos, held)),
    )


def _request(plan: Recipe) -> ModelRequest:
    model = plan.model
    return ModelRequest(
        model=model.name,
        weights=model.weights,
        num_classes=model.num_classes,
        image_size=model.image_size,
        seed=plan.seed,
        labels=model.labels,
        mean=model.mean,
        std=model.std,
    )


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


def _start(folder: Path, plan: Recipe, loaded: Loaded, on_step: Step | None) -> Loaded:
    """The model after post-training quantization, written to a folder with nothing of another run in it."""
    q = plan.quantization
    options = QuantizationOptions(
        range_estimator=q.range_estimator, bias_correction=q.bias_correction, keep_float=q.keep_float
    )
    made = with_precision(
        loaded, q.scheme, q.calibration or plan.data.train, q.num_calibration_samples, options, on_step
    )
    assert made.quantized is not None
    for name in (RECIPE, loop.CHECKPOINT, loop.LOG, RESULT):
        (folder / name).unlink(missing_ok=True)
    write_file(folder / START, quantized_bytes(made.program, made.quantized, made.float_outputs))
    write_file(folder / RECIPE, json.dumps(asdict(plan), indent=2).encode())
    return made


def _classes(loaded: Loaded) -> int:
    """How many scores the model returns for a photo. Raises `BadInput` for one that is no classifier of photos."""
    scores = None
    if loaded.preprocess is not None and len(loaded.inputs) == 1:
        with torch.no_grad():
            scores = loaded.module(*loaded.inputs)
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        raise BadInput(
            f"{loaded.name} does not turn one photo into a row of class scores",
            "Only classifiers of photos can be trained: see `edgekit models`.",
        )
    return scores.shape[1]


def _answers(model: Callable[[Tensor], Tensor], photos: Photos | None, batch_size: int) -> Tensor | None:
    """The best class of each photo that can be read."""
    if photos is None:
        return None
    best = []
    with torch.no_grad():
        for start in range(0, len(photos), batch_size):
            images, _ = photos.read(range(start, min(start + batch_size, len(photos))))
            best.append(model(images).argmax(1))
    return torch.cat(best)


def _accuracy(photos: Photos | None, answers: dict[str, Tensor | None]) -> dict[str, Accuracy]:
    if photos is None:
        return {}
    read = [i for i in range(len(photos)) if i not in photos.unreadable]
    truth = None if photos.labels is None else torch.tensor([photos.labels[i] for i in read])
    found = {}
    reference = answers["float"]
    assert reference is not None
    for name, best in answers.items():
        assert best is not None
        found[name] = Accuracy(
            top1=None if truth is None else 100 * torch.eq(best, truth).double().mean().item(),
            agreement=100 * torch.eq(best, reference).double().mean().item(),
            n=len(best),
        )
    return found


def _note(plan: Recipe, steps: int) -> str:
    kind, share = plan.optimizer, 0.0 if plan.distillation is None else plan.distillation.weight
    aim = {0.0: "on labels", 1.0: "on the float model's answers"}.get(
        share, f"{share:.0%} on the float model's answers"
    )
    return (
        f"fine-tuned with fake quantization (QAT): {steps} steps of {plan.data.batch_size} photos of "
        f"{Path(plan.data.train).name}, {aim}, {kind.name} from {kind.lr:g}, seed {plan.seed}"
    )


def _unreadable(*sets: Photos | None) -> list[str]:
    found = [text for photos in sets if photos is not None for text in photos.unreadable.values()]
    names = "; ".join(found[:3]) + ("; …" if len(found) > 3 else "")
    return [f"{len(found)} images are left out: {names}"] if found else []
