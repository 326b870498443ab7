"""Reports: everything in the files is on the page, nothing in them can harm it, and a real browser shows it."""

import base64
import builtins
import hashlib
import json
import re
import webbrowser
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.errors import BadInput, MissingDependency
from edgekit.evaluation.statistics import wilson as exact_wilson
from edgekit.profiling import statistics
from edgekit.reporting import rows
from edgekit.reporting.figures import wilson
from edgekit.reporting.plots.pareto import Point, frontier
from edgekit.reporting.plots.scales import plain, round_ticks
from edgekit.reporting.plots.sustained import verdict
from edgekit.reporting.read import read_results
from tests import made_results as made
from tests.browser import DARK, Browser, find_browser
from tests.conftest import Cli

VOID = frozenset(["meta", "br", "hr", "img", "input", "link"])
Write = Callable[[str, Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("a.json", value)`: a file with a value, or with a text as it is."""

    def write(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


def write_sweep(folder: Path, finished: bool = True) -> Path:
    (folder / "cells").mkdir(parents=True)
    (folder / "benchmark.json").write_text(json.dumps(made.sweep(finished)), encoding="utf-8")
    for result in made.cells():
        (folder / "cells" / f"{result.cell.name}.json").write_text(json.dumps(asdict(result)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section."""
    folder = tmp_path_factory.mktemp("full")
    for name, profile in (("phone", made.phone()), ("counted", made.counted())):
        (folder / f"{name}.json").write_text(json.dumps(asdict(profile)), encoding="utf-8")
    out = folder / "report.html"
    edgekit.report([write_sweep(folder / "sweep"), folder / "phone.json", folder / "counted.json"], out)
    return out


class Page(HTMLParser):
    """What a page holds; fails where an element is not closed, or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        kind = self.open[-1] if self.open else ""
        {"script": self.scripts, "style": self.styles}.get(kind, self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------ what is read


def test_files_of_all_kinds_are_merged(full: Path) -> None:
    results = read_results([full.parent / "sweep", full.parent / "phone.json", full.parent / "counted.json"])
    assert len(results.rows) == 20 + 18 + 2
    assert [r.number for r in results.rows] == list(range(1, 41))
    assert [(r.label, r.status) for r in results.failures] == [
        ("moat-0 · coreml fp16", "crashed"),
        ("moat-0 · onnx int8", "timeout"),
    ]
    first = results.rows[0]
    assert (first.sqnr_db, first.accuracy.top1, first.accuracy.n) == (118.0, 73.9, 5000)
    assert {p.of for p in results.pairs} == {"latency", "instructions"}
    for pair in results.pairs:
        a, b = results.row(pair.a), results.row(pair.b)
        if pair.of == "latency":
            assert pair.ratio == pytest.approx(b.p50_ms / a.p50_ms)


def test_a_file_that_is_given_twice_counts_once(write: Write) -> None:
    path = write("phone.json", asdict(made.phone()))
    assert len(read_results([path, path]).rows) == 18


def test_artifacts_of_one_name_are_told_apart(write: Write) -> None:
    again = [write(f"{n}.json", asdict(made.counted())) for n in (1, 2)]
    assert [r.variant for r in read_results(again).rows][::2] == ["executorch fp32 (1)", "executorch fp32 (2)"]


def test_older_profiles_have_fewer_fields(write: Write) -> None:
    values = asdict(made.phone())
    for result in values["results"]:
        for name in ("size_bytes", "runs", "instructions", "delegation", "per_op", "sustained", "state", "measured_at"):
            del result[name]
        del result["protocol"]["mode"]
    for comparison in values["comparisons"]:
        del comparison["of"]
    del values["schema"]
    path = write("old.json", {**values, "of a later edgekit": 1})
    assert edgekit.report([path], path.with_suffix(".html")).artifacts == 18
    assert "when, the files do not tell" in page(path.with_suffix(".html")).text


def test_a_sweep_tells_of_its_warnings_and_its_end(tmp_path: Path) -> None:
    ended = read_results([write_sweep(tmp_path / "a") / "benchmark.json"])
    assert sum(r.remarks == ("int8 is not faster",) for r in ended.rows) == 1
    assert ended.notes == ()
    (note,) = read_results([write_sweep(tmp_path / "b", finished=False)]).notes
    assert note.endswith("has not ended: cells may be missing.")


def test_accuracy_is_joined_by_hash_and_by_name(write: Write) -> None:
    profile = write("phone.json", asdict(made.phone()))
    by_name = write("lvt-onnx-int8.json", {"top1": 71.5, "top5": 90.1, "n": 800, "drop": 2.0, "ci95": [1, 2]})
    by_hash = write("any.json", {"top1": 33.0, "n": 10, "sha256": f"{3:064x}"})
    found = {r.label: r.accuracy.top1 for r in read_results([profile, by_name, by_hash]).rows if r.accuracy}
    assert found == {"lvt · onnx int8": 71.5, "lvt · tflite int8": 33.0}


def test_parity_and_reasons_come_from_the_manifest(write: Write) -> None:
    profile = write("phone.json", asdict(made.phone()))
    manifest = {
        "schema": 1,
        "files": {"model.pte": {"bytes": 7_000_000, "sha256": f"{0:064x}"}, "labels.txt": {"bytes": 1, "sha256": ""}},
        "delegation": {
            "backend": "XNNPACK",
            "delegated": 60,
            "fallback": [{"op": "aten.cumsum", "count": 1, "reason": "there is no such kernel", "source": "lvt.py:7"}],
        },
        "verification": [{"sqnr_db": 120.0}, {"sqnr_db": 33.25}],
    }
    write("artifact/edgekit.json", manifest)
    out = profile.with_suffix(".html")
    edgekit.report([profile, profile.parent / "artifact"], out)
    assert read_results([profile, profile.parent / "artifact"]).rows[0].sqnr_db == 33.25
    assert "aten.cumsum: there is no such kernel (at lvt.py:7)" in page(out).text


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    values = json.loads(json.dumps(asdict(made.phone())))
    change(values)
    return values


def first(name: str, value: Any) -> dict[str, Any]:
    return changed(lambda v: v["results"][0].update({name: value}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON, or is damaged"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "its JSON is no object"),
        ("{}", "neither a profile, a benchmark's cell, an evaluation nor a manifest"),
        ('{"results": [], "comparisons": [], "schema": NaN}', "NaN is no number"),
        ({"results": [], "comparisons": []}, "nothing was measured"),
        ({"results": [], "comparisons": [], "schema": 2}, "schema '2'; this edgekit reads 1"),
        ({"results": {}, "comparisons": []}, "'{}' is no list at $.results"),
        (first("warnings", "unstable"), "'unstable' is no list at $.results[0].warnings"),
        ({"results": [1], "comparisons": []}, "cannot be used"),
        (changed(lambda v: v["results"][0].pop("device")), "'device' is missing"),
        (first("threads", 1.5), "1.5 is no whole number"),
        (first("threads", True), "'True' is no number"),
        (first("p50_ms", "1"), "'1' is no number that can be measured at $.results[0].p50_ms"),
        (first("p50_ms", 10**400), "no number that can be measured"),
        (first("p50_ms", 1e300), "no number that can be measured"),
        (first("p50_ms", -1.0), "a latency is not above zero"),
        (first("latency_us", [5.0, 0.0]), "a latency is not above zero"),
        (first("p99_ms", 0.5), "percentiles are not in order"),
        (first("size_bytes", -1), "is negative"),
        (first("name", 3), "'3' is no text"),
        (first("per_op", [{"name": "a", "op": "b", "us": -1.0, "delegated": True}]), "of an operator is negative"),
        (first("per_op", [{"name": "a", "op": "b", "us": 1.0, "delegated": "no"}]), "neither true nor false"),
        (first("sustained", [{"secs": s, "p50_ms": 1.0, "runs": 1} for s in (2.0, 1.0)]), "goes back in time"),
        (changed(lambda v: v["comparisons"][0].update(a="elsewhere")), "which it has not measured"),
        (changed(lambda v: v["comparisons"][0].update(ci95=[2.0, 1.0])), "is impossible"),
        (changed(lambda v: v["comparisons"][0].update(ci95=[1.0])), "a list of 1, not 2"),
        ({"top1": 140.0, "n": 10}, "is no accuracy"),
        ({"top1": 40.0, "n": 0}, "is no accuracy"),
        ({"cell": {"model": "a", "target": "b", "precision": "c", "device": "d"}, "status": "done", "seconds": 1.0},
         "it is done but holds no profile"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_reason(write: Write, content: Any, words: str) -> None:
    path = write("strange.json", content)
    with pytest.raises(BadInput, match=re.escape(words)) as error:
        edgekit.report([path], path.with_suffix(".html"))
    assert str(path) in error.value.message
    assert [p.name for p in path.parent.iterdir()] == ["strange.json"]


def test_what_is_not_there_is_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.json cannot be read: No such file"):
        read_results([tmp_path / "nowhere.json"])
    with pytest.raises(BadInput, match="no benchmark was written there"):
        read_results([tmp_path])
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BadInput, match=r"bytes\.json is not JSON"):
        read_results([tmp_path / "bytes.json"])
    profile, lost = write("phone.json", asdict(made.phone())), write("who.json", {"top1": 1.0, "n": 9})
    with pytest.raises(BadInput, match="an evaluation of who, which none of the results has measured"):
        read_results([profile, lost])
    with pytest.raises(BadInput, match="no results were given"):
        read_results([])


# ------------------------------------------------------------------------------------------ figures


def point(x: float, y: float) -> Point:
    return Point(x=x, y=y, name="", tip="", target="onnx", precision="fp32")


def test_a_frontier_has_what_nothing_beats() -> None:
    points = [point(x, y) for x, y in ((3, 9), (1, 5), (2, 5), (1, 4), (4, 9), (2, 7), (5, 10))]
    assert [(p.x, p.y) for p in frontier(points, more_is_better=True)] == [(1, 5), (2, 7), (3, 9), (5, 10)]
    assert [(p.x, p.y) for p in frontier(points, more_is_better=False)] == [(1, 4)]


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (800, 800), (373, 800)])
def test_the_interval_is_the_one_of_evaluate(right: int, n: int) -> None:
    assert wilson(100 * right / n, n) == pytest.approx(exact_wilson(right, n), abs=1e-4)


def test_unstable_means_the_same_as_in_a_profile() -> None:
    assert (rows.MAX_CV, rows.MAX_TAIL) == (statistics.MAX_CV, statistics.MAX_TAIL)


def test_numbers_are_plain_and_ticks_round() -> None:
    numbers = (0.0, 0.01234, 1.0, 12.345, 99.96, 1234.5, 2e7)
    assert [plain(v) for v in numbers] == ["0", "0.0123", "1", "12.3", "100", "1234", "2e+07"]
    assert round_ticks(0.9, 11) == [1, 1.5, 2, 3, 5, 7, 10]
    for low in 10.0 ** np.linspace(-6, 6, 25):
        for ratio in (1.05, 2, 30, 1e7):
            ticks = round_ticks(low, low * ratio)
            assert 1 <= len(ticks) <= 8
            assert all(low <= t <= low * ratio * 1.0001 for t in ticks)


def test_throttling_is_put_into_words() -> None:
    assert "more than 10% slower from 180 s on, at worst 29.4 ms (+40%) at 590 s" in verdict(made.hot())
    assert "never more than 10% slower" in verdict(made.hot()[:5])


# ------------------------------------------------------------------------------------------ the page


def test_what_profile_writes_becomes_a_page(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    exported = edgekit.export(
        model.eval(), ("onnx", "tflite"), input_shape=[(1, 3, 32, 32)], out=tmp_path / "artifacts"
    )
    profile, out = tmp_path / "profile.json", tmp_path / "report.html"
    folders = [artifact.path for artifact in exported]
    few = ("--num-runs", "20", "--warmup-runs", "1", "--min-secs", "0", "--per-op", "--sustained", "1")
    assert cli("profile", *folders, *few, "-o", profile).code == 0
    result = cli("report", profile, *folders, "-o", out)
    assert (result.code, result.err) == (0, "")
    found, measured = page(out), json.loads(profile.read_text(encoding="utf-8"))["results"]
    for r in measured:
        assert {plain(r["p50_ms"]), plain(r["p99_ms"]), r["runtime"].split()[0]} <= set(re.split(r"[ ,]+", found.text))
        assert min(len(r["per_op"]), len(r["latency_us"])) > 0
    for words in ("SQNR dB", "ops inside", "In the clock: one call of the runtime", "operators, in the order that"):
        assert words in found.text


def test_every_section_is_there(full: Path) -> None:
    found = page(full)
    headings = re.findall(r"<h2>(.*?)</h2>", full.read_text(encoding="utf-8"))
    assert headings == [
        "Summary", "Not measured", "Warnings", "Trade-offs", "Comparisons", "Latency distributions", "Sustained runs",
        "Operators", "Delegation", "Instruction counts", "Environment and protocol",
    ]  # fmt: skip
    links = [a["href"][1:] for a in found.all("a")]
    assert links == [a["id"] for a in found.all("section")]
    for words in (
        "38 artifacts", "adb:MADE (Made Phone 1)", "2026-01-02 03:04:05 UTC", "clock frequency or heat",
        "degraded: thermal status 3 after the run", "int8 is slower than fp32: it takes 1.10 of the time 2 x pad",
        "the process was killed by SIGSEGV", "no answer after 300 s", "123,456,789", "models/lvt.py:134", "43 C",
        "In the clock: one call of the runtime.", "20 turns each, of 6 runs", "1 x aten.cumsum", "5,000 images",
    ):  # fmt: skip
        assert words in found.text, words


def test_the_page_is_whole_and_loads_nothing(full: Path) -> None:
    found, text = page(full), full.read_text(encoding="utf-8")
    for tag, attributes in found.tags:
        assert not {"src", "srcset", "action", "data", "style"} & set(attributes), tag
        assert attributes.get("href", "#").startswith("#")
        assert all(value.startswith("url(#") for value in attributes.values() if "url(" in value)
        assert not any(name.startswith("on") for name in attributes)
    assert not {"link", "iframe", "object", "embed", "base", "form", "img"} & {tag for tag, _ in found.tags}
    assert "url(" not in "".join(found.styles)
    assert "@import" not in "".join(found.styles)
    assert "://" not in text.replace("file://", "")


def test_ids_are_unique_and_all_references_lead_somewhere(full: Path) -> None:
    found, text = page(full), full.read_text(encoding="utf-8")
    ids = Counter(a["id"] for _, a in found.tags if "id" in a)
    assert max(ids.values()) == 1
    referred = {a["href"][1:] for _, a in found.tags if "href" in a} | set(re.findall(r"url\(#(.*?)\)", text))
    referred |= {i for a in found.all("svg") for i in a["aria-labelledby"].split()}
    assert referred <= set(ids)
    assert len(found.all("svg")) > 40
    assert {a["role"] for a in found.all("svg")} == {"img"}


def test_only_its_own_script_and_style_may_run(full: Path) -> None:
    found = page(full)
    (policy,) = [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, texts in (("script-src", found.scripts), ("style-src", found.styles)):
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


def test_the_same_results_give_the_same_bytes(full: Path, tmp_path: Path) -> None:
    files = [full.parent / n for n in ("sweep", "phone.json", "counted.json")]
    before = dict(matplotlib.rcParams)
    edgekit.report(files, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == full.read_bytes()
    assert dict(matplotlib.rcParams) == before


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>]]>${x}\u202e\x00\ud800</title></style>"


def poisoned(value: Any, name: str = "") -> Any:
    """The value with something evil in each of its strings, and in the names that a file may choose."""
    if isinstance(value, str):
        return value if name in ("status", "of", "mode", "measured_at") else value + EVIL
    if isinstance(value, list | tuple):
        return [poisoned(v) for v in value]
    if not isinstance(value, dict):
        return value
    chosen = name in ("device", "fallback", "before", "after")
    return {k + EVIL if chosen else k: poisoned(v, k) for k, v in value.items()}


def test_nothing_in_a_file_becomes_a_tag(write: Write, full: Path) -> None:
    phone = write("phone.json", poisoned(asdict(made.phone())))
    cells = [write(f"{n}.json", poisoned(asdict(c))) for n, c in enumerate(made.cells()) if n > 15]
    counted = write("counted.json", poisoned(asdict(made.counted())))
    out = phone.parent / "evil.html"
    edgekit.report([phone, *cells, counted], out, title=EVIL)
    found = page(out)
    assert found.scripts == page(full).scripts
    assert found.styles == page(full).styles
    assert found.text.count("<script>alert(1)</script>") > 100
    assert set(dict.fromkeys(tag for tag, _ in found.tags)) <= {tag for tag, _ in page(full).tags}
    assert not re.search("[\x00\u202e]", out.read_text(encoding="utf-8"))
    test_the_page_is_whole_and_loads_nothing(out)


def test_counts_of_instructions_are_in_no_plot(write: Write) -> None:
    values = asdict(made.counted())
    for result in values["results"]:
        result |= {"p50_ms": 5.0, "latency_us": [5000.0] * 20}  # emulated time, which must not pass for a latency
    path = write("counted.json", values)
    edgekit.report([path], path.with_suffix(".html"))
    found = page(path.with_suffix(".html"))
    assert found.all("svg") == []
    assert "They are counts of instructions, not latencies" in found.text
    assert "246,913,578" in found.text
    assert "p50" not in found.text


def test_without_accuracy_it_says_what_stands_in_for_it(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep")
    for path in (folder / "cells").glob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**values, "accuracy": None}), encoding="utf-8")
    edgekit.report([folder], tmp_path / "report.html")
    text = page(tmp_path / "report.html").text
    assert "No accuracy was measured. SQNR says how near" in text
    assert "Not measured: top-1 %, drop." in text


def test_a_target_has_one_colour_and_a_precision_one_marker(full: Path) -> None:
    for table in re.findall(r"<table.*?</table>", full.read_text(encoding="utf-8"), re.DOTALL):
        for hue, glyph, target, precision in re.findall(
            r'<span class="glyph (\w+)" aria-hidden="true">(.)</span> (\w+)</td><td[^>]*>(\w+)', table
        ):
            assert hue == {"executorch": "hue0", "tflite": "hue1", "onnx": "hue2", "coreml": "hue3"}[target]
            assert glyph == {"fp32": "●", "int8": "▲", "fp16": "■"}[precision]


# ------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return find_browser(tmp_path_factory.mktemp("browser"))


PLOTS = """return {height: document.documentElement.scrollHeight, width: document.documentElement.scrollWidth,
  plots: [...document.querySelectorAll("svg.plot")].map(s => {
    const b = s.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom].map(Math.round)})}"""
OVERLAPS = """const found = [];
for (const svg of document.querySelectorAll("svg.plot")) {
  const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  texts.forEach(([p, a], i) => texts.slice(i + 1).forEach(([q, b]) => {
    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (x > 2 && y > 3) found.push([svg.querySelector("title").textContent, p, q]);
  }));
  const frame = svg.getBoundingClientRect();
  for (const [p, a] of texts) if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1)
    found.push([svg.querySelector("title").textContent, p, "the edge"]);
}
return found"""


@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (1280, DARK), (500, 1)], ids=["light", "dark", "narrow"])
def test_a_browser_shows_it(full: Path, browser: Browser, width: int, scheme: int) -> None:
    layout = browser.evaluate(full, PLOTS, width)
    assert layout["width"] == width, "the page itself must not scroll sideways"
    assert 4000 < layout["height"] < 40_000
    image = browser.screenshot(full, width, layout["height"], scheme)
    assert image.shape == (layout["height"], width, 3)
    background = image[0, 0].mean()
    assert background > 230 if scheme else background < 40
    assert np.abs(image[:120] - background).max() > 180, "the title"
    assert np.ptp(image[-120:].astype(int)) > 60, "the footer"
    colours = image[::8].astype(int) @ (1 << 16, 1 << 8, 1)
    assert len(np.unique(colours)) > 100
    assert len(layout["plots"]) > 40
    for left, top, right, bottom in layout["plots"]:
        assert right - left > 250
        region = image[top:bottom:2, left:right:2].astype(int)
        ink = np.abs(region - region[0, 0]).max(2) > 60
        assert 0.005 < ink.mean() < 0.5
        # In most ninths: some a plot may leave empty.
        assert sum(part.any() for band in np.array_split(ink, 3) for part in np.array_split(band, 3, axis=1)) >= 6


def test_no_text_of_a_plot_covers_another(full: Path, browser: Browser) -> None:
    assert browser.evaluate(full, OVERLAPS) == []


def test_tiny_figures_and_endless_names_stay_inside(write: Write, browser: Browser) -> None:
    def tiny(values: dict[str, Any]) -> None:
        values["comparisons"] = []
        del values["results"][6:]
        for n, result in enumerate(values["results"]):
            result["name"] *= 40
            slowest = (1_640.0, 4_099.0, 81_970.0)[n % 3]  # a round number lies at the very end of its axis
            result["per_op"] = [{"name": "a", "op": "b", "us": slowest, "delegated": True}]
            result["size_bytes"] = 100 + n
            result["latency_us"] = [us * 3e-5 for us in result["latency_us"]]
            result |= {k: v * 3e-5 for k, v in result.items() if k.endswith("_ms")}

    path = write("tiny.json", changed(tiny))
    edgekit.report([path], path.with_suffix(".html"))
    assert browser.evaluate(path.with_suffix(".html"), OVERLAPS, 500) == []
    assert browser.evaluate(path.with_suffix(".html"), PLOTS, 500)["width"] == 500


def test_a_click_sorts_the_table(full: Path, browser: Browser) -> None:
    script = """const table = document.querySelector("table.sortable");
    const column = [...table.tHead.rows[0].cells].findIndex(c => c.textContent == "p50 ms");
    const values = () => [...table.tBodies[0].rows].map(r => Number(r.cells[column].dataset.v));
    const out = [values()]; const button = table.tHead.rows[0].cells[column].querySelector("button");
    button.click(); out.push(values()); button.click(); out.push(values()); return out"""
    before, up, down = browser.evaluate(full, script)
    assert len(before) == 36
    assert before != sorted(before) == up
    assert down == up[::-1]


# ------------------------------------------------------------------------------------------ the command


def test_the_command_writes_once(cli: Cli, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)) or True)
    profile = write("counted.json", asdict(made.counted()))
    out = profile.parent / "new" / "report.html"
    result = cli("report", profile, "-o", out, "--title", "Two runs", "--open")
    assert (result.code, result.err) == (0, "")
    assert result.out.split() == ["2", "artifacts,", "0", "warnings", str(out)]
    assert opened == [out.as_uri()]
    assert "<title>Two runs</title>" in out.read_text(encoding="utf-8")
    again = cli("report", profile, "-o", out)
    assert (again.code, again.out) == (2, "")
    assert "--force" in again.err
    assert "Two runs" in out.read_text(encoding="utf-8")
    forced = cli("report", profile, "-o", out, "--force", "--json")
    assert json.loads(forced.out) == {"path": str(out), "artifacts": 2, "failed": 0, "warnings": 0}
    assert "Two runs" not in out.read_text(encoding="utf-8")
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    assert cli("report", profile, "-o", out.parent, "--force").code == 2
    assert cli("report", profile.parent / "none.json").code == 2


def test_without_matplotlib_it_says_what_to_install(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return load(name, *rest)

    path = write("counted.json", asdict(made.counted()))
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependency, match=r"a report needs the package 'matplotlib'") as error:
        edgekit.report([path], path.with_suffix(".html"))
    assert "pip install 'edgekit[report]'" in error.value.hint
    assert not path.with_suffix(".html").exists()
