"""Reading a recipe: YAML and `key=value` overrides into the values of `recipe.py`, all errors told at once."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML, YAMLError

from edgekit.errors import BadInput
from edgekit.training.recipe import Recipe


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path`, with `section.key=value` overrides. Raises `BadInput` that lists all that is wrong."""
    try:
        values = _yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read as a recipe ({error})", "Type: edgekit recipes NAME -o FILE.yaml, and give that."
        ) from error
    problems: list[str] = []
    if isinstance(values, dict):
        for override in overrides:
            _override(values, override, problems)
    recipe: Recipe = _structured(Recipe, values, "", problems)
    if problems:
        raise BadInput(
            f"{path} cannot be run:\n  " + "\n  ".join(problems),
            f"A recipe has {', '.join(f.name for f in fields(Recipe))}: see `edgekit recipes`",
        )
    return recipe


def _yaml(text: str, source: str) -> Any:
    """The value of YAML 1.2, where 1e-3 is a number and `no` a word, and a key that stands twice is an error."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise BadInput(f"{source} is not YAML: {' '.join(str(error).split())}", "See `edgekit recipes`.") from error


def _override(values: dict[str, Any], text: str, problems: list[str]) -> None:
    path, equals, value = text.partition("=")
    *sections, key = path.split(".")
    place: Any = values
    for section in sections:
        if place.get(section) is None:
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            break
    if equals and key and isinstance(place, dict):
        place[key] = _yaml(value, text)
    else:
        problems.append(f"{text}: an override is section.key=value, as optimizer.lr=0.003")


_SCALARS: dict[type, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    str: ("text", (str,)),
}


def _structured(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as a `kind`; what is wrong goes to `problems` with its path, and None comes back."""

    def wrong(text: str) -> None:
        problems.append(f"{path or 'the recipe'}: {text}")

    options = get_args(kind)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            return wrong(f"{value!r} is no section with {', '.join(f.name for f in fields(kind))}")
        return _section(kind, value, path, problems)
    if get_origin(kind) is Annotated:
        found = _structured(options[0], value, path, problems)
        return found if found is None or options[1].holds(found) else wrong(f"{found} is not {options[1].words}")
    if get_origin(kind) in (Union, UnionType):
        return None if value is None else _structured(options[0], value, path, problems)
    if get_origin(kind) is Literal:
        return (
            value if value in options else wrong(f"{value!r} is none of {', '.join(options)}{_close(value, options)}")
        )
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            return wrong(f"{value!r} is not a list, as [a, b]")
        return tuple(_structured(options[0], v, f"{path}[{i}]", problems) for i, v in enumerate(value))
    words, types = _SCALARS[kind]
    fits = isinstance(value, types) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is float and not math.isfinite(value)):
        return wrong(f"{value!r} is not {words}")
    return kind(value)


def _section(kind: Any, value: dict[str, Any], path: str, problems: list[str]) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    before = len(problems)
    at = f"{path}." if path else ""
    problems += [f"{at}{key}: there is no such key{_close(key, hints)}" for key in value if key not in hints]
    required = [f.name for f in fields(kind) if f.default is MISSING]
    problems += [f"{at}{key}: is missing" for key in required if key not in value]
    found = {k: _structured(hints[k], v, f"{at}{k}", problems) for k, v in value.items() if k in hints}
    if len(problems) > before:
        return None
    try:
        return kind(**found)
    except ValueError as error:
        problems.append(f"{path or 'the recipe'}: {error}")
        return None


def _close(key: object, known: Iterable[str]) -> str:
    close = get_close_matches(str(key), list(known), n=2)
    return f". Did you mean {' or '.join(close)}?" if close else ""
