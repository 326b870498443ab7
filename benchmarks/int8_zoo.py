"""The zoo in int8 on all four targets: size against fp32, distance from the simulation, and speed against fp32.

    python benchmarks/int8_zoo.py [--models lvt-gap,...] [--resume]

Weights are trained ones where there are any, else those of the golden vectors (accuracy is the affair of
int8_accuracy.py), calibrated with photos; all of it lies beside the project (../shared, or EDGEKIT_SHARED).
int8 and fp32 run by turns, each in its own process, on one core.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from _measure import save, saved

import edgekit

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.zoo import golden, randomized

DATA = Path(os.environ.get("EDGEKIT_SHARED", Path(__file__).parents[2] / "shared")) / "data"
# At least one of each family.
MODELS = (
    "lvt", "tiny-moat-0", "mobile-former-26m", "mobile-former-294m", "micronet-m0", "micronet-m3",
    "slab-deit-tiny", "slab-pvt-tiny", "slab-swin-tiny", "mobilenet-v1-025", "mobilenet-v2", "mobilenet-v3-small",
    "resnet20-cifar",
)  # fmt: skip
GOLDEN = {
    "lvt": ("lvt", "lvt_cls"),
    "tiny-moat-0": ("moat", "tiny_moat_0"),
    "mobile-former-26m": ("mobileformer", "26m"),
    "mobile-former-294m": ("mobileformer", "294m"),
    "micronet-m0": ("micronet", "m0"),
    "micronet-m3": ("micronet", "m3"),
    "slab-deit-tiny": ("slab", "deit_tiny"),
    "slab-pvt-tiny": ("slab", "pvt_tiny"),
    "slab-swin-tiny": ("slab", "swin_tiny"),
}
WEIGHTS = {
    "mobilenet-v2": "mobilenetv2_imagenet.safetensors",
    "mobilenet-v1-025": "mobilenetv1_025_imagenet.safetensors",
    "resnet20-cifar": "resnet20_cifar10.safetensors",
}


def row(name: str, folder: str) -> dict[str, Any]:
    """What every target makes of a model in int8."""
    photos = DATA / ("cifar10_train_jpeg50k.npz" if name.endswith("cifar") else "imagenet_sample800.tar")
    weights = DATA / WEIGHTS[name] if name in WEIGHTS else Path(folder) / "weights.pth"
    if name not in WEIGHTS:
        record = GOLDEN.get(name)
        state = golden(DATA.parent, *record).state if record else randomized(edgekit.create_model(name)).state_dict()
        torch.save(state, weights)
    fp32 = saved("zoo")["results"][name]
    artifacts = edgekit.export(
        name, "all", precision="int8", weights=weights, calibration=photos, num_calibration_samples=32, out=folder
    )
    return {
        a.manifest.target: {
            "bytes": a.size_bytes,
            "of_fp32": round(a.size_bytes / fp32[a.manifest.target]["bytes"], 3),
            "simulation_sqnr_db": a.manifest.verification[0].sqnr_db,
            "float_sqnr_db": a.manifest.verification[1].sqnr_db,
            "partitions": a.manifest.delegation.partitions,
            "outside": a.manifest.delegation.fallback_count,
            "speed": None if a.speed is None else [round(1 / r, 2) for r in (a.speed.ratio, *reversed(a.speed.ci95))],
        }
        for a in artifacts
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in asked.models.split(","):
        if asked.resume and name in saved("int8_zoo").get("results", {}):
            continue
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                made = row(name, folder)
        except edgekit.EdgekitError as error:
            print(f"{name}: {error}", flush=True)
            continue
        said = ", ".join(
            f"{t} {r['of_fp32']:.2f} {r['simulation_sqnr_db']:.0f} dB {r['speed'][0] if r['speed'] else '-'}x"
            for t, r in made.items()
        )
        print(f"{name:<24}{time.perf_counter() - start:6.0f} s  {said}", flush=True)
        results = saved("int8_zoo").get("results", {}) | {name: made}
        save("int8_zoo", {"results": {n: results[n] for n in MODELS if n in results}})
