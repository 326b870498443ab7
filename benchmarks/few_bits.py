"""Few bits without data: ResNet-20 on CIFAR-10 and MobileNetV1-0.25 on photos, by protocol and method.

    python benchmarks/few_bits.py [--models resnet20-cifar,...] [--protocols a,b,h] [--methods ...] [--seeds 0,1,2]
                                  [--schemes w4a4,...] [--resume]

Methods: `naive` rounds to the nearest step between minima and maxima on Gaussian noise; `gdfq` and `clusterq` train a
generator and the student by turns, at the budget that is saved with the figures, far below the papers' 80,000 steps;
`learned` is edgekit's (`edgekit quantize --scheme w4a4 --data-free`); `photos` learns the same way from as many
training photos (of MobileNetV1, test photos: there are no others), and says what the missing data cost. Always the last
state, never the best on the test images. What is finished is kept: --resume goes on behind it. Needs the weights and
images beside the project (EDGEKIT_SHARED).
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import save, saved
from torch import Tensor

from edgekit.data import apply, open_images, spread
from edgekit.data_free.clusterq import VARIANTS, train
from edgekit.few_bits import (
    GENERATIVE,
    FewBits,
    affordable,
    batched,
    generative_trainer,
    learned_student,
    options_for,
    synthetic_images,
)
from edgekit.loading import Loaded, load
from edgekit.low_bit import Student, place, scheme_of
from edgekit.low_bit.quantizers import MinMaxWeight
from edgekit.types import ModelRequest

DATA = Path(os.environ.get("EDGEKIT_SHARED", Path(__file__).parents[2] / "shared")) / "data"
# Weights, training photos, test photos, how many of them.
MODELS = {
    "resnet20-cifar": ("resnet20_cifar10.safetensors", "cifar10_train_jpeg50k.npz", "cifar10_test.npz", 8000),
    "mobilenet-v1-025": ("mobilenetv1_025_imagenet.safetensors", *("imagenet_sample800.tar",) * 2, 800),
}
METHODS = ("naive", "gdfq", "clusterq", "learned", "photos")


def photos(loaded: Loaded, path: Path, count: int) -> tuple[Tensor, Tensor]:
    """Images as the model takes them (N, C, H, W) and their labels, spread over the classes."""
    images = open_images(path)
    chosen = spread(images.labels, min(count, len(images)), 0)
    assert loaded.preprocess is not None
    inputs = np.stack([apply(loaded.preprocess, images[i].pixels) for i in chosen])
    return torch.from_numpy(inputs), torch.tensor([images[i].label for i in chosen])


@torch.no_grad()
def top1(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, batch: int) -> float:
    """In percent; the last batch is filled from the first images."""
    filled = images[torch.arange(-(-len(images) // batch) * batch) % len(images)]
    answers = torch.cat([model(part).argmax(1) for part in filled.split(batch)])[: len(images)]
    return 100 * float((answers == labels).float().mean())


def naive(loaded: Loaded, scheme: str, protocol: str, seed: int, batch: int) -> Student:
    """Minima and maxima, of weights and of what noise makes of them."""
    program = batched(loaded, batch, deployed=False)
    student = Student(program, place(program, scheme_of(scheme), protocol), MinMaxWeight)
    student.watch()
    with torch.no_grad():
        student(torch.randn(batch, *loaded.inputs[0].shape[1:], generator=torch.Generator().manual_seed(seed)))
    for quantizer in student.activations.values():
        quantizer.observing = False  # type: ignore[assignment]
    return student


def student_of(
    loaded: Loaded, method: str, scheme: str, protocol: str, seed: int, images: Callable[[str, int], Tensor]
) -> tuple[Student, int]:
    """A student that has learned by a method, and the batch that it takes."""
    options = options_for(loaded)
    wanted = FewBits(scheme=scheme, protocol=protocol, seed=seed, learning=options)
    if method == "naive":
        return naive(loaded, scheme, protocol, seed, options.reconstruction.batch), options.reconstruction.batch
    if method in VARIANTS:
        trainer = generative_trainer(loaded, affordable(VARIANTS[method], loaded), wanted)
        train(trainer)
        return trainer.student, trainer.options.classes_per_batch * trainer.options.images_per_class
    return learned_student(loaded, images(method, seed), wanted), options.reconstruction.batch


def run(name: str, asked: argparse.Namespace) -> None:
    weights, calibration, test, count = MODELS[name]
    loaded = load(ModelRequest(model=name, weights=str(DATA / weights)))
    inputs, labels = photos(loaded, DATA / test, count)
    exact = top1(loaded.module.eval(), inputs, labels, 50)
    made: dict[tuple[str, int], Tensor] = {}

    def images(method: str, seed: int) -> Tensor:
        if (method, seed) not in made:
            began = time.perf_counter()
            free = synthetic_images(loaded, seed=seed)
            real = photos(loaded, DATA / calibration, len(free))[0] if method == "photos" else free
            made[method, seed] = real
            print(f"{name} {len(real)} images, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
        return made[method, seed]

    for seed in map(int, asked.seeds.split(",")):
        for scheme in asked.schemes.split(","):
            for protocol in asked.protocols.split(","):
                for method in asked.methods.split(","):
                    results: dict[str, Any] = saved("few_bits").get("results", {})
                    key = f"{name} {scheme} {protocol} {method} {seed}"
                    if (asked.resume and key in results) or (method in VARIANTS and protocol != "a"):
                        continue
                    began = time.perf_counter()
                    student, batch = student_of(loaded, method, scheme, protocol, seed, images)
                    seconds = time.perf_counter() - began
                    accuracy = top1(student, inputs, labels, batch)
                    results = saved("few_bits").get("results", {})
                    results[key] = {"top1": accuracy, "float": exact, "drop": exact - accuracy, "seconds": seconds}
                    save("few_bits", {"generative": list(GENERATIVE.values()), "results": results})
                    print(
                        f"{key:<46} {accuracy:6.2f} of {exact:.2f}, drop {exact - accuracy:6.2f}, {seconds:.0f} s",
                        flush=True,
                    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (
        ("models", ",".join(MODELS)), ("schemes", "w4a4"), ("protocols", "a,b,h"), ("methods", ",".join(METHODS)),
        ("seeds", "0,1,2"),
    ):  # fmt: skip
        parser.add_argument(f"--{option}", default=default)
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in asked.models.split(","):
        run(name, asked)
