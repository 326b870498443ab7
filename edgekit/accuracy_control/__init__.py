"""Accuracy control: the fewest layers stay in float with which int8 loses no more than was allowed.

The layers are ranked by `edgekit.quantization.sensitivity` on the photos of the calibration, which needs no labels; the
drop is measured on labelled images with the model as it would be saved, quantized anew for each set of layers. What is
compared with the target is the drop as measured: its interval, which is shown, is usually wider than what is allowed.
The best of several sets on some images is less good on others, which `edgekit evaluate` measures.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.accuracy_control.journal import Journal
from edgekit.accuracy_control.report import plot as plot
from edgekit.accuracy_control.report import require_plots
from edgekit.accuracy_control.results import AccuracyControl as AccuracyControl
from edgekit.accuracy_control.results import AccuracyTarget as AccuracyTarget
from edgekit.accuracy_control.results import LayerSensitivity, Trial
from edgekit.accuracy_control.search import fewest
from edgekit.data import ImageSet, spread
from edgekit.errors import BadInput, GateFailed, UsageError
from edgekit.evaluation import labelled, truth_of
from edgekit.evaluation.answers import answers_of, in_torch
from edgekit.evaluation.statistics import paired_interval
from edgekit.loading import Loaded
from edgekit.quantization import float_form
from edgekit.quantization.sensitivity import Layer, Sensitivity
from edgekit.types import QuantizationOptions, Step

SAMPLES = 32
"""Photos that sensitivities are measured on. Of mobilenet-v1-025, each half of them ranks the same two layers first."""
Calls = Sequence[Sequence[Tensor]]
Quantize = Callable[[QuantizationOptions], Loaded]


def control_accuracy(
    loaded: Loaded,
    quantized: Quantize,
    calls: Calls,
    options: QuantizationOptions,
    target: AccuracyTarget,
    work: Path,
    on_step: Step | None = None,
) -> AccuracyControl:
    """The fewest layers of `loaded` that must stay in float, beside `options.keep_float`, to meet `target`.

    `quantized` makes the int8 model, `calls` are the inputs it is calibrated with. Measurements are kept in the file
    `work` and found there again after an interruption. It is the caller's to delete; a refusal takes it away.
    Raises `BadInput` for data without labels or a model without classes, `GateFailed` for a target out of reach.
    """
    if not 0 <= target.max_drop <= 100:
        raise BadInput(f"--max-drop is a number of points from 0 to 100, not {target.max_drop:g}", "Type --max-drop 1")
    if target.samples is not None and target.samples < 1:
        raise BadInput(
            f"--num-accuracy-samples is at least 1, not {target.samples}", "Leave it out to use all the images."
        )
    require_plots()
    data = Path(target.data)
    images = labelled(data)
    chosen = spread(images.labels, target.samples or len(images))
    truth, notes = truth_of(images, chosen, loaded.labels, in_torch(loaded, len(chosen)).classes)
    journal = Journal(work, _key(loaded, calls, options, data, chosen, truth))
    try:
        measured = _Measurements(loaded, quantized, calls, options, images, chosen, truth, journal, on_step)
        return _controlled(measured, target, notes)
    except (GateFailed, UsageError):
        journal.remove()
        raise


def _controlled(measured: "_Measurements", target: AccuracyTarget, notes: list[str]) -> AccuracyControl:
    max_drop = target.max_drop
    layers = measured.ranking()
    if not layers:
        raise BadInput(
            "no layer of the model runs in int8", "Leave --accuracy-data out, or keep fewer layers in float."
        )
    names = fewest(
        len(layers),
        lambda kept: [layer.name for layer in measured.ranking(kept) if layer.name not in kept],
        # Without a layer in int8 it is the float model, which loses nothing: more layers in float never are worse.
        lambda kept: not measured.any_int8(kept) or measured.trial(kept).drop <= max_drop,
    )
    if names is None or not measured.any_int8(names):
        best = min(measured.trials.values(), key=lambda t: t.drop)
        raise GateFailed(
            f"the drop of top-1 is not within {max_drop:g} points with fewer than all {len(layers)} layers in float: "
            f"with {len(best.keep_float)} of them it is {best.drop:.2f} "
            f"(95 % interval {best.drop_ci95[0]:.2f} to {best.drop_ci95[1]:.2f})",
            "Allow more with --max-drop, calibrate with more photos or another --range-estimator, or use fp16.",
        )
    kept = measured.in_float(names)
    if kept:
        notes = [
            *notes,
            "the layers were chosen on the images that the drop is measured on: on other images it may be larger",
        ]
    return AccuracyControl(
        data=Path(target.data).name,
        max_drop=max_drop,
        n=measured.n,
        unreadable=len(measured.chosen) - measured.n,
        reference_top1=measured.reference_top1,
        chosen=measured.trial(names),
        macs=sum(layer.macs for layer in kept),
        macs_total=sum(layer.macs for layer in layers),
        bytes=sum(layer.bytes for layer in kept),
        bytes_total=sum(layer.bytes for layer in layers),
        samples=measured.samples,
        layers=layers,
        trials=tuple(measured.trials.values()),
        notes=tuple(notes),
    )


class _Measurements:
    """What is measured of one model, each once: which images it gets right with which layers in float."""

    def __init__(
        self,
        loaded: Loaded,
        quantized: Quantize,
        calls: Calls,
        options: QuantizationOptions,
        images: ImageSet,
        chosen: Sequence[int],
        truth: NDArray[np.int64],
        journal: Journal,
        on_step: Step | None,
    ) -> None:
        self._loaded, self._quantized, self._calls, self._options = loaded, quantized, calls, options
        self._images, self.chosen, self._truth = images, chosen, truth
        self._journal, self._on_step = journal, on_step
        self.samples = min(SAMPLES, len(calls))
        self.trials: dict[tuple[str, ...], Trial] = {}
        self._float = self._right("float", lambda: loaded)
        self.n = len(self._float)
        self.reference_top1 = 100 * int(self._float.sum()) / self.n

    @cached_property
    def _sensitivity(self) -> Sensitivity:
        # The correction of what comes from the layers before would be wrong where these are in float.
        bias_correction = "fast" if self._options.bias_correction == "full" else self._options.bias_correction
        options = replace(self._options, bias_correction=bias_correction)
        whole = float_form(self._loaded.program, self._calls, options)
        return Sensitivity(whole, self._quantized(options).program, options.keep_float)

    def ranking(self, kept: tuple[str, ...] = ()) -> tuple[LayerSensitivity, ...]:
        """The layers in int8, the most sensitive first where those of `kept` are in float."""
        measure = self._sensitivity
        alone = self._mean("alone", measure.alone)
        spared = self._mean(f"spared beside {' '.join(kept)}", lambda call: measure.spared(call, kept))
        found = [
            LayerSensitivity(name=x.name, nats=(a + s) / 2, alone=a, spared=s, macs=x.macs, bytes=x.bytes)
            for x, a, s in zip(measure.layers, alone, spared, strict=True)
        ]
        return tuple(sorted(found, key=lambda layer: -layer.nats))

    def in_float(self, kept: tuple[str, ...]) -> tuple[Layer, ...]:
        """The layers that are in float where those of `kept` stay so."""
        return self._sensitivity.in_float(kept)

    def any_int8(self, kept: tuple[str, ...]) -> bool:
        """Whether int8 still has a layer."""
        return len(self.in_float(kept)) < len(self._sensitivity.layers)

    def _mean(self, name: str, measure: Callable[[Sequence[Tensor]], list[float]]) -> list[float]:
        found = []
        for done, call in enumerate(self._calls[: self.samples], 1):
            found.append(self._journal.recall(f"{name}: {done}", partial(measure, call)))
            if self._on_step:
                self._on_step("measuring the sensitivity of the layers", done, self.samples)
        return [float(x) for x in np.mean(np.asarray(found, np.float64).reshape(self.samples, -1), axis=0)]

    def trial(self, kept: tuple[str, ...]) -> Trial:
        """The drop with the layers `kept` in float."""
        if kept not in self.trials:
            options = replace(self._options, keep_float=(*self._options.keep_float, *kept))
            right = self._right(f"keep {' '.join(kept)}", lambda: self._quantized(options), len(kept))
            lost, gained = int((self._float & ~right).sum()), int((right & ~self._float).sum())
            self.trials[kept] = Trial(
                keep_float=kept,
                top1=100 * int(right.sum()) / self.n,
                drop=100 * (lost - gained) / self.n,
                drop_ci95=paired_interval(lost, gained, self.n),
            )
        return self.trials[kept]

    def _right(self, name: str, model: Callable[[], Loaded], kept: int | None = None) -> NDArray[np.bool_]:
        """Of each image that can be read, whether the model's first class is the true one."""
        report = self._on_step
        what = "the float model" if kept is None else f"int8 with {kept} layers in float"

        def measure() -> str:
            step = None if report is None else lambda _, done, total: report(f"evaluating {what}", done, total)
            judge = in_torch(model(), len(self.chosen))
            answers = answers_of(self._images, self.chosen, [judge], step)
            right = answers.ranked[0][:, 0] == self._truth[answers.read]
            return "".join(map(str, right.astype(int)))

        return np.array(list(self._journal.recall(name, measure))) == "1"


def _key(
    loaded: Loaded,
    calls: Calls,
    options: QuantizationOptions,
    data: Path,
    chosen: Sequence[int],
    truth: NDArray[np.int64],
) -> str:
    """A hash of all that the measurements depend on; of the images, the names, sizes and times of their files."""
    program, found = loaded.program, hashlib.sha256()
    files = [p for p in sorted(data.rglob("*")) if p.is_file()] if data.is_dir() else [data]
    stats = [(str(p), s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()]]
    facts = (version("edgekit"), torch.__version__, options, loaded.preprocess, stats, chosen, truth.tolist())
    found.update(f"{facts} {program.graph}".encode())
    for tensor in (*program.state_dict.values(), *program.constants.values(), *(x for call in calls for x in call)):
        if isinstance(tensor, Tensor):
            found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()
