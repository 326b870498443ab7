"""What a weights file says of itself: whose weights, how many classes, at which size, prepared how.

So `-m MODEL --weights FILE` is all that has to be typed of a model that was trained here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import cattrs
import torch
from torch import Tensor

from edgekit.errors import BadInput
from edgekit.models._weights import OWNER
from edgekit.types import Preprocess, Shape

CARD = "edgekit_card"
SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True, kw_only=True)
class WeightsCard:
    """`image_size` is (height, width); `trained` tells where the weights came from, in a line for people.

    `low_rank` is the ratio by which linear layers were made pairs; which ones, their names in the file say.
    """

    model: str
    num_classes: int
    image_size: Shape
    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    trained: str = ""
    low_rank: float | None = None


def weights_file(model: str, weights: str | Path | None) -> Path | None:
    """The file that `--weights` names: a path, or the tag of some that come along, as "cifar10". Raises `BadInput`."""
    if weights is None:
        return None
    if isinstance(weights, Path) or not weights.isidentifier() or Path(weights).exists():
        return Path(weights)
    if weights in (tags := shipped_tags(model)):
        return SHIPPED / f"{model}-{weights}.safetensors"
    come = f"come along as {', '.join(tags)}" if tags else "come along with it"
    raise BadInput(
        f"there are no weights {weights!r} of {model}", f"{'Weights' if tags else 'None'} {come}; else give a file."
    )


def shipped_tags(model: str) -> tuple[str, ...]:
    """The tags of the weights that come along for a model."""
    return tuple(sorted(p.stem.removeprefix(f"{model}-") for p in SHIPPED.glob(f"{model}-*.safetensors")))


def shipped_card(model: str, tag: str) -> WeightsCard:
    """What weights that come along say of themselves."""
    card = read_card(SHIPPED / f"{model}-{tag}.safetensors")
    assert card is not None
    return card


def read_card(path: Path) -> WeightsCard | None:
    """What the file says of itself; None where it says nothing. Raises `BadInput` for a card that cannot be read."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CARD)
    except (SafetensorError, OSError):
        return None  # reading its tensors says what is wrong
    if text is None:
        return None
    try:
        return cattrs.Converter(forbid_extra_keys=True).structure(json.loads(text), WeightsCard)
    except Exception as error:  # whatever JSON of another make leads to
        raise BadInput(
            f"{path} has a card that this edgekit cannot read ({error})",
            "It may be of a newer version: update edgekit.",
        ) from error


def weights_bytes(state: Mapping[str, Tensor], card: WeightsCard, dtype: torch.dtype | None = None) -> bytes:
    """A safetensors file of `state` that carries `card`; floats as `dtype` where that is given."""
    from safetensors.torch import save

    tensors = {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).detach().cpu().contiguous().clone()
        for name, tensor in state.items()
    }
    return save(tensors, metadata={OWNER: card.model, CARD: json.dumps(asdict(card))})
