"""Is the artifact, read back from disk and run by its runtime, the same function as the float model?"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.artifacts import Golden, load_artifact, read_golden
from edgekit.data import apply, open_images, read_image, sample_photos
from edgekit.errors import ArtifactDamaged, BadInput, CaptureFailed, EdgekitError
from edgekit.loading import Loaded, load, runs_code, sha256
from edgekit.targets import TARGETS
from edgekit.types import Artifact, OutputError, Preprocess, TensorSpec, Verification

Arrays = list[NDArray[Any]]

MIN_SQNR_DB = {
    "fp32": 60.0, "fp16": 35.0, "int8": 5.0, "int8-dynamic": 6.0, "int8-weight": 6.0, "int4-weight": 6.0,
}  # fmt: skip
"""The floors against the float model: float32 differs only by the order of sums, float16 by 11 bits of mantissa; what
integers cost is the model's affair, and below these it is lost (two of the golden inputs are noise, no photos)."""
SIMULATION_SQNR_DB = {"int8": 30.0, "int8-dynamic": 25.0, "int8-weight": 25.0, "int4-weight": 25.0}
"""The floors against the program with the same integers, run by torch."""
MAX_DISAGREEMENT = 0.01
"""The share of samples (one at least) whose class may change with the rounding of a tie between two integers."""
CEILING_DB = 200.0
NOISE_SAMPLES = 2
SAME_PHOTO_DB = 40.0
"""Two versions of Pillow may differ by a grey level here and there; a mean or std that is 1 % off is below this."""


def verify(
    artifact: str | Path | Artifact,
    *,
    images: str | Path | None = None,
    model: str | None = None,
    min_sqnr: float | None = None,
) -> Verification:
    """Compare an artifact with the float reference, on its golden vectors or on the photos at `images`.

    For `images` the float model is loaded again; one that is Python code must be named as `model` (see `reference_of`).
    Raises `ArtifactDamaged` or `BadInput`; a gate that fails is a value (`passed`), not an exception.
    """
    first, *others = verifications(artifact, images=images, model=model, min_sqnr=min_sqnr)
    failures = (*first.failures, *(text for v in others for text in v.failures))
    return replace(first, passed=not failures, failures=failures)


def verifications(
    artifact: str | Path | Artifact,
    *,
    images: str | Path | None = None,
    model: str | None = None,
    min_sqnr: float | None = None,
    more: Golden = ([], []),
) -> tuple[Verification, ...]:
    """The comparisons that `verify` makes: of integers with their simulation first, then of any with the float model.

    `more` are further inputs with the simulation's outputs, beside the golden ones. `min_sqnr` is the floor in dB
    against the float model.
    """
    if not isinstance(artifact, Artifact):
        artifact = load_artifact(artifact)
    floor = _floor(artifact) if min_sqnr is None else min_sqnr
    stored = read_golden(artifact)
    wrong = preprocess_failures(artifact, stored)
    found: list[Verification] = []
    if artifact.manifest.precision not in SIMULATION_SQNR_DB:
        golden = stored if images is None else _golden_of(artifact, Path(images), model)
        found.append(compare(artifact, golden, floor))
    else:
        both = ([*stored[0], *more[0]], [*stored[1], *more[1]])
        floats = read_golden(artifact, "float")
        nearest, other = _distance(floats[1], stored[1])
        least = min(SIMULATION_SQNR_DB[artifact.manifest.precision], nearest)
        found.append(compare(artifact, both, least, "simulation", max(MAX_DISAGREEMENT, 1 / len(both[0]), other)))
        if images is not None:
            floats = _golden_of(artifact, Path(images), model)
        # What integers change of the float model's classes is for `evaluate` to say.
        found.append(compare(artifact, floats, floor, may_differ=1.0))
    first = found[0]
    found[0] = replace(first, passed=first.passed and not wrong, failures=(*wrong, *first.failures))
    return tuple(found)


def _distance(floats: Sequence[Arrays], integers: Sequence[Arrays]) -> tuple[float, float]:
    """How far integers are from the float model: the least SQNR in dB of an output, the share of other classes.

    In a deep network one step that is rounded the other way in an early layer grows until it is as large as the error
    of quantization itself. No runtime can be asked to be nearer to the simulation than the simulation is to the model.
    """
    pairs = [(np.stack([f[i] for f in floats]), np.stack([q[i] for q in integers])) for i in range(len(floats[0]))]
    other = max(float((f.argmax(-1) != q.argmax(-1)).mean()) for f, q in pairs)
    return min(sqnr_db(f, q) for f, q in pairs), other


def simulated(module: torch.nn.Module, samples: Sequence[Arrays]) -> Golden:
    """`samples` with what `module` makes of them."""
    with torch.no_grad():
        outputs = [flat_outputs(module(*[torch.from_numpy(a) for a in sample])) for sample in samples]
    return list(samples), [[y.numpy() for y in output] for output in outputs]


def _floor(artifact: Artifact) -> float:
    precision = artifact.manifest.precision
    if precision not in MIN_SQNR_DB:
        raise ArtifactDamaged(f"{artifact.path} is of an unknown precision {precision!r}", "Export the artifact again.")
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
    artifact: Artifact, golden: Golden, min_sqnr_db: float, against: str = "float", may_differ: float = 0.0
) -> Verification:
    """Run the artifact's model file on every golden input and measure the distance of every output.

    `may_differ` is the share of samples whose top-1 class may be another.
    """
    manifest = artifact.manifest
    target = TARGETS[manifest.target]
    target.require_runtime()
    inputs, references = golden
    try:
        run = target.runner(artifact.model_path, manifest.inputs, manifest.outputs)
        actual = [run(sample) for sample in inputs]
    except EdgekitError:
        raise
    except Exception as error:  # each runtime raises its own types for a model file that it cannot read or run
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactDamaged(
            f"{target.title} cannot run {artifact.model_path}: {reason}", "Export the artifact again."
        ) from error
    if any(len(a) != len(manifest.outputs) for a in actual):
        raise ArtifactDamaged(
            f"{artifact.model_path} has {len(actual[0])} outputs, its manifest {len(manifest.outputs)}",
            "Export the artifact again.",
        )
    outputs = tuple(
        _measure(
            spec, [r[i] for r in references], [a[i] for a in actual], pooled=manifest.precision in SIMULATION_SQNR_DB
        )
        for i, spec in enumerate(manifest.outputs)
    )
    agreements = [o.top1_agreement for o in outputs if o.top1_agreement is not None]
    failures = tuple(text for o in outputs for text in _failures(o, min_sqnr_db, may_differ))
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


def _failures(output: OutputError, floor: float, may_differ: float) -> list[str]:
    found = []
    if not output.sqnr_db >= floor:
        found.append(
            f"output {output.name}: SQNR {output.sqnr_db:.1f} dB is below {floor:g} dB"
            f" (max error {output.max_abs_error:.3g})"
        )
    if output.top1_agreement is not None and output.top1_agreement < 1 - may_differ - 1e-9:
        found.append(
            f"output {output.name}: only {output.top1_agreement:.1%} of the samples have the reference's top-1 class"
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


def sqnr_db(reference: NDArray[Any], actual: NDArray[Any]) -> float:
    """10 log10(sum r² / sum (r - a)²), clipped to ±200 dB; 200 where equal, -200 where either is not finite."""
    r, a = reference.astype(np.float64), actual.astype(np.float64)
    if not (np.isfinite(r).all() and np.isfinite(a).all()):
        return -CEILING_DB
    noise, signal = float(((r - a) ** 2).sum()), float((r**2).sum())
    if noise == 0:
        return CEILING_DB
    if signal == 0:
        return -CEILING_DB
    return float(np.clip(10 * math.log10(signal / noise), -CEILING_DB, CEILING_DB))


def golden_of(loaded: Loaded) -> Golden:
    """At least four inputs, in the captured program's layout, with the outputs of the float module in its train form.

    Photos (and two images of noise) where the model takes images, else seeded normal numbers.
    """
    seed = loaded.request.seed
    if loaded.preprocess is None or len(loaded.inputs) != 1:
        generator = torch.Generator().manual_seed(seed + 1)
        samples = [[_like(x, generator).numpy() for x in loaded.inputs] for _ in range(4)]
    else:
        photos = [apply(loaded.preprocess, photo) for photo in sample_photos()]
        photos += _noise(loaded.preprocess, seed)
        samples = [[batch] for batch in _batches(photos, loaded.inputs[0].shape[0])]
    before = {name: buffer.clone() for name, buffer in loaded.module.named_buffers()}
    golden = samples, [reference(loaded, sample) for sample in samples]
    changed = [name for name, buffer in loaded.module.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise CaptureFailed(
            f"{loaded.name} changes its own buffers when it runs: {', '.join(changed)}",
            "An artifact has no memory between calls: take the state as an input and return it as an output.",
        )
    return golden


def _like(example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers; of whole numbers (which may be places in a table) the example's own, shuffled."""
    if example.is_floating_point():
        return torch.randn(example.shape, generator=generator).to(example.dtype)
    return example.flatten()[torch.randperm(example.numel(), generator=generator)].reshape(example.shape)


def reference(loaded: Loaded, sample: Sequence[NDArray[Any]]) -> Arrays:
    """The outputs of the float module, run eagerly by torch."""
    with torch.no_grad():
        outputs = loaded.module(*[torch.from_numpy(a) for a in sample])
    return [y.numpy() for y in flat_outputs(outputs)]


def flat_outputs(outputs: Any) -> list[torch.Tensor]:
    """The tensors of a model's output, in the order in which `torch.export` flattens them."""
    from torch.utils._pytree import tree_leaves

    return [y for y in tree_leaves(outputs) if isinstance(y, torch.Tensor)]


def _noise(preprocess: Preprocess, seed: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    shape = (len(preprocess.mean), *preprocess.crop)
    return [
        ((rng.integers(0, 256, shape).astype(np.float32) * np.float32(preprocess.scale) - mean) / std)
        for _ in range(NOISE_SAMPLES)
    ]


def _batches(images: Sequence[NDArray[np.float32]], size: int) -> Iterable[NDArray[np.float32]]:
    """One batch an image, filled up with the images after it, so that a mix-up within a batch shows."""
    return [np.stack([images[(i + j) % len(images)] for j in range(size)]) for i in range(len(images))]


def to_layout(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """A captured program's input (NCHW) as the artifact takes it."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if spec.layout == "NHWC" else array


def in_artifact_layout(golden: Golden, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Golden:
    """Golden vectors of the captured program as an artifact with these inputs and outputs has them."""
    return (
        [[to_layout(a, s).astype(s.dtype) for a, s in zip(sample, inputs, strict=True)] for sample in golden[0]],
        [[a.astype(s.dtype) for a, s in zip(sample, outputs, strict=True)] for sample in golden[1]],
    )


def _golden_of(artifact: Artifact, images: Path, model: str | None) -> Golden:
    photos = (
        [read_image(images)]
        if images.is_file() and images.suffix not in (".npz", ".tar")
        else [i.pixels for i in open_images(images)]
    )
    loaded = reference_of(artifact, model)
    if loaded.preprocess is None:
        raise BadInput(f"{artifact.path} takes no images", "Leave --images out: its golden vectors are used.")
    batches = _batches([apply(loaded.preprocess, photo) for photo in photos], loaded.inputs[0].shape[0])
    samples: list[Arrays] = [[batch] for batch in batches]
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
