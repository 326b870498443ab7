"""The runtimes of iOS: their Swift packages, what they need of a phone, and the `Package.swift` around a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.apps.model import AppModel
from edgekit.apps.naming import swift_string


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime: `files` are its Swift sources, `dependency` and `products` Swift package coordinates ("" is none).

    `ios` and `macos` are the least versions; `linker` are flags that it needs; `exact` is the Swift for its options
    with which it computes most exactly, `units` says where it can run.
    """

    title: str
    files: tuple[str, ...]
    ios: str
    macos: str
    exact: str
    units: str
    dependency: str = ""
    identity: str = ""
    products: tuple[str, ...] = ()
    linker: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


EXECUTORCH = "1.5.1"
LITERT = "2.3.0"
ONNXRUNTIME = "1.24.2"

RUNTIMES: Mapping[str, Runtime] = {
    "coreml": Runtime(
        title="Core ML",
        files=("CoreMLRuntime.swift", "CompiledModelCache.swift"),
        ios="17.0",
        macos="14.0",
        exact="RuntimeOptions(computeUnits: .cpuOnly)",
        units="`RuntimeOptions(computeUnits:)` chooses: `.all` (the default: Core ML places each part on the CPU, the"
        " GPU or the Neural Engine), `.cpuAndNeuralEngine`, `.cpuAndGPU` or `.cpuOnly`.",
        notes=("the Neural Engine and the GPU compute in float16: README.md says what that means for tolerances",),
    ),
    "executorch": Runtime(
        title="ExecuTorch",
        files=("ExecuTorchRuntime.swift",),
        ios="17.0",
        macos="14.0",
        exact="RuntimeOptions()",
        units="The backend was chosen when the model was exported: XNNPACK, on the CPU. ExecuTorch's Swift API has no"
        " option for the number of threads.",
        dependency=f'.package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-{EXECUTORCH}")',
        identity="executorch",
        products=("executorch", "backend_xnnpack", "kernels_optimized", "kernels_quantized"),
        linker=("-Wl,-all_load",),
        notes=(
            "Package.swift links with -all_load: backends and kernels register themselves, and the linker would drop"
            " what nobody calls; README.md names the finer -force_load",
            "SwiftPM takes linker flags of local packages and branches only: do not depend on this one by version",
        ),
    ),
    "tflite": Runtime(
        title="LiteRT",
        files=("LiteRTRuntime.swift",),
        ios="16.0",
        macos="13.0",
        exact="RuntimeOptions(accelerator: .cpu(threads: 2))",
        units="`RuntimeOptions(accelerator:)` chooses: `.cpu(threads: 2)` (the default, XNNPACK) or `.gpu` (Metal, in"
        " float16, with the CPU for what it cannot run). LiteRT does not use the Neural Engine.",
        dependency=f'.package(url: "https://github.com/google-ai-edge/LiteRT.git", branch: "release/{LITERT}")',
        identity="LiteRT",
        products=("LiteRT", "LiteRtMetalAccelerator"),
        notes=(
            "the Swift package is LiteRT's own, with `CompiledModel`; the older API `Interpreter` is the CocoaPod"
            " TensorFlowLiteSwift, which this package does not need",
        ),
    ),
    "onnx": Runtime(
        title="ONNX Runtime",
        files=("ONNXRuntime.swift",),
        ios="16.0",
        macos="13.0",
        exact="RuntimeOptions(provider: .cpu(threads: 2))",
        units="`RuntimeOptions(provider:)` chooses: `.cpu(threads: 2)` (the default) or `.coreML` (the GPU and the"
        " Neural Engine for the parts that Core ML takes, in float16).",
        dependency='.package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager.git",'
        f' from: "{ONNXRUNTIME}")',
        identity="onnxruntime-swift-package-manager",
        products=("onnxruntime",),
        notes=(
            "App Store Connect refuses frameworks without MinimumOSVersion, which ONNX Runtime's may lack"
            " (microsoft/onnxruntime#27396): set it in the archive's onnxruntime.framework/Info.plist",
        ),
    ),
}

_NAMES = """
Swift Foundation CoreFoundation CoreGraphics CoreImage CoreML CoreVideo ImageIO Accelerate UIKit SwiftUI AVFoundation
Photos PhotosUI Observation Network Combine Vision Metal XCTest Testing Dispatch Darwin PackageDescription ExecuTorch
LiteRT CLiteRT OnnxRuntimeBindings TensorFlowLite
"""
MODULES = frozenset(_NAMES.split())
"""What no module may be called: the package or an app imports it."""


def platforms(model: AppModel) -> tuple[str, str]:
    """The least versions of iOS and macOS that run the model."""
    if model.target == "coreml" and model.artifact.manifest.precision == "int4-weight":
        return "18.0", "15.0"  # blocks of 4-bit weights
    return RUNTIMES[model.target].ios, RUNTIMES[model.target].macos


def package_manifest(model: AppModel, package: str) -> str:
    """`Package.swift`. The language mode is that of runtimes which know nothing of Swift 6's concurrency yet."""
    runtime = RUNTIMES[model.target]
    ios, macos = platforms(model)
    products = "".join(
        f"                .product(name: {swift_string(p)}, package: {swift_string(runtime.identity)}),\n"
        for p in runtime.products
    )
    flags = ", ".join(map(swift_string, runtime.linker))
    linker = f",\n            linkerSettings: [.unsafeFlags([{flags}])]" if flags else ""
    dependencies = f"\n        {runtime.dependency}\n    " if runtime.dependency else ""
    model_file = f"Resources/{model.resource}{model.artifact.model_path.suffix}"
    # Xcode compiles a processed .mlpackage; anything else has to stay as it is.
    rule = "process" if model.target == "coreml" else "copy"
    return f"""\
// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: {swift_string(package)},
    platforms: [.iOS({swift_string(ios)}), .macOS({swift_string(macos)})],
    products: [
        .library(name: {swift_string(package)}, targets: [{swift_string(package)}])
    ],
    dependencies: [{dependencies}],
    targets: [
        .target(
            name: {swift_string(package)},
            dependencies: [{chr(10) + products + "            " if products else ""}],
            resources: [
                .{rule}({swift_string(model_file)}),
                .copy("Resources/labels.txt"),
            ]{linker}
        ),
        .testTarget(
            name: {swift_string(package + "Tests")},
            dependencies: [{swift_string(package)}],
            resources: [.copy("Resources/golden.safetensors")]
        ),
    ],
    swiftLanguageModes: [.v5]
)
"""
