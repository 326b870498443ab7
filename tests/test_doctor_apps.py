"""`edgekit doctor --platform`: each check finds what it is for, in real archives and projects, and nothing else."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit import app_checks, apps
from edgekit.app_checks.axml import manifest_values
from edgekit.app_checks.files import Unreadable, files_of
from edgekit.app_checks.gradle import read_project
from edgekit.app_checks.keep_rules import keep_rules
from edgekit.app_checks.runtimes import EXECUTORCH, LITERT, ONNX, older, since
from edgekit.errors import BadInput, UnknownName
from edgekit.types import Artifact, Finding
from tests.apps import built
from tests.apps.built import Apk, Stored, edit, write
from tests.conftest import Cli

Libraries = dict[tuple[str, int], bytes]
Break = Callable[[Path], object]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    """Shared libraries by (ABI, page size), from real compilers."""
    if compiler := built.missing_compiler():
        reason = f"no {compiler} here; Debian: apt install gcc-aarch64-linux-gnu"
        if os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
            pytest.fail(reason)
        pytest.skip(reason)
    out = tmp_path_factory.mktemp("libraries")
    kinds = [("arm64-v8a", 4096), ("arm64-v8a", 16384), ("x86_64", 4096), ("x86_64", 16384), ("x86", 4096)]
    return {(abi, page): built.compile_library(out, abi, page) for abi, page in kinds}


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A small model of a user in all four targets, by target; not verified."""
    import torch
    from torch import nn

    import edgekit

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    out = tmp_path_factory.mktemp("artifacts")
    made = edgekit.export(net.eval(), "all", input_shape=[(1, 3, 48, 48)], out=out, verify=False)
    return {a.manifest.target: a for a in made}


def statuses(findings: tuple[Finding, ...]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in findings:
        found.setdefault(finding.check, set()).add(finding.status)
    return found


def manifest_of(**models: bytes) -> str:
    """An edgekit.json that lists these model files: pte=… is model.pte."""
    files = {f"model.{kind}": {"bytes": len(m), "sha256": hashlib.sha256(m).hexdigest()} for kind, m in models.items()}
    return json.dumps({"schema": 1, "files": files})


# Gradle projects


def gradle_project(folder: Path, libraries: Libraries, build: str = "build.gradle.kts") -> Path:
    """An app with two runtimes and models, nothing wrong with it."""
    return write(
        folder,
        {
            "settings.gradle.kts": 'include(":app")\n',
            "gradle/libs.versions.toml": built.CATALOG,
            f"app/{build}": built.APP_BUILD if build.endswith(".kts") else built.GROOVY_BUILD,
            "app/proguard-rules.pro": built.RULES,
            "app/src/main/assets/flowers/edgekit.json": manifest_of(onnx=b"a model"),
            "app/src/main/assets/flowers/model.onnx": b"a model",
            "app/src/main/assets/other.pte": b"another",
            "app/src/main/jniLibs/arm64-v8a/libimage.so": libraries["arm64-v8a", 16384],
            "app/src/main/jniLibs/x86_64/libimage.so": libraries["x86_64", 16384],
        },
    )


def kts(old: str, new: str) -> Break:
    return lambda project: edit(project / "app/build.gradle.kts", old, new)


def project_breaks(libraries: Libraries) -> dict[str, Break]:
    """What is done to the good project so that one check, by name, finds it wrong."""
    return {
        "keep-rules": lambda p: edit(p / "app/proguard-rules.pro", "com.facebook.jni.**", "com.facebook.jni.Nothing"),
        "library-pages": lambda p: write(p, {"app/src/main/jniLibs/x86_64/libimage.so": libraries["x86_64", 4096]}),
        "archive-pages": kts('version "8.9.0"', 'version "8.5.0"'),
        "runtime-pages": kts('runtime = "1.29.0"', 'runtime = "1.21.1"'),
        "abis": kts('"arm64-v8a", "x86_64"', '"x86_64"'),
        "compression": kts('"onnx", "pte"', '"pte"'),
        "min-sdk": kts("minSdk = 24", "minSdk = 23"),
        "runtimes": lambda p: write(p, {"app/src/main/assets/third.tflite": b"model"}),
        "models": lambda p: write(p, {"app/src/main/assets/flowers/model.onnx": b"another"}),
    }


@pytest.mark.parametrize("build", ["build.gradle.kts", "build.gradle"])
def test_a_good_project_has_nothing_wrong(build: str, tmp_path: Path, libraries: Libraries) -> None:
    found = app_checks.check_app("android", gradle_project(tmp_path, libraries, build))
    if build.endswith("kts"):
        assert statuses(found) == {check.name: {"ok"} for check in app_checks.ANDROID.checks}
    else:  # the plugin's version stands nowhere in it
        assert [f.check for f in found if f.status != "ok"] == ["archive-pages"]
        assert "not checked" in next(f for f in found if f.status != "ok").detail


@pytest.mark.parametrize("check", [c.name for c in app_checks.ANDROID.checks])
def test_each_check_finds_its_own_in_a_project(check: str, tmp_path: Path, libraries: Libraries) -> None:
    project = gradle_project(tmp_path, libraries)
    project_breaks(libraries)[check](project)
    found = app_checks.check_app("android", project)
    assert {f.check for f in found if f.status == "wrong"} == {check}
    for finding in (f for f in found if f.status == "wrong"):
        assert finding.remedy
        assert (project / finding.file).exists()


def test_a_finding_says_file_and_line(tmp_path: Path, libraries: Libraries) -> None:
    project = gradle_project(tmp_path, libraries)
    kts("minSdk = 24", "minSdk = 21")(project)
    (finding, other) = (f for f in app_checks.check_app("android", project) if f.status == "wrong")
    assert (finding.file, finding.line) == ("app/build.gradle.kts", 9)
    assert "ExecuTorch 1.5.1 needs 23" in finding.detail
    assert finding.remedy == "minSdk = 23"
    assert other.remedy == "minSdk = 24"


@pytest.mark.parametrize(
    ("old", "new", "check", "words"),
    [
        ("isMinifyEnabled = true", "isMinifyEnabled = false", "keep-rules", ""),
        ("isMinifyEnabled = true", 'isMinifyEnabled = hasProperty("r8")', "keep-rules", "computed"),
        ("minSdk = 24", "minSdk = rootProject.extra.get(...)", "min-sdk", "not said in numbers"),
        ('"arm64-v8a", "x86_64"', '"arm64-v8a", "armeabi-v7a"', "abis", "ExecuTorch is missing for armeabi-v7a"),
        ("ndk { abiFilters", "// {", "abis", "ExecuTorch is missing for armeabi-v7a, x86, where others are"),
        ('runtime = "1.29.0"', 'runtime = "1.22.0"', "runtime-pages", "reports differ"),
        ('runtime = "1.29.0"', 'runtime = "latest.release"', "runtime-pages", "is not in these files"),
        ('"proguard-rules.pro"', '"other.pro"', "keep-rules", "is not there"),
        ("noCompress += listOf", 'noCompress.add("tflite") //', "compression", ".pte files are compressed"),
    ],
)
def test_settings_are_read_as_gradle_reads_them(
    old: str, new: str, check: str, words: str, tmp_path: Path, libraries: Libraries
) -> None:
    project = gradle_project(tmp_path, libraries)
    write(project, {"app/proguard-rules.pro": ""})
    kts(old, new)(project)
    details = [f.detail for f in app_checks.check_app("android", project) if f.check == check and f.status != "ok"]
    assert any(words in d for d in details) if words else not details


def test_a_library_leaves_compression_to_the_app(tmp_path: Path, libraries: Libraries) -> None:
    project = gradle_project(tmp_path, libraries)
    kts("com.android.application", "com.android.library")(project)
    found = [f for f in app_checks.check_app("android", project / "app") if f.check == "compression"]
    assert {f.status for f in found} == {"unknown"}
    assert found[0].remedy.endswith('noCompress += "onnx" }')


def test_a_module_uses_the_catalog_of_its_project(tmp_path: Path, libraries: Libraries) -> None:
    project = read_project(files_of(gradle_project(tmp_path, libraries) / "app"))
    assert [(d.name, d.version) for d in project.dependencies] == [
        ("org.pytorch:executorch-android", "1.5.1"),
        ("com.microsoft.onnxruntime:onnxruntime-android", "1.29.0"),
    ]
    assert project.plugin == "8.9.0"


def test_an_aar_in_a_project_is_read_too(tmp_path: Path, libraries: Libraries) -> None:
    project = gradle_project(tmp_path, libraries)
    content = {"AndroidManifest.xml": Stored(b"<manifest/>")}
    content |= {f"jni/{a}/libold.so": Stored(libraries[a, 4096]) for a in ("arm64-v8a", "x86_64")}
    Apk(content).write(project / "app/old.aar")
    wrong = [f for f in app_checks.check_app("android", project) if f.status == "wrong"]
    assert [(f.check, f.file) for f in wrong] == [
        ("library-pages", "old.aar!jni/arm64-v8a/libold.so"),
        ("library-pages", "old.aar!jni/x86_64/libold.so"),
    ]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("-keep class ai.onnxruntime.** { *; }", True),
        ("-keep public class ai.onnxruntime.**{*;}", True),
        ("-keep class ai.onnxruntime.*,other.** {\n  *;\n}", True),
        ("-keepclasseswithmembers class ai.** { native <methods>; }", True),
        ("-keep class ** { *; }", True),
        ("# -keep class ai.onnxruntime.** { *; }", False),
        ("-keepnames class ai.onnxruntime.** { *; }", False),
        ("-keep,allowobfuscation class ai.onnxruntime.** { *; }", False),
        ("-keep class ai.onnxruntime.**", False),
        ("-keep class ai.* { *; }", False),
        ("-keep @some.Other class ai.onnxruntime.** { *; }", False),
        ("-keep @com.facebook.jni.annotations.DoNotStrip class ai.onnxruntime.** { *; }", True),
    ],
)
def test_rules_are_read_as_r8_reads_them(rule: str, kept: bool) -> None:
    assert any(r.keeps("ai.onnxruntime.OnnxTensor") for r in keep_rules(f"-dontwarn x.**\n{rule}\n-dontwarn y")) is kept


def test_rules_without_end_are_read_at_once() -> None:
    assert keep_rules("-keep " + "public " * 500) == ()


# Archives

DEX = b"dex\n035\0" + b"\0".join(
    b"L" + name.replace(".", "/").encode() + b";" for name in ("ai.onnxruntime.OnnxTensor", "ai.onnxruntime.TensorInfo")
)


def good_apk(libraries: Libraries) -> Apk:
    files = {
        "AndroidManifest.xml": Stored(built.lower_min_sdk(built.MANIFEST, 24)),
        "classes.dex": Stored(DEX, deflated=True),
        "assets/flowers/edgekit.json": Stored(manifest_of(onnx=b"m" * 5000).encode(), deflated=True),
        "assets/flowers/model.onnx": Stored(b"m" * 5000),
    }
    for abi in ("arm64-v8a", "x86_64"):
        files[f"lib/{abi}/libonnxruntime4j_jni.so"] = Stored(libraries[abi, 16384], align=16384)
    return Apk(files)


ARM = "lib/arm64-v8a/libonnxruntime4j_jni.so"


def apk_breaks(libraries: Libraries) -> dict[str, dict[str, Stored | None]]:
    """Files of the good APK that are replaced, or removed (None), so that a check finds it wrong."""
    good = libraries["arm64-v8a", 16384]
    return {
        "keep-rules": {"classes.dex": Stored(b"dex\n035\0La/b;", deflated=True)},
        "library-pages": {ARM: Stored(libraries["arm64-v8a", 4096], align=16384)},
        "archive-pages": {ARM: Stored(good, align=16384, shift=4096)},
        "abis": {ARM: None},
        "compression": {"assets/flowers/model.onnx": Stored(b"m" * 5000, deflated=True)},
        "min-sdk": {"AndroidManifest.xml": Stored(built.lower_min_sdk(built.MANIFEST, 19))},
        "runtimes": {"assets/second.tflite": Stored(b"model")},
        "models": {"assets/flowers/model.onnx": Stored(b"n" * 5000)},
    }


def test_a_good_apk_has_nothing_wrong(tmp_path: Path, libraries: Libraries) -> None:
    found = app_checks.check_app("android", good_apk(libraries).write(tmp_path / "good.apk"))
    assert statuses(found) == {check.name: {"ok"} for check in app_checks.ANDROID.checks}


@pytest.mark.parametrize("check", [c.name for c in app_checks.ANDROID.checks if c.name != "runtime-pages"])
def test_each_check_finds_its_own_in_an_apk(check: str, tmp_path: Path, libraries: Libraries) -> None:
    """Of a release's version an archive says nothing: its libraries are read instead."""
    files = good_apk(libraries).files | apk_breaks(libraries)[check]
    path = Apk({k: v for k, v in files.items() if v is not None}).write(tmp_path / "bad.apk")
    found = app_checks.check_app("android", path)
    assert {f.check for f in found if f.status == "wrong"} == {check}
    assert all(f.file.startswith("bad.apk") and f.remedy for f in found if f.status == "wrong")


def test_a_compressed_library_cannot_be_installed(tmp_path: Path, libraries: Libraries) -> None:
    files = good_apk(libraries).files | {ARM: Stored(libraries["arm64-v8a", 16384], deflated=True)}
    (finding,) = (
        f for f in app_checks.check_app("android", Apk(files).write(tmp_path / "a.apk")) if f.status == "wrong"
    )
    assert "extractNativeLibs=false" in finding.detail
    at = built.MANIFEST.index(b"\x08\x00\x00\x12")
    extracts = built.MANIFEST[: at + 4] + b"\xff\xff\xff\xff" + built.MANIFEST[at + 8 :]
    files["AndroidManifest.xml"] = Stored(built.lower_min_sdk(extracts, 24))
    assert all(f.status == "ok" for f in app_checks.check_app("android", Apk(files).write(tmp_path / "b.apk")))


def test_small_pages_of_32_bits_are_right(tmp_path: Path, libraries: Libraries) -> None:
    files = good_apk(libraries).files | {
        "lib/x86/libonnxruntime4j_jni.so": Stored(libraries["x86", 4096], align=4096),
        "lib/x86/libwide.so": Stored(libraries["x86_64", 16384], align=16384),
    }
    files |= {f"lib/{a}/libwide.so": Stored(libraries[a, 16384], align=16384) for a in ("arm64-v8a", "x86_64")}
    wrong = [f for f in app_checks.check_app("android", Apk(files).write(tmp_path / "a.apk")) if f.status == "wrong"]
    assert [f.detail[:20] for f in wrong] == ["a library of 64 bits"]


def test_a_runtime_inside_something_else_is_not_denied(tmp_path: Path, libraries: Libraries) -> None:
    """A model that C++ or another SDK runs, or that may be run by a library of the app's own."""
    project = gradle_project(tmp_path / "project", libraries)
    write(project, {"app/src/main/assets/third.tflite": b"model"})
    assert statuses(app_checks.check_app("android", project))["runtimes"] == {"wrong"}
    kts(
        'implementation("com.mic',
        'implementation("com.google.mediapipe:tasks-vision:0.10.26")\nimplementation("com.mic',
    )(project)
    assert statuses(app_checks.check_app("android", project))["runtimes"] == {"ok"}
    kts("com.google.mediapipe", "com.example")(project)
    write(project, {"app/src/main/cpp/CMakeLists.txt": ""})
    assert statuses(app_checks.check_app("android", project))["runtimes"] == {"unknown"}
    files = {k: v for k, v in good_apk(libraries).files.items() if not k.startswith("lib/")}
    for library, status in (("libonnxruntime.so", "ok"), ("libmine.so", "unknown"), ("libfbjni.so", "wrong")):
        packed = files | {f"lib/arm64-v8a/{library}": Stored(libraries["arm64-v8a", 16384], align=16384)}
        found = app_checks.check_app("android", Apk(packed).write(tmp_path / f"{status}.apk"))
        assert statuses(found)["runtimes"] == {status}


def test_what_is_typed_is_what_modules_are_made_with() -> None:
    """Coordinates stand in two rooms that may not know each other."""
    from edgekit.apps.android_runtimes import RUNTIMES

    assert {r.remedy for r in (EXECUTORCH, LITERT, ONNX)} == {
        f'implementation("{r.library}")' for r in RUNTIMES.values()
    }


def test_aab_and_aar_are_read(tmp_path: Path, libraries: Libraries) -> None:
    bundle = {"BundleConfig.pb": Stored(b""), "base/dex/classes.dex": Stored(DEX)}
    bundle |= {f"base/lib/{a}/libonnxruntime4j_jni.so": Stored(libraries[a, 4096]) for a in ("arm64-v8a", "x86_64")}
    found = statuses(app_checks.check_app("android", Apk(bundle).write(tmp_path / "a.aab")))
    assert found["library-pages"] == {"wrong"}
    assert found["min-sdk"] == found["archive-pages"] == {"unknown"}
    assert found["keep-rules"] == {"ok"}
    module = {"AndroidManifest.xml": Stored(b'<manifest><uses-sdk android:minSdkVersion="19"/></manifest>')}
    module["jni/arm64-v8a/libonnxruntime4j_jni.so"] = Stored(libraries["arm64-v8a", 16384])
    found = statuses(app_checks.check_app("android", Apk(module).write(tmp_path / "a.aar")))
    assert found["keep-rules"] == found["min-sdk"] == {"wrong"}
    module["proguard.txt"] = Stored(built.RULES.encode())
    found = statuses(app_checks.check_app("android", Apk(module).write(tmp_path / "b.aar")))
    assert found["keep-rules"] == {"ok"}


# Hostile input


@pytest.mark.parametrize("length", [0, 3, 40, 63, 70, 200])
def test_a_library_that_is_cut_off_is_a_finding(length: int, tmp_path: Path, libraries: Libraries) -> None:
    files = good_apk(libraries).files | {ARM: Stored(libraries["arm64-v8a", 16384][:length], align=16384)}
    (finding,) = (
        f for f in app_checks.check_app("android", Apk(files).write(tmp_path / "a.apk")) if f.status == "wrong"
    )
    assert finding.check == "library-pages"
    assert finding.file == f"a.apk!{ARM}"


@pytest.mark.parametrize("offset", [2**64 - 1, 2**63, 10**9])
def test_a_library_whose_table_is_elsewhere_is_a_finding(offset: int, tmp_path: Path, libraries: Libraries) -> None:
    library = bytearray(libraries["arm64-v8a", 16384])
    struct.pack_into("<Q", library, 32, offset)
    files = good_apk(libraries).files | {ARM: Stored(bytes(library), align=16384)}
    found = app_checks.check_app("android", Apk(files).write(tmp_path / "a.apk"))
    assert statuses(found)["library-pages"] == {"wrong"}


def test_damaged_archives_are_errors(tmp_path: Path, libraries: Libraries) -> None:
    whole = good_apk(libraries).write(tmp_path / "a.apk").read_bytes()
    for n, content in enumerate((b"", b"PK", whole[:1000], whole[: len(whole) // 2], whole[:-10], b"x" * 70_000)):
        (tmp_path / f"{n}.apk").write_bytes(content)
        with pytest.raises(BadInput):
            app_checks.check_app("android", tmp_path / f"{n}.apk")


def test_every_cut_and_every_changed_byte_is_an_answer(tmp_path: Path) -> None:
    """Of a small archive: findings or an error of edgekit's, never anything else."""
    files = {
        "AndroidManifest.xml": Stored(built.MANIFEST, deflated=True),
        "assets/a.onnx": Stored(b"m" * 40, deflated=True),
    }
    files |= {"classes.dex": Stored(DEX, deflated=True), "assets/edgekit.json": Stored(b"[[[" * 50)}
    files |= {"lib/x86/libonnxruntime4j_jni.so": Stored(b"\x7fELF" + bytes(60), deflated=True)}
    whole = Apk(files).write(tmp_path / "a.apk").read_bytes()
    for n in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[n] ^= 0xFF
        for content in (bytes(changed), whole[:n]):
            (tmp_path / "b.apk").write_bytes(content)
            with contextlib.suppress(BadInput):
                assert app_checks.check_app("android", tmp_path / "b.apk")


def test_a_manifest_that_is_cut_or_changed_is_an_answer() -> None:
    for n in range(len(built.MANIFEST)):
        for changed in (built.MANIFEST[:n], built.MANIFEST[:n] + b"\0" + built.MANIFEST[n + 1 :]):
            with contextlib.suppress(Unreadable):
                manifest_values(changed)
    assert manifest_values(built.MANIFEST) == (21, False)
    # An element whose 65,535 attributes take no room: believed, a small file would take minutes.
    element = struct.pack("<HHI", 0x0102, 16, 36) + bytes(16) + struct.pack("<HHH", 0, 0, 0xFFFF) + bytes(6)
    with pytest.raises(Unreadable, match="attributes"):
        manifest_values(struct.pack("<HHI", 0x0003, 8, 44) + element)


@pytest.mark.parametrize("name", ["../out.so", "/etc/lib.so", "lib\\..\\x.so"])
def test_an_archive_that_leads_outside_is_an_error(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.apk", "w") as archive:
        archive.writestr("AndroidManifest.xml", built.MANIFEST)
        info = zipfile.ZipInfo("x")
        info.filename = name  # ZipInfo itself would make it harmless
        archive.writestr(info, b"")
    with pytest.raises(BadInput):
        app_checks.check_app("android", tmp_path / "a.apk")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.app_checks import models

    monkeypatch.setattr(models, "SCAN_LIMIT", 1 << 22)
    monkeypatch.setattr(models, "LARGE_TEXT", 1 << 22)
    bomb = Stored(bytes(1 << 24), deflated=True)
    entries = good_apk(libraries).files | {
        "assets/flowers/model.onnx": bomb,
        "assets/second/edgekit.json": bomb,
        ARM: Stored(libraries["arm64-v8a", 16384] + bytes(1 << 24), align=16384),
    }
    found = app_checks.check_app("android", Apk(entries).write(tmp_path / "a.apk"))
    assert sum("is larger than" in f.detail for f in found if f.check == "models") == 2
    assert statuses(found)["library-pages"] == {"ok"}


@pytest.mark.parametrize(
    "text",
    ["android {" * 3000, '"' * 999, "/*", "implementation(" * 500, "minSdk = " + "9" * 5000, "\0", "abiFilters +="],
)
def test_strange_build_files_are_answers(text: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        {"build.gradle": text, "settings.gradle": "", "gradle/libs.versions.toml": "= =", "gradle.properties": "=\n#"},
    )
    assert app_checks.check_app("android", tmp_path)
    write(tmp_path, {"build.gradle": b"\xff\xfe" + text.encode()})
    assert any(f.status == "unknown" and "UTF-8" in f.detail for f in app_checks.check_app("android", tmp_path))


def test_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "app", {"build.gradle": "android {\n}\n"})
    write(tmp_path, {"outside/model.tflite": b"m"})
    (tmp_path / "app/assets").symlink_to(tmp_path / "outside")
    (tmp_path / "app/round").symlink_to(tmp_path / "app")
    write(tmp_path / "app", {"ml/labels.txt": "a"})
    (tmp_path / "app/ml/model.tflite").symlink_to(tmp_path / "outside/model.tflite")
    assert all(f.status == "ok" for f in app_checks.check_app("android", tmp_path / "app"))


# iOS


def swift_package(folder: Path, artifacts: dict[str, Artifact], xcode: bool = False) -> Path:
    """An app of two models with nothing wrong, as a Swift package or as an Xcode project."""
    resources = folder / ("App" if xcode else "Sources/Flowers/Resources")
    for target, name in (("coreml", "flowers"), ("executorch", "second")):
        artifact = artifacts[target].path
        model = next(artifact.glob("model.*"))
        home = resources / name
        home.mkdir(parents=True)
        (shutil.copytree if model.is_dir() else shutil.copyfile)(model, home / model.name)
        shutil.copyfile(artifact / "edgekit.json", home / "edgekit.json")
    return write(
        folder, {"App.xcodeproj/project.pbxproj": built.PROJECT} if xcode else {"Package.swift": built.PACKAGE}
    )


def ios_breaks(xcode: bool) -> dict[str, Break]:
    file = "App.xcodeproj/project.pbxproj" if xcode else "Package.swift"
    resources = "App" if xcode else "Sources/Flowers/Resources"
    weights = f"{resources}/flowers/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    return {
        "deployment-target": lambda p: edit(p / file, *(("18.0", "14.0") if xcode else (".v18", ".v14"))),
        "linkage": lambda p: edit(p / file, "-force_load", "-ObjC"),
        "resources": lambda p: edit(
            p / file,
            *(("model.pte in Resources", "x in Resources") if xcode else ('"Resources"', '"Resources/flowers"')),
        ),
        "runtimes": lambda p: write(p, {f"{resources}/a.tflite": b"", **_listed(xcode)}),
        "models": lambda p: write(p, {weights: b"other weights"}),
    }


def _listed(xcode: bool) -> dict[str, str]:
    """The file with one more model in a target, for the one check that is to fail."""
    if not xcode:
        return {}
    text = built.PROJECT.replace(
        "objects = {", "objects = {\n D1 /* a.tflite in Resources */ = {isa = PBXBuildFile; };"
    )
    return {"App.xcodeproj/project.pbxproj": text}


@pytest.mark.parametrize("xcode", [False, True], ids=["swiftpm", "xcode"])
def test_a_good_ios_app_has_nothing_wrong(xcode: bool, tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    found = app_checks.check_app("ios", swift_package(tmp_path, artifacts, xcode))
    assert statuses(found) == {check.name: {"ok"} for check in app_checks.IOS.checks}


@pytest.mark.parametrize("xcode", [False, True], ids=["swiftpm", "xcode"])
@pytest.mark.parametrize("check", [c.name for c in app_checks.IOS.checks])
def test_each_check_finds_its_own_in_an_ios_app(
    check: str, xcode: bool, tmp_path: Path, artifacts: dict[str, Artifact]
) -> None:
    project = swift_package(tmp_path, artifacts, xcode)
    ios_breaks(xcode)[check](project)
    wrong = [f for f in app_checks.check_app("ios", project) if f.status == "wrong"]
    assert {f.check for f in wrong} == {check}
    assert all(f.remedy and (project / f.file).exists() for f in wrong)


def test_a_library_leaves_linking_to_the_app(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    project = swift_package(tmp_path, artifacts)
    edit(project / "Package.swift", "executableTarget", "target")
    edit(project / "Package.swift", "-force_load", "-ObjC")
    (finding,) = (f for f in app_checks.check_app("ios", project) if f.status != "ok")
    assert (finding.check, finding.status) == ("linkage", "unknown")
    assert "libbackend_xnnpack_ios.a" in finding.remedy


def test_a_podfile_and_an_xcconfig_are_read(tmp_path: Path) -> None:
    write(tmp_path, {"Podfile": "platform :ios, '11.0' # platform :ios, '9.0'\npod 'TensorFlowLiteSwift/CoreML'\n"})
    write(tmp_path, {"App/model.tflite": b"", "App.xcconfig": "IPHONEOS_DEPLOYMENT_TARGET = 13.0 // ok\n"})
    found = app_checks.check_app("ios", tmp_path)
    (finding,) = (f for f in found if f.status == "wrong")
    assert (finding.file, finding.line) == ("Podfile", 1)
    assert finding.remedy == "platform :ios, '12.0'"
    assert "iOS 11.0" in finding.detail
    assert "12.0" in finding.detail


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x08\xff\xff\xff\xff\xff\xff", b"\x08\x63", b"\x10\x08", b"PK"])
def test_a_strange_core_ml_model_is_not_checked(content: bytes, tmp_path: Path) -> None:
    write(tmp_path, {"Package.swift": built.PACKAGE, "Sources/Flowers/Resources/a.mlmodel": content})
    found = [f for f in app_checks.check_app("ios", tmp_path) if f.check == "deployment-target"]
    assert [f.status for f in found] == ["unknown"]


# The command


def test_the_command_reports_and_fails(cli: Cli, tmp_path: Path, libraries: Libraries) -> None:
    project = gradle_project(tmp_path, libraries)
    good = cli("doctor", "--platform", "android", project)
    assert good.code == 0
    assert good.out.count("\n") == len(app_checks.ANDROID.checks)
    kts("minSdk = 24", "minSdk = 21")(project)
    bad = cli("doctor", "--platform", "android", project)
    assert bad.code == 1
    assert "app/build.gradle.kts:9: minSdk 21" in bad.out
    assert "2 things wrong" in bad.err
    listed = json.loads(cli("doctor", "--platform", "android", project, "--json").out)
    assert listed == [dataclasses.asdict(f) for f in app_checks.check_app("android", project)]


def test_bad_input_is_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "text.apk").write_text("no archive", encoding="utf-8")
    for arguments in (["--platform", "android", tmp_path], ["--platform", "ios", tmp_path / "none"], [tmp_path]):
        assert cli("doctor", *arguments).code == 2
    assert cli("doctor", "--platform", "android", tmp_path / "text.apk").code == 2
    assert cli("doctor", "--platform", "ios", tmp_path / "text.apk").code == 2
    with pytest.raises(UnknownName, match="windows"):
        app_checks.check_app("windows", tmp_path)


def test_names_cannot_write_on_the_terminal(cli: Cli, tmp_path: Path) -> None:
    files = {"AndroidManifest.xml": Stored(built.MANIFEST), "assets/\x1b[2J\nok.tflite": Stored(b"m")}
    shown = cli("doctor", "--platform", "android", Apk(files).write(tmp_path / "a.apk"))
    assert shown.code == 1
    assert "\x1b" not in shown.out
    assert "?[2J?ok.tflite" in shown.out


def test_names_that_are_no_unicode_are_shown(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, {"build.gradle": "android {\n}\n", "assets/x.tflite": b"m"})
    (tmp_path / "assets/x.tflite").rename(os.fsdecode(os.fsencode(tmp_path) + b"/assets/\xff.tflite"))
    for arguments in ([], ["--json"]):
        shown = cli("doctor", "--platform", "android", tmp_path, *arguments)
        assert shown.code == 1
        assert "assets/?.tflite" in shown.out


def test_versions_are_compared_as_numbers() -> None:
    assert older("1.9.0", "1.10")
    assert not older("1.4", "1.4.0")
    assert [since(LITERT.min_sdk, v) for v in ("1.0.1", "1.4.0", "1.4.2", "2.1.4", "x")] == [None, 26, 21, 23, None]


# What edgekit generates itself


@pytest.mark.parametrize(("platform", "target"), [(p.name, t) for p in apps.PLATFORMS.values() for t in p.targets])
def test_generated_modules_pass(platform: str, target: str, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    done = apps.embed(artifacts[target], platform, tmp_path / "module")
    found = app_checks.check_app(platform, done.path)
    assert [f for f in found if f.status == "wrong"] == []
