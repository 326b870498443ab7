"""Apps to check: native libraries from real compilers, zip files with chosen alignment, Gradle and Xcode projects."""

import base64
import shutil
import subprocess
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 16384
COMPILERS = {
    "arm64-v8a": ("aarch64-linux-gnu-gcc",),
    "x86_64": ("gcc", "-m64"),
    "x86": ("gcc", "-m32"),
}
# What aapt of Debian's android-sdk made of a manifest with minSdkVersion 21, targetSdkVersion 35 and
# extractNativeLibs="false", compressed.
MANIFEST = zlib.decompress(
    base64.b64decode(
        "eNqVkktKA0EQhv+eiTrGJEaN6CK4cSea+AARl7oNIgji0kcSDZoHyfjAlSdw6Qk8hOdw4RnES+jXnRbHSBZ280/1/FX1V3XNhIr0HEpGRS0H0qR+"
        "1lHivAB2wAW4B6/gDbyDopH2QRU8gifwDF5AVk011NKBqrrUoWrqqgfThpPyinUCcw4fD4mZ4v0Ob5fIM+weNsZ7A1/BnhIrjcG2yO+S1cBKS/Qaszva"
        "VpndI/uCnCaRPZUG4kt42/jK8B26KOOpEVf+oytXreO6ueRpe5fmYa5cZ3Uiuyjt6JqMK3J+32iXZ/WfOfbOTZcTuf5b8HXXXww343svuUnZSKtb472O"
        "bevWa0mB1rWBHdEm3lWw5jSv8Vq1FWC/gTTh5mB1Gqj3J97/HtKDiVTAZgJjOuAjZYxMnvvYCtIni19KKfsOf5zg7RrnXGCHfpqWG8WmXS8K054bc304"
        "Lj/nucjW9XEZr18Z0M96/cDrpxJ1rNas50yCW+QcDtzhW8vW2Brgc76GSdQIfvSmNUQvN4S3MzFDZvgFyXWuoQ=="
    )
)


def lower_min_sdk(manifest: bytes, level: int) -> bytes:
    """The manifest with another minSdkVersion: an attribute's value follows its size, a zero and its type."""
    return manifest.replace(
        b"\x08\x00\x00\x10" + (21).to_bytes(4, "little"), b"\x08\x00\x00\x10" + level.to_bytes(4, "little")
    )


def missing_compiler() -> str:
    return next((c[0] for c in COMPILERS.values() if shutil.which(c[0]) is None), "")


def compile_library(out: Path, abi: str, page: int = PAGE) -> bytes:
    """A shared library for `abi` whose segments are aligned to `page`."""
    source = out / "f.c"
    source.write_text("int table[1] = {1}; int f(void) { return table[0]; }\n", encoding="utf-8")
    library = out / f"lib-{abi}-{page}.so"
    flags = ("-shared", "-nostdlib", "-fPIC", f"-Wl,-z,max-page-size={page}", "-o", str(library), str(source))
    subprocess.run([*COMPILERS[abi], *flags], check=True, capture_output=True)
    return library.read_bytes()


@dataclass(frozen=True)
class Stored:
    """How one file lies in an archive: deflated, or `shift` bytes behind a multiple of `align`."""

    content: bytes
    deflated: bool = False
    align: int = 4
    shift: int = 0


@dataclass(frozen=True)
class Apk:
    """Files by name; `write` makes the archive."""

    files: dict[str, Stored] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name, stored in self.files.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED if stored.deflated else zipfile.ZIP_STORED
                begins = archive.fp.tell() + 30 + len(name.encode()) + 4  # type: ignore[union-attr]
                padding = (stored.shift - begins) % stored.align
                info.extra = (0xD935).to_bytes(2, "little") + padding.to_bytes(2, "little") + bytes(padding)
                archive.writestr(info, stored.content)
        return path


APP_BUILD = """\
// minSdk = 1, isMinifyEnabled = false: a comment says nothing
plugins {
    id("com.android.application") version "8.9.0"
}
val runtime = "1.29.0"
android {
    namespace = "com.example.flowers"
    defaultConfig {
        minSdk = 24 /* isMinifyEnabled = false */
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }
    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles(
                getDefaultProguardFile("proguard-android-optimize.txt"),
                "proguard-rules.pro",
            )
        }
    }
    androidResources { noCompress += listOf("onnx", "pte") }
}
dependencies {
    implementation(libs.executorch.android)
    implementation("com.microsoft.onnxruntime:onnxruntime-android:$runtime") // see "https://onnxruntime.ai"
    androidTestImplementation("org.tensorflow:tensorflow-lite:2.9.0")
}
"""
GROOVY_BUILD = """\
apply plugin: 'com.android.application'
def runtime = '1.29.0'
android {
    defaultConfig {
        minSdkVersion 24
        ndk { abiFilters 'arm64-v8a', 'x86_64' }
    }
    buildTypes {
        release {
            minifyEnabled true
            proguardFiles getDefaultProguardFile('proguard-android.txt'), 'proguard-rules.pro'
        }
    }
    aaptOptions { noCompress 'onnx', 'pte' }
}
dependencies {
    implementation libs.executorch.android
    implementation group: 'com.microsoft.onnxruntime', name: 'onnxruntime-android', version: "${runtime}"
}
"""
CATALOG = """\
[versions]
executorch = { strictly = "1.5.1" }
[libraries]
executorch-android = { module = "org.pytorch:executorch-android", version.ref = "executorch" }
"""
RULES = """\
# -keep class nothing
-keep class com.facebook.jni.** { *; }
-keep,includedescriptorclasses class ai.onnxruntime.** { *; }
"""


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    """Replace one thing that is there."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new), encoding="utf-8")


PACKAGE = """\
// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "Flowers",
    platforms: [.iOS(.v18)], // .iOS(.v12)
    dependencies: [.package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-1.5.1")],
    targets: [
        .executableTarget(
            name: "Flowers",
            dependencies: [
                .product(name: "executorch", package: "executorch"),
                .product(name: "backend_xnnpack", package: "executorch"),
            ],
            resources: [.copy("Resources")],
            linkerSettings: [.unsafeFlags(["-Xlinker", "-force_load", "-Xlinker", "libbackend_xnnpack_ios.a"])]
        ),
    ]
)
"""
PROJECT = """\
// !$*UTF8*$!
{
    objects = {
        A1 /* model.mlpackage in Sources */ = {isa = PBXBuildFile; fileRef = A2 /* model.mlpackage */; };
        A3 /* model.pte in Resources */ = {isa = PBXBuildFile; fileRef = A4 /* model.pte */; };
        B1 = {isa = XCRemoteSwiftPackageReference; repositoryURL = "https://github.com/pytorch/executorch"; };
        B2 = {isa = XCSwiftPackageProductDependency; productName = backend_xnnpack; };
        C1 = {
            isa = XCBuildConfiguration;
            buildSettings = {
                IPHONEOS_DEPLOYMENT_TARGET = 18.0;
                OTHER_LDFLAGS = (
                    "-force_load",
                    "$(BUILT_PRODUCTS_DIR)/libbackend_xnnpack_ios.a",
                );
            };
        };
    };
}
"""
