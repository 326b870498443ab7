"""The risk of an int8 model that no data calibrated, as lines of text and as pictures."""

import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from edgekit.data_free.priors import to_pixels
from edgekit.data_free.verdict import CLIPPED, MISFIT, SCALE
from edgekit.errors import MissingDependency
from edgekit.types import NormFit, Preprocess, Risk, TensorRisk

ROWS = 40
_OWN, _INT8, _BAD, _LIMIT = "#4c78a8", "#222222", "#d9480f", "#888888"
_COLOURS = ("#2b8a3e", "#9c36b5", "#e8890c", "#1c7ed6", "#c2255c", "#5c940d")
_SHOWN, _TILE, _GAP, _COLUMNS = 64, 96, 4, 8


def explained(risk: Risk) -> list[str]:
    """The worst layers and why, the range that each estimator asks for, and the norms that fit worst."""
    tensors = {t.tensor: t for t in risk.tensors}
    lines = ["worst layers, on the family of images that is worst for each:"] if risk.worst else []
    for number, tensor in enumerate((tensors[name] for name in risk.worst), 1):
        lines += _worst_lines(number, tensor)
    disputed = [t for t in risk.tensors if t.why and t.tensor not in risk.worst]
    lines += [f"also: {t.layer}: {'; '.join(t.why)}" for t in disputed[:5]]
    if len(disputed) > 5:
        lines.append(f"and {len(disputed) - 5} more")
    if risk.norm_fits:
        worst = sorted(risk.norm_fits, key=_unfit, reverse=True)[:3]
        lines.append("norms that fit worst (up to 0.5 deviations and 2x are usual):")
        lines += [f"   {f.name}: mean {f.mean:.2f} deviations off, deviation {f.scale:.2f}x" for f in worst]
    return lines


def _worst_lines(number: int, t: TensorRisk) -> list[str]:
    weights = "" if t.weight_db is None else f", its weights {t.weight_db:.0f} dB"
    kind = "statistics stored" if t.stored else "statistics guessed"
    return [
        f"{number}. {t.layer}: {'; '.join(t.why) or 'nothing wrong, others are better'}",
        f"   SQNR {t.sqnr_db:.1f} dB, of its own 256 steps {t.own_db:.1f} dB{weights}; {t.saturation:.2%} cut off, "
        f"{t.steps} steps used; {kind}",
        f"   range in int8 {_span(t.range)}; " + "; ".join(f"{name} {_span(ends)}" for name, ends in t.ranges.items()),
    ]


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}"


def _unfit(fit: NormFit) -> float:
    """How near a norm is to a limit."""
    return max(fit.mean / MISFIT[0], abs(math.log(max(fit.scale, 1e-9))) / math.log(SCALE[0]))


def require_plots() -> Any:
    """matplotlib's class of figures. Raises `MissingDependency`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "the plot of the risk", "report", str(error)) from error
    return Figure


def plot(risk: Risk, title: str) -> bytes:
    """A PNG: for each layer, or the worst of many, the range by each estimator, what is cut off, and SQNR; norms."""
    rows = shown(risk)
    fits = bool(risk.norm_fits)
    figure = require_plots()(
        figsize=(16 if fits else 13, 2.2 + 0.24 * max(len(rows), 10)), layout="constrained", dpi=120
    )
    axes = figure.subplots(1, 4 if fits else 3, width_ratios=(4, 2, 3, 2.4)[: 4 if fits else 3])
    _ranges(axes[0], rows, risk)
    _saturation(axes[1], rows)
    _sqnr(axes[2], rows)
    if fits:
        _fits(axes[3], risk)
    figure.suptitle(f"{title}: {risk.level} risk", fontsize=13, color=_BAD if risk.level == "high" else "black")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def shown(risk: Risk) -> list[TensorRisk]:
    """The tensors of the plot, in graph order: all, or where they are too many the worst."""
    if len(risk.tensors) <= ROWS:
        return list(risk.tensors)
    order = sorted(risk.tensors, key=lambda t: (t.tensor not in risk.worst, not t.why, t.own_db))
    kept = {t.tensor for t in order[:ROWS]}
    return [t for t in risk.tensors if t.tensor in kept]


def _ranges(axes: Any, rows: Sequence[TensorRisk], risk: Risk) -> None:
    """Each estimate as a part of what int8 represents: 1 is the same, right of it is cut off."""
    names = list(dict.fromkeys(name for t in rows for name in t.ranges))
    for number, name in enumerate(names):
        points = [(_ratio(t.ranges[name], t.range), row) for row, t in enumerate(rows) if name in t.ranges]
        colour, marker = _COLOURS[number % len(_COLOURS)], "o^sDvP"[number % 6]
        axes.plot(*zip(*points, strict=True), marker, color=colour, label=name, markersize=5, alpha=0.8)
    axes.axvline(1, color=_INT8, linewidth=1.2)
    axes.set_xscale("log", base=2)
    ticks = [0.125, 0.25, 0.5, 1, 2, 4, 8]
    low, high = axes.get_xlim()
    low, high = min(low, 0.4), max(high, 2.5)
    axes.set_xticks([t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    _rows(axes, rows)
    axes.set_yticks(range(len(rows)), [_short(t.layer) for t in rows], fontsize=8)
    for tick, t in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(_BAD if t.tensor in risk.worst else "black")
    axes.set_xlabel("range that an estimator asks for / range in int8")
    axes.set_title("ranges (worst three layers in red)", fontsize=10)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.4, -1 / len(rows) - 0.02), ncol=3)


def _ratio(asked: tuple[float, float], given: tuple[float, float]) -> float:
    return min(16.0, max(1 / 16, (asked[1] - asked[0]) / max(given[1] - given[0], 1e-30)))


def _saturation(axes: Any, rows: Sequence[TensorRisk]) -> None:
    shares = [100 * t.saturation for t in rows]
    axes.barh(range(len(rows)), shares, color=[_BAD if s > 100 * CLIPPED else _OWN for s in shares])
    axes.axvline(100 * CLIPPED, color=_LIMIT, linestyle="--", linewidth=1)
    axes.set_xlim(0, max(*shares, 100 * CLIPPED) * 1.1)
    _rows(axes, rows)
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.set_xlabel("values cut off, %")
    axes.set_title("saturation", fontsize=10)


def _sqnr(axes: Any, rows: Sequence[TensorRisk]) -> None:
    places = range(len(rows))
    axes.plot([min(t.own_db, 60) for t in rows], places, "o", color=_OWN, markersize=4, label="of its own 256 steps")
    axes.plot([min(t.sqnr_db, 60) for t in rows], places, "s", color=_INT8, markersize=4, label="with all before it")
    _rows(axes, rows)
    axes.set_yticks(places, [""] * len(rows))
    axes.set_xlabel("SQNR on the worst family, dB")
    axes.set_title("error of int8", fontsize=10)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -1 / len(rows) - 0.02), ncol=2)


def _fits(axes: Any, risk: Risk) -> None:
    worst = sorted(risk.norm_fits, key=_unfit, reverse=True)[: max(ROWS // 2, 1)]
    values = [_unfit(f) for f in worst]
    axes.barh(range(len(worst)), values, color=[_BAD if v > 1 else _OWN for v in values])
    axes.axvline(1, color=_LIMIT, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(worst)), [_short(f.name, 22) for f in worst], fontsize=7)
    axes.set_ylim(len(worst) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel("misfit; beyond 1 the tool warns")
    rest = len(risk.norm_fits) - len(worst)
    axes.set_title("stored statistics" + (f" ({rest} better ones not shown)" if rest else ""), fontsize=10)


def _rows(axes: Any, rows: Sequence[TensorRisk]) -> None:
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def contact_sheet(images: Tensor, preprocess: Preprocess) -> bytes:
    """A PNG of up to 64 images (N, C, H, W) in units of the model's input, as pixels in a grid."""
    pixels = to_pixels(images[:_SHOWN], preprocess).round().byte().permute(0, 2, 3, 1).numpy()
    if preprocess.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    height, width = pixels.shape[1:3]
    times = max(1, _TILE // max(height, width))
    tile = (
        (width * times, height * times) if max(height, width) <= 2 * _TILE else (2 * _TILE, 2 * _TILE * height // width)
    )
    columns = min(_COLUMNS, len(pixels))
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * (tile[0] + _GAP) + _GAP, rows * (tile[1] + _GAP) + _GAP + 18), "white")
    note = (
        f"{len(pixels)} of {len(images)} images that no one took"
        if len(images) > len(pixels)
        else f"{len(pixels)} images that no one took"
    )
    ImageDraw.Draw(sheet).text((_GAP, 4), note, fill="black")
    for n, image in enumerate(pixels):
        shown = Image.fromarray(image.squeeze()).convert("RGB")
        shown = shown.resize(tile, Image.Resampling.NEAREST if times > 1 else Image.Resampling.LANCZOS)
        sheet.paste(shown, (_GAP + n % columns * (tile[0] + _GAP), 18 + _GAP + n // columns * (tile[1] + _GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()
