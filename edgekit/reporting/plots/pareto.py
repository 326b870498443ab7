"""Latency against what it is paid with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from markupsafe import Markup

from edgekit.reporting.plots.labels import Named, place
from edgekit.reporting.plots.scales import latency_axis, log_axis
from edgekit.reporting.style import CARD, INK, MUTED
from edgekit.reporting.svg import drawing, inline

WIDTH, HEIGHT = 360.0, 285.0
LONGEST = 24


@dataclass(frozen=True, kw_only=True)
class Point:
    """An artifact: `x` is its median latency in ms, `low` and `high` the interval of `y` where one is known.

    `tip` is shown over it, `name` beside it; frontiers are drawn among points of the same `among`.
    """

    x: float
    y: float
    name: str
    tip: str
    target: str
    precision: str
    low: float | None = None
    high: float | None = None
    among: str = ""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Colours by target and markers by precision, the same in all plots."""

    colours: Mapping[str, str]
    markers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """The plot, and how many points have no name beside them for want of room."""

    svg: Markup
    nameless: int


def frontier(points: Sequence[Point], more_is_better: bool) -> list[Point]:
    """The points that no other beats: none is both faster and better (as good and faster, as fast and better)."""
    sign = -1 if more_is_better else 1
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, sign * p.y)):
        if not best or sign * point.y < sign * best[-1].y:
            best.append(point)
    return best


def pareto(
    points: Sequence[Point], looks: Looks, key: str, y_label: str, description: str, more_is_better: bool
) -> Scatter:
    """Points with their frontiers as stairs: between two of it, nothing that was measured is better."""
    fronts = _fronts(points, more_is_better)
    tips: dict[str, str] = {}
    with drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_axes((0.115, 0.235, 0.83, 0.685))
        latency_axis(axes, [p.x for p in points])
        _value_axis(axes, points, logarithmic=not more_is_better)
        scale = " (log scale)" if axes.get_yscale() == "log" else ""
        figure.text(0.01, 0.985, f"{y_label}{scale}", color=MUTED, va="top")
        axes.grid()
        lines = [_stairs(front) for front in fronts]
        for stairs in lines:
            axes.plot(*zip(*stairs, strict=True), color=MUTED, linewidth=1.1, zorder=2)
        for n, p in enumerate(points):
            if p.low is not None and p.high is not None:
                axes.plot([p.x, p.x], [p.low, p.high], color=looks.colours[p.target], linewidth=1, alpha=0.45, zorder=2)
                lines.append([(p.x, p.low), (p.x, p.high)])
            tips[f"tip{n}"] = p.tip
            axes.plot(
                p.x, p.y, looks.markers[p.precision], color=looks.colours[p.target], markeredgecolor=CARD,
                markeredgewidth=0.8, markersize=8, zorder=4, gid=f"tip{n}", linestyle="none",
            )  # fmt: skip
        first = [p for front in fronts for p in front]
        order = [*first, *(p for p in points if p not in first)]
        named = [Named(x=p.x, y=p.y, text=_short(p.name)) for p in order]
        nameless = place(figure, axes, named, [(p.x, p.y) for p in points], lines)
        _legend(figure, points, looks)
        svg = inline(figure, key, f"Latency against {y_label}", description, tips)
    return Scatter(svg=svg, nameless=nameless)


def _fronts(points: Sequence[Point], more_is_better: bool) -> list[list[Point]]:
    ordered = sorted(points, key=lambda p: p.among)
    return [frontier(list(members), more_is_better) for _, members in groupby(ordered, key=lambda p: p.among)]


def _stairs(front: Sequence[Point]) -> list[tuple[float, float]]:
    """Along each point to the x of the next one."""
    corners = [(q.x, p.y) for p, q in pairwise(front)]
    return [xy for p, corner in zip(front, [*corners, None], strict=True) for xy in ((p.x, p.y), corner) if xy]


def _value_axis(axes: Any, points: Sequence[Point], logarithmic: bool) -> None:
    values = [v for p in points for v in (p.low, p.y, p.high) if v is not None]
    log_axis(axes, values, "y", allowed=logarithmic)


def _legend(figure: Any, points: Sequence[Point], looks: Looks) -> None:
    """Targets by colour, precisions by marker, below the axes."""
    from matplotlib.lines import Line2D

    targets, precisions = (dict.fromkeys(getattr(p, n) for p in points) for n in ("target", "precision"))
    handles = [Line2D([], [], color=looks.colours[t], linewidth=4, label=_short(t)) for t in targets]
    handles += [
        Line2D([], [], color=INK, marker=looks.markers[p], linestyle="none", markersize=6, label=_short(p))
        for p in precisions
    ]
    handles.append(Line2D([], [], color=MUTED, linewidth=1.1, label="frontier"))
    figure.legend(handles=handles, loc="lower center", ncols=4, columnspacing=1.2, handlelength=1.4)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
