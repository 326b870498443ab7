"""The ranking as a picture."""

import io
from collections import Counter
from typing import Any

from edgekit.accuracy_control.results import AccuracyControl
from edgekit.errors import MissingDependency

BARS = 24
_FLOAT, _INT8, _TARGET = "#d9480f", "#4c78a8", "#555555"


def require_plots() -> Any:
    """matplotlib's class of figures. Raises `MissingDependency`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "the plot of the sensitivities", "report", str(error)) from error
    return Figure


def plot(control: AccuracyControl, title: str) -> bytes:
    """A PNG: the most sensitive layers, those in float marked, and the drop with each number of layers in float."""
    rows = max(min(len(control.layers), BARS), 8)
    figure = require_plots()(figsize=(12, 1.8 + 0.26 * rows), layout="constrained", dpi=130)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(left, control)
    _drops(right, control)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _bars(axes: Any, control: AccuracyControl) -> None:
    kept = set(control.chosen.keep_float)
    shown = list(control.layers[:BARS])
    shown += [layer for layer in control.layers[BARS:] if layer.name in kept]
    names = [layer.name for layer in shown]
    for label, colour, among in (("in int8", _INT8, False), ("in float", _FLOAT, True)):
        chosen = [layer for layer in shown if (layer.name in kept) == among]
        axes.barh([names.index(layer.name) for layer in chosen], [layer.nats for layer in chosen], color=colour)
        axes.barh(0, 0, color=colour, label=label)  # in the legend also where there is none
    axes.set_yticks(range(len(shown)), [_short(name) for name in names], fontsize=8)
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_color(_FLOAT if name in kept else "black")
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel("sensitivity: KL divergence from the float model's answers, nats")
    rest = len(control.layers) - len(shown)
    axes.set_title(
        "what int8 costs in each layer" + (f" ({rest} less sensitive ones not shown)" if rest else ""), fontsize=10
    )
    axes.legend(loc="lower right")


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _drops(axes: Any, control: AccuracyControl) -> None:
    places = Counter[int]()
    for trial in control.trials:
        low, high = trial.drop_ci95
        chosen, number = trial == control.chosen, len(trial.keep_float)
        side_by_side = number + 0.12 * places[number]
        places[number] += 1
        axes.errorbar(
            side_by_side, trial.drop, yerr=[[trial.drop - low], [high - trial.drop]],
            fmt="o", color=_FLOAT if chosen else _INT8, capsize=3, zorder=3 if chosen else 2,
        )  # fmt: skip
    axes.axhline(control.max_drop, color=_TARGET, linestyle="--", linewidth=1)
    axes.annotate(
        f"at most {control.max_drop:g}", (1, control.max_drop), xycoords=("axes fraction", "data"),
        xytext=(-4, 3), textcoords="offset points", ha="right", fontsize=8, color=_TARGET,
    )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(-0.5, max(places) + 0.6)
    axes.grid(alpha=0.3)
    axes.set_xlabel("layers in float")
    axes.set_ylabel("drop of top-1, points (95 % interval)")
    axes.set_title(f"measured on {control.n} images", fontsize=10)
