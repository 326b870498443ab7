"""Latencies as numbers that can be defended."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CV = 0.10
MAX_TAIL = 1.5
"""p99 / p50 beyond which, like a coefficient of variation above `MAX_CV`, a measurement is called unstable."""

Samples = NDArray[np.float64]
"""Microseconds, shape (rounds, runs in a round)."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Milliseconds, except `cv` = std / mean. `std_ms` is the sample's (n - 1); percentiles interpolate linearly."""

    mean_ms: float
    std_ms: float
    cv: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @property
    def stable(self) -> bool:
        return self.cv <= MAX_CV and self.p99_ms <= MAX_TAIL * self.p50_ms


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
