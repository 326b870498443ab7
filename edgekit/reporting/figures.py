"""The plots of a report, each with what stands below it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgekit.reporting.plots.forest import Ratio, forest
from edgekit.reporting.plots.operators import operators, slowest
from edgekit.reporting.plots.pareto import Looks, Point, pareto
from edgekit.reporting.plots.runs import beyond, runs
from edgekit.reporting.plots.sustained import sustained, verdict
from edgekit.reporting.rows import Group, Pair, Results, Row
from edgekit.reporting.style import colours, markers
from edgekit.reporting.words import fixed, number, plural

MOST_RATIOS = 16
Z = 1.959964


@dataclass(frozen=True, kw_only=True)
class Plot:
    """An SVG, its title, a line below the title, a caption below the plot, and a badge such as "unstable"."""

    svg: Markup
    title: str
    facts: str = ""
    caption: str = ""
    badge: str = ""


def looks(results: Results) -> Looks:
    """One colour a target and one marker a precision, for the whole page."""
    return Looks(
        colours=colours(r.target for r in results.rows), markers=dict(markers(r.precision for r in results.rows))
    )


def trade_offs(group: Group, look: Looks, key: str) -> list[Plot]:
    """Latency against accuracy (or, where none was measured, SQNR) and against size, of one device."""
    found = []
    if any(r.accuracy for r in group.rows):
        found.append(_accuracy(group, look, f"{key}a"))
    elif any(r.sqnr_db is not None for r in group.rows):
        found.append(_sqnr(group, look, f"{key}q"))
    if any(r.size_bytes for r in group.rows):
        found.append(_size(group, look, f"{key}s"))
    return found


def _accuracy(group: Group, look: Looks, key: str) -> Plot:
    points, counts = [], set()
    for row in group.rows:
        if row.accuracy is None:
            continue
        top1, n = row.accuracy.top1, row.accuracy.n
        low, high = wilson(top1, n) if n else (None, None)
        text = f"top-1 {fixed(top1, 2)} %" + (f" of {n} images" if n else "")
        points.append(_point(group, row, top1, text, low=low, high=high))
        counts.add(n)
    (n,) = counts if len(counts) == 1 else (None,)
    bars = f"Bars: 95 % intervals (Wilson{f', {n} images' if n else ''})." if any(counts) else ""
    plot = pareto(points, look, key, "top-1 accuracy, %", _described(points, group), more_is_better=True)
    caption = [
        "Up and to the left is better.",
        bars,
        _missing(group, len(points), "accuracy"),
        _nameless(plot.nameless),
    ]
    return Plot(svg=plot.svg, title="Latency against accuracy", caption=_joined(caption))


def _sqnr(group: Group, look: Looks, key: str) -> Plot:
    points = [
        _point(group, r, r.sqnr_db, f"SQNR {r.sqnr_db:.1f} dB", among=r.model)
        for r in group.rows
        if r.sqnr_db is not None
    ]
    plot = pareto(points, look, key, "SQNR, dB", _described(points, group), more_is_better=True)
    caption = [
        "No accuracy was measured. SQNR says how near the outputs come to those of the same model in float; it is not",
        "accuracy, and does not rank models: each model has a frontier of its own.",
        _missing(group, len(points), "SQNR"),
        _nameless(plot.nameless),
    ]
    return Plot(svg=plot.svg, title="Latency against SQNR, for want of accuracy", caption=_joined(caption))


def _size(group: Group, look: Looks, key: str) -> Plot:
    sizes = [r.size_bytes for r in group.rows if r.size_bytes]
    unit, scale = ("MB", 1e6) if max(sizes) >= 1e5 else ("kB", 1e3)
    points = [
        _point(group, r, r.size_bytes / scale, f"{r.size_bytes / scale:.2f} {unit}") for r in group.rows if r.size_bytes
    ]
    plot = pareto(points, look, key, f"size of the model, {unit}", _described(points, group), more_is_better=False)
    caption = ["Down and to the left is better.", _missing(group, len(points), "size"), _nameless(plot.nameless)]
    return Plot(svg=plot.svg, title="Latency against size", caption=_joined(caption))


def _point(
    group: Group, row: Row, y: float, text: str, low: float | None = None, high: float | None = None, among: str = ""
) -> Point:
    one_model = len({r.model for r in group.rows}) == 1
    return Point(
        x=row.p50_ms or math.nan,
        y=y,
        name=row.variant if one_model else row.model,
        tip=f"#{row.number} {row.label}: p50 {number(row.p50_ms)} ms, {text}",
        target=row.target,
        precision=row.precision,
        low=low,
        high=high,
        among=among,
    )


def wilson(percent: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `n` in percent (Wilson, 1927)."""
    p, square = percent / 100, Z * Z
    middle = (p + square / (2 * n)) / (1 + square / n)
    half = Z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def _described(points: Sequence[Point], group: Group) -> str:
    return f"{plural(len(points), 'artifact')} on {group.name}. " + "; ".join(p.tip for p in points)


def _missing(group: Group, shown: int, what: str) -> str:
    missing = len(group.rows) - shown
    return f"Not shown: {plural(missing, 'artifact')} without {what}." if missing else ""


def _nameless(count: int) -> str:
    return f"{plural(count, 'point')} without room for a name: point at one, or see the table." if count else ""


def _joined(sentences: Iterable[str]) -> str:
    return " ".join(filter(None, sentences))


def distributions(results: Results, look: Looks) -> list[Plot]:
    """A panel for each artifact whose raw samples are known."""
    found = []
    for row in results.measured:
        p = row.profile
        if p is None or row.p50_ms is None or not p.latency_us:
            continue
        percentiles = [row.p50_ms, p.p90_ms or row.p50_ms, p.p99_ms or p.p90_ms or row.p50_ms]
        svg = runs(p.latency_us, percentiles, look.colours[row.target], f"run{row.number}", row.label)
        above = beyond(p.latency_us, percentiles)
        longest = f"red: {plural(above, 'run')} above, up to {number(max(p.latency_us) / 1e3)} ms" if above else ""
        facts = f"{plural(len(p.latency_us), 'run')} on {row.device}"
        found.append(
            Plot(svg=svg, title=_titled(row), facts=facts, caption=longest, badge="unstable" if row.unstable else "")
        )
    return found


def long_runs(results: Results, look: Looks) -> list[Plot]:
    """A curve for each artifact that was run for long."""
    found = []
    for row in results.measured:
        points = row.profile.sustained if row.profile else ()
        if len(points) > 1:
            marker = look.markers[row.precision]
            svg = sustained(points, look.colours[row.target], marker, f"long{row.number}", row.label)
            found.append(Plot(svg=svg, title=_titled(row), facts=row.device, caption=f"{verdict(points)}."))
    return found


def operator_plots(results: Results) -> list[tuple[Plot, Row]]:
    """The slowest operators of each artifact of which they are known."""
    found = []
    for row in results.measured:
        known = row.profile.per_op if row.profile else ()
        if not known or row.profile is None:
            continue
        total = sum(o.us for o in known) or 1.0
        shown = slowest(known)
        outside = sum(o.us for o in known if not o.delegated) / total
        facts = (
            f"{len(shown)} of {plural(len(known), 'operator')}: {sum(o.us for o in shown) / total:.0%} of their time; "
            f"outside the delegate {outside:.0%}"
        )
        whole = f"; p50 {number(row.p50_ms)} ms without the profiler" if row.p50_ms else ""
        caption = f"All operators together {number(total / 1e3)} ms, the mean of the profiled runs{whole}."
        svg = operators(known, f"op{row.number}", row.label)
        found.append((Plot(svg=svg, title=_titled(row), facts=facts, caption=caption), row))
    return found


def ratios(results: Results, look: Looks) -> list[Plot]:
    """A forest plot for the pairs of each model, and one for pairs of different models."""
    pairs = [p for p in results.pairs if p.of == "latency"]
    models = [{results.row(n).model for n in (p.a, p.b)} for p in pairs]
    together: dict[str, list[Pair]] = {}
    for pair, names in zip(pairs, models, strict=True):
        together.setdefault(names.pop() if len(names) == 1 else "", []).append(pair)
    between = together.pop("", [])
    plots = [_forest(results, look, found, name, f"forest{n}") for n, (name, found) in enumerate(together.items())]
    return [*plots, *([_forest(results, look, between, "", "forest")] if between else [])]


def _forest(results: Results, look: Looks, pairs: Sequence[Pair], model: str, key: str) -> Plot:
    def order(pair: Pair) -> tuple[bool, bool]:
        a, b = results.row(pair.a), results.row(pair.b)
        return a.target != b.target, a.precision != b.precision

    chosen = sorted(pairs, key=order)[:MOST_RATIOS]
    drawn = [_ratio(results, look, p) for p in chosen]
    left_out = len(pairs) - len(chosen)
    described = "; ".join(f"{r.name}: {r.ratio:.2f}, {r.low:.2f} to {r.high:.2f}" for r in drawn)
    return Plot(
        svg=forest(drawn, key, described),
        title=model or "Between models",
        facts=results.row(pairs[0].a).device,
        caption=f"{plural(left_out, 'other pair')} in the table only." if left_out else "",
    )


def _ratio(results: Results, look: Looks, pair: Pair) -> Ratio:
    a, b = results.row(pair.a), results.row(pair.b)
    same = a.model == b.model
    name = f"{b.variant} against {a.variant}" if same else f"{b.label} against {a.label}"
    return Ratio(
        name=name,
        ratio=pair.ratio,
        low=pair.ci95[0],
        high=pair.ci95[1],
        colour=look.colours[b.target],
        marker=look.markers[b.precision],
    )


def _titled(row: Row) -> str:
    return f"#{row.number} {row.label}"
