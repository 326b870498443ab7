"""Int8 without data: ranges and means from what the weights and the stored statistics of a network say.

Two estimators. `images`: pictures that fit the stored statistics and the classes, made by descent on their pixels; the
network runs on them as on photos. `analytic`: a stand-in of the network that has the stored statistics on any pictures.
`images` asks `analytic` too: where the two disagree, the wider range is taken, and the tensor is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from edgekit.data_free.analytic import StandIn, stand_in
from edgekit.data_free.heads import head_ranges
from edgekit.data_free.margins import with_margin
from edgekit.data_free.priors import bold, prior_images
from edgekit.data_free.synthesis import Synthesis, SynthesisOptions, check, synthesize
from edgekit.errors import UnknownName
from edgekit.loading import Loaded
from edgekit.quantization import Range, ranges_of
from edgekit.types import Calibration, QuantizationOptions, Step

DATA_FREE = ("images", "analytic")
ENSEMBLE = ("pink", "dead_leaves")
"""Priors that stand-ins, and networks without stored statistics, are run on."""
DISAGREE = 2.0
"""Two estimates of a range that differ by more than this factor are no estimate: the wider is taken."""
_USUAL = QuantizationOptions()
UNFIT = 1.0
"""Mean misfit of batch norms, about a deviation of each: images that are so far off have not come to fit. Measured: at
most 0.02 where they calibrate well, 4.7 and more where they are worse than no images."""
_PASSES = 6
_ANALYTIC_SECONDS, _IMAGES_SECONDS = 20.0, 240.0
_MACS, _ELEMENTS = 10e9, 0.25e9
"""A second of two cores: multiplications, or elements written. What is chosen follows from the model's size alone, so
that it is the same each time; a machine may take longer."""


@dataclass(frozen=True, kw_only=True)
class DataFreeCalibration:
    """What an int8 model is calibrated with where there are no photos.

    `samples` are calls of the program, `images` (N, C, H, W) what they were made of. `stand_in` is the program to see
    activations in, None for the model itself; `at_least` are ranges that these must not fall short of, by node of
    the prepared program. `trusted` says that stored statistics fit the weights and were used. `estimates` are those
    of both estimators, `disputed` the nodes where they differ more than 2x.
    """

    samples: tuple[tuple[Tensor, ...], ...]
    record: Calibration
    images: Tensor
    stand_in: ExportedProgram | None = None
    at_least: Mapping[str, Range] = field(default_factory=dict)
    estimates: Mapping[str, Mapping[str, Range]] = field(default_factory=dict)
    disputed: tuple[str, ...] = ()
    misfit: Mapping[str, float] = field(default_factory=dict)
    synthesis: Synthesis | None = None
    trusted: bool = False
    notes: tuple[str, ...] = ()


def calibrate_without_data(
    loaded: Loaded, method: str = "images", *, seed: int = 0, device: str = "cpu", on_step: Step | None = None
) -> DataFreeCalibration:
    """Calibrate `loaded` by one of `DATA_FREE`; the same for the same seed.

    `device` is where images are made. Raises `UnknownName` for the method, `BadInput` for a model of several inputs,
    `EnvironmentProblem` for a device that is not there.
    """
    if method not in DATA_FREE:
        raise UnknownName("data-free method", method, DATA_FREE)
    check(loaded, device)
    return _analytic(loaded, seed, on_step) if method == "analytic" else _images(loaded, seed, device, on_step)


def chosen(loaded: Loaded, seed: int = 0, device: str = "cpu", trusted: bool = True) -> SynthesisOptions:
    """How many images and steps fit a model's size, and which parts of the loss its norms allow.

    Without statistics that are `trusted`, images stay near a prior.
    """
    image_steps = _IMAGES_SECONDS / (3 * seconds_of(loaded))
    count, steps = (
        (64, 160)
        if device == "cuda"
        else next(((n, s) for n, s in ((64, 160), (64, 100), (32, 100), (32, 60)) if n * s <= image_steps), (16, 40))
    )
    options = SynthesisOptions(count=count, steps=steps, seed=seed, device=device)
    if trusted:
        return options
    return replace(
        options, prior="dead_leaves", learning_rate=0.02, matching=0.0, classes=0.1, label_smoothing=0.1,
        diversity=0.1, consistency=0.05, variation=0.05, low_pass=0.5,
    )  # fmt: skip


def seconds_of(loaded: Loaded) -> float:
    """About how long one image takes on two cores, by its multiplications and the elements written."""
    batch = loaded.inputs[0].shape[0]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loaded.module(*loaded.inputs)
    values = [n.meta.get("val") for n in loaded.program.graph.nodes if n.op == "call_function"]
    elements = sum(v.numel() for v in values if isinstance(v, Tensor))
    return float(counter.get_total_flops() / 2 / _MACS + elements / _ELEMENTS) / batch


def _analytic(loaded: Loaded, seed: int, on_step: Step | None) -> DataFreeCalibration:
    """Images of no subject, and a stand-in that makes what was stored of them; the model itself without statistics."""
    count = min(32, max(4, int(_ANALYTIC_SECONDS / (_PASSES * seconds_of(loaded)))))
    images = _ensemble(loaded, count, seed)
    samples = calls(loaded, images)
    if on_step:
        on_step("recomputing statistics", 0, 1)
    other = stand_in(loaded, samples)
    if on_step:
        on_step("recomputing statistics", 1, 1)
    trusted = other is not None and other.is_trusted
    program = other.program if other is not None and trusted else None
    if not trusted:
        samples = calls(loaded, images := _bold(loaded, images))
    # Behind the last norm nothing is stored.
    at_least = dict(head_ranges(program or loaded.program, samples, "mse", seed)) if trusted or other is None else {}
    if not trusted:
        guessed = ranges_of(loaded.program, samples, _USUAL, on_step)
        wide = with_margin(loaded.program, guessed)
        at_least = {**at_least, **{n: r | at_least.get(n, r) for n, r in wide.items()}}
    return DataFreeCalibration(
        samples=samples,
        record=Calibration(kind="synthetic", source="analytic", samples=len(images), seed=seed),
        images=images,
        stand_in=program,
        at_least=at_least,
        misfit={} if other is None else other.off,
        trusted=trusted,
        notes=(_analytic_note(loaded, other, len(images)),),
    )


def _analytic_note(loaded: Loaded, other: StandIn | None, count: int) -> str:
    if other is not None and other.is_trusted:
        return f"calibrated with {count} images of no subject: ranges come from stored statistics"
    why = f"{loaded.name} has stored no statistics of its training"
    if other is not None:
        why = f"what {loaded.name} has stored in its batch norms is not of these weights"
    return f"{why}: its ranges are those of {count} images of no subject, a guess"


def _images(loaded: Loaded, seed: int, device: str, on_step: Step | None) -> DataFreeCalibration:
    analytic = _analytic(loaded, seed, on_step)
    trusted = analytic.trusted
    options = chosen(loaded, seed, device, trusted)
    made = synthesize(loaded, options, on_step)
    images = made.images
    if trusted and (left := sum(made.misfit.values()) / max(len(made.misfit), 1)) > UNFIT:
        note = f"no images could be made that fit what is stored (misfit {left:.2g}): calibrated analytically"
        return replace(analytic, notes=(note, *analytic.notes))
    if not trusted:
        # Nothing says how far descent may go: half of the images are as the priors give them.
        images = torch.cat([images, _bold(loaded, _ensemble(loaded, len(images), seed + 1))])
    samples = calls(loaded, images)
    notes = [f"calibrated with {len(images)} synthetic images, {options.count} of them in {options.steps} steps"]
    estimates: dict[str, Mapping[str, Range]] = {"images": ranges_of(loaded.program, samples, _USUAL, on_step)}
    disputed: tuple[str, ...] = ()
    if trusted:
        seen = ranges_of(analytic.stand_in, analytic.samples, _USUAL, on_step)  # type: ignore[arg-type]
        estimates["analytic"] = {n: r | analytic.at_least.get(n, r) for n, r in seen.items()}
        disputed = tuple(n for n, r in estimates["images"].items() if _disagree(r, estimates["analytic"][n]))
    else:
        estimates["images"] = with_margin(loaded.program, estimates["images"])
        estimates["analytic"] = {n: analytic.at_least.get(n, r) for n, r in estimates["images"].items()}
        disputed = tuple(n for n, r in estimates["images"].items() if _disagree(r, estimates["analytic"][n]))
        notes.extend(analytic.notes)
    if disputed:
        notes.append(
            f"the estimates of {len(disputed)} of {len(estimates['images'])} ranges differ more than {DISAGREE:g}x: "
            f"the wider is taken ({', '.join(disputed[:5])}{' …' if len(disputed) > 5 else ''})"
        )
    return DataFreeCalibration(
        samples=samples,
        record=Calibration(kind="synthetic", source="images", samples=len(images), seed=seed),
        images=images,
        at_least=({} if trusted else dict(estimates["images"]))
        | {n: estimates["images"][n] | estimates["analytic"][n] for n in disputed},
        estimates=estimates,
        disputed=disputed,
        misfit=made.misfit,
        synthesis=made,
        trusted=trusted,
        notes=tuple(notes),
    )


def _disagree(one: Range, other: Range) -> bool:
    spans = sorted((one.span, other.span))
    return spans[1] > DISAGREE * spans[0]


def _ensemble(loaded: Loaded, count: int, seed: int) -> Tensor:
    """Images of each prior by turns."""
    shape = tuple(loaded.inputs[0].shape[1:])
    if len(shape) != 3:
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    each = -(-count // len(ENSEMBLE))
    parts = [prior_images(kind, each, shape, loaded.preprocess, seed) for kind in ENSEMBLE]
    return torch.stack(parts, 1).flatten(0, 1)[:count]


def _bold(loaded: Loaded, images: Tensor) -> Tensor:
    """Half of the images with more contrast: what a guess leaves out is cut off, what it adds costs a step."""
    each = len(ENSEMBLE)
    hard = torch.tensor([n // each % 2 == 1 for n in range(len(images))])
    return torch.where(hard.reshape(-1, *[1] * (images.dim() - 1)), bold(images, loaded.preprocess), images)


def calls(loaded: Loaded, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Images as calls of the program; the last is filled with images from the first."""
    batch = loaded.inputs[0].shape[0]
    filled: Sequence[int] = [i % len(images) for i in range(-(-len(images) // batch) * batch)]
    return tuple((part.to(loaded.inputs[0].dtype),) for part in images[torch.tensor(filled)].split(batch))
