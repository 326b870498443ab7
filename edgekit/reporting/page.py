"""The page: one HTML file that loads nothing, and runs and styles only what its own policy lists by hash."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edgekit.reporting import figures, tables, words
from edgekit.reporting.rows import Results, Row, groups
from edgekit.reporting.schema import harmless
from edgekit.reporting.style import STAND_INS, variables

_TITLES = (
    ("summary", "Summary"),
    ("failures", "Not measured"),
    ("warnings", "Warnings"),
    ("trade_offs", "Trade-offs"),
    ("pairs", "Comparisons"),
    ("distributions", "Distributions"),
    ("long_runs", "Sustained"),
    ("operators", "Operators"),
    ("delegation", "Delegation"),
    ("instructions", "Instruction counts"),
    ("environments", "Environment"),
)
_IDS = {"trade_offs": "trade-offs", "pairs": "comparisons", "long_runs": "sustained", "environments": "environment"}


def render(results: Results, title: str = "") -> bytes:
    """The report as one HTML file in UTF-8; the same results give the same bytes. Raises `MissingDependency`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    template = environment.from_string(_resource("page.html"))
    css, script = _style(), _resource("page.js")
    values = _values(results)
    page = template.render(
        {
            **values,
            "title": harmless(title) or _title(results),
            "css": Markup(css),
            "script": Markup(script),
            "policy": _policy(css, script),
            "version": version("edgekit"),
            "sections": [(_IDS.get(n, n), name) for n, name in _TITLES if _present(values[n])],
        }
    )
    return (page + "\n").encode()


def _present(section: Any) -> bool:
    return bool(section.rows if isinstance(section, tables.Table) else section)


def _resource(name: str) -> str:
    return files("edgekit.reporting").joinpath(name).read_text(encoding="utf-8")


def _style() -> str:
    """The style with its colours, and a class for each colour that a target may have."""
    light = f":root{{color-scheme:light dark;--page:#f5f6f8;{variables(dark=False)}}}"
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{--page:#101419;{variables(dark=True)}}}}}"
    classes = "".join(f".{name}{{color:var(--{name})}}" for name in STAND_INS if name.startswith("hue"))
    return f"{light}\n{dark}\n{classes}\n{_resource('page.css')}"


def _policy(css: str, script: str) -> str:
    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {source(script)}; style-src {source(css)}; base-uri 'none'; form-action 'none'"
    )


def _title(results: Results) -> str:
    return words.listed((r.model for r in results.rows), most=3) + ": latency, memory and accuracy"


def _values(results: Results) -> dict[str, Any]:
    """Everything that the template shows."""
    look, devices = figures.looks(results), groups(results.measured)
    pairs, counted = ([p for p in results.pairs if (p.of == "latency") is latency] for latency in (True, False))
    unstable = [r for r in results.measured if r.unstable]
    warnings = [row for row in results.rows if row.warnings]
    quiet = [r for r in results.measured if r.p50_ms is not None and r.profile and not r.profile.latency_us]
    return {
        "headline": words.headline(results.rows) + _where(results),
        "when": words.when(results.rows),
        "tiles": (
            ("measured", len(results.measured), ""),
            ("failed", len(results.failures), "bad" if results.failures else ""),
            ("unstable", len(unstable), "bad" if unstable else ""),
            ("warnings", sum(len(r.warnings) for r in warnings), "bad" if warnings else ""),
        ),
        "several_devices": len({r.device for r in results.rows}) > 1,
        "several_groups": len(devices) > 1,
        "summary": tables.summary(results),
        "unstable": unstable,
        "failures": tables.failures(results),
        "warnings": warnings,
        "trade_offs": [
            (group, plots)
            for n, group in enumerate(devices)
            if (plots := figures.trade_offs(group, look, f"pareto{n}"))
        ],
        "forests": figures.ratios(results, look),
        "pairs": tables.comparisons(results, pairs),
        "distributions": figures.distributions(results, look),
        "without_samples": words.listed((f"#{r.number} {r.label}" for r in quiet), most=20),
        "long_runs": figures.long_runs(results, look),
        "operators": [(plot, tables.operator_table(row)) for plot, row in figures.operator_plots(results)],
        "delegation": tables.delegation(results),
        "instructions": tables.instructions(results),
        "counted": tables.comparisons(results, counted),
        "environments": _environments(results.measured),
        "files": [harmless(file) for file in results.files],
        "notes": [harmless(note) for note in results.notes],
    }


def _where(results: Results) -> str:
    devices = {r.device for r in results.measured}
    return f": {words.listed(sorted(devices), most=3)}" if devices else ""


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """One device: its facts, how was measured there, and what it said of itself before and after."""

    device: str
    facts: tuple[tuple[str, str], ...]
    protocols: tuple[str, ...]
    states: tuple[tuple[str, str, str, str], ...]


def _environments(rows: Sequence[Row]) -> list[_Setting]:
    settings = []
    for device in dict.fromkeys(r.device for r in rows):
        members = [r for r in rows if r.device == device and r.profile]
        profiles = [r.profile for r in members if r.profile]
        facts = _merged([p.device for p in profiles])
        facts["threads"] = words.listed(str(p.threads) for p in profiles)
        facts["runtimes"] = words.listed((p.runtime for p in profiles), most=12)
        if hosts := [r.host for r in members if r.host]:
            facts["attached to"] = words.listed(hosts)
        facts["when"] = words.when(members) or "not recorded"
        ordered = sorted(profiles, key=lambda p: str(words.same_protocol(p.protocol)))
        together = groupby(ordered, key=lambda p: str(words.same_protocol(p.protocol)))
        settings.append(
            _Setting(
                device=device,
                facts=tuple((name.replace("_", " "), value) for name, value in facts.items()),
                protocols=tuple(" ".join(words.protocol(list(same))) for _, same in together),
                states=tuple(state for row in members for state in _states(row)),
            )
        )
    return settings


def _merged(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Each fact with all of its values: artifacts may have run on other cores."""
    names = dict.fromkeys(name for f in facts for name in f)
    return {name: words.listed((f[name] for f in facts if f.get(name)), most=4) for name in names}


def _states(row: Row) -> list[tuple[str, str, str, str]]:
    state = row.profile.state if row.profile else {}
    before, after = state.get("before", {}), state.get("after", {})
    return [
        (f"#{row.number} {row.label}", name.replace("_", " "), before.get(name, ""), after.get(name, ""))
        for name in dict.fromkeys((*before, *after))
    ]
