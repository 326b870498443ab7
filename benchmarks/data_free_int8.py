"""What int8 costs without data: accuracy with trained weights, noise of each family, beside calibration with photos.

    python benchmarks/data_free_int8.py [--models resnet20-cifar,lvt,...] [--resume]

Every tensor is quantized (protocol H), in the torch simulation. Models with trained weights: top-1 of photos in
float and int8, by each calibration; the ImageNet photos that calibrate are among those that test, for there are 800.
The families: the distance of int8 from float on 32 photos in dB, with the weights of the golden vectors, and in their
batch norms what training would have left there: the statistics of other photos. Data lies beside the project
(../shared, or EDGEKIT_SHARED).
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import save, saved
from torch import Tensor, nn
from torch.export import ExportedProgram

import edgekit
from edgekit.data import apply, open_images
from edgekit.data_free import DATA_FREE, calibrate_without_data
from edgekit.loading import Loaded, load
from edgekit.quantization import quantize
from edgekit.types import ModelRequest, QuantizationOptions

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.zoo import golden

DATA = Path(os.environ.get("EDGEKIT_SHARED", Path(__file__).parents[2] / "shared")) / "data"
WEIGHTS = {
    "resnet20-cifar": "resnet20_cifar10.safetensors",
    "resnet56-cifar": "resnet56_cifar10.safetensors",
    "mobilenet-v1-025": "mobilenetv1_025_imagenet.safetensors",
    "mobilenet-v2": "mobilenetv2_imagenet.safetensors",
}
GOLDEN = {
    "lvt": ("lvt", "lvt_cls"),
    "tiny-moat-0": ("moat", "tiny_moat_0"),
    "mobile-former-26m": ("mobileformer", "26m"),
    "micronet-m0": ("micronet", "m0"),
    "slab-deit-tiny": ("slab", "deit_tiny"),
}
BATCH = 16
CALIBRATION, TESTS = 64, 32
FREE = QuantizationOptions(rounding="balanced")


@dataclass(frozen=True)
class Made:
    """An int8 program, how long it took in all, and what was said of it."""

    program: ExportedProgram
    seconds: float
    notes: tuple[str, ...] = ()


def photos(loaded: Loaded, file: str, count: int, skip: int = 0) -> tuple[Tensor, Tensor]:
    """`count` photos (N, C, H, W) in an order of chance, the same each time, and their labels."""
    assert loaded.preprocess is not None
    images = open_images(DATA / file)
    chosen = [images[int(i)] for i in np.random.default_rng(0).permutation(len(images))[skip : skip + count]]
    inputs = torch.stack([torch.from_numpy(apply(loaded.preprocess, image.pixels)) for image in chosen])
    return inputs, torch.tensor([-1 if image.label is None else image.label for image in chosen])


def calls(images: Tensor, batch: int) -> list[tuple[Tensor]]:
    return [(part,) for part in images.split(batch) if len(part) == batch]


def answers(module: nn.Module, images: Tensor, batch: int) -> Tensor:
    """The first output for each image; the last batch is filled up."""
    short = -len(images) % batch
    with torch.no_grad():
        parts = [module(x) for x in torch.cat([images, images[:1].expand(short, *images.shape[1:])]).split(batch)]
    return torch.cat(parts)[: len(images)]


def programs(loaded: Loaded, real: Tensor, batch: int) -> Iterator[tuple[str, Made]]:
    """The model in int8 by photos, and by each method without any."""
    start = time.perf_counter()
    yield "photos", Made(quantize(loaded.program, calls(real, batch)), time.perf_counter() - start)
    for method in reversed(DATA_FREE):
        start = time.perf_counter()
        made = calibrate_without_data(loaded, method)
        program = quantize(loaded.program, made.samples, FREE, stand_in=made.stand_in, at_least=made.at_least)
        yield method, Made(program, time.perf_counter() - start, made.notes)


def accuracy(name: str) -> dict[str, Any]:
    """Top-1 in float and int8 on the same photos, and how often the two agree, in percent."""
    is_cifar = name.endswith("cifar")
    loaded = load(ModelRequest(model=name, weights=str(DATA / WEIGHTS[name]), batch_size=BATCH))
    tests, labels = photos(loaded, *(("cifar10_test.npz", 8000) if is_cifar else ("imagenet_sample800.tar", 800)))
    real = photos(loaded, "cifar10_train_jpeg50k.npz", CALIBRATION)[0] if is_cifar else tests[:CALIBRATION]
    reference = answers(loaded.module, tests, BATCH).argmax(1)
    found: dict[str, Any] = {"n": len(tests), "float_top1": percent(reference == labels)}
    for how, made in programs(loaded, real, BATCH):
        classes = answers(made.program.module(), tests, BATCH).argmax(1)
        top1 = percent(classes == labels)
        found[how] = {
            "top1": top1,
            "drop": round(found["float_top1"] - top1, 3),
            "agreement": percent(classes == reference),
            "seconds": round(made.seconds, 1),
            "notes": made.notes,
        }
        print(
            f"{name:<20}{how:<10} top-1 {top1:6.2f}, drop {found[how]['drop']:5.2f}, {made.seconds:.0f} s", flush=True
        )
    return found


def noise(name: str) -> dict[str, Any]:
    """Decibels between float and int8 answers on photos, by calibration."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        torch.save(golden(DATA.parent, *GOLDEN[name]).state, weights)
        torch.save(trained(name, weights), weights)
        loaded = load(ModelRequest(model=name, weights=str(weights)))
    both, _ = photos(loaded, "imagenet_sample800.tar", TESTS + CALIBRATION // 2)
    tests, real = both[:TESTS], both[TESTS:]
    reference = answers(loaded.module, tests, 1).double()
    for how, made in programs(loaded, real, 1):
        error = answers(made.program.module(), tests, 1).double() - reference
        ratio = float(10 * (reference.square().sum() / error.square().sum()).log10())
        found[how] = {"sqnr_db": round(ratio, 2), "seconds": round(made.seconds, 1), "notes": made.notes}
        print(f"{name:<20}{how:<10}{ratio:6.2f} dB, {made.seconds:.0f} s", flush=True)
    return found


def trained(name: str, weights: Path) -> dict[str, Tensor]:
    """The state of a model whose batch norms have seen photos in training, none of those that calibrate or test."""
    module = edgekit.create_model(name, weights=weights)
    loaded = load(ModelRequest(model=name))
    images, _ = photos(loaded, "imagenet_sample800.tar", 64, skip=400)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = 1.0
    # Layer after layer by themselves: in training mode each sees what those before it have normed.
    with torch.no_grad():
        module(images)
    return module.eval().state_dict()


def percent(right: Tensor) -> float:
    return round(100 * float(right.double().mean()), 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join((*WEIGHTS, *GOLDEN)))
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in asked.models.split(","):
        table, results = ("accuracy" if name in WEIGHTS else "noise"), saved("data_free_int8")
        if asked.resume and name in results.get(table, {}):
            continue
        rows = results.get(table, {}) | {name: accuracy(name) if name in WEIGHTS else noise(name)}
        tables = {key: results.get(key, {}) for key in ("accuracy", "noise")} | {table: rows}
        save("data_free_int8", tables)
