"""A recipe: one YAML file that says all of a training run, read into frozen values before anything runs.

Sections and their keys are the dataclasses below; `key=value` on the command line changes one, as
`optimizer.lr=0.003`. Paths are relative to the working directory.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML, YAMLError

from edgekit.errors import BadInput


@dataclass(frozen=True)
class Check:
    """What a number must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


Positive = Annotated[float, Check("above 0", lambda v: v > 0)]
NotNegative = Annotated[float, Check("0 or more", lambda v: v >= 0)]
Share = Annotated[float, Check("from 0 to 1", lambda v: 0 <= v <= 1)]
PartShare = Annotated[float, Check("0 or more and below 1", lambda v: 0 <= v < 1)]
Count = Annotated[int, Check("1 or more", lambda v: v >= 1)]
NotNegativeInt = Annotated[int, Check("0 or more", lambda v: v >= 0)]
ExistingPath = Annotated[str, Check("a path that leads somewhere", lambda v: Path(v).exists())]


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The float model, as `-m` and its options name it."""

    name: str
    weights: ExistingPath | None = None
    num_classes: Count | None = None
    labels: ExistingPath | None = None
    image_size: Count | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Photos to train on and others to evaluate on: `evaluation` is a set of its own, `holdout` a share of `train`.

    `limit` is the most images that are evaluated. Augmentation: mirrored with probability 1/2 (`flip`), and a crop at
    random out of the image padded by `crop_padding` pixels of zero, the mean colour (He et al. 2016, section 4.2).
    """

    train: ExistingPath
    evaluation: ExistingPath | None = None
    holdout: PartShare = 0.0
    limit: Count | None = None
    batch_size: Count = 64
    flip: bool = True
    crop_padding: NotNegativeInt = 0

    def __post_init__(self) -> None:
        """Raises `ValueError` for keys that contradict each other."""
        if self.evaluation is not None and self.holdout:
            raise ValueError("evaluation and holdout both say what to evaluate on; give one of them")


@dataclass(frozen=True, kw_only=True)
class QuantizationSection:
    """Where fine-tuning starts: the options of `edgekit quantize`. Without `calibration` the training photos serve.

    `learn_ranges`: the scales of activations are trained too.
    """

    scheme: Literal["int8"] = "int8"
    calibration: ExistingPath | None = None
    num_calibration_samples: Count = 128
    range_estimator: Literal["mse", "minmax", "percentile"] = "mse"
    bias_correction: Literal["full", "fast", "none"] = "full"
    keep_float: tuple[str, ...] = ()
    learn_ranges: bool = False


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """Weight decay is for weights, not for biases, scales and other vectors."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    momentum: PartShare = 0.9
    weight_decay: NotNegative = 0.0

    def __post_init__(self) -> None:
        """Raises `ValueError` for a momentum that adamw would ignore."""
        if self.name == "adamw" and self.momentum != OptimizerSection.momentum:
            raise ValueError("momentum is sgd's; adamw has its own")


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """How long, as `steps` or `epochs`; the rate rises over `warmup_steps` and falls on a cosine to 0, or stays."""

    steps: Count | None = None
    epochs: Positive | None = None
    warmup_steps: NotNegativeInt = 0
    decay: Literal["cosine", "none"] = "cosine"

    def __post_init__(self) -> None:
        """Raises `ValueError` where the length is given twice or not at all."""
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, one of them")


@dataclass(frozen=True, kw_only=True)
class DistillationSection:
    """The float model's answers as targets: `weight` is their share of the loss; 1 needs no labels."""

    temperature: Positive = 1.0
    weight: Share = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run. `out` is the folder that it writes; `checkpoint_every` and `log_every` count steps."""

    model: ModelSection
    data: DataSection
    out: str
    quantization: QuantizationSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection
    distillation: DistillationSection | None = None
    seed: int = 0
    checkpoint_every: Count = 100
    log_every: Count = 10


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path`, with `section.key=value` overrides. Raises `BadInput` that lists all that is wrong."""
    try:
        values = _yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read as a recipe ({error})", "Give a .yaml file like recipes/*.yaml"
        ) from error
    problems: list[str] = []
    if isinstance(values, dict):
        for override in overrides:
            _override(values, override, problems)
    recipe: Recipe = _structured(Recipe, values, "", problems)
    if problems:
        raise BadInput(
            f"{path} cannot be run:\n  " + "\n  ".join(problems),
            f"A recipe has {', '.join(f.name for f in fields(Recipe))}: see recipes/*.yaml",
        )
    return recipe


def _yaml(text: str, source: str) -> Any:
    """The value of YAML 1.2, where 1e-3 is a number and `no` a word, and a key that stands twice is an error."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise BadInput(f"{source} is not YAML: {' '.join(str(error).split())}", "See recipes/*.yaml") from error


def _override(values: dict[str, Any], text: str, problems: list[str]) -> None:
    path, equals, value = text.partition("=")
    *sections, key = path.split(".")
    place: Any = values
    for section in sections:
        if place.get(section) is None:
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            break
    if equals and key and isinstance(place, dict):
        place[key] = _yaml(value, text)
    else:
        problems.append(f"{text}: an override is section.key=value, as optimizer.lr=0.003")


_SCALARS: dict[type, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    str: ("text", (str,)),
}


def _structured(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as a `kind`; what is wrong goes to `problems` with its path, and None comes back."""

    def wrong(text: str) -> None:
        problems.append(f"{path or 'the recipe'}: {text}")

    options = get_args(kind)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            return wrong(f"{value!r} is no section with {', '.join(f.name for f in fields(kind))}")
        return _section(kind, value, path, problems)
    if get_origin(kind) is Annotated:
        found = _structured(options[0], value, path, problems)
        return found if found is None or options[1].holds(found) else wrong(f"{found} is not {options[1].words}")
    if get_origin(kind) in (Union, UnionType):
        return None if value is None else _structured(options[0], value, path, problems)
    if get_origin(kind) is Literal:
        return (
            value if value in options else wrong(f"{value!r} is none of {', '.join(options)}{_close(value, options)}")
        )
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            return wrong(f"{value!r} is not a list, as [a, b]")
        return tuple(_structured(options[0], v, f"{path}[{i}]", problems) for i, v in enumerate(value))
    words, types = _SCALARS[kind]
    fits = isinstance(value, types) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is float and not math.isfinite(value)):
        return wrong(f"{value!r} is not {words}")
    return kind(value)


def _section(kind: Any, value: dict[str, Any], path: str, problems: list[str]) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    before = len(problems)
    at = f"{path}." if path else ""
    problems += [f"{at}{key}: there is no such key{_close(key, hints)}" for key in value if key not in hints]
    required = [f.name for f in fields(kind) if f.default is MISSING]
    problems += [f"{at}{key}: is missing" for key in required if key not in value]
    found = {k: _structured(hints[k], v, f"{at}{k}", problems) for k, v in value.items() if k in hints}
    if len(problems) > before:
        return None
    try:
        return kind(**found)
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None


def _close(key: object, known: Iterable[str]) -> str:
    close = get_close_matches(str(key), list(known), n=2)
    return f". Did you mean {' or '.join(close)}?" if close else ""
