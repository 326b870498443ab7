"""`compress`: a model with its linear layers as pairs of low rank, written as one weights file, and what that did."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from edgekit.artifacts import write_file
from edgekit.compression import errors, low_rank
from edgekit.data import apply, sample_photos
from edgekit.errors import BadInput
from edgekit.graph.capture import capture
from edgekit.graph.repeats import drop_repeats
from edgekit.loading import Loaded, load
from edgekit.models import ZOO, WeightsCard, deploy, read_card, weights_bytes, weights_file
from edgekit.models._low_rank import pairs
from edgekit.parity import sqnr_db
from edgekit.types import ModelRequest, Step


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters and multiply-adds of one image, as trained and in the deploy form, which every artifact has."""

    parameters: int
    macs: int
    deployed_parameters: int
    deployed_macs: int


@dataclass(frozen=True, kw_only=True)
class PairOfLayers:
    """What became of one layer: `error` is |W - B A| / |W|, the share of the weights (in norm) that is lost."""

    name: str
    rank: int
    error: float


@dataclass(frozen=True, kw_only=True)
class CompressedModel:
    """The file, and how the model in it compares with the original, before any training.

    `agreement` is the share of `photos` with the same top-1, None for what is no classifier; `sqnr_db` of all outputs.
    """

    model: str
    path: Path
    ratio: float
    layers: tuple[PairOfLayers, ...]
    before: Cost
    after: Cost
    photos: int
    agreement: float | None
    sqnr_db: float
    bytes: int
    sha256: str
    notes: tuple[str, ...] = ()


def compress(
    model: str,
    out: str | Path,
    *,
    ratio: float = 2.0,
    skip: tuple[str, ...] = (),
    weights: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    force: bool = False,
    on_step: Step | None = None,
) -> CompressedModel:
    """Write `model` with 1 / `ratio` of the weights of its linear layers to the `.safetensors` file `out`.

    The file is one for `--weights` of the same model. `skip` names layers that stay. See `edgekit.compression` for the
    method. Raises what loading does, and `BadInput` for a ratio, a model or a place that cannot be; nothing is written
    then, and nothing overwritten without `force`.
    """
    on_step, path = on_step or (lambda what, done, total: None), Path(out)
    _check(model, path, weights, force)
    request = ModelRequest(model=model, weights=weights, num_classes=num_classes, image_size=image_size, seed=seed)
    on_step("loading", 0, 3)
    loaded = load(request)
    on_step("factoring", 1, 3)
    small = low_rank(loaded.module, ratio, skip).eval()
    lost, ranks = errors(small, loaded.module), {name: pair.rank for name, pair in pairs(small).items()}
    on_step("comparing", 2, 3)
    agreement, distance, photos = _compared(loaded, small)
    before, after = _cost(loaded.module, loaded.program, loaded), _cost(small, None, loaded)
    content = _file(loaded, small, ratio)
    write_file(path, content)
    return CompressedModel(
        model=request.model,
        path=path,
        ratio=ratio,
        layers=tuple(PairOfLayers(name=n, rank=ranks[n], error=e) for n, e in lost.items()),
        before=before,
        after=after,
        photos=photos,
        agreement=agreement,
        sqnr_db=distance,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        notes=loaded.notes,
    )


def _check(model: str, path: Path, weights: str | None, force: bool) -> None:
    if model.endswith(".pt2"):
        raise BadInput(
            f"{model} is a captured graph, whose layers cannot be changed", "Name what it was made from: a zoo name."
        )
    if path.suffix != ".safetensors":
        raise BadInput(f"-o {path} is no name of a safetensors file", f"Type: -o {path.stem or 'low-rank'}.safetensors")
    if path.is_dir():
        raise BadInput(f"-o {path} is a folder", "Give the name of a file.")
    if path.exists() and weights is not None and Path(weights).exists() and path.samefile(weights):
        raise BadInput(f"--weights and -o are the same file, {path}", "Give another name with -o.")
    if path.exists() and not force:
        raise BadInput(f"{path} is there already", "Give another name with -o, or --force to replace it.")


@torch.no_grad()
def _cost(model: nn.Module, program: ExportedProgram | None, loaded: Loaded) -> Cost:
    program = drop_repeats(program or capture(deploy(model), loaded.inputs))
    deployed = program.module()
    own = {t.data_ptr(): t.numel() for t in deployed.parameters()}  # a factor that layers share counts once
    images = max(1, loaded.inputs[0].shape[0])
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=_macs(model, loaded.inputs) // images,
        deployed_parameters=sum(own.values()),
        deployed_macs=_macs(deployed, loaded.inputs) // images,
    )


def _macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2


@torch.no_grad()
def _compared(loaded: Loaded, small: nn.Module) -> tuple[float | None, float, int]:
    """Agreement of top-1, SQNR in dB, and of how many inputs: the sample photos, or a seeded one for no images."""
    batches = [loaded.inputs]
    if loaded.preprocess is not None:
        images = [torch.from_numpy(apply(loaded.preprocess, photo))[None] for photo in sample_photos()]
        batches = [(image, *loaded.inputs[1:]) for image in images]
    answers: tuple[list[Any], list[Any]] = ([], [])
    for batch in batches:
        for model, found in zip((loaded.module, small), answers, strict=True):
            found.append(next(leaf for leaf in tree_leaves(model(*batch)) if isinstance(leaf, Tensor)))
    originals, others = (torch.cat(found) for found in answers)
    same = originals.argmax(-1) == others.argmax(-1) if originals.dim() == 2 else None
    distance = sqnr_db(originals.numpy(), others.numpy())
    return None if same is None else float(same.double().mean()), distance, len(batches)


def _file(loaded: Loaded, small: nn.Module, ratio: float) -> bytes:
    """The weights, of a model of the zoo with their card."""
    state = {k: v.contiguous().clone() for k, v in small.state_dict().items() if not k.endswith("num_batches_tracked")}
    request = loaded.request
    if request.model not in ZOO:
        return save(state)
    spec = ZOO[request.model]
    path = weights_file(spec.name, request.weights)
    height, width = loaded.inputs[0].shape[-2:]
    card = (read_card(path) if path else None) or WeightsCard(
        model=spec.name, num_classes=spec.num_classes, image_size=(height, width)
    )
    card = replace(
        card,
        num_classes=card.num_classes if request.num_classes is None else request.num_classes,
        image_size=(height, width),
        labels=loaded.labels,
        preprocess=loaded.preprocess,
        low_rank=ratio,
    )
    return weights_bytes(state, card)
