"""What a run tells of itself: a line of JSON at a time, TensorBoard's events, and the curves as a picture."""

import json
import math
from pathlib import Path
from typing import Any

from edgekit.artifacts import write_file

LOG, CURVES, EVENTS = "log.jsonl", "curves.png", "tensorboard"


class Log:
    """Entries have a `step`; those after the step that a run is resumed at come again, and are dropped first."""

    def __init__(self, folder: Path, start: int) -> None:
        self._folder, self._path = folder, folder / LOG
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        self.entries: list[dict[str, Any]] = [e for e in map(_entry, lines) if e and e["step"] <= start]
        write_file(self._path, "".join(f"{json.dumps(e)}\n" for e in self.entries).encode())
        self._events = _event_writer(folder / EVENTS, start)

    def write(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._events is not None:
            for name, value in entry.items():
                if name != "step":
                    self._events.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        """Draw the curves, where matplotlib is there."""
        if self._events is not None:
            self._events.close()
        picture = curves(self.entries)
        if picture is not None:
            write_file(self._folder / CURVES, picture)


def _entry(line: str) -> dict[str, Any] | None:
    """None for a line that was cut off when the run was."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _event_writer(folder: Path, start: int) -> Any:
    """None where tensorboard is not installed: log.jsonl has the same."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)


def curves(entries: list[dict[str, Any]]) -> bytes | None:
    """A PNG of loss, learning rate and accuracy over steps; None without matplotlib or anything to draw."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    import io

    loss = [(e["step"], e["loss"]) for e in entries if math.isfinite(e.get("loss", math.nan))]
    if not loss:
        return None
    top1 = [(e["step"], e["top1"]) for e in entries if "top1" in e]
    figure = Figure(figsize=(7, 5 if top1 else 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if top1 else 1, 1, sharex=True, squeeze=False)[:, 0]
    panels[0].plot(*zip(*loss, strict=True), color="tab:blue", linewidth=0.8)
    panels[0].set_ylabel("training loss", color="tab:blue")
    rate = panels[0].twinx()
    rate.plot(*zip(*[(e["step"], e["lr"]) for e in entries if "lr" in e], strict=True), color="0.6", linewidth=0.8)
    rate.set_ylabel("learning rate", color="0.4")
    if top1:
        panels[1].plot(*zip(*top1, strict=True), color="tab:green", marker=".")
        panels[1].set_ylabel("top-1 of held-out photos, %")
        panels[1].grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
