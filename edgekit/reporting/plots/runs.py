"""One artifact's latencies, in the order that they were measured: each run a dot, and how they spread."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from edgekit.reporting.plots.scales import WIDE, plain, round_ticks
from edgekit.reporting.style import BAD, INK, MUTED
from edgekit.reporting.svg import drawing, inline

WIDTH, HEIGHT = 310.0, 180.0
BOTTOM, SPAN = 0.19, 0.7
"""Of the axes, as shares of the height."""
DOTS = 600
BINS = 28
LEAST_SPAN = 0.1
"""The y axis covers at least this share of the median: noise of one percent should not fill it."""
LINES = (("p50", "-"), ("p90", "--"), ("p99", ":"))


def runs(latency_us: Sequence[float], percentiles: Sequence[float], colour: str, key: str, name: str) -> Markup:
    """Latencies in microseconds with their p50, p90 and p99 in ms. Of more than `DOTS` runs, evenly chosen ones.

    What is far beyond p99 is marked at the edge, so that one interrupt does not squeeze all the others.
    """
    ms = np.asarray(latency_us) / 1e3
    low, high = _limits(ms, percentiles)
    with drawing(WIDTH, HEIGHT) as figure:
        left = figure.add_axes((0.135, BOTTOM, 0.55, SPAN))
        right = figure.add_axes((0.7, BOTTOM, 0.1, SPAN))
        shown = _shown(ms, percentiles[-1])
        inside = shown[ms[shown] <= high]
        _dots(left, inside + 1, ms[inside], colour)
        beyond = np.flatnonzero(ms > high)
        left.plot(beyond + 1, np.full(len(beyond), high), "^", color=BAD, markersize=4, clip_on=False)
        left.set_xlim(0.5 - 0.01 * len(ms), len(ms) + 0.5 + 0.01 * len(ms))
        logarithmic = _is_wide(low, high)
        for axes in (left, right):
            axes.set_yscale("log" if logarithmic else "linear")
            axes.set_ylim(low, high)
        left.set_xlabel("run, in the order measured", labelpad=2)
        figure.text(0.01, 0.985, "ms (log scale)" if logarithmic else "ms", color=MUTED, va="top")
        left.grid(axis="y")
        _ticks(left, low, high)
        spaced = np.geomspace if logarithmic else np.linspace
        counts, edges = np.histogram(ms, bins=spaced(low, high, BINS + 1))
        right.stairs(counts, edges, orientation="horizontal", color=colour, fill=True, alpha=0.75, linewidth=0)
        right.set_axis_off()
        _percentiles(figure, left, right, percentiles)
        text = ", ".join(f"{n} {plain(v)} ms" for (n, _), v in zip(LINES, percentiles, strict=True))
        described = f"{len(ms)} runs: {text}" + (f"; {len(beyond)} beyond the axis" if len(beyond) else "")
        return inline(figure, key, f"Latencies of {name}", described)


def beyond(latency_us: Sequence[float], percentiles: Sequence[float]) -> int:
    """How many runs lie above the axis of `runs`."""
    ms = np.asarray(latency_us) / 1e3
    return int(np.count_nonzero(ms > _limits(ms, percentiles)[1]))


def _limits(ms: Any, percentiles: Sequence[float]) -> tuple[float, float]:
    p50, _, p99 = percentiles
    low = float(ms.min())
    if _is_wide(low, p99):
        return 0.85 * low, min(1.15 * float(ms.max()), 3 * p99)
    high = min(float(ms.max()), max(p99, p50) + 1.5 * (p99 - low) + 0.02 * p50)
    missing = max(0.0, LEAST_SPAN * p50 - (high - low)) / 2
    margin = 0.05 * max(high - low, LEAST_SPAN * p50)
    return max(0.0, low - missing - margin), high + missing + margin


def _shown(ms: Any, p99: float) -> Any:
    """Which runs are drawn: all, or evenly chosen ones and the slowest, which are the ones that matter."""
    if len(ms) <= DOTS:
        return np.arange(len(ms))
    even = np.linspace(0, len(ms) - 1, DOTS).round().astype(int)
    slow = np.flatnonzero(ms > p99)
    return np.union1d(even, slow[:: max(1, len(slow) // DOTS)])


def _is_wide(low: float, high: float) -> bool:
    """So much that only a log scale shows both the bulk and the tail."""
    return low > 0 and high / low >= WIDE


def _dots(axes: Any, x: Any, y: Any, colour: str) -> None:
    """One path for all: lines of no length with round ends are dots, at a tenth of the bytes of markers."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points = np.repeat(np.column_stack([x, y]), 2, axis=0)
    codes = [Path.MOVETO, Path.LINETO] * len(x)
    size = 3.2 if len(x) <= 200 else 2.4
    patch = PathPatch(Path(points, codes), fill=False, edgecolor=colour, linewidth=size, capstyle="round", alpha=0.6)
    axes.add_patch(patch)


def _ticks(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    wide = _is_wide(low, high)
    axes.yaxis.set_major_locator(
        FixedLocator(round_ticks(low, high, 6)) if wide else MaxNLocator(5, steps=[1, 2, 5, 10])
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def _percentiles(figure: Any, left: Any, right: Any, values: Sequence[float]) -> None:
    """Lines across both, and their names at the right, pushed apart where they would touch."""
    # Where they are, from 0 at the bottom of the axes to 1 at the top.
    shares = [left.transAxes.inverted().transform(left.transData.transform((1, v)))[1] for v in values]
    height = 10.5 / (SPAN * HEIGHT)
    places: list[float] = []
    for share in shares:
        places.append(max(share, places[-1] + height) if places else share)
    ceiling = 1.0 - height / 3
    for n in range(len(places) - 1, -1, -1):
        places[n] = min(places[n], ceiling)
        ceiling = places[n] - height
    for (name, line), value, place in zip(LINES, values, places, strict=True):
        for axes in (left, right):
            axes.axhline(value, color=INK, linewidth=0.9, linestyle=line, alpha=0.85)
        figure.text(
            0.815, BOTTOM + SPAN * place, f"{name} {plain(value)}", fontsize=8,
            color=INK if name == "p50" else MUTED, va="center_baseline",
        )  # fmt: skip
