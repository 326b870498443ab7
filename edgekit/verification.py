"""Is the artifact, read back from disk and run by its runtime, the same function as the float model?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.artifacts import Golden, load_artifact, read_golden
from edgekit.data import apply, open_images, read_image, sample_photos
from edgekit.devices import Device, open_device
from edgekit.errors import ArtifactDamaged, BadInput, EdgekitError
from edgekit.golden import batches, in_artifact_layout, reference, to_layout
from edgekit.loading import Loaded, load, runs_code, sha256
from edgekit.parity import Run, parity, parity_words, running_on
from edgekit.parity import sqnr_db as sqnr_db
from edgekit.targets import TARGETS
from edgekit.types import Artifact, DeviceVerification, OutputError, Step, TensorSpec, Verification

Arrays = list[NDArray[Any]]

MIN_SQNR_DB = {
    "fp32": 60.0, "fp16": 35.0, "int8": 5.0, "int8-dynamic": 6.0, "int8-weight": 6.0, "int4-weight": 6.0,
}  # fmt: skip
"""The floors against the float model: float32 differs only by the order of sums, float16 by 11 bits of mantissa; what
integers cost is the model's affair, and below these it is lost (two of the golden inputs are noise, no photos)."""
HALF_SUMS_DB = 25.0
"""The floor of float16 where sums may be float16, too: mobilenet-v2 with real weights has 36 dB with float32 sums, and
31 without, on a processor that computes in float16, where it answers 99.4 % of 800 photos as the float model does."""
SIMULATION_SQNR_DB = {"int8": 30.0, "int8-dynamic": 25.0, "int8-weight": 25.0, "int4-weight": 25.0}
"""The floors against the program with the same integers, run by torch."""
MAX_DISAGREEMENT = 0.01
"""The share of samples (one at least) whose class may be another than the simulation's, where that is not near."""
NUDGE_DB = 3.0
"""By how much two trials of numbers changed in their last places may differ."""
SAME_PHOTO_DB = 40.0
"""Two versions of Pillow may differ by a grey level here and there; a mean or std that is 1 % off is below this."""


def verify(
    artifact: str | Path | Artifact,
    *,
    images: str | Path | None = None,
    model: str | None = None,
    min_sqnr: float | None = None,
    device: str | Device = "host",
    on_step: Step = lambda what, done, total: None,
) -> Verification:
    """Compare an artifact with the float reference, on its golden vectors or on the photos at `images`.

    For `images` the float model is loaded again; one that is Python code must be named as `model` (see `reference_of`).
    On another `device` than this machine it is run there, gated as here, and compared with what this machine's runtime
    makes of the same file (see `parity`): a `DeviceVerification`. Raises `ArtifactDamaged` or `BadInput`,
    `EnvironmentProblem` where the device lacks something, `DeviceError`; a gate that fails is a value (`passed`), not
    an exception.
    """
    if not isinstance(artifact, Artifact):
        artifact = load_artifact(artifact)
    if device == "host":
        return _merged(verifications(artifact, images=images, model=model, min_sqnr=min_sqnr))
    return _verify_there(
        artifact,
        open_device(device) if isinstance(device, str) else device,
        lambda run: _merged(verifications(artifact, images=images, model=model, min_sqnr=min_sqnr, run=run)),
        on_step,
    )


def _verify_there(
    artifact: Artifact, device: Device, gated: Callable[[Run], Verification], on_step: Step
) -> DeviceVerification:
    """`gated` compares what a call makes of each sample with the reference."""
    target = TARGETS[artifact.manifest.target]
    target.require_runtime()
    here = _running_here(artifact)
    pairs: list[tuple[Arrays, Arrays]] = []
    with running_on(device, artifact, on_step) as (there, runtime):

        def run(sample: Sequence[NDArray[Any]]) -> Arrays:
            found = there(sample)
            pairs.append((here(sample), found))
            return found

        merged = gated(run)
    integers = artifact.manifest.precision in SIMULATION_SQNR_DB
    floor = _simulation_floor(artifact, read_golden(artifact)[1]) if integers else None
    both = parity(artifact, [a for a, _ in pairs], [b for _, b in pairs], floor)
    failures = tuple(f"on {device.name}, {parity_words(p)}" for p in both if not p.passed)
    values = {f.name: getattr(merged, f.name) for f in fields(merged)} | {
        "runtime": runtime,
        "passed": merged.passed and not failures,
        "failures": (*merged.failures, *failures),
    }
    return DeviceVerification(**values, device=device.name, here=target.runtime, parity=both)


def _merged(found: Sequence[Verification]) -> Verification:
    first, *others = found
    failures = (*first.failures, *(text for v in others for text in v.failures))
    return replace(first, passed=not failures, failures=failures)


def verifications(
    artifact: str | Path | Artifact,
    *,
    images: str | Path | None = None,
    model: str | None = None,
    min_sqnr: float | None = None,
    more: Golden = ([], []),
    run: Run | None = None,
) -> tuple[Verification, ...]:
    """The comparisons that `verify` makes: of integers with their simulation first, then of any with the float model.

    `more` are further inputs with the simulation's outputs, beside the golden ones. `min_sqnr` is the floor in dB
    against the float model. `run` is what runs the file, this machine's runtime if None.
    """
    if not isinstance(artifact, Artifact):
        artifact = load_artifact(artifact)
    floor = _floor(artifact) if min_sqnr is None else min_sqnr
    stored = read_golden(artifact)
    wrong = preprocess_failures(artifact, stored)
    found: list[Verification] = []
    if artifact.manifest.precision not in SIMULATION_SQNR_DB:
        golden = stored if images is None else _golden_of(artifact, Path(images), model)
        found.append(compare(artifact, golden, floor, run=run))
    else:
        both = ([*stored[0], *more[0]], [*stored[1], *more[1]])
        found.append(compare(artifact, both, _simulation_floor(artifact, stored[1]), "simulation", "close", run))
        floats = read_golden(artifact, "float") if images is None else _golden_of(artifact, Path(images), model)
        # What integers change of the float model's classes is for `evaluate` to say.
        found.append(compare(artifact, floats, floor, classes="any", run=run))
    first = found[0]
    found[0] = replace(first, passed=first.passed and not wrong, failures=(*wrong, *first.failures))
    return tuple(found)


def _simulation_floor(artifact: Artifact, simulation: Sequence[Arrays]) -> float:
    """How near an artifact has to be to its simulation, in dB.

    In a deep network one step that is rounded the other way in an early layer grows until it is as large as the error
    of quantization itself. No runtime can be asked to be nearer to the simulation of int8 than that is to itself with
    inputs and sums changed in their last places. Nor can one that rounds activations as it runs be nearer than the
    simulation is to the model.
    """
    precision = artifact.manifest.precision
    if precision == "int8":
        itself, allowance = read_golden(artifact, "nudged")[1], NUDGE_DB
    else:
        itself, allowance = read_golden(artifact, "float")[1], 0.0
    pairs = zip(zip(*simulation, strict=True), zip(*itself, strict=True), strict=True)
    nearest = min(sqnr_db(np.stack(a), np.stack(b)) for a, b in pairs)
    return min(SIMULATION_SQNR_DB[precision], nearest - allowance)


def _floor(artifact: Artifact) -> float:
    precision = artifact.manifest.precision
    if precision not in MIN_SQNR_DB:
        raise ArtifactDamaged(f"{artifact.path} is of an unknown precision {precision!r}", "Export the artifact again.")
    if precision == "fp16" and TARGETS[artifact.manifest.target].half_sums:
        return HALF_SUMS_DB
    return MIN_SQNR_DB[precision]


def preprocess_failures(artifact: Artifact, golden: Golden) -> tuple[str, ...]:
    """What is wrong with the manifest's `preprocess`: by it the sample photos must become the golden inputs.

    The golden outputs prove the model file only: a manifest with another mean would still send it wrong photos.
    """
    preprocess, spec = artifact.manifest.preprocess, artifact.manifest.inputs[0]
    if (preprocess is None) != (spec.layout == ""):
        return (f"preprocess: the manifest has {'none' if preprocess is None else 'one'} for input {spec.name}",)
    if preprocess is None:
        return ()
    photos = sample_photos()
    if len(golden[0]) < len(photos):
        return (f"golden inputs: {len(golden[0])}, and the {len(photos)} sample photos are not all among them",)
    made = [to_layout(apply(preprocess, photo)[None], spec) for photo in photos]
    stored = [sample[0][:1] for sample in golden[0][: len(photos)]]
    if any(s.shape != m.shape for s, m in zip(stored, made, strict=True)):
        return (f"preprocess: it makes images of {made[0].shape[1:]}, golden inputs are {stored[0].shape[1:]}",)
    worst = min(sqnr_db(s, m) for s, m in zip(stored, made, strict=True))
    if worst >= SAME_PHOTO_DB:
        return ()
    return (
        f"preprocess: the sample photos prepared by the manifest are {worst:.1f} dB from the golden inputs, "
        f"below {SAME_PHOTO_DB:g} dB: its resize, crop, mean, std, scale or channel order is not what was exported",
    )


def compare(
    artifact: Artifact,
    golden: Golden,
    min_sqnr_db: float,
    against: str = "float",
    classes: str = "same",
    run: Run | None = None,
) -> Verification:
    """Run the artifact's model file on every golden input and measure the distance of every output.

    The top-1 `classes` have to be the "same", "close" (see `MAX_DISAGREEMENT`), or may be "any".
    """
    manifest = artifact.manifest
    target = TARGETS[manifest.target]
    target.require_runtime()
    inputs, references = golden
    run = run or _running_here(artifact)
    actual = [run(sample) for sample in inputs]
    if any(len(a) != len(manifest.outputs) for a in actual):
        raise ArtifactDamaged(
            f"{artifact.model_path} has {len(actual[0])} outputs, its manifest {len(manifest.outputs)}",
            "Export the artifact again.",
        )
    columns = [([r[i] for r in references], [a[i] for a in actual]) for i in range(len(manifest.outputs))]
    pooled = manifest.precision in SIMULATION_SQNR_DB
    outputs = tuple(_measure(spec, *both, pooled) for spec, both in zip(manifest.outputs, columns, strict=True))
    agreements = [o.top1_agreement for o in outputs if o.top1_agreement is not None]
    failures = tuple(
        text
        for output, both in zip(outputs, columns, strict=True)
        for text in _failures(output, *both, min_sqnr_db, classes)
    )
    return Verification(
        against=against,
        runtime=target.runtime,
        samples=len(inputs),
        max_abs_error=max(o.max_abs_error for o in outputs),
        sqnr_db=min(o.sqnr_db for o in outputs),
        top1_agreement=min(agreements) if agreements else None,
        min_sqnr_db=min_sqnr_db,
        passed=not failures,
        failures=failures,
        outputs=outputs,
    )


def _running_here(artifact: Artifact) -> Run:
    """The model file in this machine's runtime, loaded at the first call; `ArtifactDamaged` where it does not run."""
    manifest = artifact.manifest
    target = TARGETS[manifest.target]
    loaded: list[Run] = []

    def run(sample: Sequence[NDArray[Any]]) -> Arrays:
        try:
            if not loaded:
                loaded.append(target.runner(artifact.model_path, manifest.inputs, manifest.outputs))
            return loaded[0](sample)
        except EdgekitError:
            raise
        except Exception as error:  # each runtime raises its own types for a model file that it cannot read or run
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ArtifactDamaged(
                f"{target.title} cannot run {artifact.model_path}: {reason}", "Export the artifact again."
            ) from error

    return run


def _failures(
    output: OutputError,
    references: Sequence[NDArray[Any]],
    actual: Sequence[NDArray[Any]],
    floor: float,
    classes: str,
) -> list[str]:
    found = []
    if not output.sqnr_db >= floor:
        found.append(
            f"output {output.name}: SQNR {output.sqnr_db:.1f} dB is below {floor:.3g} dB"
            f" (max error {output.max_abs_error:.3g})"
        )
    if output.top1_agreement is not None and classes != "any":
        r, a = np.concatenate(references), np.concatenate(actual)
        # Twice the noise that the floor allows: each of two scores may be off by as much.
        close = 2 * float(np.sqrt(np.mean(r.astype(np.float64) ** 2))) * 10 ** (-floor / 20)
        gap = r.max(1) - np.take_along_axis(r, a.argmax(1)[:, None], 1)[:, 0]
        other, allowed = (
            (gap > close, max(MAX_DISAGREEMENT, 1 / len(gap)))
            if classes == "close"
            else (a.argmax(1) != r.argmax(1), 0.0)
        )
        if other.mean() > allowed:
            found.append(
                f"output {output.name}: only {1 - other.mean():.1%} of the samples have the reference's top-1 class"
            )
    return found


def _measure(
    spec: TensorSpec, references: Sequence[NDArray[Any]], actual: Sequence[NDArray[Any]], pooled: bool
) -> OutputError:
    """The worst sample counts; of integers all together, for one step weighs much in a sample of few outputs."""
    for a, r in zip(actual, references, strict=True):
        if (a.shape, a.dtype) != (r.shape, r.dtype):
            raise ArtifactDamaged(
                f"output {spec.name} is {a.dtype} {a.shape}, the reference {r.dtype} {r.shape}",
                "Export the artifact again.",
            )
    errors = [np.abs(a.astype(np.float64) - r.astype(np.float64)) for a, r in zip(actual, references, strict=True)]
    classes = len(spec.shape) == 2 and spec.shape[1] > 1
    agree = (
        np.concatenate([(a.argmax(1) == r.argmax(1)) for a, r in zip(actual, references, strict=True)])
        if classes
        else None
    )
    worst = max(float(np.max(np.nan_to_num(e, nan=np.inf, posinf=np.inf), initial=0.0)) for e in errors)
    return OutputError(
        name=spec.name,
        max_abs_error=worst if math.isfinite(worst) else 1e308,  # JSON has no infinity
        sqnr_db=round(
            sqnr_db(np.stack(references), np.stack(actual))
            if pooled
            else min(sqnr_db(r, a) for r, a in zip(references, actual, strict=True)),
            2,
        ),
        top1_agreement=None if agree is None else float(agree.mean()),
    )


def _golden_of(artifact: Artifact, path: Path, model: str | None) -> Golden:
    photos = (
        [read_image(path)]
        if path.is_file() and path.suffix not in (".npz", ".tar")
        else [i.pixels for i in open_images(path)]
    )
    loaded = reference_of(artifact, model)
    if loaded.preprocess is None:
        raise BadInput(f"{artifact.path} takes no images", "Leave --images out: its golden vectors are used.")
    images = batches([apply(loaded.preprocess, photo) for photo in photos], loaded.inputs[0].shape[0])
    samples: list[Arrays] = [[batch] for batch in images]
    golden = samples, [reference(loaded, sample) for sample in samples]
    return in_artifact_layout(golden, artifact.manifest.inputs, artifact.manifest.outputs)


def reference_of(artifact: Artifact, model: str | None = None) -> Loaded:
    """The float model that an artifact was exported from; raises `BadInput` where its files are gone or changed.

    A model that is Python code is only run where the caller names it as `model`: a manifest may come from anywhere.
    """
    manifest = artifact.manifest
    if manifest.weights.source == "memory":
        raise BadInput(
            f"{artifact.path} was exported from a module in memory, which is gone",
            "Verify it on its golden vectors: leave --images out.",
        )
    request = manifest.request if model is None else replace(manifest.request, model=model)
    if model is None and runs_code(request.model):
        raise BadInput(
            f"{artifact.path} was exported from Python code, {request.model}, which its float model needs to run",
            f"If you trust that code, name it: --model {request.model}",
        )
    loaded = load(request)
    if manifest.weights.sha256 and loaded.weights.sha256 != manifest.weights.sha256:
        source = request.weights or request.model
        raise BadInput(
            f"{source} has changed since {artifact.path} was exported from it ({sha256(Path(source))[:12]}…)",
            "Give the file it was exported from, or export again.",
        )
    return replace(float_model(loaded, trusted=model is not None), preprocess=manifest.preprocess)


def float_model(loaded: Loaded, *, trusted: bool = False) -> Loaded:
    """The float model that an int8 one was made from, `loaded` itself where that is float.

    Raises `BadInput` where its files are gone or changed, or where it is Python code and not `trusted`.
    """
    if loaded.quantized is None:
        return loaded
    made = loaded.quantized
    if made.weights.source == "memory" or (runs_code(made.request.model) and not trusted):
        raise BadInput(
            f"{loaded.request.model} was quantized from {made.request.model}, which is Python code or gone",
            f"If you trust that code, name it: --model {made.request.model}",
        )
    original = load(made.request)
    if original.weights.sha256 != made.weights.sha256:
        raise BadInput(
            f"{made.request.weights} has changed since {loaded.request.model} was quantized from it",
            "Give the file it was made from, or quantize again.",
        )
    return original
