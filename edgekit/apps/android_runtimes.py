"""What an Android app needs of each runtime: its library, its rules for R8, and what to know of it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """`model` is the class of the Kotlin sources that runs it; `library` its Maven coordinates.

    `keep` are lines for R8; `pages` says how this version stands to memory pages of
    16 KB, `loading` how it gets at the model.
    """

    title: str
    model: str
    library: str
    min_sdk: int
    keep: tuple[str, ...]
    pages: str
    loading: str


_CHECK = "`edgekit doctor --platform android app.apk` checks the app that you built."

RUNTIMES: Mapping[str, Runtime] = {
    "tflite": Runtime(
        title="LiteRT",
        model="LiteRtModel",
        library="com.google.ai.edge.litert:litert:2.3.0",
        min_sdk=24,
        keep=(
            "# LiteRT's native code looks its Kotlin classes up by name.",
            "-keep class com.google.ai.edge.litert.** { *; }",
            "-dontwarn com.google.ai.edge.litert.**",
        ),
        pages=f"LiteRT's libraries are linked for 16 KB pages since 1.4.0; this module asks for 2.3.0. {_CHECK}",
        loading="LiteRT maps the model from the APK. For that the file has to be stored uncompressed: the Android"
        " Gradle plugin does so with `.tflite` unless the app's own `androidResources` say otherwise.",
    ),
    "executorch": Runtime(
        title="ExecuTorch",
        model="ExecuTorchModel",
        library="org.pytorch:executorch-android:1.5.1",
        min_sdk=23,
        keep=(
            "# ExecuTorch and fbjni, through which it calls Java, look classes up by name. Its own rules leave fbjni's",
            "# internals out: minified apps then abort in Module.initHybrid.",
            "-keep class org.pytorch.executorch.** { *; }",
            "-keep class com.facebook.jni.** { *; }",
            "-keep class com.facebook.soloader.nativeloader.** { *; }",
            "-keep @com.facebook.jni.annotations.DoNotStrip class * { *; }",
            "-keepclassmembers class * { @com.facebook.jni.annotations.DoNotStrip *; }",
            "-dontwarn com.facebook.**",
            "-dontwarn javax.annotation.**",
        ),
        pages="ExecuTorch's libraries are linked for 16 KB pages since 1.0.1, fbjni's since 0.7.0; this module asks for"
        f" 1.5.1, which brings fbjni 0.7.0. {_CHECK}",
        loading="ExecuTorch opens files only: at the first start the model is copied from the APK into the app's"
        " storage (outside of backups), again when the app brings another, and mapped from there.",
    ),
    "onnx": Runtime(
        title="ONNX Runtime",
        model="OnnxModel",
        library="com.microsoft.onnxruntime:onnxruntime-android:1.30.0",
        min_sdk=24,
        keep=(
            "# ONNX Runtime's native code looks its Java classes up by name.",
            "-keep class ai.onnxruntime.** { *; }",
            "-dontwarn ai.onnxruntime.**",
        ),
        pages="ONNX Runtime's libraries are linked for 16 KB pages, its JNI library too, since 1.27; this module asks"
        f" for 1.30.0. {_CHECK}",
        loading="ONNX Runtime opens a file: at the first start the model is copied from the APK into the app's storage"
        " (outside of backups), and again when the app brings another.",
    ),
}

COMPILE_SDK = 36
ABIS = ("arm64-v8a", "x86_64")
"""Phones, and emulators on PCs: the two for which all three runtimes ship libraries."""
COROUTINES = "org.jetbrains.kotlinx:kotlinx-coroutines-android:1.10.2"
EXIF = "androidx.exifinterface:exifinterface:1.4.1"
TEST_LIBRARIES = ("androidx.test:runner:1.7.0", "androidx.test.ext:junit:1.3.0")
