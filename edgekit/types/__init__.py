"""The values that travel between the rooms: frozen, and free of any third-party import."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.types.apps import Embedded as Embedded
from edgekit.types.apps import Finding as Finding
from edgekit.types.benchmark import Benchmark as Benchmark
from edgekit.types.benchmark import Cell as Cell
from edgekit.types.benchmark import CellResult as CellResult
from edgekit.types.benchmark import OnSweep as OnSweep
from edgekit.types.benchmark import Ratio as Ratio
from edgekit.types.benchmark import SweepEvent as SweepEvent
from edgekit.types.benchmark import SweepPlan as SweepPlan
from edgekit.types.profile import ArtifactProfile as ArtifactProfile
from edgekit.types.profile import Comparison as Comparison
from edgekit.types.profile import DelegationShare as DelegationShare
from edgekit.types.profile import Operators as Operators
from edgekit.types.profile import OperatorTime as OperatorTime
from edgekit.types.profile import Profile as Profile
from edgekit.types.profile import Protocol as Protocol
from edgekit.types.profile import SustainedPoint as SustainedPoint
from edgekit.types.report import Report as Report
from edgekit.types.risk import Agreement as Agreement
from edgekit.types.risk import NormFit as NormFit
from edgekit.types.risk import Risk as Risk
from edgekit.types.risk import TensorRisk as TensorRisk
from edgekit.types.steps import FileOp as FileOp

Shape = tuple[int, ...]
Build = Callable[[int, int, tuple[int, int]], Any]
"""(number of classes, input channels, (height, width) of the image) -> module in train form."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of an artifact; `layout` is "NCHW" or "NHWC" for images, "" otherwise."""

    name: str
    shape: Shape
    dtype: str = "float32"
    layout: str = ""
    quantization: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a photo becomes the model's input: resize the shorter side, centre crop, (pixel * scale - mean) / std.

    `resize` and `crop` are pixels; `mean` and `std` have one value a channel and apply after `scale`.
    """

    resize: int
    crop: Shape
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    channel_order: str = "RGB"

    def __post_init__(self) -> None:
        """Raises `ValueError` for what no photo can be prepared by: a manifest may say anything."""
        if len(self.crop) != 2 or min(self.resize, *self.crop) < 1:
            raise ValueError(f"crop {self.crop} and resize {self.resize} are not sizes of an image")
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std) or not all(self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} do not fit an image")
        if self.channel_order not in ("RGB", "BGR"):
            raise ValueError(f"channel order {self.channel_order!r} is neither RGB nor BGR")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model of the zoo: how to build it, and the facts of its card.

    `build(num_classes, in_channels, (height, width))` returns the train form: a module with `forward` (logits),
    `forward_features` (stage outputs as maps), `feature_strides` and `feature_channels`. `convert_state` maps a
    published checkpoint's names and layouts to ours and leaves ours as they are; `fit_state(state, module)` resizes
    tables made at another image size. `params` and `macs` are for `num_classes` classes at `input`.
    """

    name: str
    family: str
    build: Build
    params: int
    macs: int
    paper: str
    licence: str
    preprocess: Preprocess
    convert_state: Callable[[Mapping[str, Any]], dict[str, Any]]
    fit_state: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None
    input: Shape = (3, 224, 224)
    num_classes: int = 1000
    stride: int = 32
    labels: str = ""
    weights: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where weights came from ("seed:0" or a file) and the hash of that file."""

    source: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What the user asked to be loaded; enough to load it again."""

    model: str
    weights: str | None = None
    num_classes: int | None = None
    image_size: int | None = None
    input_shape: tuple[Shape, ...] = ()
    batch_size: int = 1
    seed: int = 0
    labels: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    features_only: bool = False


@dataclass(frozen=True, kw_only=True)
class FallbackOp:
    """Ops of one kind that run outside the delegate, why, and the source lines they came from."""

    op: str
    count: int
    reason: str
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Delegation:
    """Which backend takes how much: `partitions` delegate calls holding `delegated` ops, and the rest.

    `notes` say what had to be lowered in another way than was asked for. `ops` is every op of the file, in order of
    running; in an artifact they are in a file of their own.
    """

    backend: str
    delegated: int
    partitions: int = 1
    fallback: tuple[FallbackOp, ...] = ()
    notes: tuple[str, ...] = ()
    ops: tuple[FileOp, ...] = ()

    @property
    def fallback_count(self) -> int:
        return sum(f.count for f in self.fallback)


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """How far one output is from the reference, over all samples."""

    name: str
    max_abs_error: float
    sqnr_db: float
    top1_agreement: float | None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """An artifact, read back from disk and run by its runtime, against a reference.

    `sqnr_db` is the worst sample of the worst output; `top1_agreement` is a fraction, or None where the output
    is not a row of class scores.
    """

    against: str
    runtime: str
    samples: int
    max_abs_error: float
    sqnr_db: float
    top1_agreement: float | None
    min_sqnr_db: float
    passed: bool
    failures: tuple[str, ...] = ()
    outputs: tuple[OutputError, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far an output of another device is from the same file's on this machine.

    `max_difference` of a value may be `allowed` by `rule`, such as "1e-05 of the largest value" or "one step of int8".
    Beyond that two runs of a file of integers may be as far from each other (`sqnr_db`) as each from its simulation,
    `floor_db`: what rounds the other way in one of its first layers grows. That is None for a file of floats.
    """

    output: str
    max_difference: float
    allowed: float
    rule: str
    sqnr_db: float
    floor_db: float | None = None

    @property
    def within_rule(self) -> bool:
        return self.max_difference <= self.allowed

    @property
    def passed(self) -> bool:
        return self.within_rule or (self.floor_db is not None and self.sqnr_db >= self.floor_db)


@dataclass(frozen=True, kw_only=True)
class DeviceVerification(Verification):
    """What another `device` computes, against the reference; and against what the runtime `here` makes of the file."""

    device: str
    here: str
    parity: tuple[Parity, ...]


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Calibration:
    kind: str = "none"
    source: str = ""
    samples: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """How a model is quantized; `keep_float` are shell patterns of module paths.

    `rounding` of weights is to the nearest, or balanced: so that the errors of a kernel and a channel cancel.
    """

    range_estimator: str = "mse"
    bias_correction: str = "full"
    smooth_quant: bool = False
    equalize: bool = False
    rounding: str = "nearest"
    keep_float: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """How a quantized model was made, and of which float model; travels in a `.pt2` beside the program.

    `protocol` says where the bits of a scheme wXaY are; int8 has none.
    """

    scheme: str
    name: str
    request: ModelRequest
    weights: Weights
    calibration: Calibration
    options: QuantizationOptions
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    edgekit: str = ""
    risk: Risk | None = None
    protocol: str = ""
    schema: int = 1

    @property
    def is_simulated(self) -> bool:
        """Whether torch alone computes in these bits."""
        return bool(self.protocol)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`edgekit.json`: all that a phone app, `profile`, `embed` or a colleague needs."""

    edgekit: str
    name: str
    model: str
    weights: Weights
    target: str
    precision: str
    files: Mapping[str, FileRecord]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None
    request: ModelRequest
    delegation: Delegation
    layers: Mapping[str, int]
    environment: Mapping[str, str]
    labels: str = ""
    calibration: Calibration = field(default_factory=Calibration)
    quantization: QuantizationOptions | None = None
    verification: tuple[Verification, ...] = ()
    notes: tuple[str, ...] = ()
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A folder with one exported model, its manifest, labels and golden vectors.

    `speed` compares it with fp32 where that was asked for and could be measured; `no_speed` says why it could not.
    """

    path: Path
    manifest: Manifest
    seconds: float = 0.0
    speed: Comparison | None = None
    no_speed: str = ""

    @property
    def model_path(self) -> Path:
        """The model file (for Core ML a folder) inside the artifact."""
        first = next(name for name in self.manifest.files if name.startswith("model."))
        return self.path / first.split("/")[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of the model itself, without manifest, labels and golden vectors."""
        return sum(r.bytes for name, r in self.manifest.files.items() if name.startswith("model."))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """Top-1 accuracy in percent on the `n` images of one class, and what of the reference's is lost, in points."""

    label: str
    index: int
    n: int
    top1: float
    reference_top1: float | None
    drop: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy on labelled images; top1, top5 and agreement in percent, `ci95` the Wilson interval of top1.

    `drop` is `reference_top1 - top1` in points on the same images and `drop_ci95` its paired interval; these and
    `agreement` are None without a reference (`against`). `per_class` has every class that occurs. `images_per_second`
    is that of `runtime` in batches of `batch_size`, without reading and preparing the images.
    """

    top1: float
    top5: float
    n: int
    agreement: float | None
    images_per_second: float
    ci95: tuple[float, float]
    runtime: str
    batch_size: int
    against: str | None = None
    reference_top1: float | None = None
    drop: float | None = None
    drop_ci95: tuple[float, float] | None = None
    per_class: tuple[ClassAccuracy, ...] = ()
    unreadable: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpCount:
    op: str
    count: int
    delegated: bool


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is inside an artifact's model file, as read from disk."""

    artifact: Artifact
    ops: tuple[OpCount, ...]


@dataclass(frozen=True, kw_only=True)
class Health:
    """One line of `doctor`: does it work here, and what to type if it does not; `optional` is what few users need."""

    name: str
    works: bool
    detail: str
    remedy: str = ""
    optional: bool = False


Step = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""
