"""Ratios with their intervals, one below the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from edgekit.reporting.plots.scales import plain, round_ticks
from edgekit.reporting.style import CARD, INK, MUTED
from edgekit.reporting.svg import drawing, inline

WIDTH = 360.0
ROW = 26.0
LONGEST = 56


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """`name` says of what with what; `colour` and `marker` are of what is compared with the other."""

    name: str
    ratio: float
    low: float
    high: float
    colour: str
    marker: str


def forest(ratios: Sequence[Ratio], key: str, description: str) -> Markup:
    """A line a ratio on a log scale; below 1 is faster. A line that does not cross 1 is a sure difference."""
    height = ROW * len(ratios) + 44
    low, high = min(0.9, *(r.low for r in ratios)), max(1.1, *(r.high for r in ratios))
    margin = (high / low) ** 0.05
    low, high = low / margin, high * margin
    with drawing(WIDTH, height) as figure:
        axes = figure.add_axes((0.02, 34 / height, 0.735, ROW * len(ratios) / height))
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(len(ratios), 0)
        axes.grid(axis="x")
        axes.axvline(1, color=INK, linewidth=1)
        for n, r in enumerate(ratios):
            axes.plot([r.low, r.high], [n + 0.68] * 2, color=r.colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(r.ratio, n + 0.68, r.marker, color=r.colour, markersize=6)
            axes.text(
                0, n + 0.28, _short(r.name), fontsize=7.5, color=INK, va="center_baseline",
                transform=axes.get_yaxis_transform(),
                bbox={"facecolor": CARD, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
            axes.text(
                1.02, n + 0.68, f"{r.ratio:.2f} ({r.low:.2f}-{r.high:.2f})", fontsize=7.5, color=MUTED,
                va="center_baseline", transform=axes.get_yaxis_transform(),
            )  # fmt: skip
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("← faster · ratio of median latencies · slower →", labelpad=3)
        _ticks(axes, low, high)
        return inline(figure, key, "Ratios of latencies", description)


def _ticks(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    near = [t for t in (0.8, 0.9, 1.0, 1.1, 1.2) if low <= t <= high]
    ticks = near if high / low < 2 else round_ticks(low, high, 7)
    axis = axes.xaxis
    axis.set_major_locator(FixedLocator(sorted({*ticks, 1.0})))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
