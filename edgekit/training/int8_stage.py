"""The int8 stage: post-training quantization (PTQ), and fine-tuning of the Q/DQ graph (QAT) where the recipe asks."""

from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.artifacts import write_file
from edgekit.loading import Loaded, load
from edgekit.programs import quantized_bytes
from edgekit.quantization import prepare
from edgekit.quantizing import with_precision
from edgekit.training.augmentation import ImageTransform
from edgekit.training.data import Batches, Photos, calibrating
from edgekit.training.distillation import Objective
from edgekit.training.fake_quant import FakeQuantized
from edgekit.training.loop import Course, Loop, Outcome
from edgekit.training.processes import fabric_of
from edgekit.training.recipe import HardwareSection, QatSection, Recipe
from edgekit.types import ModelRequest, QuantizationOptions, Quantized, Step

START, RESULT, QAT = "ptq.pt2", "model.pt2", "qat"
"""`QAT` is the folder with the log and the checkpoint of fine-tuning, below the run's."""


@dataclass
class Int8Stage:
    """`path` and `quantized` are what the stage ends with."""

    plan: Recipe
    loaded: Loaded
    photos: Photos
    folder: Path
    resume: bool

    def __post_init__(self) -> None:
        self.path: Path = self.folder / START
        self.quantized: Quantized | None = None

    def run(self, on_step: Step | None) -> tuple[Loaded, Outcome | None]:
        """The model after PTQ, and what fine-tuning made of it."""
        section = self.plan.quantization
        assert section is not None
        there = self.resume and self.path.exists()
        start = load(ModelRequest(model=str(self.path))) if there else self._quantize(on_step)
        assert start.quantized is not None
        self.quantized = start.quantized
        return start, None if section.qat is None else self._fine_tune(start, section.qat, on_step)

    def _quantize(self, on_step: Step | None) -> Loaded:
        q = self.plan.quantization
        assert q is not None
        options = QuantizationOptions(
            range_estimator=q.range_estimator, bias_correction=q.bias_correction, keep_float=q.keep_float
        )
        own = calibrating(self.plan, len(self.photos.images))
        source, samples = q.calibration or self.plan.data.train, own or q.num_calibration_samples
        made = with_precision(self.loaded, q.scheme, source, samples, options, on_step)
        assert made.quantized is not None
        write_file(self.path, quantized_bytes(made.program, made.quantized, made.float_outputs))
        return made

    def _fine_tune(self, start: Loaded, section: QatSection, on_step: Step | None) -> Outcome:
        plan = self.plan
        model = FakeQuantized(start.program, prepare(self.loaded.program), section.learn_ranges)
        # Mixed images are for training from scratch; what is trained here follows a network that saw the others.
        augmentation = replace(plan.augmentation, mixup=0.0, cutmix=0.0)
        transform = ImageTransform(self.photos.preprocess, augmentation)
        batches = Batches(self.photos, plan.data.batch_size, plan.seed, transform, workers=plan.data.workers)
        objective = Objective(section.distillation, self.loaded.module, section.schedule.label_smoothing)
        course = Course(
            optimizer=section.optimizer,
            schedule=section.schedule,
            seed=plan.seed,
            checkpoint_every=plan.checkpoint_every,
            log_every=plan.log_every,
        )
        fabric = fabric_of(HardwareSection(device="cpu"), alone=True)
        loop = Loop(model, objective, batches, course, fabric, self.folder / QAT)
        outcome = loop.run(on_step)
        assert self.quantized is not None
        self.quantized = replace(self.quantized, notes=(*self.quantized.notes, _note(plan, section, outcome.steps)))
        self.path = self.folder / RESULT
        write_file(self.path, quantized_bytes(model.folded(), self.quantized, start.float_outputs))
        return outcome


def _note(plan: Recipe, section: QatSection, steps: int) -> str:
    share = 0.0 if section.distillation is None else section.distillation.weight
    aim = {0.0: "on labels", 1.0: "on the float model's answers"}.get(
        share, f"{share:.0%} on the float model's answers"
    )
    return (
        f"fine-tuned with fake quantization (QAT): {steps} steps of {plan.data.batch_size} photos of "
        f"{Path(plan.data.train).name}, {aim}, {section.optimizer.name} from {section.optimizer.lr:g}, seed {plan.seed}"
    )
