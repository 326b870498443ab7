"""Options that several commands take, and their parsing."""

import math

import typer

from edgekit.errors import BadInput
from edgekit.types import Shape

MODEL = typer.Option(
    None, "-m", "--model", help="The model an artifact was exported from. Needed where that is Python code, which runs."
)
JSON = typer.Option(False, "--json", help="Print one JSON document on stdout and nothing else.")


def parse_shape(text: str) -> Shape:
    """`1,3,224,224` or `1x3x224x224` as a shape; raises `BadInput`."""
    try:
        shape = tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise BadInput(
            f"--input-shape {text!r} is not a shape", "Type positive numbers, e.g. --input-shape 1,3,224,224"
        )
    return shape


def parse_numbers(option: str, text: str | None) -> tuple[float, ...]:
    """`0.5,0.5,0.5` as numbers; raises `BadInput`."""
    if text is None:
        return ()
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise BadInput(f"{option} {text!r} is not a list of numbers", f"Type e.g. {option} 0.5,0.5,0.5")
    return numbers
