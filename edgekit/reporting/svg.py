"""Figures as SVG that stands inside a page: text as text, the page's colours, ids of its own, the same bytes again.

Points and bars carry the `<title>` that a browser shows over them; styles become attributes, so that the page may
forbid inline style.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from edgekit.errors import MissingDependency
from edgekit.reporting.style import INK, LINE, MUTED, STAND_INS

_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar
    "path.simplify": False,
    "axes.unicode_minus": False,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, and is wider than what browsers take instead
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
}
_NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COLOURS = {value: f"var(--{name})" for name, value in STAND_INS.items()}


def require_plots() -> Any:
    """matplotlib itself. Raises `MissingDependency`."""
    try:
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.backends.backend_svg
        import matplotlib.figure
        import matplotlib.style
    except ImportError as error:
        raise MissingDependency("matplotlib", "a report", "report", str(error)) from error
    return matplotlib


@contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
    """A new figure of `width` x `height` points, to be drawn and given to `inline` within the block.

    Its look is matplotlib's own and ours, whatever the user's matplotlibrc says; what was set before is set again.
    """
    matplotlib = require_plots()
    with matplotlib.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the browser has its own fonts
        figure = matplotlib.figure.Figure(figsize=(width / 72, height / 72), dpi=72)
        matplotlib.backends.backend_agg.FigureCanvasAgg(figure)  # measures text before the SVG is written
        yield figure


def inline(figure: Any, key: str, title: str, description: str, tips: Mapping[str, str] | None = None) -> Markup:
    """The figure as an `<svg>` element; `key` is unique on the page, `tips` are titles by the `gid` of what is drawn.

    `title` and `description` are for those who do not see it.
    """
    matplotlib = require_plots()
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata=_NOTHING)
    root = ElementTree.fromstring(buffer.getvalue())
    _simplify(root, key, tips or {})
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "class": "plot",
        "role": "img",
        "aria-labelledby": f"{key}-t {key}-d",
    }
    for name, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(name, {"id": f"{key}-{name[0]}"})
        element.text = text
        root.insert(0, element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _simplify(root: ElementTree.Element, key: str, tips: Mapping[str, str]) -> None:
    """No namespaces, no style, no metadata, no id that nothing refers to, and the others with `key` before them."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = {m for e in root.iter() for value in e.attrib.values() for m in _REFERENCE.findall(value)}
    used |= {value[1:] for e in root.iter() for name, value in e.attrib.items() if name.endswith("href")}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if element.tag != "text":
            element.text = None
        element.tail = None  # it indents
        if attributes.get("transform", "").startswith(("rotate(-0 ", "rotate(0 ")):
            del attributes["transform"]
        own = attributes.pop("id", "")
        attributes |= _styles(attributes.pop("style", ""))
        element.attrib = {name: _attribute(name, value, key) for name, value in attributes.items()}
        if own in used:
            element.set("id", f"{key}-{own}")
        if own in tips:
            tip = ElementTree.Element("title")
            tip.text = tips[own]
            element.insert(0, tip)
            element.set("class", "tip")


def _styles(text: str) -> dict[str, str]:
    """The declarations of a style as attributes; the font is the page's."""
    pairs = (part.partition(":")[::2] for part in text.split(";") if ":" in part)
    styles = {name.strip(): value.strip() for name, value in pairs}
    if font := styles.pop("font", ""):
        size = next(word for word in font.split() if word.endswith("px"))
        styles |= {"font-size": size} | ({"font-weight": "bold"} if "bold" in font or "700" in font else {})
    styles.pop("font-family", None)
    return styles


def _attribute(name: str, value: str, key: str) -> str:
    if name == "href":
        return f"#{key}-{value[1:]}"
    value = _REFERENCE.sub(lambda m: f"url(#{key}-{m[1]})", value)
    value = _NUMBER.sub(lambda m: f"{float(m[0]):.2f}", " ".join(value.split()))
    return _COLOURS.get(value, value)
