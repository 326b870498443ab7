"""What snapshot distillation and SSLD give against plain training with as many optimizer steps, 3 seeds each.

    python benchmarks/distillation.py [--seeds 0,1,2] [--variants plain,ssld,...] [--resume] [--steps N]

MicroNet-M0 from scratch at 64 px on 8,000 images of CIFAR-10, tested on 2,000 others: 12 epochs, 744 steps of 128,
about half an hour of one core in all. Of a seed all variants have the same images, first weights and order of batches,
so they are compared in pairs. Equal is the number of steps; the teachers' forward passes come on top, and `seconds`
says what they cost. `plain` is cross entropy and one cosine; `cycles` the same with three; `snapshot` has these three,
and the end of each teaches the next with half of the loss; `ssld` learns from the answers of a ResNet-20 and from no
label. That teacher was trained on all 50,000 images of CIFAR-10, which no other variant sees: its gain is transfer too.
With --steps the runs are short and nothing is saved. Needs the data beside the project (EDGEKIT_SHARED).
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from _measure import save, saved

from edgekit.training import train

DATA = Path(os.environ.get("EDGEKIT_SHARED", Path(__file__).parents[2] / "shared")) / "data"
RECIPE = f"""
model: {{name: micronet-m0, image_size: 64, crop_pct: 1}}
data:
  train: {DATA}/cifar10_train_jpeg50k.npz
  evaluation: {DATA}/cifar10_test.npz
  train_limit: 8000
  limit: 2000
  batch_size: 128
augmentation: {{crop_padding: 8}}
optimizer: {{name: sgd, lr: 0.1, weight_decay: 3e-5, decay_vectors: true}}
schedule: {{epochs: 12, warmup_epochs: 1}}
hardware: {{device: cpu}}
checkpoint_every: 1000
out: out
"""
TEACHER = f"{{name: resnet20-cifar, weights: {DATA}/resnet20_cifar10.safetensors}}"
CYCLES = ("schedule.cycles=3",)
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "cycles": CYCLES,
    "snapshot": (*CYCLES, "distillation={method: snapshot, weight: 0.5, temperature: 2}"),
    "ssld": (f"distillation={{method: ssld, teacher: {TEACHER}}}",),
}
# What each is compared with: itself less the teacher.
AGAINST = {"cycles": ("plain",), "snapshot": ("plain", "cycles"), "ssld": ("plain",)}


def row(variant: str, seed: int, steps: int | None) -> dict[str, float]:
    """Top-1 of the last weights, in percent, and what the run took."""
    overrides = [*VARIANTS[variant], f"seed={seed}"]
    if steps is not None:
        overrides += ["schedule.epochs=null", f"schedule.steps={steps}", "data.limit=200"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(RECIPE, encoding="utf-8")
        began = time.perf_counter()
        trained = train(path, [*overrides, f"out={folder}/run"])
    assert trained is not None
    top1 = trained.accuracy["float"].top1
    assert top1 is not None
    return {"top1": top1, "steps": trained.steps, "seconds": round(time.perf_counter() - began, 1)}


def spread_of(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, and each of them."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": deviation, "each": values}


def summary(runs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """By variant: its top-1, and the differences to what it is compared with, of the same seeds."""
    by: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        variant, seed = name.split()
        by.setdefault(variant, {})[seed] = run["top1"]
    found: dict[str, Any] = {}
    for variant, tops in ((v, by[v]) for v in VARIANTS if v in by):
        found[variant] = {"top1": spread_of([tops[s] for s in sorted(tops)])}
        for other in AGAINST.get(variant, ()):
            both = sorted(tops.keys() & by.get(other, {}).keys())
            if both:
                found[variant][f"minus_{other}"] = spread_of([tops[s] - by[other][s] for s in both])
    return found


def show(found: dict[str, Any]) -> None:
    """A line a figure; a difference whose sign depends on the seed, or within its own spread, is called no gain."""
    for variant, figures in found.items():
        for name, f in figures.items():
            verdict = ""
            if name != "top1":
                alike = all(v > 0 for v in f["each"]) or all(v < 0 for v in f["each"])
                clear = alike and f["std"] is not None and abs(f["mean"]) > f["std"]
                verdict = "" if not clear else "better" if f["mean"] > 0 else "worse"
                verdict = f"  {verdict or 'no clear difference'}"
            std = "" if f["std"] is None else f" ± {f['std']:.2f}"
            each = ", ".join(f"{v:.2f}" for v in f["each"])
            print(f"{variant:<10}{name:<14}{f['mean']:6.2f}{std}  ({each}){verdict}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--steps", type=int)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    runs: dict[str, dict[str, float]] = {} if asked.steps else saved("distillation").get("runs", {})
    for seed in map(int, asked.seeds.split(",")):
        for variant in asked.variants.split(","):
            if asked.resume and f"{variant} {seed}" in runs:
                continue
            runs[f"{variant} {seed}"] = made = row(variant, seed, asked.steps)
            print(f"{variant:<10}seed {seed}: top-1 {made['top1']:.2f}, {made['seconds']:.0f} s", flush=True)
            if not asked.steps:
                save("distillation", {"summary": summary(runs), "runs": runs})
    show(summary(runs))
