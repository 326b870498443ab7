"""A package's Swift, compiled and run: photos become Python's tensors, golden vectors are read, all type-checks.

What Apple and the runtimes ship is stubs here (tests/apps/swift/stubs). Without a compiler the packages are parsed
only, in tests/test_embed_ios.py: no pipeline has to have one, so this skip stands with EDGEKIT_REQUIRE_DEVICES too.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from edgekit.apps import embed
from edgekit.apps.naming import swift_string
from edgekit.parity import sqnr_db
from edgekit.types import Preprocess
from tests.apps.cases import cases
from tests.apps.made_artifacts import made_artifact
from tests.apps.swift_compiler import (
    HOSTILE,
    SOURCES,
    SWIFT,
    Prepared,
    compile_swift,
    entry,
    interleaved,
    run_harness,
    safetensors,
    swiftc,
    text_of,
)
from tests.conftest import TARGETS

if swiftc() is None:
    pytest.skip(
        "no swiftc, so packages were parsed, not compiled; tests/apps/install_swift.sh installs one, which"
        " EDGEKIT_SWIFTC names",
        allow_module_level=True,
    )

MATRICES = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}
WHOLE = Preprocess(resize=48, crop=(48, 64), mean=(0.0,) * 3, std=(1.0,) * 3, scale=1.0)
GOLDEN = {"input.0": np.arange(6, dtype=np.float32).reshape(1, 2, 3) / 7, "a": np.array([[-5, 4]], np.int8)}
HEADER = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
DAMAGED = {
    "short": b"\x01\x02", "cut": safetensors(HEADER)[:20], "no JSON": safetensors(b"{nonsense"),
    "a list": safetensors([1]), "too short": safetensors(HEADER, b"\0" * 4), "type": safetensors(
        {"x": {"dtype": "F8", "shape": [8], "data_offsets": [0, 8]}}, b"\0" * 8),
    "shape": safetensors({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, b"\0" * 8),
    "negative": safetensors({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
    "before": safetensors({"x": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"\0" * 8),
    "beyond": safetensors({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, b"\0" * 8),
}  # fmt: skip
SCORES = ([0.5, 2.0, 2.0, -1.0], [1000.0, -1000.0], [0.0] * 7)
SIGNALS = (([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0], [1.01, 1.98]), ([3.0, 1.0], [1.0, 3.0]), ([0.0, 0.0], [1.0, 0.0]))


def frames() -> Iterator[Prepared]:
    """Camera frames of two planes, padded rows, odd sizes; one level of rounding is free."""
    rng = np.random.default_rng(3)
    for matrix, (red, blue) in MATRICES.items():
        for full in (True, False):
            height, width, row = 48, 64, 80
            y = rng.integers(0, 256, (height, row), np.uint8)
            pairs = rng.integers(0, 256, (height // 2, row), np.uint8)
            light = y[:, :width].astype(float) if full else (y[:, :width] - 16.0) * 255 / 219
            cb, cr = (pairs[:, n:width:2].repeat(2, 0).repeat(2, 1) - 128.0 for n in (0, 1))
            if not full:
                cb, cr = cb * 255 / 224, cr * 255 / 224
            r, b = light + 2 * (1 - red) * cr, light + 2 * (1 - blue) * cb
            g = (light - red * r - blue * b) / (1 - red - blue)
            shape = {"width": width, "height": height, "bytes_per_row": row, "layout": "420", "orientation": 1}
            yield Prepared(
                name=f"420 {matrix} {full}", pixels=y.tobytes() + pairs.tobytes(), tolerance=1.0,
                entry={**entry(WHOLE), **shape, "matrix": matrix, "full_range": full},
                expected=np.clip(np.stack([r, g, b]), 0, 255).round().astype(np.float32),
            )  # fmt: skip


def prepared() -> Iterator[Prepared]:
    """The golden cases; some again in other layouts, orders and types."""
    for case in cases():
        pixels, shape = interleaved(case, "rgba", padding=12)
        tolerance = np.float32(0) if case.exact else case.step[:, None, None] * np.float32(1.001)
        yield Prepared(name=case.name, entry={**entry(case.preprocess), **shape}, pixels=pixels, expected=case.tensor,
                       tolerance=tolerance)  # fmt: skip
        if case.name in ("orientation 6", "53x37", "grey photo"):
            layout = "grey" if case.name == "grey photo" else "bgra"
            pixels, shape = interleaved(case, layout, padding=3)
            expected = np.ascontiguousarray(case.tensor.transpose(1, 2, 0))
            bound: Any = np.float32(0) if case.exact else case.step * np.float32(1.001)
            yield Prepared(name=f"{case.name} {layout} NHWC", entry={**entry(case.preprocess, nhwc=True), **shape},
                           pixels=pixels, expected=expected, tolerance=bound)  # fmt: skip
        if case.name == "53x37":
            for dtype, zero in (("int8", -3), ("uint8", 114)):
                levels = np.iinfo(dtype)
                whole = np.clip(np.rint(case.tensor.astype(np.float64) / 0.0186) + zero, levels.min, levels.max)
                pixels, shape = interleaved(case, "rgba", padding=0)
                yield Prepared(
                    name=f"{case.name} {dtype}", pixels=pixels, expected=whole.astype(dtype), tolerance=0,
                    entry={**entry(case.preprocess, dtype=dtype, scale=0.0186, zero=zero), **shape},
                )  # fmt: skip
    yield from frames()


@dataclasses.dataclass(frozen=True)
class Ran:
    answers: dict[str, Any]
    cases: tuple[Prepared, ...]
    tensors: tuple[NDArray[Any], ...]


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The harness, compiled with the package's own sources, run once over everything."""
    folder = tmp_path_factory.mktemp("swift")
    literals = folder / "Literals.swift"
    literals.write_text(f"enum Literals {{ static let all: [String] = [{', '.join(map(swift_string, HOSTILE))}] }}\n")
    tests = [SOURCES / "Tests" / name for name in ("Safetensors.swift", "Signal.swift")]
    common = sorted((SOURCES / "Common").glob("*.swift"))
    # The engine needs a runtime, which the harness has not.
    common = [p for p in common if p.name != "ClassificationEngine.swift"]
    program = folder / "harness"
    compile_swift(
        "-O", "-wmo", "-swift-version", "6", *common, *tests, SWIFT / "harness/main.swift", literals, "-o", program
    )
    files = {"good": save(GOLDEN), **DAMAGED}
    all_cases = tuple(prepared())
    others: dict[str, Any] = {
        "rankings.json": [{"scores": s, "count": 3} for s in SCORES],
        "signals.json": [{"reference": r, "actual": a} for r, a in SIGNALS],
        "labels.txt": "a\r\n\n\u2028b\x85\nlast\n\n".encode(),
        "golden.json": [{"file": f"{n}.safetensors"} for n in range(len(files))],
        **{f"{n}.safetensors": content for n, content in enumerate(files.values())},
    }
    answers = run_harness(program, folder, all_cases, others)
    tensors = [np.fromfile(folder / f"{n}.out", c.expected.dtype) for n, c in enumerate(all_cases)]
    shaped = (t.reshape(c.expected.shape) for t, c in zip(tensors, all_cases, strict=True))
    return Ran(answers, all_cases, tuple(shaped))


def test_photos_become_the_tensors_that_python_makes(ran: Ran) -> None:
    wrong = {}
    for case, tensor in zip(ran.cases, ran.tensors, strict=True):
        difference = np.abs(tensor.astype(np.float64) - case.expected.astype(np.float64))
        if not (difference <= case.tolerance).all():
            wrong[case.name] = float(difference.max())
    assert not wrong
    assert len(ran.cases) > 45


def test_golden_vectors_are_read_and_damage_is_told(ran: Ran) -> None:
    good, *damaged = ran.answers["golden"]
    for name, array in GOLDEN.items():
        read = good["tensors"][name]
        assert read["shape"] == list(array.shape)
        np.testing.assert_array_equal(np.asarray(read["values"], np.float32), array.ravel().astype(np.float32))
    assert all("damaged" in answer for answer in damaged), dict(zip(DAMAGED, damaged, strict=True))


def test_scores_are_ranked_stably(ran: Ran) -> None:
    for scores, answer in zip(SCORES, ran.answers["rankings"], strict=True):
        order = np.argsort(-np.asarray(scores), kind="stable")[:3]
        assert answer["indices"] == order.tolist()
        assert answer["labels"] == [f"class {n}" for n in order]
        e = np.exp(np.asarray(scores) - max(scores))
        np.testing.assert_allclose(answer["probabilities"], (e / e.sum())[order], rtol=1e-6)
    assert len(ran.answers["refused"]) == 3


def test_sqnr_is_pythons(ran: Ran) -> None:
    expected = [sqnr_db(np.asarray(r, np.float32), np.asarray(a, np.float32)) for r, a in SIGNALS]
    np.testing.assert_allclose([s["sqnr"] for s in ran.answers["signals"]], expected, atol=1e-4)
    assert [s["top"] for s in ran.answers["signals"]] == [True, True, False, True]


def test_text_stays_what_it_was(ran: Ran) -> None:
    whole = [t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in HOSTILE]
    assert [text_of(literal) for literal in ran.answers["literals"]] == whole
    assert [text_of(label) for label in ran.answers["labels"]] == ["a\r", "", "\u2028b\x85", "last", ""]


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of Apple's frameworks and the runtimes, as far as packages use them."""
    folder = tmp_path_factory.mktemp("stubs")
    order = ("CoreGraphics", "CoreVideo", "CoreImage", "ImageIO", "Accelerate", "UIKit", "CoreML")
    for name in (*order, "ExecuTorch", "LiteRT", "OnnxRuntimeBindings"):
        source = SWIFT / "stubs" / f"{name}.swift"
        compile_swift("-parse-as-library", "-emit-module", "-module-name", name, "-I", folder, source,
                      "-o", folder / f"{name}.swiftmodule")  # fmt: skip
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_a_package_type_checks(target: str, stubs: Path, tmp_path: Path) -> None:
    """Its tests too, in Swift 6's mode, which finds data races; for the name that is hardest to write."""
    done = embed(made_artifact(tmp_path / "a", target, name='"; \\(evil())\n'), "ios", tmp_path / "p", package="Made")
    sources = sorted((done.path / "Sources").rglob("*.swift")), sorted((done.path / "Tests").rglob("*.swift"))
    bundle = SWIFT / "stubs" / "BundleModule.swift"
    options = ("-swift-version", "6", "-parse-as-library", "-I", stubs, "-I", tmp_path)
    compile_swift(*options, "-enable-testing", "-emit-module", "-module-name", "Made", "-o",
                  tmp_path / "Made.swiftmodule", *sources[0], bundle)  # fmt: skip
    compile_swift(*options, "-typecheck", "-module-name", "MadeTests", *sources[1], bundle)


def test_the_compiler_catches_what_it_should(stubs: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "Wrong.swift"
    wrong.write_text("import LiteRT\nfunc f() throws { try CpuOptions().setNumThread(2) }\n")
    with pytest.raises(AssertionError, match="setNumThread"):
        compile_swift("-typecheck", "-parse-as-library", "-I", stubs, wrong)
