"""Figures and facts as a reader wants them."""

from collections.abc import Iterable, Sequence

from edgekit.reporting.plots.scales import plain
from edgekit.reporting.rows import Row
from edgekit.types import ArtifactProfile, Protocol

NOTHING = "—"


def number(value: float | None) -> str:
    return NOTHING if value is None else plain(value)


def fixed(value: float | None, digits: int) -> str:
    """With so many digits behind the point, and no minus before a zero."""
    return NOTHING if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def whole(value: int) -> str:
    return f"{value:,}"


def plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def listed(names: Iterable[str], most: int = 6) -> str:
    """Different names in the order that they come, and how many more there are."""
    different = list(dict.fromkeys(names))
    more = len(different) - most
    return ", ".join(different[:most]) + (f" and {more} more" if more > 0 else "")


def headline(rows: Sequence[Row]) -> str:
    """What was measured, and where."""
    done = [r for r in rows if not r.failed]
    models, devices = {r.model for r in rows}, {r.device for r in done}
    what = f"{plural(len(done), 'artifact')} of {plural(len(models), 'model')}"
    return f"{what}, measured on {plural(len(devices), 'device')}" if done else f"Nothing was measured of {what}"


def when(rows: Iterable[Row]) -> str:
    """The times at which the measurements began, as far as the files tell, or ""."""
    told = [r.profile.measured_at for r in rows if r.profile]
    times = sorted(filter(None, told))
    if not times:
        return ""
    first, last = (t.replace("T", " ").replace("+00:00", " UTC").replace("Z", " UTC") for t in (times[0], times[-1]))
    span = first if first == last else f"{first} to {last}"
    silent = len(told) - len(times)
    return span + (f" ({silent} of them at a time that was not recorded)" if silent else "")


def protocol(profiles: Sequence[ArtifactProfile]) -> list[str]:
    """How they were taken, in sentences; all have the same protocol but for their turns."""
    p = profiles[0].protocol
    rounds, each = (sorted({getattr(q.protocol, n) for q in profiles}) for n in ("rounds", "runs_per_round"))
    taken = sorted({q.runs or len(q.latency_us) for q in profiles})
    sentences = [
        f"In the clock: {p.clock}.",
        f"The input is {p.input}.",
        f"Load and first inference are timed once; then at least {plural(p.warmup_runs, 'warm-up run')}, not recorded.",
        f"At least {plural(p.num_runs, 'recorded run')} and {number(p.min_secs)} s; taken were {_span(taken)} runs.",
    ]
    if rounds[-1] > 1:
        turns = f"{_span(rounds)} turns each, of {_span(each)} runs"
        sentences.append(f"Artifacts that were measured together took turns (A B C A B C): {turns}.")
    if p.mode == "mlperf":
        sentences.append("MLPerf's single stream: at least 1024 runs and 60 s; p90 is the figure to quote.")
    return sentences


def same_protocol(p: Protocol) -> tuple[object, ...]:
    """Equal for profiles that `protocol` can describe together."""
    return (p.warmup_runs, p.num_runs, p.min_secs, p.clock, p.input, p.mode)


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def cause(warning: str) -> str:
    """The first clause of what follows the figures in "unstable: figures: cause, details; remedy"."""
    clause = warning.rpartition(": ")[2] if ": " in warning else ""
    return clause.partition(";")[0].partition(", ")[0]
