"""Where an inference spends its time."""

from collections.abc import Sequence

from markupsafe import Markup

from edgekit.reporting.plots.scales import plain
from edgekit.reporting.style import INK, INSIDE, MUTED, OUTSIDE
from edgekit.reporting.svg import drawing, inline
from edgekit.types import OperatorTime

WIDTH = 360.0
ROW = 24.0
SHOWN = 15
LONGEST = 36


def slowest(operators: Sequence[OperatorTime]) -> list[OperatorTime]:
    """The operators that take longest, at most `SHOWN`."""
    return sorted(operators, key=lambda o: -o.us)[:SHOWN]


def operators(all_of_them: Sequence[OperatorTime], key: str, name: str) -> Markup:
    """A bar for each of the slowest, its name and source line above it, coloured by whether a delegate ran it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    shown = slowest(all_of_them)
    total = sum(o.us for o in all_of_them) or 1.0
    height = ROW * len(shown) + 34
    tips = {}
    with drawing(WIDTH, height) as figure:
        axes = figure.add_axes((0.025, 30 / height, 0.965, ROW * len(shown) / height))
        longest = max((o.us for o in shown), default=1.0) or 1.0
        axes.set_xlim(0, 1.22 * longest)
        axes.set_ylim(len(shown), 0)
        for n, o in enumerate(shown):
            tips[f"tip{n}"] = f"{o.name} ({o.op}): {plain(o.us)} us, {o.us / total:.1%}" + (
                f", from {o.source}" if o.source else ""
            )
            (bar,) = axes.barh(n + 0.71, o.us, height=0.36, color=INSIDE if o.delegated else OUTSIDE)
            bar.set_gid(f"tip{n}")
            for text, x, side, colour in ((_name(o), 0, "left", INK), (_end(o.source, LONGEST), 1, "right", MUTED)):
                axes.text(
                    x, n + 0.3, text, fontsize=7.5, color=colour, ha=side, va="center_baseline",
                    transform=axes.get_yaxis_transform(),
                )  # fmt: skip
            axes.text(
                o.us + 0.01 * longest, n + 0.72, f"{plain(o.us)} ({o.us / total:.0%})", fontsize=7.5, color=MUTED,
                va="center_baseline",
            )  # fmt: skip
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("microseconds of one inference (share of all operators)", labelpad=2)
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, 1.22 * longest)
        axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if t <= 1.16 * longest]))  # room for its figure
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        return inline(figure, key, f"Slowest operators of {name}", f"{len(shown)} of {len(all_of_them)}", tips)


def _name(o: OperatorTime) -> str:
    """Kind and name; the kind alone where the name adds nothing or there is no room for it."""
    name = " ".join(o.name.split())
    if name.startswith(o.op):
        return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    op = _end(o.op, LONGEST)
    room = LONGEST - len(op) - 1
    return op if not name or room < 12 else f"{op} {_end(name, room)}"


def _end(text: str, most: int) -> str:
    """The end of a long path says more than its start."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"…{text[1 - most :]}"
