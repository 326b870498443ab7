"""Training in float on real photos: the loop, what it writes, resuming, distillation, fine-tuning, processes."""

import json
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import edgekit
from edgekit.data import open_images
from edgekit.errors import BadInput, EdgekitError
from edgekit.loading import Loaded
from edgekit.models import read_card
from edgekit.training import Trained, read_recipe, train
from edgekit.training.augmentation import ImageTransform, mixed
from edgekit.training.data import Batches, Photos
from edgekit.training.distillation import Objective, kd, symmetrized_kl, top_score_difference
from edgekit.training.optimization import Frozen, average, optimizer_of, rate_of
from edgekit.training.recipe import (
    AugmentationSection,
    DistillationSection,
    FineTuningSection,
    OptimizerSection,
    Recipe,
    ScheduleSection,
)
from edgekit.training.sharding import write_shards
from tests.conftest import Cli, few_photos, process

NETS = """
import torch
from torch import nn


def small(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, num_classes),
    )
"""


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 photos of CIFAR-10 with labels, 16 a class."""
    return few_photos(shared, tmp_path_factory.mktemp("cifar") / "cifar.npz", 16)


Writer = Callable[..., Path]


@pytest.fixture
def recipe(photos: Path, tmp_path: Path) -> Writer:
    """`recipe("seed: 3")`: a recipe of seconds, with more lines."""

    def write(more: str = "", out: str = "run") -> Path:
        nets = tmp_path / "nets.py"
        nets.write_text(NETS, encoding="utf-8")
        path = tmp_path / f"{out}.yaml"
        text = f"""
model: {{name: '{nets}:small', image_size: 32, crop_pct: 1, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
data: {{train: {photos}, holdout: 0.25, batch_size: 16}}
augmentation: {{crop_padding: 2, mixup: 0.2, cutmix: 1.0, random_erasing: 0.2}}
optimizer: {{name: adamw, lr: 1e-2, weight_decay: 0.05, clip_norm: 5}}
schedule: {{steps: 8, warmup_steps: 2, ema: 0.9, label_smoothing: 0.1}}
checkpoint_every: 2
evaluate_every: 4
log_every: 1
hardware: {{device: cpu}}
out: {tmp_path / out}
{more}"""
        path.write_text(text, encoding="utf-8")
        return path

    return write


def run(recipe: Path, overrides: Sequence[str] = (), resume: bool = False, force: bool = False) -> Trained:
    done = train(recipe, overrides, resume=resume, force=force)
    assert done is not None
    return done


def entries(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------------ runs


def test_a_run_learns_and_says_what_its_weights_are(recipe: Writer, cli: Cli, tmp_path: Path) -> None:
    result = cli("train", recipe(), "schedule.steps=60", "schedule.label_smoothing=0", "--json", *PLAIN)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (document["steps"], document["accuracy"]["float"]["n"]) == (60, 40)
    log = entries(tmp_path / "run")
    losses = [e["loss"] for e in log]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert [e["step"] for e in log if "top1" in e] == list(range(4, 61, 4))
    assert log[-1]["top1"] == pytest.approx(document["accuracy"]["float"]["top1"], abs=1e-3)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    card = read_card(tmp_path / "run" / "last.safetensors")
    assert card is not None
    assert (card.num_classes, card.image_size, card.labels[3]) == (10, (32, 32), "cat")
    assert card.preprocess is not None
    assert (card.preprocess.resize, card.preprocess.mean) == (32, (0.5, 0.5, 0.5))
    seen = [e["top1"] for e in log if "top1" in e]
    assert (seen.index(max(seen)) == len(seen) - 1) == _same(
        tmp_path / "run" / "best.safetensors", tmp_path / "run" / "last.safetensors"
    )


def _same(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return all(torch.equal(a[name], b[name]) for name in a)


PLAIN = [f"augmentation.{name}=0" for name in ("mixup", "cutmix", "random_erasing", "crop_padding")]


def test_weights_that_were_trained_export_by_their_name_alone(recipe: Writer, cli: Cli, tmp_path: Path) -> None:
    run(recipe(), ["model={name: mobilenet-v1-025, image_size: 32}", "schedule.steps=2"])
    weights = tmp_path / "run" / "last.safetensors"
    exported = cli(
        "export", "-m", "mobilenet-v1-025", "--weights", weights, "-t", "onnx", "-o", tmp_path / "exported", "--json"
    )
    assert exported.code == 0, exported.err
    (manifest,) = json.loads(exported.out)
    assert manifest["inputs"][0]["shape"] == [1, 3, 32, 32]
    assert manifest["outputs"][0]["shape"] == [1, 10]
    (labels,) = (tmp_path / "exported").rglob("labels.txt")
    assert "cat" in labels.read_text(encoding="utf-8").split()
    other = cli("export", "-m", "mobilenet-v2", "--weights", weights, "-t", "onnx", "-o", tmp_path / "other")
    assert other.code == 2
    assert "mobilenet-v1-025" in other.err


def test_a_killed_run_resumes_to_the_same_bits(recipe: Writer, tmp_path: Path) -> None:
    steps = ["schedule.steps=24", "schedule.cycles=2", "distillation.method=snapshot", "distillation.weight=0.5"]
    whole = run(recipe(out="whole"), steps)
    path = recipe(out="killed")
    running = subprocess.Popen(process("train", path, *steps), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = tmp_path / "killed" / "log.jsonl"
    while running.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= 13:  # between checkpoints, in the second cycle
            running.kill()
            break
        time.sleep(0.02)
    running.communicate()
    assert running.returncode == -9, "it was done before it could be killed"
    assert not (tmp_path / "killed" / "last.safetensors").exists()
    resumed = run(path, steps, resume=True)
    a, b = load_file(whole.path), load_file(resumed.path)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [e["step"] for e in entries(log.parent)] == list(range(1, 25))
    assert resumed.accuracy == whole.accuracy


def test_workers_change_nothing(recipe: Writer) -> None:
    states = [load_file(run(recipe(out=f"w{n}"), ["schedule.steps=3", f"data.workers={n}"]).path) for n in (0, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_another_seed_is_another_run(recipe: Writer) -> None:
    states = [load_file(run(recipe(f"seed: {seed}", out=f"s{seed}"), ["schedule.steps=2"]).path) for seed in (1, 2)]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_precisions(recipe: Writer) -> None:
    full, half = (
        load_file(run(recipe(out=p), ["schedule.steps=4", f"hardware.precision={p}", *PLAIN]).path)
        for p in ("fp32", "bf16")
    )
    assert all(value.dtype in (torch.float32, torch.int64) for value in half.values())
    assert any(not torch.equal(full[name], half[name]) for name in full)
    for name in full:
        if name.endswith("weight"):
            assert (full[name] - half[name]).abs().max() < 0.1


# ------------------------------------------------------------------------------------------ processes


def under_torchrun(processes: int, *arguments: str | Path) -> list[str]:
    import sys

    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        "--max-restarts=2", "-m", "edgekit", "train", *map(str, arguments),
    ]  # fmt: skip


def launched(processes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(under_torchrun(processes, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_two_processes_are_one(recipe: Writer, tmp_path: Path) -> None:
    """The same global batch, the same losses: batch norms, mixing and gradients are of all processes together."""
    same = ["model.name=" + str(tmp_path / "nets.py:small"), "schedule.steps=6"]
    nets = NETS.replace("nn.Dropout(0.1), ", "")
    one, two = recipe(out="one"), recipe(out="two")
    (tmp_path / "nets.py").write_text(nets, encoding="utf-8")
    run(one, same)
    launched(2, two, *same)
    a, b = entries(tmp_path / "one"), entries(tmp_path / "two")
    assert [e["step"] for e in a] == [e["step"] for e in b] == list(range(1, 7))
    for x, y in zip(a, b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], abs=1e-4)
    first, second = (load_file(tmp_path / out / "last.safetensors") for out in ("one", "two"))
    for name in first:
        torch.testing.assert_close(first[name].float(), second[name].float(), atol=1e-3, rtol=1e-3)


def test_a_worker_killed_is_started_again(recipe: Writer, tmp_path: Path) -> None:
    """torchrun's elastic restart: all go on from the last checkpoint, and the run finishes."""
    path = recipe(out="elastic")
    words = under_torchrun(2, path, "schedule.steps=40", "--force")
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, struck = tmp_path / "elastic" / "log.jsonl", False
    while running.poll() is None:
        if not struck and log.exists() and len(log.read_text().splitlines()) >= 5:
            found = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True)
            subprocess.run(["kill", "-9", found.stdout.split()[-1]], check=True)
            struck = True
        time.sleep(0.02)
    _, err = running.communicate()
    assert struck, "it was done before it could be killed"
    assert running.returncode == 0, err[-3000:]
    assert [e["step"] for e in entries(log.parent)] == list(range(1, 41))
    assert (tmp_path / "elastic" / "last.safetensors").exists()


def test_all_of_it_runs_in_two_processes(recipe: Writer, photos: Path, tmp_path: Path) -> None:
    """Half precision, norms that change, unused parameters, modules that are released; int8 behind it in one.

    Photos that cannot be read are counted over both.
    """
    path, folder = recipe(), tmp_path / "photos"
    images = open_images(photos)
    for i in range(len(images)):
        (folder / f"{images.labels[i]}").mkdir(parents=True, exist_ok=True)
        images[i].pixels.save(folder / f"{images.labels[i]}" / f"{i}.png")
    for broken in sorted((folder / "3").iterdir())[:8]:
        broken.write_bytes(broken.read_bytes()[:-200])
    done = launched(
        2, path, "model={name: slab-pvt-tiny, image_size: 32}", "schedule.steps=10", "hardware.precision=bf16",
        f"data.train={folder}", "data.holdout=0",
        "fine_tuning={freeze: [block1], unfreeze_epoch: 0.1}",
        "quantization={num_calibration_samples: 8, qat: {schedule: {steps: 1}}}",
    )  # fmt: skip
    assert (tmp_path / "run" / "model.pt2").exists()
    assert "training: 8 images are left out" in done.stdout + done.stderr


def test_a_recipe_that_cannot_run_leaves_what_is_there(recipe: Writer, tmp_path: Path) -> None:
    done = run(recipe(), ["schedule.steps=1"])
    before = done.path.read_bytes()
    for wrong, words in (
        ("fine_tuning.freeze=[nope]", "no module of the model is named 'nope'"),
        ("export={targets: [onx]}", "onx"),
        ("token_labelling={teacher: {name: lvt}}", "has no logits of its patch tokens"),
        ("distillation={method: kd, teacher: {name: lvt}}", "has 1000 classes, the model 10"),
    ):
        with pytest.raises(EdgekitError, match=words):
            run(recipe(), [wrong], force=True)
        assert done.path.read_bytes() == before
        with pytest.raises(EdgekitError, match=words):
            run(recipe(out="new"), [wrong])
        assert not (tmp_path / "new").exists()


def test_a_callable_without_a_number_of_classes_trains(recipe: Writer, tmp_path: Path, cli: Cli) -> None:
    path = recipe()
    own = tmp_path / "own.py"
    own.write_text(NETS.replace("num_classes=10", "").replace("num_classes", "10"), encoding="utf-8")
    done = run(path, [f"model.name={own}:small", "schedule.steps=1"])
    words = ["-m", f"{own}:small", "--weights", done.path, "-t", "onnx", "-o", tmp_path / "exported"]
    exported = cli("export", *words)
    assert exported.code == 0, exported.err


def test_a_limit_of_exported_artifacts_is_spread_over_the_classes(recipe: Writer, tmp_path: Path) -> None:
    done = run(recipe(), ["schedule.steps=1", "export={targets: [onnx], limit: 10}"])
    assert done.accuracy["onnx fp32"].n == 10
    assert done.accuracy["onnx fp32"].agreement == 100


def test_a_batch_that_cannot_be_parted_is_refused(recipe: Writer, photos: Path, resnet: Loaded) -> None:
    some = photos_of(photos, resnet, 20)
    with pytest.raises(BadInput, match="Give a multiple of 4") as refused:
        Batches(some, 6, 0, plain(some), AugmentationSection(mixup=0.2), 10, world=2)
    assert "parted equally" in refused.value.message


# ------------------------------------------------------------------------------------------ fine-tuning


def test_a_head_is_replaced_and_the_body_kept(shared: Path, recipe: Writer, tmp_path: Path) -> None:
    weights = shared / "data" / "mobilenetv1_025_imagenet.safetensors"
    model = f"model={{name: mobilenet-v1-025, weights: {weights}, image_size: 64}}"
    frozen = ["fine_tuning.freeze=[features]", "schedule.steps=2", "schedule.ema=null"]
    named = [name for name, _ in edgekit.create_model("mobilenet-v1-025").named_children()]
    body = next(name for name in named if name not in ("classifier", "head", "linear", "fc"))
    frozen[0] = f"fine_tuning.freeze=[{body}]"
    done = run(recipe(), [model, *frozen])
    assert any("start anew: 10 classes" in note for note in done.notes)
    before, after = load_file(weights), load_file(done.path)
    kept = [name for name in after if name.startswith(f"{body}.") and name in before]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept if "num_batches" not in name)
    released = run(recipe(out="released"), [model, *frozen, "fine_tuning.unfreeze_epoch=0.1"])
    again = load_file(released.path)
    assert any(not torch.equal(before[name], again[name]) for name in kept)


def test_what_cannot_be_frozen_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    with pytest.raises(BadInput, match="no module of the model is named 'body'"):
        Frozen(net, FineTuningSection(freeze=("body",)))
    with pytest.raises(BadInput, match="nothing is left to train"):
        Frozen(net, FineTuningSection(freeze=("*",)))


def test_rates_fall_towards_the_stem() -> None:
    net = edgekit.create_model("mobilenet-v1-025", image_size=32, num_classes=3)
    optimizer = optimizer_of(net, OptimizerSection(weight_decay=0.1), 0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    scales = [scale[id(p)] for p in net.parameters()]
    assert scales[-1] == 1
    assert all(a <= b for a, b in pairwise(scales))
    assert len(set(scales)) > 5
    assert {g["weight_decay"] for g in optimizer.param_groups if g["params"][0].dim() <= 1} == {0.0}


# ------------------------------------------------------------------------------------------ distillation


def test_losses_are_the_equations() -> None:
    torch.manual_seed(0)
    answers, targets = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    q, p = answers.softmax(1), targets.softmax(1)

    def divergence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum(1).mean()

    torch.testing.assert_close(symmetrized_kl(answers, targets), 0.5 * (divergence(p, q) + divergence(q, p)))
    p3, q3 = (targets / 3).softmax(1), (answers / 3).softmax(1)
    torch.testing.assert_close(kd(answers, targets, 3.0), 9 * divergence(p3, q3))
    ordered = q.sort(1, descending=True).values
    torch.testing.assert_close(top_score_difference(answers, 3), (ordered[:, 0] - ordered[:, 1:3].mean(1)).mean())


def test_a_snapshot_teaches_the_next_cycle_only() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    objective = Objective(DistillationSection(method="snapshot", weight=0.5, temperature=2))
    plain_loss = nn.functional.cross_entropy(net(x), y)
    torch.testing.assert_close(objective(net, x, y), plain_loss)
    objective.cycle_ended(net)
    torch.testing.assert_close(objective(net, x, y), 0.5 * plain_loss)  # it agrees with itself
    with torch.no_grad():
        net.weight.mul_(-2)
    taught = objective(net, x, y)
    assert taught > 0.5 * nn.functional.cross_entropy(net(x), y)
    other = Objective(DistillationSection(method="snapshot", weight=0.5, temperature=2))
    other.restore(objective.state(), nn.Linear(4, 3))
    torch.testing.assert_close(other(net, x, y), taught)


@pytest.mark.parametrize("method", ["kd", "ssld"])
def test_a_teacher_of_another_size_teaches(method: str, shared: Path, recipe: Writer, tmp_path: Path) -> None:
    teacher = f"{{name: resnet20-cifar, weights: {shared}/data/resnet20_cifar10.safetensors}}"
    done = run(recipe(), [f"distillation={{method: {method}, teacher: {teacher}}}", "model.image_size=48",
                          "schedule.steps=3"])  # fmt: skip
    assert all(math.isfinite(e["loss"]) for e in entries(done.path.parent))
    with pytest.raises(BadInput, match="has 10 classes, the model 3"):
        run(recipe(out="three"), [f"distillation={{method: {method}, teacher: {teacher}}}", "model.num_classes=3"])


def test_a_tolerant_teacher_keeps_its_second_classes(recipe: Writer) -> None:
    done = run(recipe(), ["distillation={method: tolerant, weight: 0.5}", "schedule.steps=3"])
    assert all(math.isfinite(e["loss"]) for e in entries(done.path.parent))


def test_slab_goes_from_layer_norm_to_batch_norm_and_exports(recipe: Writer, cli: Cli, tmp_path: Path) -> None:
    done = run(recipe(), ["model={name: slab-deit-tiny, image_size: 32}", "schedule.steps=4", "schedule.ema=null"])
    state = load_file(done.path)
    assert {int(v) for k, v in state.items() if k.endswith(".iter")} == {0}
    assert {int(v) for k, v in state.items() if k.endswith(".total_step")} == {3}
    words = ["-m", "slab-deit-tiny", "--weights", done.path, "-t", "onnx", "-o", tmp_path / "exported"]
    exported = cli("export", *words)
    assert exported.code == 0, exported.err


# ------------------------------------------------------------------------------------------ data


def photos_of(path: Path, loaded: Loaded, n: int) -> Photos:
    images = open_images(path)
    assert loaded.preprocess is not None
    return Photos(images, tuple(range(n)), tuple(int(images.labels[i] or 0) for i in range(n)), loaded.preprocess)


def plain(photos: Photos, flip: bool = False, crop_padding: int = 0) -> ImageTransform:
    return ImageTransform(photos.preprocess, AugmentationSection(flip=flip, crop_padding=crop_padding))


def test_a_step_has_the_same_photos_whenever_it_comes(photos: Path, resnet: Loaded) -> None:
    some = photos_of(photos, resnet, 20)
    first, second = (Batches(some, 8, 3, plain(some, True, 4)) for _ in range(2))
    forward = [first[step] for step in range(5)]
    backward = [second[step] for step in reversed(range(5))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.labels is not None
        assert b.labels is not None
        assert torch.equal(a.labels, b.labels)
    assert not torch.equal(forward[0].images, forward[2].images), "another epoch, another order and augmentation"
    parts = [Batches(some, 8, 3, plain(some, True, 4), rank=rank, world=2) for rank in range(2)]
    assert torch.equal(torch.cat([part[1].images for part in parts]), forward[1].images)


def test_augmentation_moves_and_mirrors_what_is_there(photos: Path, resnet: Loaded) -> None:
    one = photos_of(photos, resnet, 1)
    original = Batches(one, 1, 0, plain(one))[0].images[0]
    seen = [Batches(one, 1, 0, plain(one, flip=True))[step].images[0] for step in range(8)]
    assert {torch.equal(s, original) for s in seen} == {True, False}
    assert all(torch.equal(s, original) or torch.equal(s, original.flip(2)) for s in seen)
    padded = nn.functional.pad(original, (2, 2, 2, 2))
    crops = {(y, x): padded[:, y : y + 32, x : x + 32] for y in range(5) for x in range(5)}
    for step in range(8):
        moved = Batches(one, 1, 0, plain(one, crop_padding=2))[step].images[0]
        assert sum(torch.equal(moved, crop) for crop in crops.values()) >= 1


@pytest.mark.parametrize(
    "section",
    [
        AugmentationSection(random_resized_crop=0.08),
        AugmentationSection(rand_augment=9),
        AugmentationSection(color_jitter=0.4),
        AugmentationSection(random_erasing=1.0),
    ],
)
def test_each_augmentation_follows_from_its_seed(photos: Path, resnet: Loaded, section: AugmentationSection) -> None:
    some = photos_of(photos, resnet, 1)
    transform = ImageTransform(some.preprocess, section)
    photo = some.images[0].pixels
    state = torch.random.get_rng_state()
    a, b, c = (transform(photo, (0, seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == (3, 32, 32)
    assert a.isfinite().all()


def test_mixing_is_of_pairs_and_counts_them() -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    labels = torch.tensor([0, 1, 2, 3])
    for section in (AugmentationSection(mixup=1.0), AugmentationSection(cutmix=1.0)):
        for seed in range(20):
            out, targets = mixed(images, labels, 4, section, np.random.default_rng(seed))
            torch.testing.assert_close(targets.sum(1), torch.ones(4))
            # The value of a pixel is the number of its image: their mean is what the targets say.
            torch.testing.assert_close(out.mean((1, 2, 3)), targets @ torch.arange(4.0))
            assert (targets[:2, 2:] == 0).all()


def test_the_rate_rises_and_falls() -> None:
    schedule = ScheduleSection(steps=100, warmup_steps=10)
    rates = [rate_of(step, 100, 0.1, schedule, 10) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[11:]))
    assert rates[-1] < 0.001 * max(rates) * 2
    twice = ScheduleSection(steps=100, cycles=2, min_lr=0.01)
    rates = [rate_of(step, 100, 0.1, twice, 10) for step in range(100)]
    assert rates[:50] == rates[50:]
    assert min(rates) > 0.01


def test_an_average_of_weights_starts_near_and_moves_on() -> None:
    averaged, current = [torch.zeros(1), torch.tensor(0)], [torch.ones(1), torch.tensor(7)]
    average(averaged, current, 0.99, 0)
    assert averaged[0].item() == pytest.approx(0.9)
    assert averaged[1].item() == 7
    average(averaged, [torch.zeros(1), torch.tensor(8)], 0.5, 1000)
    assert averaged[0].item() == pytest.approx(0.45)


# ------------------------------------------------------------------------------------------ recipes


def test_all_that_is_wrong_is_said_at_once(recipe: Writer, cli: Cli, tmp_path: Path) -> None:
    path = recipe("sede: 1")
    overrides = ["optimizer.lr=-1", "optimizer.nam=sgd", "data.train=/nowhere", "schedule.epochs=2", "nonsense"]
    overrides += ["quantization.range_estimator=mean", "augmentation.flip=perhaps", "log_every=0.5"]
    result = cli("train", path, *overrides)
    assert result.code == 2
    for expected in (
        "sede: there is no such key. Did you mean seed or schedule?",
        "log_every: 0.5 is not a whole number",
        "optimizer.lr: -1.0 is not above 0",
        "optimizer.nam: there is no such key. Did you mean name?",
        "data.train: /nowhere is not a path that leads somewhere, or shards",
        "schedule: give steps or epochs, one of them",
        "nonsense: an override is section.key=value",
        "quantization.range_estimator: 'mean' is none of mse, minmax, percentile",
        "augmentation.flip: 'perhaps' is not true or false",
    ):
        assert expected in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the recipe: None is no section with model"),
        ("model: {name: lvt}\nmodel: {name: moat}", "duplicate key"),
        ("model: [", "is not YAML"),
        ("model: lvt", "model: 'lvt' is no section with name, weights"),
        ("model: {}", "model.name: is missing"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=expected):
        read_recipe(path)


def test_numbers_are_numbers_and_words_words(recipe: Writer) -> None:
    read = read_recipe(recipe(), ["optimizer.lr=5e-3", "model.mean=[0.5, 0.5, 0.5]", "out=no", "schedule.steps=7"])
    assert (read.optimizer.lr, read.model.mean, read.out, read.schedule.steps) == (0.005, (0.5, 0.5, 0.5), "no", 7)
    assert isinstance(read, Recipe)


# ------------------------------------------------------------------------------------------ smaller, larger, again


def test_a_factored_model_is_trained_by_its_original(recipe: Writer, cli: Cli, tmp_path: Path) -> None:
    model = ["model={name: slab-deit-tiny, image_size: 32}", "schedule={steps: 3}"]
    done = run(recipe(), [*model, "compression={ratio: 2, perturbation_weight: 1}"])
    whole = run(recipe(out="whole"), model)
    card = read_card(done.path)
    assert card is not None
    assert card.low_rank == 2
    assert done.path.stat().st_size < 0.65 * whole.path.stat().st_size
    # The original's outputs are part of the loss.
    assert entries(done.path.parent)[0]["loss"] > entries(whole.path.parent)[0]["loss"]
    words = ["-m", "slab-deit-tiny", "--weights", done.path, "-t", "onnx", "-o", tmp_path / "exported"]
    exported = cli("export", *words)
    assert exported.code == 0, exported.err


def test_tar_shards_are_trained_on_as_folders_are(recipe: Writer, photos: Path, shared: Path, tmp_path: Path) -> None:
    written = write_shards(open_images(photos), tmp_path / "shards", size=40)
    held = shared / "data" / "cifar10_train_lossless4k.npz"
    data = f"data={{train: '{written.pattern}', evaluation: {held}, limit: 20, batch_size: 16}}"
    done = run(recipe(), [data, "schedule.steps=12", "data.workers=0"])
    assert done.accuracy["float"].n == 20
    assert [e["step"] for e in entries(done.path.parent)] == list(range(1, 13))
    card = read_card(done.path)
    assert card is not None
    assert card.labels[3] == "cat"
    with pytest.raises(BadInput, match="are trained on whole"):
        run(recipe(out="held"), [data, "data.evaluation=null", "data.holdout=0.2"])


def test_a_run_that_is_done_stays_done(recipe: Writer) -> None:
    path = recipe()
    first = run(path, ["schedule.steps=3"])
    before = load_file(first.path)
    again = run(path, ["schedule.steps=3"], resume=True)
    assert again.accuracy == first.accuracy
    assert all(torch.equal(before[name], value) for name, value in load_file(again.path).items())


def test_a_corrupt_photo_is_left_out_counted_and_named(recipe: Writer, photos: Path, tmp_path: Path) -> None:
    images = open_images(photos)
    for i in range(80):
        folder = tmp_path / "folder" / images.classes[images.labels[i] or 0]
        folder.mkdir(parents=True, exist_ok=True)
        images[i].pixels.save(folder / f"{i}.png")
    broken = next((tmp_path / "folder" / "airplane").glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    done = run(recipe(), [f"data.train={tmp_path / 'folder'}", "data.holdout=0", "schedule.steps=10"])
    assert any(note.startswith("training: 1 image is left out") and broken.name in note for note in done.notes)
    single = f"data={{train: {tmp_path / 'folder'}, batch_size: 1}}"
    alone = run(recipe(out="alone"), [single, "augmentation={flip: true}", "schedule.steps=80"])
    assert any(note.startswith("training: ") and broken.name in note for note in alone.notes)
    for one in (tmp_path / "folder").rglob("*.png"):
        one.write_bytes(b"no photo")
    with pytest.raises(BadInput, match="the data has"):
        run(recipe(out="none"), [f"data.train={tmp_path / 'folder'}", "data.holdout=0"])
    assert not (tmp_path / "none").exists()


def test_weights_that_come_along_are_named_by_a_tag(
    recipe: Writer, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(recipe(), ["model={name: mobilenet-v1-025, image_size: 32}", "schedule.steps=1"])
    monkeypatch.setattr("edgekit.models._card.SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    done.path.rename(tmp_path / "shipped" / "mobilenet-v1-025-cifar10.safetensors")
    assert "cifar10" in json.loads(cli("models", "mobilenet-v1-025", "--json").out)["weights"]
    words = ["-m", "mobilenet-v1-025", "--weights", "cifar10", "-t", "onnx", "-o", tmp_path / "exported"]
    assert cli("export", *words).code == 0
    assert edgekit.create_model("mobilenet-v1-025", weights="cifar10")(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    missing = cli("export", *words[:3], "cifar100", *words[4:])
    assert missing.code == 2
    assert "cifar10" in missing.err
