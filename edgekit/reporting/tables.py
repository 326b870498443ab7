"""The tables of a report, as cells with what they are sorted by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.reporting.rows import Pair, Results, Row
from edgekit.reporting.style import hues, markers
from edgekit.reporting.words import NOTHING, cause, fixed, number, whole

_GLYPHS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "p": "⬟", "*": "★"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """`sort` orders a column, "" last; `note` stands small below, `mark` beside the text: "", "warn" or "bad"."""

    text: str
    sort: float | str = ""
    note: str = ""
    badge: str = ""
    glyph: str = ""
    hue: str = ""
    numeric: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """`head` are the columns' names with what each means; `empty` the columns that were left out for want of values."""

    head: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: tuple[str, ...] = ()


def _text(value: str) -> Cell:
    return Cell(text=value or NOTHING, sort=value.lower())


def _figure(value: float | None, text: str, note: str = "", badge: str = "") -> Cell:
    return Cell(text=text, sort="" if value is None else value, note=note, badge=badge, numeric=True)


def _names(row: Row, results: Results) -> tuple[Cell, ...]:
    """Number, model, target and precision, with the colour and the marker of the plots."""
    glyph = _GLYPHS[markers(r.precision for r in results.rows)[row.precision]]
    hue = hues(r.target for r in results.rows)[row.target]
    twin = f" ({row.twin})" if row.twin else ""
    return (
        Cell(text=str(row.number), sort=row.number, numeric=True),
        Cell(text=row.model + twin, sort=row.model.lower()),
        Cell(text=row.target, sort=row.target, glyph=glyph, hue=hue),
        _text(row.precision),
    )


_NAMES = (("#", "its number on this page"), ("model", ""), ("target", ""), ("precision", ""))


def summary(results: Results) -> Table:
    """One row for each artifact that has a latency; columns in which nothing was measured are left out."""
    head = (
        *_NAMES,
        ("device", ""),
        ("p50 ms", "median latency"),
        ("p90 ms", ""),
        ("p99 ms", ""),
        ("CV", "standard deviation / mean"),
        ("first ms", "the first inference after loading"),
        ("load ms", "reading and preparing the model"),
        ("peak MiB", "most memory that the process held"),
        ("size MB", "of the model file"),
        ("SQNR dB", "of the outputs against the float model"),
        ("top-1 %", ""),
        ("drop", "points of top-1 lost against the float model"),
    )
    rows = [_summary_row(r, results) for r in results.measured if r.p50_ms is not None]
    kept = [n for n in range(len(head)) if n < len(_NAMES) or any(row[n].text != NOTHING for row in rows)]
    device = len(_NAMES)
    if len({row[device] for row in rows}) == 1:  # says least, and the figures should be seen without scrolling
        kept.append(kept.pop(kept.index(device)))
    return Table(
        head=tuple(head[n] for n in kept),
        rows=tuple(tuple(row[n] for n in kept) for row in rows),
        empty=tuple(name for n, (name, _) in enumerate(head) if n not in kept),
    )


def _summary_row(row: Row, results: Results) -> tuple[Cell, ...]:
    p, accuracy = row.profile, row.accuracy
    assert p is not None
    grown = "" if p.model_memory_mib is None else f"+{fixed(p.model_memory_mib, 1)} model"
    top1, drop = (accuracy.top1, accuracy.drop) if accuracy else (None, None)
    images = f"{whole(accuracy.n)} images" if accuracy and accuracy.n else ""
    kind, _, what = row.device.partition(" (")
    megabytes = row.size_bytes / 1e6 if row.size_bytes else None
    spread = NOTHING if p.cv is None else f"{100 * p.cv:.1f} %"
    return (
        *_names(row, results),
        Cell(text=kind, sort=row.device.lower(), note=what.removesuffix(")")),
        *(_figure(ms, number(ms)) for ms in (p.p50_ms, p.p90_ms, p.p99_ms)),
        _figure(p.cv, spread, note=cause(row.unstable), badge="unstable" if row.unstable else ""),
        *(_figure(ms, number(ms)) for ms in (p.first_ms, p.load_ms)),
        _figure(p.peak_memory_mib, fixed(p.peak_memory_mib, 0), note=grown),
        _figure(megabytes, fixed(megabytes, 2)),
        _figure(row.sqnr_db, fixed(row.sqnr_db, 1)),
        _figure(top1, fixed(top1, 2), note=images),
        _figure(drop, fixed(drop, 2)),
    )


def failures(results: Results) -> Table:
    """What could not be measured, and why."""
    head = (*_NAMES, ("device", ""), ("what came", ""), ("why", ""), ("what to do", ""))
    rows = tuple(
        (*_names(r, results), _text(r.device), Cell(text=r.status, badge=r.status), _text(r.error), _text(r.hint))
        for r in results.failures
    )
    return Table(head=head, rows=rows)


def instructions(results: Results) -> Table:
    """What an emulator counted; it has no latency."""
    head = (*_NAMES, ("device", ""), ("instructions", "of one inference"), ("runtime", ""))
    rows = tuple(
        (*_names(r, results), _text(r.device), _figure(n, whole(n)), _text(r.profile.runtime))
        for r in results.measured
        if r.profile and (n := r.profile.instructions) is not None
    )
    return Table(head=head, rows=rows)


def comparisons(results: Results, pairs: Sequence[Pair]) -> Table:
    """Ratios with their intervals."""
    head = (("this", ""), ("against", ""), ("ratio", "of medians"), ("95 % interval", ""), ("says", ""))
    rows = tuple(
        (
            _text(results.row(p.b).label),
            _text(results.row(p.a).label),
            _figure(p.ratio, f"{p.ratio:.3f}"),
            Cell(text=f"{p.ci95[0]:.3f} to {p.ci95[1]:.3f}", sort=p.ci95[0], numeric=True),
            _text(verdict(p)),
        )
        for p in pairs
    )
    return Table(head=head, rows=rows)


def verdict(pair: Pair) -> str:
    """What a ratio says with its interval."""
    low, high = pair.ci95
    if pair.of != "latency":
        return "fewer" if high < 1 else "more" if low > 1 else "as many"
    return "faster" if high < 1 else "slower" if low > 1 else "no sure difference"


def delegation(results: Results) -> Table:
    """Backends, how much they take, and what stays outside by name."""
    head = (
        *_NAMES,
        ("backend", ""),
        ("ops inside", ""),
        ("partitions", "how often the delegate is entered in an inference"),
        ("ops outside", ""),
        ("which", "and why, where the manifest was given"),
    )
    rows = []
    for row in _once(results.measured):
        d = row.delegation
        if d is None:
            continue
        outside = sum(d.fallback.values())
        rows.append(
            (
                *_names(row, results),
                _text(d.backend),
                _figure(d.delegated, whole(d.delegated)),
                _figure(d.partitions, whole(d.partitions)),
                _figure(outside, whole(outside), badge="outside" if outside else ""),
                Cell(text=_fallback(d.fallback) or "none", note=_reasons(row)),
            )
        )
    return Table(head=head, rows=tuple(rows))


def _once(rows: Sequence[Row]) -> list[Row]:
    """A row for each artifact, however often it was measured."""
    first: dict[object, Row] = {}
    for row in rows:
        first.setdefault((row.model, row.target, row.precision, row.profile and row.profile.sha256), row)
    return list(first.values())


def _fallback(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} x {op}" for op, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _reasons(row: Row) -> str:
    return "; ".join(f"{f.op}: {f.reason}" + (f" (at {f.source})" if f.source else "") for f in row.fallback)


def operator_table(row: Row) -> Table:
    """Every operator in the order that they run."""
    assert row.profile is not None
    total = sum(o.us for o in row.profile.per_op) or 1.0
    head = (("#", ""), ("operator", ""), ("name", ""), ("us", ""), ("share", ""), ("runs", ""), ("from", ""))
    rows = tuple(
        (
            Cell(text=str(n), sort=n, numeric=True),
            _text(o.op),
            _text(o.name),
            _figure(o.us, number(o.us)),
            _figure(o.us, f"{o.us / total:.1%}"),
            _text("in the delegate" if o.delegated else "outside"),
            _text(o.source),
        )
        for n, o in enumerate(row.profile.per_op, 1)
    )
    return Table(head=head, rows=rows)
