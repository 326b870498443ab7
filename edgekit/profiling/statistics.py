"""Latencies as numbers that can be defended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.devices import Figures

MAX_CV = 0.10
MAX_TAIL = 1.5
"""p99 / p50 beyond which, like a coefficient of variation above `MAX_CV`, a measurement is called unstable."""

Samples = NDArray[np.float64]
"""Microseconds, shape (rounds, runs in a round)."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Milliseconds, except `cv` = std / mean. `std_ms` is the sample's (n - 1); percentiles interpolate linearly.

    None where there was nothing to tell it from.
    """

    mean_ms: float | None = None
    std_ms: float | None = None
    cv: float | None = None
    min_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None

    @property
    def stable(self) -> bool:
        spread = self.cv is not None and self.cv > MAX_CV
        tail = self.p99_ms is not None and self.p50_ms is not None and self.p99_ms > MAX_TAIL * self.p50_ms
        return not (spread or tail)


def summary(samples: Samples) -> Summary:
    """The usual figures of at least one latency."""
    ms = samples.ravel() / 1e3
    mean = float(ms.mean())
    std = float(ms.std(ddof=1)) if ms.size > 1 else 0.0
    p50, p90, p95, p99 = (float(p) for p in np.percentile(ms, (50, 90, 95, 99)))
    return Summary(
        mean_ms=mean,
        std_ms=std,
        cv=std / mean if mean else 0.0,
        min_ms=float(ms.min()),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=float(ms.max()),
    )


def merged(figures: Sequence[Figures]) -> Summary:
    """What several runs of a tool that keeps no samples say together: percentiles are the median of theirs.

    Mean and deviation are those of all runs together; a figure that one of them lacks is None.
    """
    if not figures:
        return Summary()
    runs = np.array([f.runs for f in figures], dtype=np.float64)
    means = np.array([f.mean_ms for f in figures])
    mean = float(np.average(means, weights=runs))
    deviations = [f.std_ms for f in figures]
    std = None
    if None not in deviations:
        squares = (runs - 1) * np.array(deviations, dtype=np.float64) ** 2 + runs * (means - mean) ** 2
        std = float(np.sqrt(squares.sum() / max(1.0, runs.sum() - 1)))

    def of(values: list[float | None], reduce: Callable[[list[float]], float]) -> float | None:
        known = [v for v in values if v is not None]
        return float(reduce(known)) if len(known) == len(values) else None

    def middle(values: list[float]) -> float:
        return float(np.median(values))

    return Summary(
        mean_ms=mean,
        std_ms=std,
        cv=std / mean if std is not None and mean else None,
        min_ms=of([f.min_ms for f in figures], min),
        p50_ms=of([f.p50_ms for f in figures], middle),
        p90_ms=of([f.p90_ms for f in figures], middle),
        p95_ms=of([f.p95_ms for f in figures], middle),
        p99_ms=of([f.p99_ms for f in figures], middle),
        max_ms=of([f.max_ms for f in figures], max),
    )


def bootstrap_medians(
    samples: Sequence[Samples], resamples: int = 1000, seed: int = 0
) -> tuple[NDArray[np.float64], ...]:
    """For each artifact, its median over all runs of each of `resamples` draws of whole rounds with replacement.

    A draw takes the same rounds of every artifact, so that what slowed a whole round down slows all of them
    (a block bootstrap, paired by round: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).
    """
    rounds = len(samples[0])
    draws = np.random.default_rng(seed).integers(0, rounds, (resamples, rounds))
    return tuple(np.array([np.median(s[draw]) for draw in draws]) for s in samples)


def ratio_interval(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile interval of b / a, of draws as `bootstrap_medians` makes them."""
    low, high = np.percentile(b / a, (2.5, 97.5))
    return float(low), float(high)


def drift(samples: Samples) -> float:
    """The median of the last third of the rounds over that of the first, less 1; 0 where there are too few rounds."""
    third = len(samples) // 3
    return float(np.median(samples[-third:]) / np.median(samples[:third]) - 1) if third else 0.0
