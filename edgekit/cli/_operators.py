"""The operators of one artifact as a table: where its time goes, and which line of the model that is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from edgekit.types import ArtifactProfile
    from edgekit.types.profile import OperatorTime

MOST = 20
OVERHEAD = "overhead"
"""The kind of what a runtime takes between operators; as `profiling.operators` calls it."""
NOTICED = 1.05
"""How many times longer profiled runs may take before that is said."""


def operator_table(result: "ArtifactProfile", most: int = MOST) -> "Table":
    """The slowest operators, slowest first; `#` is the place of each in the order of running."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    backend = _backend(result)
    total = _sum(result.per_op) or 1.0
    table = Table(box=box.SIMPLE, pad_edge=False, title=f"operators of {result.artifact}", title_justify="left")
    for name in ("#", "µs", "%"):
        table.add_column(name, justify="right")
    for name in ("operator", "kind", "run by", "source"):
        table.add_column(name, overflow="fold")
    order = sorted(range(len(result.per_op)), key=lambda n: -result.per_op[n].us)
    for n in order[:most]:
        o = result.per_op[n]
        # Names are a model's: they are no markup.
        texts = (o.name, o.op, backend if o.delegated else f"outside {backend}", o.source)
        table.add_row(str(n + 1), f"{o.us:.1f}", f"{100 * o.us / total:.1f}", *map(Text, texts))
    if rest := [result.per_op[n] for n in order[most:]]:
        table.add_row("", f"{_sum(rest):.1f}", f"{100 * _sum(rest) / total:.1f}", f"{len(rest)} more", "", "", "")
    return table


def operator_lines(result: "ArtifactProfile") -> list[str]:
    """The share outside the delegate, and how the operators add up to the whole, with what profiling itself took."""
    total = _sum(result.per_op)
    outside = _sum([o for o in result.per_op if not o.delegated])
    lines = [f"{100 * outside / (total or 1.0):.1f} % of the time is spent outside {_backend(result)}"]
    whole = result.per_op_whole_us
    if not whole:
        return lines
    between = _sum([o for o in result.per_op if o.op == OVERHEAD])
    lines.append(
        f"sum of operators {total:.0f} µs of {whole:.0f} µs whole ({100 * total / whole:.0f} %),"
        f" {100 * between / whole:.0f} % of it what the runtime takes between them"
    )
    slower = whole / 1e3 / result.p50_ms if result.p50_ms else 0.0
    if slower > NOTICED:
        lines.append(
            f"profiled runs took {slower:.2f} times the p50 of {result.p50_ms:.3f} ms:"
            " the profiler takes its part, most of all of tiny operators"
        )
    return lines


def _backend(result: "ArtifactProfile") -> str:
    return result.delegation.backend if result.delegation else "the delegate"


def _sum(operators: "Sequence[OperatorTime]") -> float:
    return sum(o.us for o in operators)
