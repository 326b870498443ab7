"""What each term of ClusterQ gives: W4A4 of ResNet-20 on CIFAR-10, protocol A, at a budget that two cores hold.

    python benchmarks/clusterq_ablation.py [--seeds 0,1,2] [--variants gdfq,...] [--resume]

All variants have the same budget (`affordable` in `edgekit/few_bits.py`) and the same seeds. The papers' budget is 400
epochs of 200 steps, some 330 times as many, with five times the batch. `gdfq` is BNS alone, with the element mean of
the divergence; `bns+kd` changes nothing but its weight to ClusterQ's, ten times that for ten classes; the others have
ClusterQ's and add SFDA, EMA and ICV, or what the public code computes instead. `top1` is the last epoch's; `best` is
the best epoch's on the test images, as the public code reports: against `last`, on the same images, that is the
optimism of the choice. Needs the data beside the project (EDGEKIT_SHARED).
"""

import argparse
import time
import warnings
from dataclasses import asdict
from typing import Any

import torch
from _measure import save, saved
from few_bits import DATA, MODELS, photos, top1

from edgekit.data_free.clusterq import VARIANTS, train
from edgekit.few_bits import FewBits, affordable, generative_trainer
from edgekit.loading import load
from edgekit.types import ModelRequest

NAME = "resnet20-cifar"
EACH_EPOCH = 1000
"""Test images for the curve; the last epoch is measured on all."""


def row(variant: str, seed: int) -> dict[str, Any]:
    """The accuracy of each epoch, of the last one on all test images, and of the images that the generator made."""
    weights, _, test, count = MODELS[NAME]
    loaded = load(ModelRequest(model=NAME, weights=str(DATA / weights)))
    inputs, labels = photos(loaded, DATA / test, count)
    options = affordable(VARIANTS[variant], loaded)
    trainer = generative_trainer(loaded, options, FewBits(scheme="w4a4", protocol="a", seed=seed))
    batch, curve, began = options.classes_per_batch * options.images_per_class, [], time.perf_counter()

    def see(epoch: int, generator: float, student: float) -> None:
        shown = top1(trainer.student, inputs[:EACH_EPOCH], labels[:EACH_EPOCH], batch)
        curve.append({"epoch": epoch, "generator": generator, "student": student, "top1": shown})

    train(trainer, on_epoch=see)
    exact = top1(loaded.module.eval(), inputs, labels, batch)
    accuracy = top1(trainer.student, inputs, labels, batch)
    with torch.no_grad():
        wanted = trainer.labels()
        recognized = float((trainer.teacher(trainer.images(wanted)).argmax(1) == wanted).float().mean())
    return {
        "options": asdict(options),
        "top1": accuracy,
        "drop": exact - accuracy,
        "best": max(c["top1"] for c in curve if c["epoch"] > options.warm_up),
        "last": curve[-1]["top1"],
        "recognized": recognized,
        "seconds": time.perf_counter() - began,
        "curve": curve,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for seed in map(int, asked.seeds.split(",")):
        for variant in asked.variants.split(","):
            results = saved("clusterq_ablation").get("results", {})
            if asked.resume and f"{variant} {seed}" in results:
                continue
            results[f"{variant} {seed}"] = made = row(variant, seed)
            save("clusterq_ablation", {"results": results})
            print(
                f"{variant:<12} {seed} top-1 {made['top1']:.2f}, drop {made['drop']:.2f}, {made['seconds']:.0f} s",
                flush=True,
            )
