"""What is asked of accuracy control, and what it found."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class AccuracyTarget:
    """At most `max_drop` points of top-1 less than the float model has on the labelled images at `data`.

    `samples` of them are drawn from all classes, the same each time; None takes all.
    """

    data: str | Path
    max_drop: float
    samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """What int8 in one layer does to the class probabilities, in nats of KL divergence from the float model.

    `alone` is with the other layers in float, `spared` what float in this layer alone takes off the whole, `nats` their
    mean. Staying float costs `bytes` of weights and leaves `macs` multiplications of one call in float.
    """

    name: str
    nats: float
    alone: float
    spared: float
    macs: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The int8 model with the layers `keep_float` in float: top1 in percent, `drop` and its interval in points."""

    keep_float: tuple[str, ...]
    top1: float
    drop: float
    drop_ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class AccuracyControl:
    """How few layers in float keep the drop of top-1, measured on `n` images of `data`, within `max_drop` points.

    `layers` are ranked by sensitivity, `trials` in the order in which they were made. `macs` and `bytes` are what
    `chosen` costs, with the layers between those that it names, which may follow them into float; `macs_total` and
    `bytes_total` are of all layers that are in int8 without it.
    """

    data: str
    max_drop: float
    n: int
    unreadable: int
    reference_top1: float
    chosen: Trial
    macs: int
    macs_total: int
    bytes: int
    bytes_total: int
    samples: int
    layers: tuple[LayerSensitivity, ...]
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    schema: int = 1
