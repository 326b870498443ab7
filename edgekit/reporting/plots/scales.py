"""Axes of quantities that are above zero, with plain numbers at round places."""

import math
from collections.abc import Sequence
from typing import Any

WIDE = 4.0
"""From this ratio of the largest to the smallest an axis is logarithmic."""
STEPS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))


def latency_axis(axes: Any, ms: Sequence[float]) -> None:
    """The x axis for medians in milliseconds."""
    log_axis(axes, ms, "x")
    axes.set_xlabel("p50 latency, ms" + (" (log scale)" if axes.get_xscale() == "log" else ""))


def log_axis(axes: Any, values: Sequence[float], which: str, allowed: bool = True) -> None:
    """Limits around `values`, logarithmic where they are wide apart and `allowed`; a few round ticks."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    low, high = min(values), max(values)
    axis = axes.xaxis if which == "x" else axes.yaxis
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    if allowed and low > 0 and high / low >= WIDE:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        margin = (high / low) ** 0.12
        limits(low / margin, high * margin)
        axis.set_ticks(round_ticks(low / margin, high * margin))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        # A range from zero shows proportions; one far from it would show nothing.
        limits(0 if 0 < low < 0.5 * high else low - margin, high + margin)
        axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def round_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """At most about `most` round numbers from `low` to `high`, evenly spread on a log scale."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in STEPS:
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= most:
            break
    return ticks[:: math.ceil(len(ticks) / most)] if ticks else [low, high]


def plain(value: float) -> str:
    """A number with at most three digits that count, without an exponent where it can be had."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.3g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
