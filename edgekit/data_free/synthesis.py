"""Images that a network takes for its training data, made by gradient descent on their pixels.

    L = a BN + b CE + c TV - d H + e LN

BN: the statistics that batch norms have stored (`matching`; ZeroQ, Cai et al. 2020; DeepInversion, Yin et al. 2020).
CE: cross entropy with labels that are spread over the classes, so that the logits reach as far as on photos, behind the
last batch norm too. TV: total variation. For layer norms, H: the entropy of the similarities between patches (PSAQ-ViT,
Li et al. 2022), and LN, their consistency. Between descent and network lie a low-pass (SynQ, 2025), a flip and a roll.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from edgekit.data_free.matching import StoredMoments
from edgekit.data_free.priors import bounds, prior_images
from edgekit.errors import BadInput, EnvironmentProblem
from edgekit.loading import Loaded
from edgekit.types import Step


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """How images are made: how many, in which batches, in how many steps, and the weight of each part of the loss.

    A weight of 0 leaves its part out. `low_pass` is the deviation of a Gaussian in pixels, `jitter` the most pixels
    that an image is rolled by. `prior` is what they start from.
    """

    count: int = 64
    batch: int = 32
    steps: int = 160
    learning_rate: float = 0.1
    prior: str = "pink"
    matching: float = 1.0
    classes: float = 1.0
    label_smoothing: float = 0.0
    diversity: float = 0.0
    consistency: float = 0.0
    variation: float = 0.0
    low_pass: float = 0.0
    jitter: int = 2
    flip: bool = True
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Images (N, C, H, W) in units of the model's input, the labels (N) they were made for, and how it went.

    `curve` is the loss of each step, the mean over batches; `misfit` what is left of it at each batch norm.
    """

    images: Tensor
    labels: Tensor | None
    curve: tuple[float, ...]
    misfit: Mapping[str, float]
    options: SynthesisOptions


def synthesize(loaded: Loaded, options: SynthesisOptions, on_step: Step | None = None) -> Synthesis:
    """Images that fit what `loaded.module` remembers; the same for the same seed. The module is left as it is.

    Raises `BadInput` for a model of several inputs or one that is not of floats, `EnvironmentProblem` for no CUDA.
    """
    check(loaded, options.device)
    parts = (options.matching, options.classes, options.diversity, options.consistency, options.variation)
    if not any(parts):
        raise BadInput("images cannot be made: every weight of the loss is 0", "Give one of its parts a weight.")
    network = Network(loaded, options.device)
    shape = tuple(loaded.inputs[0].shape[1:])
    generator = torch.Generator().manual_seed(options.seed)
    labels = spread_labels(options.count, network.classes, generator) if network.classes else None
    images, curves = [], []
    starts = range(0, options.count, options.batch)
    for number, start in enumerate(starts):
        count = min(options.batch, options.count - start)
        x = _start(loaded, options, shape, count, options.seed * 1_000_003 + number)
        wanted = None if labels is None else labels[start : start + count]

        def report(step: int, number: int = number) -> None:
            if on_step:
                on_step("making images", number * options.steps + step, len(starts) * options.steps)

        made, curve = _descend(network, loaded, x, wanted, options, generator, report)
        images.append(made)
        curves.append(curve)
    result = torch.cat(images)
    with torch.no_grad(), network.moments:
        network.moments.clear()
        for part in result.split(options.batch):
            network(part.to(options.device))
        misfit = network.moments.misfits()
    mean_curve = tuple(float(sum(values) / len(values)) for values in zip(*curves, strict=True))
    return Synthesis(images=result, labels=labels, curve=mean_curve, misfit=misfit, options=options)


def check(loaded: Loaded, device: str) -> None:
    """Raises `BadInput` where no images can be made for a model, `EnvironmentProblem` where the device is not there."""
    if device not in ("cpu", "cuda"):
        raise BadInput(f"--device {device} is neither cpu nor cuda", "Type --device cpu or --device cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "--device cuda: this torch sees no CUDA device", "Leave it out, or install torch with CUDA and its driver."
        )
    x = loaded.inputs[0]
    if len(loaded.inputs) != 1 or not x.is_floating_point() or x.dim() < 2:
        shapes = ", ".join(str(tuple(i.shape)) for i in loaded.inputs)
        raise BadInput(
            f"{loaded.name} takes {shapes}: without data, edgekit makes one input of floats",
            "Calibrate it with photos or use a precision that needs no calibration: fp32, fp16, int8-weight.",
        )


class Network:
    """A copy of a model on a device, without gradients of its weights, that takes a batch of any size."""

    def __init__(self, loaded: Loaded, device: str) -> None:
        self.module = copy.deepcopy(loaded.module).to(device)
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        self.moments = StoredMoments(self.module)
        self._part = 0
        x = loaded.inputs[0].to(device)
        with torch.no_grad(), self.moments:
            found = scores(self.module(x))
        self.has_batch_norms = bool(self.moments.layers)
        self.has_layer_norms = bool(self.moments.has_layer_norms)
        self.classes = 0 if found is None else found.shape[1]
        if not self._takes_more(x):
            self._part = len(x)

    def __call__(self, x: Tensor) -> Tensor | None:
        """The class scores of a batch; None where the first output is none."""
        if not self._part:
            return scores(self.module(x))
        short = -len(x) % self._part
        parts = torch.cat([x, x[:1].expand(short, *x.shape[1:])]).split(self._part)
        found = [scores(self.module(p)) for p in parts]
        return torch.cat([f for f in found if f is not None])[: len(x)] if found[0] is not None else None

    def _takes_more(self, x: Tensor) -> bool:
        """Whether a batch of another size gives the same answers: shapes of a `.pt2` are fixed."""
        try:
            with torch.no_grad():
                one, two = (tree_leaves(self.module(t))[0] for t in (x, torch.cat([x, x])))
        except Exception:  # whatever its guards or views raise
            return False
        return len(two) == 2 * len(one) and torch.allclose(two[: len(one)], one, rtol=1e-2, atol=1e-3)


def scores(outputs: object) -> Tensor | None:
    """The class scores (N, C) among a module's outputs: the first, where it is such."""
    first = next((y for y in tree_leaves(outputs) if isinstance(y, Tensor)), None)
    return first if first is not None and first.dim() == 2 and first.shape[1] > 1 else None


def spread_labels(count: int, classes: int, generator: torch.Generator) -> Tensor:
    """Labels (count) in which classes are as often as each other, to one, in an order of chance."""
    rounds = -(-count // classes)
    return torch.cat([torch.randperm(classes, generator=generator) for _ in range(rounds)])[:count]


def _start(loaded: Loaded, options: SynthesisOptions, shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    if len(shape) == 3:
        return prior_images(options.prior, count, shape, loaded.preprocess, seed)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def _descend(
    network: Network,
    loaded: Loaded,
    x: Tensor,
    labels: Tensor | None,
    options: SynthesisOptions,
    generator: torch.Generator,
    report: Callable[[int], None],
) -> tuple[Tensor, list[float]]:
    """A batch of images from its start, and the loss at each step."""
    ends = None if loaded.preprocess is None else [e.to(options.device) for e in bounds(loaded.preprocess)]
    low_pass = _LowPass(options.low_pass, x.shape, options.device) if x.dim() == 4 else None
    x = x.to(options.device).requires_grad_()
    labels = None if labels is None else labels.to(options.device)
    adam = torch.optim.Adam([x], options.learning_rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, options.steps)
    curve = []
    for step in range(options.steps):
        view = _view(x if low_pass is None else low_pass(x), options, generator)
        network.moments.clear()
        with network.moments:
            answers = network(view)
        loss = _loss(network, view, answers, labels, options)
        (x.grad,) = torch.autograd.grad(loss, [x])
        adam.step()
        schedule.step()
        curve.append(float(loss.detach()))
        with torch.no_grad():
            if ends is not None:
                x.clamp_(*ends)
        report(step + 1)
    network.moments.clear()
    with torch.no_grad():
        x = x if low_pass is None else low_pass(x)
        x = x if ends is None else x.clamp(*ends)
    return x.detach().cpu(), curve


def _view(x: Tensor, options: SynthesisOptions, generator: torch.Generator) -> Tensor:
    """The images as they are looked at: flipped and rolled by chance."""
    if x.dim() != 4:
        return x
    draws = torch.rand(3, generator=generator)
    if options.flip and draws[0] < 0.5:
        x = x.flip(-1)
    if options.jitter:
        by = [math.floor(float(d) * (2 * options.jitter + 1)) - options.jitter for d in draws[1:]]
        x = x.roll(by, (-2, -1))
    return x


def _loss(
    network: Network, view: Tensor, answers: Tensor | None, labels: Tensor | None, options: SynthesisOptions
) -> Tensor:
    seen = network.moments
    total = options.matching * seen.loss()
    if options.classes and answers is not None and labels is not None:
        total = total + options.classes * functional.cross_entropy(
            answers, labels, label_smoothing=options.label_smoothing
        )
    if options.diversity:
        total = total - options.diversity * seen.diversity()
    if options.consistency:
        total = total + options.consistency * seen.consistency()
    if options.variation and view.dim() == 4:
        total = total + options.variation * ((view.diff(dim=-1)).abs().mean() + view.diff(dim=-2).abs().mean())
    return total


class _LowPass(nn.Module):
    """A Gaussian of `deviation` pixels over images (N, C, H, W), by their spectrum; the images themselves for 0."""

    def __init__(self, deviation: float, shape: torch.Size, device: str) -> None:
        super().__init__()
        height, width = shape[-2:]
        frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
        self._gain = torch.exp(-2 * (math.pi * deviation * frequency) ** 2).to(device) if deviation else None

    def forward(self, x: Tensor) -> Tensor:
        return x if self._gain is None else torch.fft.irfft2(torch.fft.rfft2(x) * self._gain, s=x.shape[-2:])
