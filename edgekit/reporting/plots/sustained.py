"""The median latency over a long run: a device that gets hot gets slow."""

from collections.abc import Sequence

from markupsafe import Markup

from edgekit.reporting.plots.scales import plain
from edgekit.reporting.style import BAD, MUTED
from edgekit.reporting.svg import drawing, inline
from edgekit.types import SustainedPoint

WIDTH, HEIGHT = 360.0, 205.0
THROTTLED = 1.1
"""Times the median of the first stretch: slower than that is called throttled."""


def sustained(points: Sequence[SustainedPoint], colour: str, marker: str, key: str, name: str) -> Markup:
    """The medians of the stretches in ms, and at the right in percent of the first; slower ones on red ground."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    first = points[0].p50_ms
    secs, ms = [p.secs for p in points], [p.p50_ms for p in points]
    with drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_axes((0.125, 0.165, 0.73, 0.74))
        low, high = min(*ms, 0.92 * first), max(*ms, 1.18 * first)
        pad = 0.06 * (high - low)
        axes.set_ylim(low - pad, high + pad)
        axes.set_xlim(secs[0], max(secs[-1], secs[0] + 1e-3))
        axes.axhspan(THROTTLED * first, high + pad, color=BAD, alpha=0.1, linewidth=0)
        axes.axhline(first, color=MUTED, linewidth=0.9, linestyle="--")
        axes.plot(secs, ms, color=colour, linewidth=1.4, marker=marker, markersize=4 if len(secs) < 60 else 0)
        axes.set_xlabel("seconds from the start", labelpad=2)
        figure.text(0.01, 0.985, "p50 ms", color=MUTED, va="top")
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
        percent = axes.secondary_yaxis("right", functions=(lambda v: 100 * v / first, lambda v: v * first / 100))
        percent.set_ylabel("% of the first stretch", labelpad=5)
        axes.text(
            0.012, 0.975, f"more than {THROTTLED - 1:.0%} slower than at first", transform=axes.transAxes,
            fontsize=7.5, color=BAD, va="top",
        )  # fmt: skip
        return inline(figure, key, f"Sustained latency of {name}", verdict(points))


def verdict(points: Sequence[SustainedPoint]) -> str:
    """What the curve shows, in words."""
    first, last = points[0], points[-1]
    length = f"{len(points)} stretches over {plain(last.secs - first.secs)} s"
    hot = next((p for p in points if p.p50_ms > THROTTLED * first.p50_ms), None)
    change = last.p50_ms / first.p50_ms - 1
    end = f"from {plain(first.p50_ms)} to {plain(last.p50_ms)} ms ({change:+.0%})"
    if hot is None:
        return f"{length}: {end}, never more than {THROTTLED - 1:.0%} slower than at first"
    worst = max(points, key=lambda p: p.p50_ms)
    return (
        f"{length}: {end}; more than {THROTTLED - 1:.0%} slower from {plain(hot.secs)} s on, "
        f"at worst {plain(worst.p50_ms)} ms ({worst.p50_ms / first.p50_ms - 1:+.0%}) at {plain(worst.secs)} s"
    )
