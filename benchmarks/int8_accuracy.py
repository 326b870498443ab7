"""What int8 costs on real images: six models with trained weights, quantized once and run by all four runtimes.

    python benchmarks/int8_accuracy.py [--models resnet20-cifar,...] [--resume]

Calibrated with 128 images and the default options; each runtime sees the same test images as the float model. Needs
the weights and images beside the project (../shared/data, or EDGEKIT_SHARED). The ImageNet photos most likely come
from the training set, and those that calibrate are among those that test: the drop is the figure, not the accuracy.
Core ML runs op by op in torch where there is no Mac, so it gets fewer of the CIFAR images.
"""

import argparse
import os
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _measure import save, saved

import edgekit

DATA = Path(os.environ.get("EDGEKIT_SHARED", Path(__file__).parents[2] / "shared")) / "data"
IMAGENET, CIFAR = ("imagenet_sample800.tar",) * 2, ("cifar10_train_jpeg50k.npz", "cifar10_test.npz")
# Weights, images to calibrate with, images to test on.
MODELS = {
    "mobilenet-v2": ("mobilenetv2_imagenet.safetensors", *IMAGENET),
    "mobilenet-v1-025": ("mobilenetv1_025_imagenet.safetensors", *IMAGENET),
    "resnet20-cifar": ("resnet20_cifar10.safetensors", *CIFAR),
    "resnet56-cifar": ("resnet56_cifar10.safetensors", *CIFAR),
    "mobile-former-52m": ("cifar10", *CIFAR),  # those that come along with the package
    "micronet-m2": ("cifar10", *CIFAR),
}
LIMITS = {"coreml": 800}


def row(name: str, folder: str) -> dict[str, Any]:
    """Each runtime's top-1, its drop against float on the same images with its interval, and the agreement."""
    weights, calibration, images = (DATA / file if "." in file else file for file in MODELS[name])
    made = edgekit.quantize(name, f"{folder}/{name}.pt2", weights=weights, calibration=calibration, force=True)
    artifacts = edgekit.export(str(made.path), "all", calibration=calibration, compare_speed=False, out=folder)
    results = {}
    for artifact in artifacts:
        target = artifact.manifest.target
        result = edgekit.evaluate(artifact.path, images, limit=LIMITS.get(target, 8000))
        proof = artifact.manifest.verification[0]
        kept = ("top1", "reference_top1", "drop", "drop_ci95", "agreement", "n")
        results[target] = {key: value for key, value in asdict(result).items() if key in kept} | {
            "simulation_sqnr_db": proof.sqnr_db,
            "simulation_top1_agreement": proof.top1_agreement,
        }
        print(
            f"{name:<18}{target:<12} top-1 {result.top1:6.2f}, drop {result.drop:5.2f}, "
            f"agreement {result.agreement:6.2f}, n {result.n}, against simulation {proof.sqnr_db:.1f} dB",
            flush=True,
        )
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in asked.models.split(","):
        results = saved("int8_accuracy").get("results", {})
        if asked.resume and name in results:
            continue
        with tempfile.TemporaryDirectory() as folder:
            results[name] = row(name, folder)
        save("int8_accuracy", {"results": {n: results[n] for n in MODELS if n in results}})
