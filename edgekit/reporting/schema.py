"""JSON that may come from anybody, as typed values: every number finite and possible, every string plain text."""

import json
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import cattrs
from cattrs.errors import IterableValidationError, IterableValidationNote

from edgekit.errors import BadInput
from edgekit.types import ArtifactProfile, Comparison

T = TypeVar("T")
MOST = 1e15
"""No latency, size or count is larger."""
LEAST_MS = 1e-9
HINT = "Give files of `edgekit profile -o`, folders of `edgekit benchmark -o`, `evaluate --json` or artifacts."


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `BadInput` that names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}", HINT) from error
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadInput(f"{path} is not JSON, or is damaged: {why}", "Measure again, or leave this file out.") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds no results: its JSON is no object", HINT)
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def structure(values: dict[str, Any], kind: type[T], path: Path) -> T:
    """`values` as a `kind`; what is missing takes its default. Raises `BadInput` that names the file and the field."""
    schema = values.get("schema", 1)
    if schema != 1:
        raise BadInput(
            f"{path} has schema {str(schema)[:40]!r}; this edgekit reads 1", "Use the edgekit that it was written by."
        )
    try:
        return _converter().structure(values, kind)
    except cattrs.BaseValidationError as error:
        reason = next(iter(cattrs.transform_error(error, format_exception=_format)), "")
    except RecursionError:
        reason = "it is nested too deeply"
    raise damaged(path, reason.replace(" @ $", " at $"))


def damaged(path: Path, reason: str) -> BadInput:
    """The error for a file whose values cannot be used."""
    return BadInput(f"{path} cannot be used: {reason}", "Measure again, or leave this file out.")


def _format(error: BaseException, of: type | None) -> str:
    if isinstance(error, KeyError):
        return f"the field {error.args[0]!r} is missing"
    name = getattr(of, "__name__", "") or "value"
    return str(error) if isinstance(error, ValueError) and error.args else f"not a {name}"


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    converter.register_structure_hook(float, lambda value, _: _number(value))
    converter.register_structure_hook(int, lambda value, _: _integer(value))
    converter.register_structure_hook(str, lambda value, _: _text(value))
    converter.register_structure_hook(bool, lambda value, _: _flag(value))
    converter.register_structure_hook_func(
        lambda kind: get_origin(kind) is tuple, lambda value, kind: _tuple(value, kind, converter)
    )
    return converter


def _tuple(value: Any, kind: Any, converter: cattrs.Converter) -> tuple[Any, ...]:
    """cattrs would also take the letters of a text, and the names of an object."""
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:40]!r} is no list")
    kinds = get_args(kind)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"a list of {len(value)}, not {len(kinds)}")
    found = []
    for n, (item, its_kind) in enumerate(zip(value, kinds, strict=True)):
        try:
            found.append(converter.structure(item, its_kind))
        except Exception as error:
            error.add_note(IterableValidationNote(f"at {n}", n, its_kind))
            raise IterableValidationError("in a list", [error], kind) from error
    return tuple(found)


def _number(value: Any) -> float:
    # JSON has integers that no float can hold: compared before they are converted.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MOST <= value <= MOST:
        raise ValueError(f"{str(value)[:40]!r} is no number that can be measured")
    return float(value)


def _integer(value: Any) -> int:
    number = _number(value)
    if not number.is_integer():
        raise ValueError(f"{value!r} is no whole number")
    return int(number)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{str(value)[:40]!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return harmless(value)


def harmless(text: str) -> str:
    """Without what could end a document (control characters, half surrogates) or turn its words round (bidi)."""
    return "".join(_plain(c) for c in text)


def _plain(char: str) -> str:
    if char in "\n\t":
        return char
    bad = unicodedata.category(char) in ("Cc", "Cs", "Cn", "Co") or unicodedata.bidirectional(char) in _TURNING
    return "\ufffd" if bad else char


_TURNING = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def check_profile(profile: ArtifactProfile, path: Path) -> None:
    """Raises `BadInput` for figures that no measurement has."""
    for reason in _impossible(profile):
        raise damaged(path, f"{reason} (of {profile.artifact[:80]})")


def _impossible(p: ArtifactProfile) -> Iterator[str]:
    times = (p.min_ms, p.p50_ms, p.p90_ms, p.p95_ms, p.p99_ms, p.max_ms)
    told = [t for t in times if t is not None]
    if min((*told, p.mean_ms or 1), default=1) < LEAST_MS or any(us < LEAST_MS * 1e3 for us in p.latency_us):
        yield "a latency is not above zero"
    if any(a > b * (1 + 1e-6) for a, b in pairwise(told)):
        yield "its percentiles are not in order"
    counts = (p.size_bytes, p.runs, p.threads, p.instructions, p.load_ms, p.first_ms, p.std_ms, p.cv)
    if any(n is not None and n < 0 for n in (*counts, p.peak_memory_mib, p.model_memory_mib)):
        yield "a count, size or time is negative"
    if any(o.us < 0 for o in p.per_op):
        yield "the time of an operator is negative"
    if any(s.p50_ms < LEAST_MS or s.secs < 0 for s in p.sustained):
        yield "a latency of the sustained run is not above zero"
    if any(a.secs > b.secs for a, b in pairwise(p.sustained)):
        yield "the sustained run goes back in time"
    if p.delegation and min(p.delegation.delegated, p.delegation.partitions, *p.delegation.fallback.values(), 0) < 0:
        yield "a count of delegated operators is negative"


def check_comparison(comparison: Comparison, path: Path) -> None:
    """Raises `BadInput` for a ratio that no measurement has."""
    low, high = comparison.ci95
    if min(low, high, comparison.ratio) < LEAST_MS or low > high:
        raise damaged(path, f"a ratio of {comparison.ratio} with an interval from {low} to {high} is impossible")
