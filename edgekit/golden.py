"""Golden vectors: inputs that an artifact is proven on, and what should come out."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.artifacts import Golden
from edgekit.data import apply, sample_photos
from edgekit.errors import CaptureFailed
from edgekit.loading import Loaded
from edgekit.types import Preprocess, TensorSpec

Arrays = list[NDArray[Any]]
NOISE_SAMPLES = 2
NUDGE = 1e-5
"""By how much of themselves inputs are changed to see what rounding alone does."""


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
        samples = [[batch] for batch in batches(photos, loaded.inputs[0].shape[0])]
    before = {name: buffer.clone() for name, buffer in loaded.module.named_buffers()}
    golden = samples, [reference(loaded, sample) for sample in samples]
    changed = [name for name, buffer in loaded.module.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise CaptureFailed(
            f"{loaded.name} changes its own buffers when it runs: {', '.join(changed)}",
            "An artifact has no memory between calls: take the state as an input and return it as an output.",
        )
    return golden


def simulated(module: torch.nn.Module, samples: Sequence[Arrays]) -> Golden:
    """`samples` with what `module` makes of them."""
    with torch.no_grad():
        outputs = [flat_outputs(module(*[torch.from_numpy(a) for a in sample])) for sample in samples]
    return list(samples), [[y.numpy() for y in output] for output in outputs]


def nudged(samples: Sequence[Arrays]) -> list[Arrays]:
    """`samples` with their floats changed in the last places, as rounding does (see `NUDGE`)."""
    rng = np.random.default_rng(0)
    return [
        [a * (1 + NUDGE * rng.standard_normal(a.shape)).astype(a.dtype) if a.dtype.kind == "f" else a for a in sample]
        for sample in samples
    ]


def reference(loaded: Loaded, sample: Sequence[NDArray[Any]]) -> Arrays:
    """The outputs of the float module, run eagerly by torch."""
    with torch.no_grad():
        outputs = loaded.module(*[torch.from_numpy(a) for a in sample])
    return [y.numpy() for y in flat_outputs(outputs)]


def flat_outputs(outputs: Any) -> list[torch.Tensor]:
    """The tensors of a model's output, in the order in which `torch.export` flattens them."""
    from torch.utils._pytree import tree_leaves

    return [y for y in tree_leaves(outputs) if isinstance(y, torch.Tensor)]


def in_artifact_layout(golden: Golden, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Golden:
    """Golden vectors of the captured program as an artifact with these inputs and outputs has them."""
    return (
        [[to_layout(a, s).astype(s.dtype) for a, s in zip(sample, inputs, strict=True)] for sample in golden[0]],
        [[a.astype(s.dtype) for a, s in zip(sample, outputs, strict=True)] for sample in golden[1]],
    )


def to_layout(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """A captured program's input (NCHW) as the artifact takes it."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if spec.layout == "NHWC" else array


def batches(images: Sequence[NDArray[np.float32]], size: int) -> Iterable[NDArray[np.float32]]:
    """One batch an image, filled up with the images after it, so that a mix-up within a batch shows."""
    return [np.stack([images[(i + j) % len(images)] for j in range(size)]) for i in range(len(images))]


def _like(example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers; of whole numbers (which may be places in a table) the example's own, shuffled."""
    if example.is_floating_point():
        return torch.randn(example.shape, generator=generator).to(example.dtype)
    return example.flatten()[torch.randperm(example.numel(), generator=generator)].reshape(example.shape)


def _noise(preprocess: Preprocess, seed: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    shape = (len(preprocess.mean), *preprocess.crop)
    return [
        ((rng.integers(0, 256, shape).astype(np.float32) * np.float32(preprocess.scale) - mean) / std)
        for _ in range(NOISE_SAMPLES)
    ]
