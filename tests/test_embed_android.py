"""Modules for Android, type-checked by the real compiler; their Kotlin run on a JVM against Python's tensors."""

import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgekit
from edgekit.apps import embed
from edgekit.apps.naming import kotlin_string
from edgekit.artifacts import hash_files, load_artifact, read_golden, read_labels, write_manifest
from edgekit.data import normalize
from edgekit.types import Artifact, Preprocess
from tests.apps.cases import Case, cases, photo
from tests.apps.kotlin_compiler import HERE, LIBRARY, STUBS, Jvm, compile_kotlin, require_kotlin
from tests.conftest import Cli

HOSTILE = (
    "class",
    '9 "lives" of $cat',
    "${System.exit(1)}",
    "line\nbreak\\n\r\u2028",
    "*/ fun evil() {} /*",
    "日本🦊",
    '"""; init { TODO() } //',
    "é" * 300,
)
LABELS = ('a "quoted" label', "$dollar ${code}", "back\\slash \\u0041", "🦊 日本", "class", "t\tab")


@pytest.fixture(scope="session")
def artifacts(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A user's own model with own labels for each runtime, in float and in integers, and one of the zoo."""
    out = tmp_path_factory.mktemp("artifacts")
    labels = out / "labels.txt"
    labels.write_text("\n".join((*LABELS, "6", "7", "8", "9")) + "\n", encoding="utf-8", newline="\n")
    targets = ("executorch", "tflite", "onnx")
    options: dict[str, Any] = {"verify": False, "out": out, "compare_speed": False}
    photos = out / "photos"
    photos.mkdir()
    for n in range(32):
        photo(64, 64, n).save(photos / f"{n}.png")
    made = [
        *edgekit.export(tiny, targets, labels=labels, image_size=64, **options),
        *edgekit.export(tiny, "onnx", precision="int8", calibration=photos, labels=labels, image_size=64, **options),
        *edgekit.export("micronet-m0", "onnx", image_size=64, **options),
    ]
    return {f"{a.manifest.name}-{a.manifest.target}-{a.manifest.precision}": a for a in made}


@dataclass(frozen=True)
class Built:
    """Modules by name, what the compiler said of all of them, and their classes."""

    modules: dict[str, Path]
    errors: str
    classes: Path


def renamed(artifact: Artifact, name: str, labels: tuple[str, ...], out: Path) -> Artifact:
    """A copy with another model name and other labels."""
    shutil.copytree(artifact.path, out)
    (out / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8", newline="\n")
    scores = replace(artifact.manifest.outputs[0], shape=(1, len(labels)))
    # A manifest may say anything anywhere: what it says of itself is no code either.
    evil = {"edgekit": "1\nfun evil() {", "precision": "fp32\n*/ fun evil() {"}
    manifest = replace(
        artifact.manifest, name=name, labels="labels.txt", files=hash_files(out), outputs=(scores,), **evil
    )
    write_manifest(out, manifest)
    return load_artifact(out)


@pytest.fixture(scope="session")
def modules(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for each artifact, and one for each hostile name."""
    out = tmp_path_factory.mktemp('mod "$ules"\n')
    source = artifacts["net-onnx-fp32"]
    made = {name: embed(artifact, "android", out / name).path for name, artifact in artifacts.items()}
    for n, name in enumerate(HOSTILE):
        labels = tuple(f"{name.replace(chr(10), ' ')} {i}" for i in range(1000))
        artifact = renamed(source, name, labels, out / f"artifact{n}")
        made[f"hostile{n}"] = embed(artifact, "android", out / f"hostile{n}", package=f"com.example.data.h{n}").path
    return made


def kotlin_files(folder: Path) -> list[Path]:
    return sorted((folder / "src").rglob("*.kt"))


@pytest.fixture(scope="session")
def built(modules: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Built:
    """All modules, the library and the harness in one call of the compiler."""
    require_kotlin()
    out = tmp_path_factory.mktemp("kotlin")
    names = ", ".join(f"com.example.data.h{n}.MODEL_SPEC.name" for n in range(len(HOSTILE)))
    # A literal is what the compiler makes of it: asked of the literals as well.
    labels = ", ".join(map(kotlin_string, LABELS))
    generated = out / "Names.kt"
    generated.write_text(f"package edgekit.harness\n\ninternal fun names(): List<String> = listOf({names}, {labels})\n")
    sources = [*LIBRARY.glob("*.kt"), *STUBS, HERE / "Harness.kt", generated]
    sources += [file for folder in modules.values() for file in kotlin_files(folder)]
    return Built(modules, compile_kotlin(sources, out / "classes"), out / "classes")


@pytest.fixture(scope="session")
def jvm(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jvm]:
    assert built.errors == ""
    running = Jvm(built.classes, tmp_path_factory.mktemp("jvm") / "log.txt")
    yield running
    running.close()


def test_every_module_compiles_against_real_runtimes(built: Built) -> None:
    """ExecuTorch's and ONNX Runtime's own classes, Android's of API 23; LiteRT and AndroidX against our stubs."""
    assert built.errors == ""
    assert (built.classes / "edgekit/app/OnnxModel.class").is_file()


def test_names_and_labels_come_back_as_they_were(built: Built, jvm: Jvm) -> None:
    assert jvm.ask("names")["names"] == [*HOSTILE, *LABELS]
    for n, name in enumerate(HOSTILE):
        found = list((built.modules[f"hostile{n}"] / "src/main/assets").rglob("labels.txt"))
        assert len(found) == 1
        labels = jvm.ask("labels", file=str(found[0]))["labels"]
        assert labels == [f"{name.replace(chr(10), ' ')} {i}" for i in range(1000)]


def test_labels_are_split_as_python_splits_them(built: Built, jvm: Jvm, artifacts: dict[str, Artifact]) -> None:
    artifact = artifacts["net-onnx-fp32"]
    file = next((built.modules["net-onnx-fp32"] / "src/main/assets").rglob("labels.txt"))
    assert tuple(jvm.ask("labels", file=str(file))["labels"]) == read_labels(artifact)
    assert read_labels(artifact)[: len(LABELS)] == LABELS


def spec(p: Preprocess, **more: Any) -> dict[str, Any]:
    return {
        "resize": p.resize, "crop_width": p.crop[1], "crop_height": p.crop[0], "interpolation": p.interpolation,
        "mean": [float(np.float32(m)) for m in p.mean], "std": [float(np.float32(s)) for s in p.std],
        "scale": float(np.float32(p.scale)), "channel_order": p.channel_order, "layout": "NCHW", "type": "FLOAT32",
        **more,
    }  # fmt: skip


def prepared(jvm: Jvm, case: Case, folder: Path, **more: Any) -> tuple[NDArray[np.float32], int]:
    """The tensor (C, H, W) of the compiled Kotlin, and how many pixels of the photo it read."""
    argb, out = folder / "argb", folder / "out"
    case.argb.astype("<u4").tofile(argb)
    height, width = case.argb.shape
    request = spec(case.preprocess, **more)
    answer = jvm.ask(
        "prepare", argb=str(argb), width=width, height=height, orientation=case.orientation, out=str(out), **request
    )
    assert "error" not in answer, answer
    channels, rows, columns = case.tensor.shape
    values = np.fromfile(out, "<f4")
    if request["layout"] == "NHWC":
        return values.reshape(rows, columns, channels).transpose(2, 0, 1), answer["pixels"]
    return values.reshape(case.tensor.shape), answer["pixels"]


@pytest.fixture(scope="session")
def all_cases() -> list[Case]:
    return list(cases())


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_photos_become_the_tensors_of_python(jvm: Jvm, all_cases: list[Case], tmp_path: Path, layout: str) -> None:
    """Not within 1/255 but equal: the weights are Pillow's to the bit, so no value may differ by more than an ulp."""
    count = 0
    for case in all_cases:
        tensor, read = prepared(jvm, case, tmp_path, layout=layout)
        # Only what the crop shows is ever read: of 4032 x 3024 pixels 57 %.
        assert read < 0.6 * case.argb.size if case.name == "huge" else read <= case.argb.size
        difference = np.abs(tensor - case.tensor)
        assert (difference <= case.step[:, None, None] * 1.001).all(), case.name
        off = int((difference > np.spacing(np.abs(case.tensor))).sum())
        assert off == 0, f"{case.name}: {off} of {tensor.size} values differ"
        count += 1
    assert count > 35


def test_integer_inputs_are_quantized(jvm: Jvm, all_cases: list[Case], tmp_path: Path) -> None:
    case = all_cases[0]
    for kind, low, dtype in (("INT8", -128, np.int8), ("UINT8", 0, np.uint8)):
        scale, zero = np.float32(0.0187), 114 + low
        more = {"type": kind, "layout": "NHWC", "scale_in": float(scale), "zero_point": zero}
        argb, out = tmp_path / "argb", tmp_path / "out"
        case.argb.astype("<u4").tofile(argb)
        answer = jvm.ask(
            "prepare", argb=str(argb), width=64, height=64, orientation=1, out=str(out), **spec(case.preprocess, **more)
        )
        assert "error" not in answer
        expected = np.clip(np.rint(case.tensor / scale) + zero, low, low + 255).astype(dtype).transpose(1, 2, 0)
        assert np.array_equal(np.fromfile(out, dtype).reshape(expected.shape), expected)


def yuv_frame(
    width: int, height: int, row_stride: int, uv_row_stride: int, uv_pixel_stride: int, folder: Path
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The planes of a frame as a camera gives them, the last row cut short, and its pixels by plain arithmetic."""
    rng = np.random.default_rng(width)
    rgb = np.asarray(photo(width, height, 11), np.float64)
    y = np.clip(rgb @ (0.299, 0.587, 0.114), 0, 255).astype(np.uint8)
    u, v = (rng.integers(0, 256, ((height + 1) // 2, (width + 1) // 2), dtype=np.uint8) for _ in range(2))
    request = {"width": width, "height": height}
    for name, plane, stride, step in (("y", y, row_stride, 1), ("u", u, uv_row_stride, uv_pixel_stride),
                                      ("v", v, uv_row_stride, uv_pixel_stride)):  # fmt: skip
        rows, columns = plane.shape
        memory = rng.integers(0, 256, rows * stride + columns * step, dtype=np.uint8)
        places = np.arange(rows)[:, None] * stride + np.arange(columns) * step
        memory[places] = plane
        file = folder / name
        memory[: places[-1, -1] + 1].tofile(file)
        request[name] = {"file": str(file), "row_stride": stride, "pixel_stride": step}
    big_u, big_v = (np.repeat(np.repeat(c, 2, 0), 2, 1)[:height, :width].astype(np.float64) - 128 for c in (u, v))
    luma = y.astype(np.float64)
    pixels = np.stack([luma + 1.402 * big_v, luma - 0.344136 * big_u - 0.714136 * big_v, luma + 1.772 * big_u], -1)
    return request, np.clip(np.floor(pixels + 0.5), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, -90])
@pytest.mark.parametrize("planes", [(64, 32, 1), (80, 96, 2), (64, 64, 2)])
def test_camera_frames_become_upright_pixels(
    jvm: Jvm, tmp_path: Path, planes: tuple[int, int, int], rotation: int
) -> None:
    request, pixels = yuv_frame(64, 48, *planes, tmp_path)
    # The crop rectangle starts at odd coordinates, within a block of chroma.
    left, top, width, height = 3, 5, 51, 41
    p = Preprocess(resize=41, crop=(32, 36), scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    out = tmp_path / "out"
    answer = jvm.ask(
        "yuv",
        **{**request, "width": width, "height": height},
        left=left,
        top=top,
        rotation=rotation,
        out=str(out),
        **spec(p),
    )
    assert "error" not in answer, answer
    upright = np.rot90(pixels[top : top + height, left : left + width], -rotation // 90)
    y0, x0 = round((upright.shape[0] - 32) / 2), round((upright.shape[1] - 36) / 2)
    expected = normalize(p, upright[y0 : y0 + 32, x0 : x0 + 36].astype(np.float32))
    difference = np.abs(np.fromfile(out, "<f4").reshape(3, 32, 36) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_a_frame_is_turned_by_right_angles_only(jvm: Jvm, tmp_path: Path) -> None:
    request, _ = yuv_frame(64, 48, 64, 32, 1, tmp_path)
    answer = jvm.ask("yuv", **request, left=0, top=0, rotation=45, out="", **spec(Preprocess(resize=41, crop=(32, 32))))
    assert "45 degrees is no multiple of 90" in answer["error"]


def golden_request(artifact: Artifact, file: Path, **more: Any) -> dict[str, Any]:
    p, out = artifact.manifest.preprocess, artifact.manifest.outputs[0]
    assert p
    layout = artifact.manifest.inputs[0].layout
    return {"file": str(file), "integers": False, **spec(p, layout=layout, classes=out.shape[1], **more)}


@pytest.mark.parametrize("name", ["net-executorch-fp32", "net-tflite-fp32", "net-onnx-int8", "micronet-m0-onnx-fp32"])
def test_golden_vectors_are_read_and_compared(
    built: Built, jvm: Jvm, artifacts: dict[str, Artifact], name: str
) -> None:
    artifact = artifacts[name]
    file = next((built.modules[name] / "src/androidTest/assets").rglob("golden.safetensors"))
    inputs, _ = read_golden(artifact)
    request = golden_request(artifact, file)
    exact = jvm.ask("golden", **request)
    assert exact["samples"] == len(inputs)
    assert exact["failures"] == []
    assert exact["top1"] == 1
    assert exact["sum"] == pytest.approx(float(inputs[0][0].astype(np.float64).sum()), rel=1e-12, abs=1e-9)
    assert exact["first"] == pytest.approx([float(x) for x in inputs[0][0].ravel()[:5]], abs=0)
    noisy = jvm.ask("golden", **request, noise=0.01)
    assert noisy["sqnr"] == pytest.approx(40, abs=0.01)  # ±1 % of each score
    assert noisy["failures"] == []
    assert jvm.ask("golden", **{**request, "min_sqnr_db": 41.0}, noise=0.01)["failures"] == [
        "SQNR 40.0 dB is below 41.0 dB"
    ]
    shifted = jvm.ask("golden", **request, shift=1)
    assert len(shifted["failures"]) == 2, shifted
    assert "another likeliest class" in shifted["failures"][1]
    assert len(jvm.ask("golden", **{**request, "integers": True}, shift=1)["failures"]) >= 1


def test_damaged_golden_files_are_refused(
    built: Built, jvm: Jvm, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    artifact = artifacts["net-onnx-fp32"]
    whole = (artifact.path / "golden.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])

    def changed(**values: Any) -> bytes:
        text = json.dumps({**header, "input.0": {**header["input.0"], **values}}).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    begin, end = header["input.0"]["data_offsets"]
    damaged = {
        "": b"",
        "longer than the file": struct.pack("<Q", len(whole)) + whole[8:],
        "negative": struct.pack("<q", -5) + whole[8:],
        "huge": struct.pack("<Q", 2**63 - 1) + whole[8:],
        "no json": whole[:8] + b"x" * length + whole[8 + length :],
        "cut": whole[:-4],
        "beyond": changed(data_offsets=[len(whole), len(whole) + end - begin]),
        "before": changed(data_offsets=[-4, end - begin - 4]),
        "backwards": changed(data_offsets=[end, begin]),
        "overflow": changed(data_offsets=[2**62, 2**62 + end - begin]),
        "other size": changed(shape=[1, 3, 64, 63]),
        "other shape": changed(shape=[1, 64, 64, 3]),
        "huge shape": changed(shape=[2**31 - 1] * 4),
        "other type": changed(dtype="F64"),
    }
    for name, content in damaged.items():
        file = tmp_path / "golden.safetensors"
        file.write_bytes(content)
        answer = jvm.ask("golden", **golden_request(artifact, file))
        assert answer.get("error", "").startswith("IllegalArgumentException"), (name, answer)


def test_classes_are_ranked_as_python_ranks_them(jvm: Jvm) -> None:
    rng = np.random.default_rng(0)
    for scores in (rng.integers(0, 4, 50).astype(np.float32), rng.normal(0, 30, 1000).astype(np.float32)):
        answer = jvm.ask("rank", scores=scores.tolist(), k=20)
        expected = np.argsort(-scores, kind="stable")[:20]
        assert answer["order"] == expected.tolist()
        powers = np.exp(scores.astype(np.float64) - scores.max())
        assert [float(p) for p in answer["probabilities"]] == pytest.approx((powers / powers.sum())[expected], rel=1e-6)
    few = jvm.ask("rank", scores=[1, None, 3], k=9)
    assert few["order"] == [2, 0, 1]
    assert few["labels"] == ["2", "zero", "one"]


def test_a_classifier_runs_one_photo_at_a_time_and_closes_once(jvm: Jvm) -> None:
    answer = jvm.ask("classifier")
    assert answer.pop("after") == "java.lang.IllegalStateException: fake is closed"
    assert answer == {
        "labels": ["b", "c"], "same": 1, "most": 1, "closes": 1, "used_after_close": False,
        "refused": ["IllegalStateException"],
    }  # fmt: skip


def errors_in(tree: Any) -> list[str]:
    """The places where a syntax tree could not be made."""
    nodes, found = [tree.root_node], []
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            found.append(f"line {node.start_point[0] + 1}: {node.text[:60]!r}")
        nodes.extend(node.children)
    return found


def test_every_generated_file_parses(modules: dict[str, Path]) -> None:
    """Build scripts too, which no compiler reads here."""
    import tree_sitter
    import tree_sitter_kotlin

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_kotlin.language()))
    assert errors_in(parser.parse(b"fun broken( {")), "the parser sees nothing"
    for folder in modules.values():
        files = [*kotlin_files(folder), folder / "build.gradle.kts"]
        assert len(files) > 15
        for file in files:
            assert errors_in(parser.parse(file.read_bytes())) == [], file


def test_a_module_holds_the_model_and_what_runs_it(modules: dict[str, Path], artifacts: dict[str, Artifact]) -> None:
    libraries = {
        "tflite": ("com.google.ai.edge.litert:litert:", "LiteRtModel.kt", "com.google.ai.edge.litert.**"),
        "executorch": ("org.pytorch:executorch-android:", "ExecuTorchModel.kt", "com.facebook.jni.**"),
        "onnx": ("com.microsoft.onnxruntime:onnxruntime-android:", "OnnxModel.kt", "ai.onnxruntime.**"),
    }
    for name, artifact in artifacts.items():
        folder, target = modules[name], artifact.manifest.target
        library, source, kept = libraries[target]
        build = (folder / "build.gradle.kts").read_text()
        suffix = artifact.model_path.suffix.removeprefix(".")
        assert library in build
        assert f'noCompress += listOf("{suffix}"' in build
        assert f"-keep class {kept} {{ *; }}" in (folder / "consumer-rules.pro").read_text()
        files = {p.name: p for p in folder.rglob("*") if p.is_file()}
        assert source in files
        assert not {s for _, s, _ in libraries.values()} - {source} & set(files)
        assert files[artifact.model_path.name].read_bytes() == artifact.model_path.read_bytes()
        assert "src/main/assets" in files[artifact.model_path.name].as_posix()
        assert "src/androidTest/assets" in files["golden.safetensors"].as_posix()
        readme = files["README.md"].read_text()
        assert "16 KB pages" in readme
        assert "connectedAndroidTest" in readme
        package = f"edgekit.{artifact.manifest.name}_{target}_{artifact.manifest.precision}".replace("-", "_")
        assert f'namespace = "{package}"' in build
        assert all(f"package {package}\n" in p.read_text() for p in files.values() if p.suffix == ".kt")


@pytest.mark.parametrize(
    "package",
    ["flowers", "com.class.x", "com.fun", "1com.x", "com..x", "com.x-y", "java.x", "com.é", 'com.x"', "com.x\n"],
)
def test_a_package_that_is_none_is_refused(
    cli: Cli, artifacts: dict[str, Artifact], tmp_path: Path, package: str
) -> None:
    source = artifacts["net-onnx-fp32"].path
    result = cli("embed", source, "--platform", "android", "--package", package, "-o", tmp_path / "m")
    assert result.code == 2
    assert "is no package of an app" in result.err
    assert "com.example.flowers" in result.err
    assert not any(tmp_path.iterdir())


def test_the_command_line_replaces_only_what_it_made(cli: Cli, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    source, out = artifacts["net-onnx-fp32"].path, tmp_path / "app" / "flowers"
    arguments = ("embed", source, "--platform", "android", "-o", out)
    done = cli(*arguments, "--package", "com.example.flowers")
    assert done.code == 0
    assert "NetClassifier in com.example.flowers" in done.out
    kept = out / "note.txt"
    kept.write_text("mine")
    again = cli(*arguments)
    assert again.code == 2
    assert kept.exists()
    shown = json.loads(cli(*arguments, "--force", "--json").out)
    assert shown["package"] == "edgekit.net_onnx_fp32"
    assert not kept.exists()
    assert sorted(shown["files"]) == sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    (out / "edgekit.json").unlink()
    refused = cli(*arguments, "--force")
    assert refused.code == 2
    assert "holds files that `embed` did not write" in refused.err
    unknown = cli("embed", source, "--platform", "andriod", "-o", tmp_path / "x")
    assert unknown.code == 2
    assert "android" in unknown.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"dtype": "float16"}, "float32, int8, uint8 are possible"),
        ({"layout": ""}, "no image's layout"),
        ({"shape": (1, 3, 64, 32)}, "is not what its preprocessing gives"),
    ],
)
def test_an_input_that_kotlin_does_not_prepare_is_refused(
    artifacts: dict[str, Artifact], tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    artifact = artifacts["net-onnx-fp32"]
    (spec_,) = artifact.manifest.inputs
    odd = replace(artifact, manifest=replace(artifact.manifest, inputs=(replace(spec_, **changes),)))
    with pytest.raises(edgekit.errors.BadInput, match=what):
        embed(odd, "android", tmp_path / "m")
    assert not any(tmp_path.iterdir())
