"""One colour a target, one marker a precision, in every plot and table; and the colours of the page, light and dark.

A plot is drawn in stand-ins, each of which the page's style gives a value for light and one for dark.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

# Hues of Okabe and Ito's palette (Color Universal Design, 2008), made dark (light) enough for a light (dark) page.
_HUES = (
    ("#0067a8", "#6bb8f5"),
    ("#bd5f00", "#f2a541"),
    ("#007a5c", "#45cba0"),
    ("#a8457f", "#e79ac6"),
    ("#5b5bb5", "#aaaaf0"),
    ("#7a6a00", "#d8cb5a"),
)
_FIXED = ("executorch", "tflite", "onnx", "coreml")
_MARKERS = MappingProxyType({"fp32": "o", "fp16": "s", "int8": "^"})
_OTHER_MARKERS = ("D", "v", "P", "X", "p", "*")

_PAGE = (
    ("ink", "#1b1f24", "#e8eaed"),
    ("muted", "#59626d", "#a7b0ba"),
    ("line", "#d5dae0", "#3a424c"),
    ("card", "#ffffff", "#1a1f26"),
    ("inside", "#0067a8", "#6bb8f5"),
    ("outside", "#bd5f00", "#f2a541"),
    ("bad", "#b3261e", "#ff8f85"),
)
_NAMES = (*(name for name, _, _ in _PAGE), *(f"hue{n}" for n in range(len(_HUES))))
STAND_INS = MappingProxyType({name: f"#0a0b{n:02x}" for n, name in enumerate(_NAMES, 16)})
INK, MUTED, LINE, CARD, INSIDE, OUTSIDE, BAD = (STAND_INS[name] for name, _, _ in _PAGE)


def variables(dark: bool) -> str:
    """The CSS declarations of every colour."""
    page = ((name, d if dark else light) for name, light, d in _PAGE)
    hues = ((f"hue{n}", d if dark else light) for n, (light, d) in enumerate(_HUES))
    return "".join(f"--{name}:{value};" for name, value in (*page, *hues))


def hues(targets: Iterable[str]) -> dict[str, str]:
    """The name of each target's colour; a target that edgekit does not know takes one that is left."""
    others = sorted(set(targets) - set(_FIXED))
    free = len(_HUES) - len(_FIXED)
    return {
        **{target: f"hue{n}" for n, target in enumerate(_FIXED)},
        **{target: f"hue{len(_FIXED) + n % free}" for n, target in enumerate(others)},
    }


def colours(targets: Iterable[str]) -> dict[str, str]:
    """The stand-in of each target's colour."""
    return {target: STAND_INS[name] for target, name in hues(targets).items()}


def markers(precisions: Iterable[str]) -> Mapping[str, str]:
    """The marker of each precision."""
    others = sorted(set(precisions) - set(_MARKERS))
    return {**_MARKERS, **{p: _OTHER_MARKERS[n % len(_OTHER_MARKERS)] for n, p in enumerate(others)}}
