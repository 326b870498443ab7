"""A recipe: one YAML file that says all of a training run, as frozen values. `reading.py` reads it.

Sections and their keys are the dataclasses below. Paths are relative to the working directory. The stages of a run are
the sections that are there: `schedule` trains in float, `compression` before it makes the model smaller, `quantization`
makes an int8 model of it and may fine-tune that, `export` writes artifacts and measures each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Check:
    """What a number must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


Positive = Annotated[float, Check("above 0", lambda v: v > 0)]
NotNegative = Annotated[float, Check("0 or more", lambda v: v >= 0)]
Share = Annotated[float, Check("from 0 to 1", lambda v: 0 <= v <= 1)]
PartShare = Annotated[float, Check("0 or more and below 1", lambda v: 0 <= v < 1)]
RealShare = Annotated[float, Check("above 0 and at most 1", lambda v: 0 < v <= 1)]
Count = Annotated[int, Check("1 or more", lambda v: v >= 1)]
NotNegativeInt = Annotated[int, Check("0 or more", lambda v: v >= 0)]
Magnitude = Annotated[int, Check("from 1 to 29", lambda v: 1 <= v <= 29)]
ExistingPath = Annotated[str, Check("a path that leads somewhere", lambda v: Path(v).exists())]
TrainingPath = Annotated[
    str, Check("a path that leads somewhere, or shards-{000..099}.tar", lambda v: "{" in v or Path(v).exists())
]


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The float model, as `-m` and its options name it.

    Without `num_classes` it gets as many classes as the training data has, where those are not its own; of `weights`
    with another number of classes everything but the head is taken. `crop_pct` is the share of the resized image's
    shorter side that evaluation keeps (timm's term); None is as published.
    """

    name: str
    weights: str | None = None
    num_classes: Count | None = None
    labels: ExistingPath | None = None
    image_size: Count | None = None
    crop_pct: RealShare | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Photos to train on and others to evaluate on: `evaluation` is a set of its own, `holdout` a share of `train`.

    `train` is a folder, .npz or .tar, or tar shards as webdataset writes them: shards-{000..099}.tar. `limit` is the
    most images that are evaluated, `train_limit` the most that are trained on, spread over the classes. `batch_size`
    is of all processes together; `workers` are processes that decode ahead, of each of them.
    """

    train: TrainingPath
    evaluation: ExistingPath | None = None
    holdout: PartShare = 0.0
    limit: Count | None = None
    train_limit: Count | None = None
    batch_size: Count = 64
    workers: NotNegativeInt = 0

    def __post_init__(self) -> None:
        """Raises `ValueError` for keys that contradict each other."""
        if self.evaluation is not None and self.holdout:
            raise ValueError("evaluation and holdout both say what to evaluate on; give one of them")


@dataclass(frozen=True, kw_only=True)
class AugmentationSection:
    """What is done to a training image, in this order.

    `random_resized_crop`: a box of at least this share of the area, aspect 3/4 to 4/3, to the model's size (Szegedy
    et al. 2015, section 6); without it the evaluation's resize and crop. `flip`: mirrored with probability 1/2.
    `rand_augment`: its magnitude, of 30, for two operations (Cubuk et al. 2020). `color_jitter`: brightness, contrast
    and saturation changed by up to this factor. `crop_padding`: a crop out of the image padded by as many pixels of the
    mean colour (He et al. 2016, section 4.2). `random_erasing`: the probability of a rectangle of noise (Zhong et al.
    2020). Then of pairs in a batch, as often one as the other where both are given: `mixup` and `cutmix`, the alpha of
    the Beta distribution that their share is drawn from (Zhang et al. 2018; Yun et al. 2019).
    """

    random_resized_crop: RealShare | None = None
    flip: bool = True
    rand_augment: Magnitude | None = None
    color_jitter: Share = 0.0
    crop_padding: NotNegativeInt = 0
    random_erasing: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """`clip_norm` limits the norm of the whole gradient. Weight decay is for weights, not for biases, scales and other

    vectors, unless `decay_vectors`.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    momentum: PartShare = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    decay_vectors: bool = False
    clip_norm: Positive | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` for what adamw would ignore."""
        if self.name == "adamw" and (self.momentum != OptimizerSection.momentum or self.nesterov):
            raise ValueError("momentum is sgd's; adamw has its own")


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """How long, as `steps` or `epochs`; the rate rises over a warm-up and falls on a cosine to `min_lr`, or stays.

    `cycles`: the cosine starts anew as often (Loshchilov and Hutter 2017). `ema`: the decay of an average of the
    weights over steps, which is then what is evaluated and kept. `prepbn_share`: of SLAB's norms, the share of all
    steps in which they go from LayerNorm to batch norm.
    """

    steps: Count | None = None
    epochs: Positive | None = None
    warmup_steps: NotNegativeInt = 0
    warmup_epochs: NotNegative = 0.0
    decay: Literal["cosine", "none"] = "cosine"
    min_lr: NotNegative = 0.0
    cycles: Count = 1
    label_smoothing: PartShare = 0.0
    ema: PartShare | None = None
    prepbn_share: RealShare = 0.8

    def __post_init__(self) -> None:
        """Raises `ValueError` where a length is given twice or not at all."""
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, one of them")
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("give warmup_steps or warmup_epochs, one of them")


@dataclass(frozen=True, kw_only=True)
class FineTuningSection:
    """What a pretrained model keeps: names or patterns of modules in `freeze` stay as they are, batch norms included,

    until `unfreeze_epoch` if that is given. The learning rate of a block is `layer_decay` times that of the next.
    """

    freeze: tuple[str, ...] = ()
    unfreeze_epoch: Positive | None = None
    layer_decay: RealShare = 1.0


@dataclass(frozen=True, kw_only=True)
class DistillationSection:
    """Answers of a teacher as targets; see `distillation.py`. `weight` is their share of the loss; 1 needs no labels.

    kd: T^2 KL(teacher || model). ssld: the symmetrized KL, no temperature. snapshot: the model itself at the end of
    the last cycle. tolerant: no teacher; the loss of one, `top_k` classes and their gap with the share `weight`.
    Without `teacher` kd is taught by the float model, which only fine-tuning in int8 has.
    """

    method: Literal["kd", "ssld", "snapshot", "tolerant"] = "kd"
    teacher: ModelSection | None = None
    temperature: Positive = 1.0
    weight: Share = 1.0
    top_k: Annotated[int, Check("2 or more", lambda v: v >= 2)] = 5

    def __post_init__(self) -> None:
        """Raises `ValueError` for keys that the method would ignore."""
        if self.method == "ssld" and self.temperature != 1:
            raise ValueError("ssld has no temperature")
        if self.method in ("snapshot", "tolerant") and self.teacher is not None:
            raise ValueError(f"{self.method} takes no teacher")
        if self.method == "tolerant" and self.temperature != 1:
            raise ValueError("tolerant has no temperature")


@dataclass(frozen=True, kw_only=True)
class TokenLabellingSection:
    """LVT's: CE(class token) + `weight` x CE(patch tokens) on a teacher's dense answers, and mix-token.

    See `token_labelling.py` (Jiang et al. 2021). `teacher` answers for each place of its last feature map.
    """

    teacher: ModelSection
    weight: NotNegative = 0.5
    mix_token: NotNegative = 1.0


@dataclass(frozen=True, kw_only=True)
class CompressionSection:
    """PELA: linear layers factored into two with 1 / `ratio` of the parameters, then trained with the original as

    teacher: `feature_weight` x MSE of the features + `perturbation_weight` x the excess of |BA - W|.
    """

    ratio: Annotated[float, Check("above 1", lambda v: v > 1)] = 2.0
    feature_weight: NotNegative = 1.0
    perturbation_weight: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class QatSection:
    """Fine-tuning with fake quantization. `learn_ranges`: the scales of activations are trained too."""

    schedule: ScheduleSection
    optimizer: OptimizerSection = OptimizerSection(name="adamw", lr=2e-5)
    distillation: DistillationSection | None = DistillationSection()
    learn_ranges: bool = False

    def __post_init__(self) -> None:
        """Raises `ValueError` for a distillation that is not the float model's."""
        if self.distillation and (self.distillation.method != "kd" or self.distillation.teacher is not None):
            raise ValueError("distillation is kd, and its teacher is the float model: leave method and teacher out")


@dataclass(frozen=True, kw_only=True)
class QuantizationSection:
    """The options of `edgekit quantize`. Without `calibration` the training photos serve."""

    scheme: Literal["int8"] = "int8"
    calibration: ExistingPath | None = None
    num_calibration_samples: Count = 128
    range_estimator: Literal["mse", "minmax", "percentile"] = "mse"
    bias_correction: Literal["full", "fast", "none"] = "full"
    keep_float: tuple[str, ...] = ()
    qat: QatSection | None = None


@dataclass(frozen=True, kw_only=True)
class ExportSection:
    """Artifacts of the last stage, below `out`/artifacts. `limit` is the most images that each is evaluated on."""

    targets: tuple[str, ...]
    limit: Count | None = None


@dataclass(frozen=True, kw_only=True)
class HardwareSection:
    """Where and in which precision the float stage runs; nothing of it changes what is computed but by rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    sync_batch_norm: bool = True


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run. `out` is the folder that it writes; `*_every` count steps, 0 of evaluations: at the end alone."""

    model: ModelSection
    data: DataSection
    out: str
    augmentation: AugmentationSection = AugmentationSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection | None = None
    fine_tuning: FineTuningSection = FineTuningSection()
    distillation: DistillationSection | None = None
    token_labelling: TokenLabellingSection | None = None
    compression: CompressionSection | None = None
    quantization: QuantizationSection | None = None
    export: ExportSection | None = None
    hardware: HardwareSection = HardwareSection()
    seed: NotNegativeInt = 0
    checkpoint_every: Count = 100
    evaluate_every: NotNegativeInt = 0
    log_every: Count = 10

    def __post_init__(self) -> None:
        """Raises `ValueError` for sections that want another one."""
        if self.schedule is None and self.quantization is None:
            raise ValueError("a recipe has schedule (training in float), quantization, or both")
        if self.schedule is None and (self.distillation or self.token_labelling or self.compression):
            raise ValueError("distillation, token_labelling and compression are of the float stage: give schedule")
        if self.distillation and self.token_labelling:
            raise ValueError("token_labelling has a teacher of its own: leave distillation out")
        cycles = self.schedule.cycles if self.schedule else 1
        if self.distillation and self.distillation.method == "snapshot" and cycles < 2:
            raise ValueError("snapshot distillation is between cycles: give schedule.cycles, 2 or more")
        if self.distillation and self.distillation.method in ("kd", "ssld") and self.distillation.teacher is None:
            raise ValueError(f"{self.distillation.method} needs distillation.teacher")
