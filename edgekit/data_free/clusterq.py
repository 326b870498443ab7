"""ClusterQ (Gao et al. 2022, arXiv:2205.00179v1): a generator whose classes have features of their own, and the
low-bit student that learns from its images.

    L1(G) = CE + a1 BNS                                 while warming up
    L2(G) = CE + a1 BNS + a2 SFDA + a3 ICV              from then on
    L3(M_Q) = CE + g KL                                 after the warm-up, batch norms frozen

    BNS  = Σ_l |μ^_l - μ_l|² + |σ^_l - σ_l|²            all batch norms, batch against stored
    SFDA = Σ_C Σ_{l >= l_st} |μ^_l^C - μ_l^C|² + |σ^_l^C - σ_l^C|²        one class of the batch against its centroid
    ICV  = SFDA with a draw N(centroid, λ) in place of the centroid
    μ_l^C <- (1 - b) μ_l^C + b μ^_l^C                   after each step (EMA), σ the same

Sums over layers, classes and channels are means here: the paper's weights of 0.1, 0.9 and 0.6 fit no sums. A class
needs several images for statistics of its own: batches are classes x images of each. Images that the teacher takes for
another class leave the centroids alone, and count in SFDA all the same. ICV's draws are absolute, as written. Each term
is a switch of `ClusterQOptions`; without all of them it is GDFQ (Xu et al. 2020). `VARIANTS` names the combinations of
the published ablation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.data_free.generator import Generator
from edgekit.data_free.matching import Layer, StoredMoments
from edgekit.low_bit.quantizers import EmaMinMax, divergence
from edgekit.low_bit.student import Student
from edgekit.types import Step


@dataclass(frozen=True, kw_only=True)
class ClusterQOptions:
    """The terms, and the settings of the paper where it states them (a1, a2, a3, b, λ), else those of its code.

    `batch_mean` divides the divergence by the batch (ClusterQ); without it also by the classes (GDFQ's element mean).
    In all variants BNS compares deviations, as ClusterQ writes, where GDFQ and the public code compare variances;
    ranges are plain moving averages. `stored_centroids` is what the public code computes in place of SFDA: every
    class has the stored statistics of the whole training set as its centroid, and a division by the number of
    layers inside the loop over them leaves the last one alone with much weight. Its diversity term has no gradient,
    and no centroid ever moves: both are left out, and so are its crops and flips of half of the batches.
    """

    bns: float = 0.1
    sfda: float = 0.9
    icv: float = 0.6
    ema: float = 0.2
    spread_mean: float = 0.5
    spread_deviation: float = 1.0
    stored_centroids: bool = False
    batch_mean: bool = True
    divergence: float = 1.0
    temperature: float = 20.0
    epochs: int = 400
    steps: int = 200
    warm_up: int = 10
    observe: int = 4
    classes_per_batch: int = 10
    images_per_class: int = 20
    latent: int = 100
    width: int = 128
    generator_rate: float = 1e-3
    student_rate: float = 1e-4
    decay: tuple[float, ...] = (0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        """Raises `ValueError` for terms and epochs that do not go together."""
        if (self.icv or self.ema) and (not self.sfda or self.stored_centroids):
            raise ValueError("ICV and EMA are about the centroids of SFDA")
        if not 1 <= self.observe <= self.warm_up:
            raise ValueError("ranges are observed, and centroids begin, while warming up: 1 <= observe <= warm_up")


VARIANTS: Mapping[str, ClusterQOptions] = {
    "gdfq": ClusterQOptions(sfda=0, icv=0, ema=0, batch_mean=False),
    "bns+kd": ClusterQOptions(sfda=0, icv=0, ema=0),
    "sfda": ClusterQOptions(icv=0, ema=0),
    "sfda+ema": ClusterQOptions(icv=0),
    "sfda+icv": ClusterQOptions(ema=0),
    "clusterq": ClusterQOptions(),
    "as-released": ClusterQOptions(icv=0, ema=0, stored_centroids=True),
}
"""What is switched on: BNS alone with GDFQ's weight of the divergence, the same with ClusterQ's, and so on."""


class Trainer:
    """The alternation of generator and student; `step` is one of each, and everything it changes is in `state`."""

    def __init__(
        self, teacher: nn.Module, student: Student, shape: tuple[int, ...], classes: int, options: ClusterQOptions,
        seed: int,
    ) -> None:  # fmt: skip
        self.options, self.teacher, self.student, self.classes = options, teacher, student, classes
        self.device = next(iter(teacher.parameters())).device
        torch.manual_seed(seed)
        self.generator = Generator(classes, shape, options.latent, options.width).to(self.device)
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), options.generator_rate, betas=(0.5, 0.999))
        self.student_sgd = torch.optim.SGD(
            student.parameters(), options.student_rate, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        self.seen = StoredMoments(teacher, keep_inputs=True)
        self.mean: dict[str, Tensor] = {}
        self.deviation: dict[str, Tensor] = {}
        self.epoch = 0

    def labels(self) -> Tensor:
        """A batch's labels: some classes, as many images of each, class by class."""
        chosen = torch.randperm(self.classes)[: self.options.classes_per_batch]
        return chosen.repeat_interleave(self.options.images_per_class).to(self.device)

    def images(self, labels: Tensor) -> Tensor:
        """Images of the generator for labels (N)."""
        # Drawn on the CPU, so that a seed means the same on every device and a checkpoint holds the draws.
        noise = torch.randn(len(labels), self.options.latent).to(self.device)
        result: Tensor = self.generator(noise, labels)
        return result

    def step(self) -> tuple[float, float]:
        """Train the generator once, then the student on its images; the losses of both (student 0 in the warm-up)."""
        labels = self.labels()
        self.generator.train()
        images = self.images(labels)
        self.seen.clear()
        with self.seen:
            answers = self.teacher(images)
        loss = functional.cross_entropy(answers, labels) + self.options.bns * self._bns()
        if self.epoch >= self.options.warm_up:
            loss = loss + self._semantic(labels)
        self.generator_adam.zero_grad()
        loss.backward()
        self.generator_adam.step()
        if self.epoch >= self.options.warm_up and self.options.ema:
            self._move_centroids(labels, answers.detach())
        student_loss = self._student_step(images.detach(), labels, answers.detach())
        return float(loss.detach()), student_loss

    def end_epoch(self) -> None:
        """Freeze ranges, start centroids and lower the rates where an epoch asks for it."""
        self.epoch += 1
        if self.epoch == self.options.observe:
            for quantizer in self.student.activations.values():
                assert isinstance(quantizer, EmaMinMax)
                quantizer.observing = False
        if self.epoch == self.options.warm_up and self.options.sfda:
            self._start_centroids()
        if any(self.epoch == round(part * self.options.epochs) for part in self.options.decay):
            for optimizer in (self.generator_adam, self.student_sgd):
                for group in optimizer.param_groups:
                    group["lr"] *= 0.1

    def _student_step(self, images: Tensor, labels: Tensor, answers: Tensor) -> float:
        training = self.epoch >= self.options.warm_up
        if not training and self.epoch >= self.options.observe:
            return 0.0
        with torch.set_grad_enabled(training):
            given = self.student(images)
        if not training:
            return 0.0
        options = self.options
        weight = options.divergence * options.temperature**2 / (1 if options.batch_mean else self.classes)
        loss = functional.cross_entropy(given, labels) + weight * divergence(given, answers, options.temperature)
        self.student_sgd.zero_grad()
        loss.backward()
        self.student_sgd.step()
        return float(loss.detach())

    def _bns(self) -> Tensor:
        """Equation 4 (BNS)."""
        found = []
        for layer in self.seen.layers.values():
            mean, var = layer.moments()
            found.append((mean - layer.mean).square().mean() + (_root(var) - layer.var.sqrt()).square().mean())
        return torch.stack(found).mean()

    def _semantic_layers(self) -> Mapping[str, Layer]:
        """The deep half: from int((L + 1) / 2) - 2 on, as in the public code; the paper does not say."""
        layers = list(self.seen.layers.items())
        return dict(layers[max(0, (len(layers) + 1) // 2 - 2) :])

    def _semantic(self, labels: Tensor) -> Tensor:
        """a2 SFDA + a3 ICV."""
        options, layers = self.options, self._semantic_layers()
        if not options.sfda:
            return torch.zeros((), device=self.device)
        if options.stored_centroids:
            return options.sfda * self._as_released(layers)
        present = labels[:: options.images_per_class]
        alignment, variance = [], []
        for name, layer in layers.items():
            mean, deviation = self._by_class(layer)
            wanted, spread = self.mean[name][present], self.deviation[name][present]
            alignment.append((mean - wanted).square().mean() + (deviation - spread).square().mean())
            if options.icv:
                wanted = wanted + options.spread_mean * torch.randn(wanted.shape).to(wanted)
                spread = spread + options.spread_deviation * torch.randn(spread.shape).to(spread)
                variance.append((mean - wanted).square().mean() + (deviation - spread).square().mean())
        total = options.sfda * torch.stack(alignment).mean()
        return total + options.icv * torch.stack(variance).mean() if variance else total

    def _as_released(self, layers: Mapping[str, Layer]) -> Tensor:
        total = torch.zeros((), device=self.device)
        for layer in layers.values():
            mean, var = layer.moments()
            term = (mean - layer.mean).square().mean() + (var - layer.var).square().mean()
            total = (total + term) / len(layers)
        return total

    def _by_class(self, layer: Layer, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and deviation (classes, C) of what enters a layer, of each class of the batch; `kept` (N) are 0 or 1."""
        x = torch.cat(layer.inputs)
        size = self.options.images_per_class
        grouped = x.reshape(-1, size, *x.shape[1:]).flatten(3)
        weight = grouped.new_ones(len(x)) if kept is None else kept.to(grouped.dtype)
        weight = weight.reshape(-1, size, 1, 1)
        total = (weight.sum((1, 2, 3)) * grouped.shape[3]).clamp(min=1)[:, None]
        mean = (grouped * weight).sum((1, 3)) / total
        var = ((grouped - mean[:, None, :, None]).square() * weight).sum((1, 3)) / total
        return mean, _root(var)

    @torch.no_grad()
    def _start_centroids(self) -> None:
        """Each class's statistics, of images that the teacher takes for it where there are any (section III-C)."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for first in range(0, self.classes, self.options.classes_per_batch):
            names = torch.arange(first, min(first + self.options.classes_per_batch, self.classes), device=self.device)
            labels = names.repeat_interleave(self.options.images_per_class)
            images = self.images(labels)
            self.seen.clear()
            with self.seen:
                kept = self._recognized(labels, self.teacher(images))
            for name, layer in self._semantic_layers().items():
                found.setdefault(name, []).append(self._by_class(layer, kept))
        self.mean = {name: torch.cat([m for m, _ in parts]) for name, parts in found.items()}
        self.deviation = {name: torch.cat([d for _, d in parts]) for name, parts in found.items()}

    @torch.no_grad()
    def _move_centroids(self, labels: Tensor, answers: Tensor) -> None:
        """The moving average of the centroids, by the images of each class that the teacher recognizes."""
        size, b = self.options.images_per_class, self.options.ema
        kept = answers.argmax(1) == labels
        known = kept.reshape(-1, size).any(1)
        moved = labels[::size][known]
        for name, layer in self._semantic_layers().items() if len(moved) else ():
            mean, deviation = (s[known] for s in self._by_class(layer, kept))
            self.mean[name][moved] = (1 - b) * self.mean[name][moved] + b * mean
            self.deviation[name][moved] = (1 - b) * self.deviation[name][moved] + b * deviation

    def _recognized(self, labels: Tensor, answers: Tensor) -> Tensor:
        """The images (N) that the teacher takes for their class; all of a class of which it takes none."""
        kept = (answers.argmax(1) == labels).reshape(-1, self.options.images_per_class)
        return torch.where(kept.any(1, keepdim=True), kept, torch.ones_like(kept)).flatten()

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on as if there had been no break."""
        return {
            "generator": self.generator.state_dict(),
            "student": self.student.state_dict(),
            "generator_adam": self.generator_adam.state_dict(),
            "student_sgd": self.student_sgd.state_dict(),
            "mean": self.mean,
            "deviation": self.deviation,
            "epoch": self.epoch,
            "random": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind the epoch that `state` was taken at."""
        for name in ("generator", "student", "generator_adam", "student_sgd"):
            getattr(self, name).load_state_dict(state[name])
        self.mean, self.deviation, self.epoch = state["mean"], state["deviation"], state["epoch"]
        for quantizer in self.student.activations.values():
            assert isinstance(quantizer, EmaMinMax)
            quantizer.observing = self.epoch < self.options.observe
        torch.set_rng_state(state["random"])


def _root(var: Tensor) -> Tensor:
    return var.clamp(min=1e-12).sqrt()


def shortened(options: ClusterQOptions, epochs: int, steps: int, warm_up: int) -> ClusterQOptions:
    """The same terms for a smaller budget of epochs x steps; ranges freeze when the student starts, at the latest."""
    return replace(options, epochs=epochs, steps=steps, warm_up=warm_up, observe=min(options.observe, warm_up))


def train(
    trainer: Trainer, on_step: Step | None = None, on_epoch: Callable[[int, float, float], None] | None = None
) -> None:
    """Run the epochs that are left; `on_epoch` hears of each one's number and mean losses."""
    options = trainer.options
    while trainer.epoch < options.epochs:
        losses = []
        for n in range(options.steps):
            losses.append(trainer.step())
            if on_step:
                on_step("generator and student", trainer.epoch * options.steps + n + 1, options.epochs * options.steps)
        generator, student = (sum(values) / len(values) for values in zip(*losses, strict=True))
        trainer.end_epoch()
        if on_epoch:
            on_epoch(trainer.epoch, generator, student)
