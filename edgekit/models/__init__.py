"""The zoo: one file a family, each ending in `MODELS`; this literal is the registry."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from edgekit.errors import BadInput
from edgekit.models import lvt, micronet, moat, mobile_former, mobilenet, mobilenet_v1, mobilenet_v3, resnet_cifar, slab
from edgekit.models._card import WeightsCard as WeightsCard
from edgekit.models._card import read_card as read_card
from edgekit.models._card import shipped_card as shipped_card
from edgekit.models._card import shipped_tags as shipped_tags
from edgekit.models._card import weights_bytes as weights_bytes
from edgekit.models._card import weights_file as weights_file
from edgekit.models._deploy import deploy as deploy
from edgekit.models._features import Features as Features
from edgekit.models._weights import check_owner as check_owner
from edgekit.models._weights import load_body as load_body
from edgekit.models._weights import load_weights as load_weights
from edgekit.models._weights import read_state as read_state
from edgekit.registry import Registry
from edgekit.types import ModelSpec, Shape

ZOO: Mapping[str, ModelSpec] = Registry(
    "model",
    [
        *lvt.MODELS,
        *moat.MODELS,
        *mobile_former.MODELS,
        *micronet.MODELS,
        *slab.MODELS,
        *mobilenet_v1.MODELS,
        *mobilenet.MODELS,
        *mobilenet_v3.MODELS,
        *resnet_cifar.MODELS,
    ],
)


def list_models() -> tuple[ModelSpec, ...]:
    """Every model of the zoo, in the registry's order."""
    return tuple(ZOO.values())


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    weights: str | Path | None = None,
    seed: int = 0,
) -> nn.Module:
    """The train form of a zoo model in eval mode, with `weights` from a file or of a tag that comes along, or seeded.

    `image_size` is one number or (height, width); what is None is as the weights' card says, or as published.
    `features_only` gives `Features`: the stage outputs instead of logits. Raises `UnknownName`, `BadInput` (a size
    that the model does not take, an unreadable file) or `WeightsMismatch`.
    """
    spec = ZOO[name]
    path = weights_file(spec.name, weights)
    card = None if path is None else read_card(path)
    if card is not None:
        num_classes = card.num_classes if num_classes is None else num_classes
        image_size = (card.image_size[0], card.image_size[1]) if image_size is None else image_size
    channels = spec.input[0] if in_channels is None else in_channels
    classes = spec.num_classes if num_classes is None else num_classes
    sides = (image_size,) * 2 if isinstance(image_size, int) else spec.input[1:] if image_size is None else image_size
    if classes < 1 or len(sides) != 2:
        raise BadInput(
            f"{spec.name} cannot have {classes} classes and an image of size {tuple(sides)}",
            "num_classes is 1 or more, image_size one number or (height, width).",
        )
    height, width = sides
    check_input(spec, (1, channels, height, width))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = spec.build(classes, channels, (height, width))
    if path is not None:
        check_owner(path, spec.name)
        state = spec.convert_state(read_state(path))
        load_weights(model, spec.name, spec.fit_state(state, model) if spec.fit_state else state, str(weights))
    return (Features(model) if features_only else model).eval()


def check_input(spec: ModelSpec, shape: Shape) -> None:
    """Raises `BadInput` where a model of the zoo does not take images (N, C, H, W) of `shape`."""
    if len(shape) != 4 or min(shape) < 1:
        raise BadInput(
            f"{spec.name} takes one input N,C,H,W, not {shape}", "Every number is 1 or more: --image-size 224."
        )
    if shape[2] % spec.stride or shape[3] % spec.stride:
        raise BadInput(
            f"{spec.name} takes image sizes that {spec.stride} divides, not {shape[2]}x{shape[3]}",
            f"The next one: --image-size {-(-max(shape[2:]) // spec.stride) * spec.stride}",
        )


def labels_of(spec: ModelSpec) -> tuple[str, ...]:
    """The class names of a zoo model's own data set, or () where it has none."""
    if not spec.labels:
        return ()
    return tuple((Path(__file__).parent / f"{spec.labels}.txt").read_text(encoding="utf-8").splitlines())
