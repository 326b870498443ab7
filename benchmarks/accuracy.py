"""MobileNetV2 with ImageNet weights on 800 real photos: the float model, and its artifact on every runtime.

Needs the weights and photos beside the project (../shared/data, or EDGEKIT_SHARED). The photos most likely come from
ImageNet's training set, so agreement between runtimes is the figure, not the accuracy.
"""

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _measure import save

import edgekit

DATA = Path(os.environ.get("EDGEKIT_SHARED", Path(__file__).parents[2] / "shared")) / "data"
WEIGHTS = DATA / "mobilenetv2_imagenet.safetensors"
PHOTOS = DATA / "imagenet_sample800.tar"


def row(result: edgekit.Evaluation) -> dict[str, Any]:
    """A result without what is said of each class."""
    return {key: value for key, value in asdict(result).items() if key != "per_class"}


if __name__ == "__main__":
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        result = edgekit.evaluate("mobilenet-v2", PHOTOS, weights=WEIGHTS)
        results["float"] = row(result)
        print(f"{'float (torch)':<18} top-1 {result.top1:6.2f}  top-5 {result.top5:6.2f}")
        for precision in ("fp32", "fp16"):
            for artifact in edgekit.export("mobilenet-v2", "all", weights=WEIGHTS, precision=precision, out=folder):
                result = edgekit.evaluate(artifact.path, PHOTOS)
                name = f"{artifact.manifest.target} {precision}"
                results[name] = row(result) | {"sqnr_db": artifact.manifest.verification[0].sqnr_db}
                print(
                    f"{name:<18} top-1 {result.top1:6.2f}  top-5 {result.top5:6.2f}  agreement {result.agreement:6.2f}"
                    f"  SQNR {artifact.manifest.verification[0].sqnr_db:6.1f} dB"
                )
    save("accuracy", {"model": "mobilenet-v2", "data": PHOTOS.name, "results": results})
