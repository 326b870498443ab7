"""The README of a Swift package."""

from edgekit.apps.ios_package import RUNTIMES, platforms
from edgekit.apps.model import AppModel
from edgekit.apps.naming import comment

_LINKING = """
## Linking

Backends and kernels of ExecuTorch register themselves when the app starts; nobody calls them, so the linker would drop
them ("backend is not registered", "kernel not found"). `Package.swift` therefore links with `-all_load`, which loads
every static library of the app whole. Should that collide with another library of yours ("duplicate symbol"), delete
`linkerSettings` there and load only these in the app's build settings:

```
ET_PLATFORM[sdk=iphonesimulator*] = simulator
ET_PLATFORM[sdk=iphoneos*] = ios
OTHER_LDFLAGS = $(inherited) \\
    -force_load $(BUILT_PRODUCTS_DIR)/libexecutorch_$(ET_PLATFORM).a \\
    -force_load $(BUILT_PRODUCTS_DIR)/libbackend_xnnpack_$(ET_PLATFORM).a \\
    -force_load $(BUILT_PRODUCTS_DIR)/libkernels_optimized_$(ET_PLATFORM).a \\
    -force_load $(BUILT_PRODUCTS_DIR)/libkernels_quantized_$(ET_PLATFORM).a
```

SwiftPM takes such flags from local packages and branches, not from packages that are required by version.
"""

_COMPILING = """
## Compiling the model

Xcode compiles the `.mlpackage` when it builds. `swift build` does not: then the device compiles it on first use, and
keeps the result in its caches under the model's hash.
"""


def readme(model: AppModel, package: str) -> str:
    """How to add the package, where it runs, and how to prove it on a phone."""
    manifest, runtime = model.artifact.manifest, RUNTIMES[model.target]
    ios, macos = platforms(model)
    p = model.preprocess
    own = {"executorch": _LINKING, "coreml": _COMPILING}.get(model.target, "")
    return f"""\
# {package}

`{comment(manifest.name).replace("`", "'")}` ({runtime.title}, {comment(manifest.precision)})
for iOS {ios} and macOS {macos} or later, as a Swift package with all that prepares a photo. Made by `edgekit embed`.

## In three steps

1. In Xcode: *File > Add Package Dependencies… > Add Local…*, choose this folder, add `{package}` to the app's target.
2. Load it once, and keep it:

   ```swift
   import {package}

   let classifier = try await {model.classifier}()
   ```

3. Ask it, from any thread:

   ```swift
   let classes = try await classifier.classify(image, top: 3)  // UIImage, CGImage, CVPixelBuffer, Data or a file's URL
   print(classes[0].label, classes[0].probability)
   ```

In a camera's callback use `let input = try classifier.prepare(pixelBuffer, orientation: .right)` and hand `input` to
`classify`: the frame goes back to the camera at once, and `input` may cross threads.

## Where it runs

{runtime.units}

The GPU and the Neural Engine compute in float16, about three decimal digits, whatever precision the model was exported
in. Probabilities then differ in the third digit, and two classes that are nearly as likely may change places. The test
asks for an SQNR of {model.min_sqnr_db:g} dB where the device computes as the export did, and, of Core ML's default
units, for 30 dB.
Build for Release when you measure: without optimization Swift prepares photos many times slower.
{own}
## What a photo goes through

The same as in training, on the device: upright by EXIF or `imageOrientation`, 8-bit RGB, the shorter side resized to
{p.resize} ({p.interpolation}, antialiased), the centre {p.crop[1]} x {p.crop[0]}, normalized. What can differ from
Python:

- A photo of more than 24 megapixels is decoded at half its size first, to fit into an app's memory.
- JPEG and HEIC are decoded by ImageIO, which rounds here and there to the next grey level.
- Alpha is dropped, not composited, and colours keep their own colour space. Of an image that was drawn with alpha
  before, translucent colours come back rounded and wholly transparent ones black; grey with alpha passes through sRGB.
- Camera frames are read as BGRA, RGBA, grey or 4:2:0 of two planes (8 bits, ITU-R 601, 709 or 2020), and no others.

## Proof

*Product > Test* with a phone chosen, or `xcodebuild test -scheme {package} -destination 'platform=iOS,name=…'`, runs
the vectors in `golden.safetensors` and compares the scores. The simulator has no Neural Engine.
"""
