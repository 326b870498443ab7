"""The main job: a model, exported to each target, proven equal. The only order of steps in edgekit."""

import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from edgekit.artifacts import (
    LABELS,
    Golden,
    atomic_folder,
    hash_files,
    load_artifact,
    same_files,
    write_golden,
    write_manifest,
    write_sources,
)
from edgekit.errors import (
    ArtifactDamaged,
    BadInput,
    EdgekitError,
    EnvironmentProblem,
    GateFailed,
    LoweringFailed,
    PartialFailure,
    UsageError,
)
from edgekit.golden import Arrays, golden_of, in_artifact_layout, nudged, simulated
from edgekit.loading import Loaded, load
from edgekit.profiling import compare
from edgekit.quantization import KERNELS, Simulation
from edgekit.quantization.qdq import layer_of_constants
from edgekit.quantization.weight_only import left_float, quantize_weights, weight_bits
from edgekit.quantizing import with_precision
from edgekit.targets import TARGETS, Target, precision_name
from edgekit.types import (
    Artifact,
    Calibration,
    Delegation,
    Manifest,
    ModelRequest,
    QuantizationOptions,
    Shape,
    Step,
    TensorSpec,
)
from edgekit.verification import float_model, verifications

FASTER = ("int8", "int8-dynamic")
"""Precisions that promise speed; int8-weight and int4-weight promise size."""


@dataclass(frozen=True)
class _Job:
    request: ModelRequest
    precision: str
    out: Path
    verify: bool
    min_sqnr: float | None
    force: bool


@dataclass(frozen=True)
class _Answers:
    """What an artifact should compute of its golden inputs, of photos that are not stored, of golden inputs nudged."""

    golden: Golden
    photos: Golden = ([], [])
    nudged: Sequence[Arrays] = ()


def export(
    model: str | nn.Module,
    target: str | Sequence[str] = "all",
    *,
    precision: str | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    labels: str | Path | None = None,
    image_size: int | None = None,
    input_shape: Sequence[Shape] = (),
    batch_size: int = 1,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    features_only: bool = False,
    calibration: str | Path | None = None,
    num_calibration_samples: int = 128,
    options: QuantizationOptions = QuantizationOptions(),  # noqa: B008 (frozen)
    seed: int = 0,
    verify: bool = True,
    min_sqnr: float | None = None,
    compare_speed: bool = True,
    out: str | Path = "artifacts",
    force: bool = False,
    on_step: Step | None = None,
) -> tuple[Artifact, ...]:
    """Export `model` to one or more targets and verify each artifact against the float model.

    `model` is a zoo name, "file.py:callable", "package.module:callable", a .pt2 file or an nn.Module; `target` a name,
    several, or "all". `precision` is fp32 unless said otherwise, or that of a quantized .pt2. int8 is calibrated with
    the photos at `calibration`, and on the runtimes of this machine its speed is compared with that of fp32, unless
    `compare_speed` is off. `features_only` exports a zoo model's stage outputs in place of its logits.
    Each artifact is the folder `out`/<name>-<target>-<precision>, written whole or not at all.
    Raises an `EdgekitError`: `GateFailed` when an artifact is not equal enough (nothing is left of it),
    `PartialFailure` when some of several targets failed.
    """
    request = ModelRequest(
        model=model if isinstance(model, str) else f"{type(model).__module__}:{type(model).__qualname__}",
        weights=None if weights is None else str(weights),
        num_classes=num_classes,
        image_size=image_size,
        input_shape=tuple(tuple(s) for s in input_shape),
        batch_size=batch_size,
        seed=seed,
        labels=None if labels is None else str(labels),
        mean=tuple(mean),
        std=tuple(std),
        features_only=features_only,
    )
    targets = targets_of(target)
    asked = None if precision is None else precision_name(precision)
    for t in targets:
        t.check(asked or "fp32", TARGETS.values())
    report = on_step or (lambda what, done, total: None)
    report(f"loading {request.model}", 0, 1 + len(targets))
    original = load(request, None if isinstance(model, str) else model)
    loaded = with_precision(original, asked, calibration, num_calibration_samples, options, on_step)
    precision = asked or (loaded.quantized.scheme if loaded.quantized else "fp32")
    job = _Job(request, precision, Path(out), verify, min_sqnr, force)
    return _export_each(original if compare_speed else None, loaded, targets, job, report)


def _export_each(
    original: Loaded | None, loaded: Loaded, targets: Sequence[Target], job: _Job, report: Step
) -> tuple[Artifact, ...]:
    """One artifact a target; the speed of int8 is compared with that of `original`, where one is given."""
    golden = golden_of(loaded)
    _check_labels(loaded, golden)
    for t in targets:
        _check_destination(_destination(loaded, t, job), loaded, t, job)
    simulations = _simulations(loaded, golden, {t.kernels for t in targets}, job.verify)
    done: list[Artifact] = []
    failed: list[tuple[str, EdgekitError]] = []
    total = 1 + len(targets)
    for n, t in enumerate(targets, start=1):
        report(f"{t.title} {job.precision}", n, total)
        try:
            artifact = _export_one(loaded, simulations.get(t.kernels, _Answers(golden)), t, job)
            if original is not None and job.precision in FASTER:
                report(f"{t.title}: {job.precision} against fp32", n, total)
                artifact = _timed(original, artifact, t, job)
            done.append(artifact)
        except EdgekitError as error:
            failed.append((t.name, error))
    report("done", total, total)
    if failed and not done and len(failed) == 1:
        raise failed[0][1]
    if failed:
        raise PartialFailure(tuple(done), tuple(failed))
    return tuple(done)


def _check_labels(loaded: Loaded, golden: Golden) -> None:
    scores = golden[1][0][0]
    classes = scores.shape[-1] if scores.ndim else 0
    if loaded.labels and len(loaded.labels) != classes:
        raise BadInput(
            f"{loaded.request.labels} has {len(loaded.labels)} labels, {loaded.name} {classes} classes",
            "Give one label a line, in the order of the classes.",
        )


def targets_of(target: str | Sequence[str]) -> tuple[Target, ...]:
    """The targets that a comma-separated list, a sequence or "all" names, each once; raises `UnknownName`."""
    names = [n for n in target.split(",") if n.strip()] if isinstance(target, str) else list(target)
    if not names:
        raise UsageError("no target was given", f"Name one or more of {', '.join(TARGETS)}, or all: -t all")
    if "all" in names:
        return tuple(TARGETS.values())
    return tuple({t.name: t for t in (TARGETS[n.strip().lower()] for n in names)}.values())


def _simulations(loaded: Loaded, golden: Golden, kernels: set[str], with_photos: bool) -> dict[str, _Answers]:
    """The answers of an int8 model, rounded as each kind of kernels does."""
    if loaded.quantized is None:
        return {}
    photos = [[x.numpy() for x in photo] for photo in loaded.photos] if with_photos else []
    modules = {name: Simulation(loaded.program, name) for name in KERNELS}
    # With inputs and sums that differ in their last places: what rounding alone may change.
    nudges = {name: simulated(module, nudged(golden[0]))[1] for name, module in modules.items()}
    return {
        name: _Answers(
            simulated(modules[name], golden[0]),
            simulated(modules[name], photos),
            next(nudges[other] for other in KERNELS if other != name),
        )
        for name in kernels
    }


def _timed(original: Loaded, artifact: Artifact, target: Target, job: _Job) -> Artifact:
    """The artifact with its time against that of the same model in fp32, run by turns, or why there is none."""
    try:
        loaded = float_model(original)
        with TemporaryDirectory() as folder:
            fp32 = replace(job, precision="fp32", out=Path(folder), verify=False)
            made = _export_one(loaded, _Answers(golden_of(loaded)), target, fp32)
            return replace(artifact, speed=compare(made, artifact))
    except (UsageError, EnvironmentProblem) as error:  # its float model is gone, or its runtime is not of this machine
        return replace(artifact, no_speed=error.message)


def _export_one(loaded: Loaded, answers: _Answers, target: Target, job: _Job) -> Artifact:
    start = time.perf_counter()
    destination = _destination(loaded, target, job)
    target.require()
    inputs = target.io(_input_specs(loaded))
    golden = answers.golden
    outputs = target.io(_output_specs(golden))
    scheme = target.schemes.get(job.precision)
    program = loaded.program if scheme is None else quantize_weights(loaded.program, scheme)
    floats = loaded.float_outputs if scheme is None else golden[1]
    if scheme is not None:
        golden = simulated(program.module(), golden[0])
    floats, nudges = (
        in_artifact_layout(([], [list(sample) for sample in given]), inputs, outputs)[1]
        for given in (floats, answers.nudged)
    )
    golden = in_artifact_layout(golden, inputs, outputs)
    with atomic_folder(destination) as folder:
        delegation = target.lower(program, job.precision, folder / f"model{target.suffix}", inputs, outputs)
        write_golden(folder, golden, floats, nudges)
        write_sources(folder, delegation.ops)
        if loaded.labels:
            lines = (" ".join(re.split(r"[\r\n]+", label)) for label in loaded.labels)
            (folder / LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        manifest = _manifest(loaded, target, job, folder, inputs, outputs, delegation)
        write_manifest(folder, manifest)
        if job.verify:
            manifest = _verified(folder, manifest, job, in_artifact_layout(answers.photos, inputs, outputs))
            write_manifest(folder, manifest)
        if destination.exists() and not job.force and not same_files(folder, destination):
            raise _exists(destination)
    return Artifact(path=destination, manifest=manifest, seconds=time.perf_counter() - start)


def _verified(folder: Path, manifest: Manifest, job: _Job, photos: Golden) -> Manifest:
    try:
        found = verifications(folder, min_sqnr=job.min_sqnr, more=photos)
    except ArtifactDamaged as error:
        # It is as fresh as can be: the runtime refuses what its own exporter wrote.
        raise LoweringFailed(
            error.message.replace(f"{folder}/", ""), "Run again with --debug for all it says."
        ) from error
    if failures := [text for v in found for text in v.failures]:
        seeded = "Its weights are seeded ones, which may be too small for float16: give --weights. "
        raise GateFailed(
            f"{manifest.name} for {manifest.target} in {manifest.precision} does not compute what the model does:\n  "
            + "\n  ".join(failures),
            (seeded if manifest.weights.source.startswith("seed:") and job.precision == "fp16" else "")
            + "Nothing was written. --min-sqnr DB sets another floor; --no-verify writes the artifact unproven.",
        )
    return replace(manifest, verification=found)


def _manifest(
    loaded: Loaded,
    target: Target,
    job: _Job,
    folder: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    delegation: Delegation,
) -> Manifest:
    return Manifest(
        edgekit=version("edgekit"),
        name=loaded.name,
        model=loaded.request.model,
        weights=loaded.weights,
        target=target.name,
        precision=job.precision,
        files=hash_files(folder),
        inputs=inputs,
        outputs=outputs,
        preprocess=loaded.preprocess if inputs[0].layout else None,
        request=loaded.request,
        delegation=replace(delegation, notes=(), ops=()),
        layers=_layers(loaded, target, job.precision),
        environment={"python": platform.python_version(), "torch": version("torch"), **target.versions()},
        labels=LABELS if loaded.labels else "",
        calibration=loaded.quantized.calibration if loaded.quantized else Calibration(),
        quantization=loaded.quantized.options if loaded.quantized else None,
        notes=(*loaded.notes, *_notes(loaded, target, job.precision), *delegation.notes),
    )


def _notes(loaded: Loaded, target: Target, precision: str) -> tuple[str, ...]:
    """What of a model with integer weights is stored as floats, and why."""
    scheme = target.schemes.get(precision)
    return () if scheme is None else left_float(loaded.program, scheme)


def _layers(loaded: Loaded, target: Target, precision: str) -> dict[str, int]:
    """Bytes of weights by layer, in the deploy form's order; of weight-only ones without their scales."""
    layers: dict[str, int] = {}
    scheme = target.schemes.get(precision)
    bits = {} if scheme is None else weight_bits(loaded.program, scheme)
    readers = layer_of_constants(loaded.program) if loaded.quantized else {}
    tensors = {
        **loaded.program.state_dict,
        **{k: v for k, v in loaded.program.constants.items() if hasattr(v, "numel")},
    }
    for name, tensor in tensors.items():
        layer = readers.get(name) or name.rpartition(".")[0] or name
        size = 2 if precision == "fp16" and tensor.is_floating_point() else tensor.element_size()
        layers[layer] = layers.get(layer, 0) + tensor.numel() * bits.get(name, 8 * size) // 8
    return layers


def _input_specs(loaded: Loaded) -> tuple[TensorSpec, ...]:
    image = loaded.preprocess is not None and len(loaded.inputs) == 1
    return tuple(
        TensorSpec(
            name="image" if image else f"input_{n}",
            shape=tuple(x.shape),
            dtype=str(x.dtype).removeprefix("torch."),
            layout="NCHW" if image else "",
        )
        for n, x in enumerate(loaded.inputs)
    )


def _output_specs(golden: Golden) -> tuple[TensorSpec, ...]:
    outputs = golden[1][0]
    single = len(outputs) == 1 and outputs[0].ndim == 2
    return tuple(
        TensorSpec(name="logits" if single else f"output_{n}", shape=tuple(y.shape), dtype=str(y.dtype))
        for n, y in enumerate(outputs)
    )


def _destination(loaded: Loaded, target: Target, job: _Job) -> Path:
    return job.out / f"{_slug(loaded.name)}-{target.name}-{job.precision}"


def _check_destination(destination: Path, loaded: Loaded, target: Target, job: _Job) -> None:
    """Refuse at once what would be refused in the end: only the same export made again may meet its own folder."""
    if not destination.exists() or job.force:
        return
    try:
        old = load_artifact(destination).manifest
    except UsageError:
        raise _exists(destination) from None
    if (old.request, old.target, old.precision, old.weights) != (
        loaded.request,
        target.name,
        job.precision,
        loaded.weights,
    ):
        raise _exists(destination)


def _exists(destination: Path) -> BadInput:
    return BadInput(
        f"{destination} exists already and is something else",
        "Replace it with --force, or give another folder with -o.",
    )


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
