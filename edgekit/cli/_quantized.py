"""An int8 model as lines of text."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli._render import count, size
from edgekit.cli._terminal import Terminal

if TYPE_CHECKING:
    from edgekit.accuracy_control import AccuracyControl, Trial
    from edgekit.quantizing import QuantizedModel
    from edgekit.types import Agreement, Calibration, Risk

SHOWN = 5


@contextmanager
def resumable(screen: Terminal, out: str) -> Iterator[None]:
    """Says where the work is, of accuracy control or learning that is interrupted."""
    from edgekit.quantizing import learning_file, work_file

    try:
        yield
    except KeyboardInterrupt:
        learning = learning_file(Path(out))
        for what, files in (
            ("measured", [work_file(Path(out))]),
            ("learned", learning.parent.glob(f"{learning.name}.*")),
        ):
            if work := next((file for file in files if file.exists()), None):
                screen.note(f"what was {what} is in {work}: the same command goes on from there")
        raise


def quantized_lines(made: "QuantizedModel") -> list[str]:
    """The file, what it was made of, and the next command."""
    q = made.quantized
    return [
        f"{q.name} in {q.scheme}  {made.path}  {size(made.path.stat().st_size)}",
        f"  calibration {_calibration(q.calibration)}, seed {q.calibration.seed}",
        *([] if q.risk is None else risk_lines(q.risk)),
        *(_explained(made, q.risk) if made.explained and q.risk else []),
        *([] if made.accuracy is None else _accuracy_lines(made, made.accuracy)),
        f"Next: edgekit export -m {made.path} -t all"
        if not q.is_simulated
        else f"Next: edgekit evaluate {made.path} --data PATH",
    ]


def _calibration(c: "Calibration") -> str:
    if c.kind == "synthetic":
        return f"synthetic ({c.source}): {c.samples} images that no one took"
    return f"{c.samples} photos of {c.source}"


def risk_lines(risk: "Risk") -> list[str]:
    """What is known of a model that no data calibrated, and what is not."""
    norms = ", ".join(f"{n} x {kind}" for kind, n in risk.norms.items()) or "no norms"
    return [
        f"  risk        {risk.level}: {risk.reasons[0]}",
        *(f"              {reason}" for reason in risk.reasons[1:]),
        f"              {risk.advice}",
        *(
            f"  {a.relation:<13}{_agreement(a)} on {a.images} images: {a.family}"
            for a in sorted(risk.agreements, key=lambda a: a.relation, reverse=True)
        ),
        f"  stored      {risk.stored_share:.0%} of the activations in int8 have stored statistics ({norms}); "
        "the others are guessed"
        if risk.tensors
        else f"  learned     ranges and rounding, from made images; statistics are stored in {norms}",
        f"  accuracy on real data: {risk.accuracy}",
    ]


def _agreement(a: "Agreement") -> str:
    if a.top1 is None or a.kl is None:
        return f"{a.sqnr_db:.1f} dB SQNR against float"
    return f"{a.top1:4.0%} the same class as float, KL {a.kl:.2g} nats"


def _explained(made: "QuantizedModel", risk: "Risk") -> list[str]:
    from edgekit.data_free.explain import explained

    files = " · ".join(map(str, made.explained))
    return [*(f"  {line}" for line in explained(risk)), f"  explained   {files}"]


def _accuracy_lines(made: "QuantizedModel", a: "AccuracyControl") -> list[str]:
    """What stays in float, why, what it costs, and how to get the same again."""
    from edgekit.quantizing import plot_file, ranking_file

    whole, kept = a.trials[0], a.chosen.keep_float
    files = f"  ranking     {ranking_file(made.path)} · {plot_file(made.path)}"
    lines = [f"  accuracy    {a.reference_top1:.2f} % in float on {a.n} images of {a.data}; {_drop('in int8', whole)}"]
    if not kept:
        return [*lines, f"  kept float  nothing: that is within {a.max_drop:g} points", *_worst(a), files]
    return [
        *lines,
        f"  kept float  {len(kept)} of {len(a.layers)} layers: {', '.join(kept)}",
        f"              {_drop('so', a.chosen)}, within {a.max_drop:g}",
        f"  costs       {size(a.bytes)} more, on {size(a.bytes_total // 3)} of int8 weights; {count(a.macs)} of"
        f" {count(a.macs_total)} MACs in float ({a.macs / a.macs_total:.1%})",
        *_worst(a),
        files,
        f"Without measuring again: edgekit {shlex.join(_same_command(sys.argv[1:], kept))}",
    ]


def _drop(how: str, trial: "Trial") -> str:
    low, high = trial.drop_ci95
    return f"{how} {trial.top1:.2f} %, a drop of {trial.drop:.2f} points (95 % interval {low:.2f} to {high:.2f})"


def _worst(a: "AccuracyControl") -> list[str]:
    worst = " · ".join(f"{layer.name} {layer.nats:.2g}" for layer in a.layers[:SHOWN])
    return [f"  sensitive   {worst} (nats of KL, {a.samples} photos)"]


def _same_command(arguments: list[str], kept: tuple[str, ...]) -> list[str]:
    """The command without accuracy control, with its result instead."""
    dropped = ("--accuracy-data", "--max-drop", "--num-accuracy-samples")
    found, skip = [], False
    for argument in arguments:
        if skip or argument in dropped:
            skip = not skip
        elif not argument.startswith(tuple(f"{option}=" for option in dropped)):
            found.append(argument)
    return [*found, *(text for name in kept for text in ("--keep-float", name))]
