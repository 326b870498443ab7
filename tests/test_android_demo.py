"""android_demo/: the app compiles against Android and the runtimes, and what of it needs no phone does what it says."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.apps.android_runtimes import COMPILE_SDK, COROUTINES, EXIF, RUNTIMES
from edgekit.artifacts import load_artifact, model_sha256
from edgekit.profiling.statistics import summary
from edgekit.reporting import report
from edgekit.reporting.read import read_results
from edgekit.types import Artifact
from tests.apps.demo import DEMO, RESOURCES, Checks, compiled
from tests.apps.kotlin_compiler import ROOT

SOURCES = sorted(DEMO.rglob("*.kt"))
PURE = (
    "artifact/ArtifactManifest", "artifact/ManifestReader", "live/Geometry", "live/LatencyWindow", "measure/Benchmark",
    "measure/Fitness", "measure/ProfileJson", "measure/ResultName", "measure/Statistics",
)  # fmt: skip
TEXT = {".kt", ".kts", ".xml", ".toml", ".properties", ".md", ".pro", ""}


NET = """
from torch import nn


def net(num_classes=10):
    body = (nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, num_classes))
"""


def own_files() -> list[Path]:
    """Those in git: not what a build or `make android-assets` puts beside them."""
    ignored = {"assets", "build", ".gradle", ".idea", ".kotlin"}
    generated = {"gradlew", "gradlew.bat", "gradle-wrapper.jar", "local.properties"}
    found = [p for p in DEMO.rglob("*") if p.is_file() and not ignored & set(p.relative_to(DEMO).parts)]
    return sorted(p for p in found if p.name not in generated)


@pytest.fixture(scope="session")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Checks:
    """The whole app and the shared sources, compiled in one call; `checks("manifest", …)` runs a part on the JVM."""
    return compiled(tmp_path_factory.mktemp("android_demo"))


def android_exports(**variables: str | Path) -> list[list[str]]:
    """What `make android-assets` would type, but for the program's name."""
    command = ["make", "-n", "-o", ".venv/.ready", "android-assets", *(f"{k}={v}" for k, v in variables.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [shlex.split(line) for line in done.stdout.splitlines() if "edgekit export" in line]
    assert all(line[0] == ".venv/bin/edgekit" for line in lines)
    return [line[1:] for line in lines]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    """What `make android-assets` exports, for real, of a user's own model with own labels; by target and precision."""
    if not shutil.which("make"):
        pytest.skip("no make here")
    folder = tmp_path_factory.mktemp("exported")
    labels = folder / "names.txt"
    (folder / "mine.py").write_text(NET, "utf-8")
    model = f"{folder / 'mine.py'}:net"
    names = ('a "quote" and $dollar', "ü 🐈", *(f"class {n}" for n in range(2, 10)))
    labels.write_text("\n".join(names) + "\n", "utf-8")
    where: dict[str, str | Path] = {
        "ANDROID_ASSETS": folder / "assets", "ANDROID_TARGETS": "onnx", "ANDROID_WEIGHTS": "",
    }  # fmt: skip
    floats = android_exports(
        **{**where, "ANDROID_TARGETS": "tflite,onnx"}, ANDROID_MODELS=model, ANDROID_INT8_MODELS=""
    )
    integers = android_exports(**where, ANDROID_MODELS="", ANDROID_INT8_MODELS=model)
    for line in (*floats, *integers):
        command = [sys.executable, "-m", "edgekit", *line, "--image-size", "64", "--labels", str(labels)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    artifacts = [load_artifact(path) for path in sorted((folder / "assets").iterdir())]
    return {f"{a.manifest.target} {a.manifest.precision}": a for a in artifacts}


def text_of(artifact: Artifact) -> str:
    return (artifact.path / "edgekit.json").read_text(encoding="utf-8")


# The project's files


def test_nothing_is_binary_or_large() -> None:
    files = own_files()
    assert len(files) > 30
    for path in files:
        content = path.read_bytes()
        assert path.suffix in TEXT, path
        assert b"\0" not in content, path
        content.decode("utf-8")
        assert len(content) < 50_000, path
        assert path.suffix not in (".kt", ".kts") or content.count(b"\n") < 250, path


def test_kotlin_parses() -> None:
    tree_sitter, grammar = pytest.importorskip("tree_sitter"), pytest.importorskip("tree_sitter_kotlin")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    files = [*DEMO.rglob("*.kt"), *DEMO.rglob("*.kts")]
    assert len(files) > 20
    for path in files:
        assert not parser.parse(path.read_bytes()).root_node.has_error, path


def test_views_are_found_as_newer_android_has_it() -> None:
    """From API 26 on findViewById is generic: without a type to infer it does not compile, which API 23 cannot show."""
    for path in SOURCES:
        assert not re.search(r"findViewById\([^)]*\)\s*\.", path.read_text("utf-8")), path


@pytest.mark.parametrize("path", [p for p in own_files() if p.suffix == ".xml"], ids=lambda p: p.name)
def test_xml_parses(path: Path) -> None:
    ElementTree.parse(path)


def test_every_text_is_used_and_every_class_of_the_manifest_is_there() -> None:
    strings = {e.attrib["name"] for e in ElementTree.parse(RESOURCES / "values" / "strings.xml").getroot()}
    code = "".join(p.read_text("utf-8") for p in (*SOURCES, *DEMO.rglob("*.xml")))
    assert {s for s in strings if f"R.string.{s}" not in code and f"@string/{s}" not in code} == set()
    manifest = (DEMO / "app/src/main/AndroidManifest.xml").read_text("utf-8")
    named = set(re.findall(r'android:name="(edgekit\.demo\.[\w.]+)"', manifest))
    assert len(named) == 4
    for name in named:
        assert (DEMO / "app/src/main/kotlin" / (name.replace(".", "/") + ".kt")).is_file(), name


def test_versions_and_rules_are_those_of_embed() -> None:
    catalog = (DEMO / "gradle" / "libs.versions.toml").read_text("utf-8")
    versions = dict(re.findall(r'(?m)^(\w+) = "([\w.]+)"$', catalog))
    modules = {m: versions[v] for m, v in re.findall(r'module = "([^"]+)", version.ref = "(\w+)"', catalog)}
    libraries = [r.library for r in RUNTIMES.values()] + [COROUTINES, EXIF]
    assert modules == dict(name.rsplit(":", 1) for name in libraries)
    assert int(versions["minSdk"]) >= max(r.min_sdk for r in RUNTIMES.values())
    assert int(versions["compileSdk"]) == COMPILE_SDK
    rules = (DEMO / "app" / "proguard-rules.pro").read_text("utf-8").splitlines()
    assert {line for r in RUNTIMES.values() for line in r.keep if line.startswith("-")} == {
        line for line in rules if line.startswith("-")
    }


def test_pure_parts_know_nothing_of_android() -> None:
    """Those that the tests run: what they say then holds on a phone too."""
    files = [DEMO / "app/src/main/kotlin/edgekit/demo" / f"{name}.kt" for name in PURE]
    for path in files:
        imports = re.findall(r"(?m)^import (\S+)", path.read_text("utf-8"))
        assert not [i for i in imports if i.startswith(("android", "kotlinx"))], path


# The app, compiled


def test_the_app_type_checks(checks: Checks) -> None:
    names = {p.relative_to(checks.classes).as_posix() for p in checks.classes.rglob("*.class")}
    assert {"edgekit/demo/live/LiveActivity.class", "edgekit/app/Classifier.class"} <= names


# What runs on the JVM


@pytest.mark.parametrize("which", ["tflite fp32", "onnx fp32", "onnx int8"])
def test_manifests_are_read_as_python_reads_them(checks: Checks, exported: Mapping[str, Artifact], which: str) -> None:
    artifact = exported[which]
    m = load_artifact(artifact.path).manifest
    p = m.preprocess
    assert p is not None
    # Of an image that is no square, for height and width not to be mistaken for each other.
    values = json.loads(text_of(artifact))
    nhwc = m.inputs[0].layout == "NHWC"
    shape = values["inputs"][0]["shape"] = [1, 40, 48, 3] if nhwc else [1, 3, 40, 48]
    values["preprocess"]["crop"] = [40, 48]
    found = checks("manifest", folder="some folder", text=json.dumps(values))
    quantization = m.inputs[0].quantization
    model = next(n for n in m.files if n.startswith("model."))
    fallback: dict[str, int] = {}
    for op in m.delegation.fallback:
        fallback[op.op] = fallback.get(op.op, 0) + op.count
    floats = {k: found.pop(k) for k in ("mean", "std", "scale", "min_sqnr_db")}
    assert np.allclose(floats["mean"], p.mean, rtol=1e-7)
    assert np.allclose(floats["std"], p.std, rtol=1e-7)
    assert np.isclose(floats["scale"], p.scale, rtol=1e-7)
    assert floats["min_sqnr_db"] == m.verification[0].min_sqnr_db
    assert found == {
        "folder": "some folder", "name": m.name, "target": m.target, "precision": m.precision,
        "sha256": model_sha256(m.files), "size_bytes": artifact.size_bytes, "asset": f"some folder/{model}",
        "labels": "some folder/labels.txt", "shape": shape, "layout": m.inputs[0].layout,
        "dtype": m.inputs[0].dtype, "classes": 10, "resize": p.resize, "crop": [40, 48],
        "interpolation": p.interpolation, "channel_order": p.channel_order, "backend": m.delegation.backend,
        "delegated": m.delegation.delegated, "partitions": m.delegation.partitions, "fallback": fallback,
        **({"quantization": [quantization["scale"], quantization["zero_point"]]} if quantization else {}),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(schema=2), "schema 2"),
        (lambda m: m.pop("inputs"), "damaged"),
        (lambda m: m.update(preprocess=None), "how a photo becomes its input"),
        (lambda m: m["inputs"].append(m["inputs"][0]), "2 inputs"),
        (lambda m: m["inputs"][0].update(shape=[4, 3, 64, 64]), "--batch-size 1"),
        (lambda m: m["outputs"][0].update(shape=[1, 5, 5]), "class scores"),
        (lambda m: m["preprocess"].update(interpolation="area"), "nearest, bilinear"),
        (lambda m: m.update(labels="../../etc/passwd"), "elsewhere"),
        (lambda m: m["files"].update({"model.data": m["files"]["labels.txt"]}), "2 files"),
    ],
)
def test_what_the_app_cannot_use_is_said_in_words(
    checks: Checks, exported: Mapping[str, Artifact], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    manifest = json.loads(text_of(exported["onnx fp32"]))
    change(manifest)
    assert said in checks("manifest", folder="mine", text=json.dumps(manifest))["error"]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1', '{"schema": 1, "files": 3}'])
def test_damaged_manifests_are_said(checks: Checks, text: str) -> None:
    assert "make android-assets" in checks("manifest", folder="mine", text=text)["error"]


@pytest.mark.parametrize("n", [1, 2, 3, 99, 250])
def test_figures_are_those_of_profile(checks: Checks, n: int) -> None:
    us = np.random.default_rng(n).lognormal(8, 0.3, n).round(3)
    found = checks("statistics", us=us.tolist(), window=100)
    expected = summary(us[None])
    for name in ("mean_ms", "std_ms", "cv", "min_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms"):
        assert np.isclose(found[name], getattr(expected, name), rtol=1e-12, atol=1e-15), name
    assert found["stable"] == expected.stable
    last = us[-100:] / 1e3
    assert found["frames"] == min(n, 100)
    assert np.allclose(found["live"], np.percentile(last, (50, 90)), rtol=1e-5)
    assert np.allclose(found["inference"], np.percentile(2 * last, (50, 90)), rtol=1e-5)


def test_frames_and_preview_are_upright(checks: Checks) -> None:
    back = [(90, display, False) for display in (0, 90, 180, 270)]
    front = [(270, display, True) for display in (0, 90, 180, 270)]
    # A phone of 1080 x 1920, held upright and turned, with a sensor of 640 x 480 that lies on its side.
    fits = [(1080, 1920, 640, 480, 90, 0), (1920, 1080, 640, 480, 90, 90), (1920, 1080, 640, 480, 90, 270)]
    sizes = [
        [[4000, 3000], [640, 480], [800, 600], [720, 480]],
        [[720, 480], [1280, 720]],
        [[320, 240], [176, 144]],
        [],
    ]
    found = checks("geometry", turns=[*back, *front], fits=fits, sizes=sizes, shorter=480)
    assert found["turns"][:4] == [[90, 6], [0, 1], [270, 8], [180, 3]]
    assert found["turns"][4:] == [[270, 8], [0, 1], [90, 6], [180, 3]]
    for (width, height, *buffer, _, display), (x, y, degrees, zoom) in zip(fits, found["fits"], strict=True):
        # The stretched texture, scaled back: the buffer as the sensor sees it upright.
        shown = np.array([width * x, height * y])
        assert np.allclose(shown, buffer[::-1])
        assert degrees == -display
        covered = (shown if display % 180 == 0 else shown[::-1]) * zoom
        assert np.all(covered >= np.array([width, height]) - 1e-2)
        assert np.isclose(np.min(covered / [width, height]), 1)
    assert found["sizes"] == [[640, 480], [720, 480], [320, 240], None]


BEFORE = {"thermal_status": "0", "battery_percent": "80", "battery_celsius": "30.5", "charging": "no", "low_power": "0"}


def benchmark(checks: Checks, artifacts: list[tuple[Artifact, list[float]]], **more: Any) -> dict[str, Any]:
    """A benchmark of artifacts whose runs take so many microseconds, over and over."""
    asked: dict[str, Any] = {
        "artifacts": [{"folder": a.path.name, "text": text_of(a), "us": us} for a, us in artifacts],
        "device": {"kind": "android app", "model": "Maker Phone 9", "system": "Android 16 (API 36)", "cpu": "Chip 1"},
        "before": BEFORE, "after": BEFORE, "threads": 2, "began_ms": 1_790_000_000_000,
    }  # fmt: skip
    return checks("benchmark", **(asked | more))


def test_the_protocol_keeps_its_minimums(checks: Checks, exported: Mapping[str, Artifact]) -> None:
    quick, slow = [90.0, 110.0], [70_000.0, 80_000.0, 90_000.0]
    got = benchmark(checks, [(exported["tflite fp32"], quick), (exported["onnx fp32"], slow)])
    log = " ".join(got["log"]) + " "
    first, second = got["profile"]["results"]
    # Loaded, run once, and warmed up: the quick one for half a second, the slow one for 10 runs, which take longer.
    turns = [(t[6], t.count("infer")) for t in re.findall(r"(?:infer 0 )+|(?:infer 1 )+", log)]
    assert log.index("load 0") == 0
    assert log.index("load 1") == len("load 0 ") + turns[0][1] * len("infer 0 ")
    assert turns[:2] == [("0", 1 + 5000), ("1", 1 + 10)]
    # Then in turns, each with one run that is not recorded.
    rounds = first["protocol"]["rounds"]
    a, b = first["protocol"]["runs_per_round"], second["protocol"]["runs_per_round"]
    assert turns[2:] == [("0", a + 1), ("1", b + 1)] * rounds
    for result, latencies in ((first, quick), (second, slow)):
        us = np.array(result["latency_us"])
        assert result["runs"] == us.size == rounds * result["protocol"]["runs_per_round"] >= 50
        assert us.sum() >= 1e6
        assert set(us.round(6)) <= set(latencies)
        assert result["load_ms"] == 7.0
        assert result["first_ms"] == latencies[0] / 1e3
    assert got["steps"][-1] == [22, 22]
    assert got["steps"] == sorted(got["steps"])


def test_a_benchmark_can_be_stopped(checks: Checks, exported: Mapping[str, Artifact]) -> None:
    for after in (1, 5, 5200):
        got = benchmark(checks, [(exported["tflite fp32"], [100.0])], stop_after=after)
        assert after <= got["stopped"] <= after + 1000


def test_the_result_is_read_by_report(checks: Checks, exported: Mapping[str, Artifact], tmp_path: Path) -> None:
    steady = np.random.default_rng(0).normal(2000, 20, 500).round(1).tolist()
    shaky = [1000.0] * 9 + [9000.0]
    hot = BEFORE | {"thermal_status": "2", "battery_celsius": "38.2"}
    pair = [(exported["tflite fp32"], steady), (exported["onnx int8"], shaky)]
    got = benchmark(checks, pair, after=hot)
    began = datetime.fromtimestamp(1_790_000_000, UTC)
    assert got["name"] == f"edgekit-{began:%Y%m%d-%H%M%S}.json"
    path = tmp_path / got["name"]
    path.write_text(json.dumps(got["profile"]), encoding="utf-8")

    rows = read_results([path]).rows
    assert [r.profile.artifact for r in rows if r.profile] == [a.path.name for a, _ in pair]
    for row, (artifact, _) in zip(rows, pair, strict=True):
        p, m = row.profile, artifact.manifest
        assert p is not None
        expected = summary(np.array(p.latency_us)[None])
        assert (p.name, p.target, p.precision) == (m.name, m.target, m.precision)
        assert (p.sha256, p.size_bytes) == (model_sha256(m.files), artifact.size_bytes)
        assert np.allclose([p.p50_ms, p.p99_ms, p.cv], [expected.p50_ms, expected.p99_ms, expected.cv])
        assert (p.threads, p.runtime, p.measured_at) == (2, "a runtime 1.0", began.isoformat())
        assert (p.protocol.warmup_runs, p.protocol.num_runs, p.protocol.min_secs) == (10, 50, 1.0)
        assert p.protocol.clock == "System.nanoTime"
        assert p.delegation is not None
        assert (p.delegation.backend, p.delegation.delegated) == (m.delegation.backend, m.delegation.delegated)
        assert (p.state["before"], p.state["after"]) == (BEFORE, hot)
        assert row.device == "android app (Maker Phone 9)"
        assert "afterwards: its thermal status is 2 (moderate)" in p.warnings
        assert "afterwards: its battery has 38.2 °C (more than 37)" in p.warnings
    assert not rows[0].unstable
    assert rows[1].unstable.startswith("unstable: the coefficient of variation is 1")

    # With the artifacts beside it, as users have them, the page also knows their parity.
    page = tmp_path / "report.html"
    done = report([path, *(a.path for a, _ in pair)], page)
    assert done.artifacts == 2
    html = page.read_text("utf-8")
    for said in ("Maker Phone 9", "android app", "a runtime 1.0", "thermal status", "unstable", "dB"):
        assert said in html, said


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"thermal_status": "3"}, "degraded: its thermal status is 3 (severe)"),
        ({"low_power": "1"}, "degraded: it saves power (battery saver is on): switch that off"),
        ({"battery_percent": "12"}, "degraded: its battery is at 12 %: phones slow down when it is low"),
        ({"battery_percent": "12", "charging": "yes"}, None),
    ],
)
def test_a_phone_that_is_not_fit_is_said_once(
    checks: Checks, exported: Mapping[str, Artifact], state: Mapping[str, str], said: str | None
) -> None:
    now = BEFORE | state
    got = benchmark(checks, [(exported["tflite fp32"], [1000.0])], before=now, after=now)
    assert got["profile"]["results"][0]["warnings"] == ([said] if said else [])


# `make android-assets`


def test_make_android_assets_fills_the_apps_folder(exported: Mapping[str, Artifact]) -> None:
    usual = android_exports()
    assert {line[line.index("-m") + 1] for line in usual} <= {m.name for m in edgekit.list_models()}
    assert {line[line.index("-o") + 1] for line in usual} == {"android_demo/app/src/main/assets"}
    assert {tuple(line[line.index("-t") + 1].split(",")) for line in usual} == {tuple(RUNTIMES)}
    assert {line[line.index("-p") + 1] for line in usual} == {"fp32", "int8"}
    assert set(exported) == {"tflite fp32", "onnx fp32", "onnx int8"}
    ignored = (DEMO / ".gitignore").read_text("utf-8").splitlines()
    assert "/app/src/main/assets/" in ignored
