"""What is known of each runtime: how it is recognized, and what it needs of an app. Every figure has its source."""

import re
from dataclasses import dataclass

ABIS = ("armeabi-v7a", "arm64-v8a", "x86", "x86_64")
_64_BIT = ("arm64-v8a", "x86_64")
Since = tuple[tuple[str, int], ...]
"""(first version, value) from old to new; below the first nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Classes that native code looks up by name, the rule that keeps them, and since which version the AAR has it.

    `brought_since` is "" where no release is documented to have it; before `needed_since` there are no such classes.
    """

    classes: tuple[str, ...]
    rule: str
    brought_since: str = ""
    needed_since: str = "0"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One runtime. Android: `maven` coordinates, `libraries` of its Java API in an APK, `native` ones of its C++ API,
    coordinates that it is `within`, `aligned_since` (pages of 16 KB).

    Releases below `unaligned_below` are known to be of 4 KB; between it and `aligned_since` reports differ. iOS:
    `apple` are its names in packages and pods, `min_ios` is the version of iOS that it needs.
    """

    name: str
    title: str
    extension: str
    maven: tuple[str, ...]
    libraries: tuple[str, ...]
    remedy: str
    native: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    aligned_since: str = ""
    unaligned_below: str = ""
    min_sdk: Since = ()
    abis: tuple[tuple[str, tuple[str, ...]], ...] = ()
    keep: tuple[Keep, ...] = ()
    apple: tuple[str, ...] = ()
    min_ios: str = ""


EXECUTORCH = Runtime(
    name="executorch",
    title="ExecuTorch",
    extension=".pte",
    maven=("org.pytorch:executorch-android",),
    libraries=("libexecutorch.so", "libexecutorch_jni.so"),
    remedy='implementation("org.pytorch:executorch-android:1.5.1")',
    # pytorch/executorch PR 14418 "Use fbjni 0.7.0 and set ANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON" was made for 1.0;
    # 0.6.0 is reported unaligned in issue 11518, 1.0.1 aligned in executorch_flutter issue 6.
    aligned_since="1.0.1",
    unaligned_below="1.0.0",
    # pytorch/executorch, extension/android/executorch_android/build.gradle: minSdk = 23.
    min_sdk=(("0.6.0", 23),),
    # docs.pytorch.org, "Using ExecuTorch on Android": "Comes with two ABI variants, arm64-v8a and x86_64".
    abis=(("0.5.0", _64_BIT),),
    keep=(
        # pytorch/executorch PR 19169 "add @DoNotStrip and consumer ProGuard rules for JNI classes"; in the AAR of 1.4.0
        # by the table of PR 22174.
        Keep(
            classes=("org.pytorch.executorch.Module", "org.pytorch.executorch.Tensor", "org.pytorch.executorch.EValue"),
            rule="-keep class org.pytorch.executorch.** { *; }",
            brought_since="1.4.0",
        ),
        # PR 22174 "Android: preserve fbjni internals in minified apps": 1.4.0 and 1.4.1 abort in Module.initHybrid().
        Keep(
            classes=("com.facebook.jni.HybridData", "com.facebook.jni.HybridData$Destructor"),
            rule="-keep class com.facebook.jni.** { *; }",
        ),
    ),
    apple=("executorch", "executorch_debug"),
    # pytorch/executorch, Package.swift of the swiftpm branches: .iOS(.v17).
    min_ios="17.0",
)

ONNX = Runtime(
    name="onnx",
    title="ONNX Runtime",
    extension=".onnx",
    maven=("com.microsoft.onnxruntime:onnxruntime-android", "com.microsoft.onnxruntime:onnxruntime-mobile"),
    libraries=("libonnxruntime4j_jni.so",),
    native=("libonnxruntime.so",),
    remedy='implementation("com.microsoft.onnxruntime:onnxruntime-android:1.30.0")',
    # microsoft/onnxruntime issue 24902: the JNI library of 1.20.0 is unaligned; PR 24947 repairs it. Of 1.22 issue
    # 25859 says both; onnxruntime-extensions issue 1093 calls 1.27.0 the first that is compatible in full. 1.29.0's AAR
    # was read: 16384 in every library.
    aligned_since="1.27.0",
    unaligned_below="1.22.0",
    # microsoft/onnxruntime-genai PR 1324 "Update android min sdk version to 24" (ONNX Runtime 1.21); 1.29.0's AAR: 24.
    min_sdk=(("1.15.0", 21), ("1.21.0", 24)),
    # tools/ci_build/github/android/default_full_aar_build_settings.json
    abis=(("1.15.0", ABIS),),
    # onnxruntime.ai, "Build for Android": rules for R8; issue 14379. 1.29.0's AAR keeps its telemetry classes only.
    keep=(
        Keep(
            classes=("ai.onnxruntime.OnnxTensor", "ai.onnxruntime.TensorInfo"),
            rule="-keep class ai.onnxruntime.** { *; }",
        ),
    ),
    apple=("onnxruntime", "onnxruntime-objc", "onnxruntime-c", "onnxruntime-swift-package-manager"),
    # MinimumOSVersion in the Info.plist of onnxruntime.xcframework 1.29.0.
    min_ios="15.1",
)

LITERT = Runtime(
    name="tflite",
    title="LiteRT",
    extension=".tflite",
    maven=("com.google.ai.edge.litert:litert",),
    libraries=("libLiteRt.so", "liblitert_jni.so"),
    native=(
        "libtensorflowlite.so",
        "libtensorflowlite_c.so",
        "libtask_vision_jni.so",
        "libmediapipe_tasks_vision_jni.so",
    ),
    # Runtimes of Google Play services, MediaPipe Tasks and ML Kit; models run in them.
    within=("com.google.android.gms:play-services-tflite", "com.google.mediapipe:", "com.google.mlkit:"),
    remedy='implementation("com.google.ai.edge.litert:litert:2.3.0")',
    # google-ai-edge/LiteRT issue 2752: 1.4.0 is the first stable release for 16 KB pages (2.0.0-alpha.1 is, too).
    aligned_since="1.4.0",
    unaligned_below="1.4.0",
    # ai.google.dev, "LiteRT for Android", Supported Android Versions and APIs
    min_sdk=(("1.2.0", 21), ("1.4.0", 26), ("1.4.1", 21), ("2.0.0", 26), ("2.1.0", 23), ("2.3.0", 24)),
    # org.tensorflow.lite is kept by the AAR itself (proguard.flags of tensorflow/lite/java). The errors of 2.x are not:
    # litert/kotlin/src/main/jni/litert_jni_common.h looks this class up by name and ends the process without it.
    keep=(
        Keep(
            classes=("com.google.ai.edge.litert.LiteRtException",),
            rule="-keep class com.google.ai.edge.litert.** { *; }",
            needed_since="2.0.0",
        ),
    ),
    apple=("TensorFlowLiteSwift", "TensorFlowLiteObjC", "TensorFlowLiteC", "LiteRT", "MediaPipeTasksVision"),
    # tensorflow/lite/swift/TensorFlowLiteSwift.podspec: ios.deployment_target
    min_ios="12.0",
)

TENSORFLOW_LITE = Runtime(
    name="tensorflow-lite",
    title="TensorFlow Lite",
    extension=".tflite",
    maven=("org.tensorflow:tensorflow-lite",),
    libraries=("libtensorflowlite_jni.so",),
    remedy=LITERT.remedy,
    # tensorflow/tensorflow issues 96602 and 97935: its last release, 2.17.0, is not aligned for x86_64.
    aligned_since="",
    unaligned_below="2.17.1",
)

RUNTIMES = (EXECUTORCH, ONNX, LITERT, TENSORFLOW_LITE)


def version(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with, for comparing: "2.0.1-alpha" → (2, 0, 1); () where there are none."""
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(n) for n in numbers.group().split(".")[:6]) if numbers else ()


def older(a: str, b: str) -> bool:
    """Whether version `a` is below `b`; missing places count as 0."""
    x, y = version(a), version(b)
    longest = max(len(x), len(y))
    return x + (0,) * (longest - len(x)) < y + (0,) * (longest - len(y))


def since(table: tuple[tuple[str, object], ...], of: str) -> object | None:
    """The value of `table` for version `of`; None below its first row."""
    known = [value for first, value in table if not older(of, first)]
    return known[-1] if version(of) and known else None
