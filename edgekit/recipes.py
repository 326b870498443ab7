"""The recipes that come along, in a checkout and in an installed package alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from edgekit.artifacts import write_file
from edgekit.errors import BadInput, EnvironmentProblem
from edgekit.registry import Registry


@dataclass(frozen=True, kw_only=True)
class RecipeCard:
    """A recipe as it is listed: `data` is what it trains on, `about` the first line of its comment."""

    name: str
    about: str
    model: str
    data: str
    stages: tuple[str, ...]
    text: str


def recipes() -> Mapping[str, RecipeCard]:
    """By name, in alphabetical order. Raises `EnvironmentProblem` for an installation without them."""
    # The wheel has them inside the package; a checkout, and what is installed from it to be edited, beside it.
    places = (files("edgekit") / "_recipes", Path(__file__).parent.parent / "recipes")
    for place in places:
        if place.is_dir():
            texts = {p.name: p.read_text(encoding="utf-8") for p in place.iterdir() if p.name.endswith(".yaml")}
            return Registry("recipe", [_card(name, texts[name]) for name in sorted(texts)])
    raise EnvironmentProblem("this installation has no recipes", "Type: pip install --force-reinstall edgekit")


def copy_recipe(name: str, out: str | Path, *, force: bool = False) -> Path:
    """Write the recipe to the file `out`, or under its own name into that folder; return the file.

    Raises `UnknownName`, or `BadInput` where a file is there and no `force`.
    """
    card = recipes()[name.removesuffix(".yaml")]
    path = Path(out) / f"{card.name}.yaml" if Path(out).is_dir() else Path(out)
    if path.exists() and not force:
        raise BadInput(f"{path} is there already", "Give another name with -o, or replace it: --force.")
    write_file(path, card.text.encode())
    return path


def _card(file: str, text: str) -> RecipeCard:
    content: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    about = text.partition("\n")[0].removeprefix("#").strip() if text.startswith("#") else ""
    return RecipeCard(
        name=file.removesuffix(".yaml"),
        about=about,
        model=content["model"]["name"],
        data=content["data"]["train"],
        stages=_stages(content),
        text=text,
    )


def _stages(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Its sections in the order in which they are run, as one would say them."""
    quantization = recipe.get("quantization") or {}
    taught = (recipe.get("distillation") or {}).get("method", "kd") if "distillation" in recipe else ""
    taught = "token labels" if "token_labelling" in recipe else taught
    found = {
        "compress": "compression" in recipe,
        f"train ({taught})" if taught else "train": "schedule" in recipe,
        quantization.get("scheme", "int8"): "quantization" in recipe,
        "qat": bool(quantization.get("qat")),
        f"export {', '.join((recipe.get('export') or {}).get('targets', []))}": "export" in recipe,
    }
    return tuple(stage for stage, there in found.items() if there)
