"""A model in wXaY, for simulation in torch: learned from images, or trained as ClusterQ and GDFQ train."""

import copy
import hashlib
import io
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgekit.artifacts import write_file
from edgekit.calibration import CalibrationSet
from edgekit.data_free import chosen
from edgekit.data_free.clusterq import VARIANTS, ClusterQOptions, Trainer, shortened, train
from edgekit.data_free.held_out import CROSS_FAMILY, IN_FAMILY
from edgekit.data_free.held_out import affordable as affordable_images
from edgekit.data_free.risk import assess_answers
from edgekit.data_free.synthesis import Network, synthesize
from edgekit.data_free.synthesis import check as check_device
from edgekit.errors import BadInput, UnknownName, Unsupported
from edgekit.golden import golden_of
from edgekit.graph.capture import capture
from edgekit.loading import Loaded
from edgekit.low_bit import PROTOCOLS, LowBitOptions, Student, learn, place, scheme_of, written
from edgekit.low_bit.distillation import DistillationOptions
from edgekit.low_bit.quantizers import MinMaxWeight
from edgekit.low_bit.reconstruction import ReconstructionOptions
from edgekit.models import deploy
from edgekit.quantization import prepare
from edgekit.types import Calibration, QuantizationOptions, Quantized, Step

_SMALL = 3 * 64 * 64
IMAGES = {True: (128, 32, 100), False: (512, 128, 100)}
"""How many images are made, in which batches and steps: of large images fewer."""
GENERATIVE = {True: (8, 12, 4, 20, 2, 16), False: (8, 30, 4, 10, 4, 32)}
"""Epochs, steps, warm-up, classes and images of each in a batch, width of the generator."""
PRIOR = "pink"
"""What the images begin as."""
METHODS = ("images", *VARIANTS)
"""Learning from synthetic images, or a generator and the student by turns."""


@dataclass(frozen=True, kw_only=True)
class FewBits:
    """Which bits go where, and how a student learns: None for what fits the model (`options_for`)."""

    scheme: str
    protocol: str = "h"
    seed: int = 0
    device: str = "cpu"
    learning: LowBitOptions | None = None


def check(scheme: str, protocol: str, options: QuantizationOptions, with_accuracy: bool) -> None:
    """Raises `BadInput` for bits or for what does not go with learning them, `UnknownName` for a protocol."""
    scheme_of(scheme)
    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, PROTOCOLS)
    if options != QuantizationOptions() or with_accuracy:
        raise BadInput(
            f"{scheme} is learned: ranges, rounding and biases have no options, and no layer stays in float",
            "Leave out --range-estimator, --bias-correction, --equalize, --smooth-quant, --keep-float and "
            "--accuracy-data, or type --scheme int8.",
        )


def in_few_bits(
    loaded: Loaded,
    source: CalibrationSet | str,
    wanted: FewBits,
    checkpoint: Path | None = None,
    on_step: Step | None = None,
) -> tuple[Loaded, Tensor]:
    """`loaded` in few bits, learned from photos or by one of `METHODS`, and the images it was learned from."""
    check_device(loaded, wanted.device)
    where = f"{wanted.scheme} is simulated in torch; protocol {wanted.protocol}: {PROTOCOLS[wanted.protocol]}"
    if isinstance(source, str):
        program, images = without_data(loaded, source, wanted, checkpoint, on_step)
        record = Calibration(kind="synthetic", source=source, samples=len(images), seed=wanted.seed)
        notes = (*loaded.notes, where)
    else:
        images = torch.cat([x for (x,) in source.samples])
        program, record = learned(loaded, images, wanted, checkpoint, on_step), source.record
        notes = (*loaded.notes, *(f"calibration: {text}" for text in source.warnings), where)
    quantized = Quantized(
        scheme=wanted.scheme,
        protocol=wanted.protocol,
        name=loaded.name,
        request=loaded.request,
        weights=loaded.weights,
        calibration=record,
        options=QuantizationOptions(),
        preprocess=loaded.preprocess,
        labels=loaded.labels,
        notes=notes,
        edgekit=version("edgekit"),
    )
    exact = tuple(map(tuple, golden_of(loaded)[1]))
    made = replace(loaded, program=program, module=program.module(), notes=notes, quantized=quantized)
    if isinstance(source, str):
        made = with_risk(loaded, made, IN_FAMILY if source == METHODS[0] else CROSS_FAMILY, wanted, on_step)
    return replace(made, float_outputs=exact), images


def with_risk(loaded: Loaded, made: Loaded, relation: str, wanted: FewBits, on_step: Step | None = None) -> Loaded:
    """`made` with what its answers on other images than it was learned from say, without a label.

    `relation` is that of images which fit the stored statistics to those that it was learned from.
    """
    assert made.quantized is not None
    count, seed = affordable_images(loaded), wanted.seed + 1
    images = synthetic_images(loaded, count=count, seed=seed, device=wanted.device, on_step=on_step)
    risk = assess_answers(loaded, made, images, relation, PRIOR, seed)
    notes = (*made.notes, f"without data: {risk.verdict}. accuracy on real data: {risk.accuracy}")
    return replace(made, notes=notes, quantized=replace(made.quantized, risk=risk, notes=notes))


def synthetic_images(
    loaded: Loaded, *, count: int | None = None, seed: int = 0, device: str = "cpu", on_step: Step | None = None
) -> Tensor:
    """Images (N, C, H, W) to learn from without data, more of them than 8 bits are calibrated with, or `count`."""
    usual_count, batch, steps = IMAGES[_is_large(loaded)]
    count = count or usual_count
    usual = chosen(loaded, seed, device, Network(loaded, "cpu").has_batch_norms)
    options = replace(usual, count=count, batch=min(batch, count), steps=steps, prior=PRIOR, classes=0.1)
    return synthesize(loaded, options, on_step).images


def without_data(
    loaded: Loaded, method: str, wanted: FewBits, checkpoint: Path | None = None, on_step: Step | None = None
) -> tuple[ExportedProgram, Tensor]:
    """The program of `loaded` in few bits by one of `METHODS`, and the images (N, C, H, W) it was learned from.

    Raises `UnknownName` for a method, and what `learned` and `generative_trainer` raise.
    """
    if method not in METHODS:
        raise UnknownName(f"data-free method of {wanted.scheme}", method, METHODS)
    if method in VARIANTS:
        return generative(loaded, affordable(VARIANTS[method], loaded, wanted.device), wanted, checkpoint, on_step)
    work = None if checkpoint is None else _named(checkpoint, loaded, wanted, "images")
    images = _kept(work)
    if images is None:
        images = synthetic_images(loaded, seed=wanted.seed, device=wanted.device, on_step=on_step)
        _keep(work, images)
    program = learned(loaded, images, wanted, checkpoint, on_step)
    _drop(work)
    return program, images


def learned(
    loaded: Loaded, images: Tensor, wanted: FewBits, checkpoint: Path | None = None, on_step: Step | None = None
) -> ExportedProgram:
    """The program of `loaded` with steps and rounding that are learned from `images` (N, C, H, W).

    Raises `BadInput` for a scheme, `UnknownName` for a protocol, `Unsupported` for a `.pt2`. A run that is cut off goes
    on from `checkpoint` where it is given the same again.
    """
    student = learned_student(loaded, images, wanted, checkpoint, on_step)
    return written(student.cpu(), prepare(loaded.program))


def learned_student(
    loaded: Loaded, images: Tensor, wanted: FewBits, checkpoint: Path | None = None, on_step: Step | None = None
) -> Student:
    """The same as the module that learns."""
    learning = wanted.learning or options_for(loaded)
    batch = learning.reconstruction.batch
    program = prepare(batched(loaded, batch, deployed=True))
    placement = place(program, scheme_of(wanted.scheme), wanted.protocol)
    repeated = torch.arange(-(-len(images) // batch) * batch) % len(images)
    content = hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()
    work = None if checkpoint is None else _named(checkpoint, loaded, wanted, content)
    student = learn(
        program,
        placement,
        images[repeated].to(wanted.device),
        learning,
        seed=wanted.seed,
        state=_kept(work),
        keep=lambda state: _keep(work, state),
        on_step=on_step,
    )
    _drop(work)
    return student


def generative(
    loaded: Loaded,
    options: ClusterQOptions,
    wanted: FewBits,
    checkpoint: Path | None = None,
    on_step: Step | None = None,
) -> tuple[ExportedProgram, Tensor]:
    """The program of `loaded` after training with a generator, and images that it makes in the end.

    A run that is cut off goes on behind its last epoch, from `checkpoint`.
    """
    with torch.random.fork_rng():
        trainer = generative_trainer(loaded, options, wanted)
        work = None if checkpoint is None else _named(checkpoint, loaded, wanted, options)
        if (state := _kept(work)) is not None:
            trainer.restore(state)
        train(trainer, on_step, lambda epoch, generator, student: _keep(work, trainer.state()))
        with torch.no_grad():
            images = trainer.images(trainer.labels()).cpu()
    _drop(work)
    return written(trainer.student.cpu(), capture(loaded.module, loaded.inputs)), images


def generative_trainer(loaded: Loaded, options: ClusterQOptions, wanted: FewBits) -> Trainer:
    """Teacher, student and generator, ready to be trained."""
    network = Network(loaded, "cpu")
    if not network.classes or not network.has_batch_norms:
        lacks = "has stored no statistics of its training" if network.classes else "returns no class scores"
        raise Unsupported(
            f"{loaded.name} {lacks}, and a generator learns from both", "Type --data-free=images, which needs neither."
        )
    program = batched(loaded, options.classes_per_batch * options.images_per_class, deployed=False)
    placement = place(program, scheme_of(wanted.scheme), wanted.protocol)
    student = Student(program, placement, MinMaxWeight)
    student.watch()
    teacher = copy.deepcopy(loaded.module).to(wanted.device).eval().requires_grad_(False)
    shape = tuple(loaded.inputs[0].shape[1:])
    return Trainer(teacher, student.to(wanted.device), shape, network.classes, options, wanted.seed)


def batched(loaded: Loaded, batch: int, deployed: bool) -> ExportedProgram:
    """The model captured for another batch size. Raises `Unsupported` for a `.pt2`, whose shapes are fixed."""
    if loaded.request.model.endswith(".pt2"):
        raise Unsupported(
            f"{loaded.request.model} takes {loaded.inputs[0].shape[0]} image at a time, and few bits take batches",
            "Name the model itself with -m: a zoo name or file.py:callable.",
        )
    module = copy.deepcopy(loaded.module)
    inputs = (torch.zeros(batch, *loaded.inputs[0].shape[1:]),)
    return capture(deploy(module) if deployed else module, inputs)


def _named(checkpoint: Path, loaded: Loaded, wanted: FewBits, *others: object) -> Path:
    """A file name that another model, scheme or budget does not have."""
    state = hashlib.sha256(_saved(loaded.module.state_dict())).hexdigest()
    key = repr((loaded.request, state, wanted, options_for(loaded), IMAGES, others)).encode()
    return checkpoint.with_name(f"{checkpoint.name}.{hashlib.sha256(key).hexdigest()[:8]}")


def _kept(work: Path | None) -> Any:
    """What a run before left there; None for nothing."""
    return torch.load(work, weights_only=True) if work is not None and work.exists() else None


def _keep(work: Path | None, value: object) -> None:
    if work is not None:
        write_file(work, _saved(value))


def _drop(work: Path | None) -> None:
    if work is not None:
        work.unlink(missing_ok=True)


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def options_for(loaded: Loaded) -> LowBitOptions:
    """A budget of some minutes on two cores: smaller batches and fewer steps where images are large."""
    batch = 16 if _is_large(loaded) else 64
    return LowBitOptions(
        reconstruction=ReconstructionOptions(steps=600, batch=batch, rounding_rate=1e-2, rounding_weight=0.02),
        distillation=DistillationOptions(steps=0, batch=batch),
    )


def affordable(options: ClusterQOptions, loaded: Loaded, device: str = "cpu") -> ClusterQOptions:
    """The terms of `options` at a budget of some minutes on two cores; on a GPU as they are.

    Some 300 times fewer steps than the papers', with a smaller generator and batch, and rates that go with it.
    """
    if device != "cpu":
        return options
    epochs, steps, warm_up, classes, images, width = GENERATIVE[_is_large(loaded)]
    return replace(
        shortened(options, epochs, steps, warm_up),
        classes_per_batch=classes,
        images_per_class=images,
        width=width,
        student_rate=2e-4,
        generator_rate=3e-3,
        decay=(0.7, 0.9),
    )


def _is_large(loaded: Loaded) -> bool:
    return loaded.inputs[0][0].numel() > _SMALL
