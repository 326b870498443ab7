"""The zoo: one file a family, each ending in `MODELS`; this literal is the registry."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from edgekit.models import lvt, mobilenet
from edgekit.models._deploy import deploy as deploy
from edgekit.models._weights import load_weights as load_weights
from edgekit.models._weights import read_state as read_state
from edgekit.registry import Registry
from edgekit.types import ModelSpec

ZOO: Mapping[str, ModelSpec] = Registry("model", [*lvt.MODELS, *mobilenet.MODELS])


def list_models() -> tuple[ModelSpec, ...]:
    """Every model of the zoo, in the registry's order."""
    return tuple(ZOO.values())


def create_model(name: str, *, num_classes: int = 1000, weights: str | Path | None = None, seed: int = 0) -> nn.Module:
    """The train form of a zoo model in eval mode, with `weights` from a file or seeded ones.

    Raises `UnknownName`, `BadInput` (unreadable file) or `WeightsMismatch`.
    """
    spec = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = spec.build(num_classes)
    if weights is not None:
        load_weights(model, spec.name, spec.convert_state(read_state(Path(weights))), str(weights))
    return model.eval()


def labels_of(spec: ModelSpec) -> tuple[str, ...]:
    """The class names of a zoo model's own data set, or () where it has none."""
    if not spec.labels:
        return ()
    return tuple((Path(__file__).parent / f"{spec.labels}.txt").read_text(encoding="utf-8").splitlines())
