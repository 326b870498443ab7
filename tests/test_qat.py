"""Fine-tuning in int8 on real weights and photos: what trains is what is exported, and a resumed run is exact."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.fx import Node

from edgekit.data import open_images
from edgekit.errors import BadInput
from edgekit.loading import Loaded, load
from edgekit.programs import read_program
from edgekit.quantization import prepare
from edgekit.quantizing import with_precision
from edgekit.training import Trained, train
from edgekit.training.fake_quant import FakeQuantized
from edgekit.types import ModelRequest, QuantizationOptions
from tests.conftest import Cli, few_photos, process

ROOT = Path(__file__).parent.parent

NET = '''
from torch import nn


class Net(nn.Module):
    """What batches stumble over: shapes with a constant batch, a token for each image, a residual, a float softmax."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.mix = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm = nn.LayerNorm(32)
        self.token = nn.Parameter(__import__("torch").randn(1, 1, 32))
        self.gate = nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.mix(x)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h * w).transpose(1, 2)
        x = __import__("torch").cat([self.token.expand(n, -1, -1), x], 1)
        x = self.norm(x) * self.gate(x).softmax(-1)
        return self.head(x.mean(1))


def net():
    return Net()
'''


POOLED = """
from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(800, 10),
    )
"""


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 photos of CIFAR-10 with labels, 8 a class."""
    return few_photos(shared, tmp_path_factory.mktemp("cifar") / "cifar.npz", 8)


@pytest.fixture(scope="module")
def quantized(resnet: Loaded, photos: Path) -> Loaded:
    """PTQ at its crudest, so that there is something to repair."""
    options = QuantizationOptions(range_estimator="minmax", bias_correction="none")
    return with_precision(resnet, "int8", photos, 32, options)


def recipe_text(photos: Path, shared: Path, out: Path, more: str = "") -> str:
    return f"""
model: {{name: resnet20-cifar, weights: {shared}/data/resnet20_cifar10.safetensors}}
data: {{train: {photos}, holdout: 0.25, batch_size: 8}}
augmentation: {{crop_padding: 2}}
quantization:
  num_calibration_samples: 16
  range_estimator: minmax
  bias_correction: none
  qat:
    learn_ranges: true
    optimizer: {{name: adamw, lr: 1e-4, weight_decay: 0.01}}
    schedule: {{steps: 6, warmup_steps: 2}}
    distillation: {{weight: 0.5, temperature: 2}}
checkpoint_every: 2
log_every: 1
out: {out}
{more}"""


Writer = Callable[..., Path]


def run(recipe: Path, overrides: Sequence[str] = (), resume: bool = False, force: bool = False) -> Trained:
    done = train(recipe, overrides, resume=resume, force=force)
    assert done is not None
    return done


@pytest.fixture
def recipe(photos: Path, shared: Path, tmp_path: Path) -> Writer:
    """`recipe("seed: 3")`: a recipe of seconds, with more lines."""

    def write(more: str = "", out: str = "run") -> Path:
        path = tmp_path / f"{out}.yaml"
        path.write_text(recipe_text(photos, shared, tmp_path / out, more), encoding="utf-8")
        return path

    return write


# ------------------------------------------------------------------------------------------ the graph that trains


def batch(loaded: Loaded, n: int) -> torch.Tensor:
    return torch.cat([sample[0] for sample in loaded.photos[:n]])


def one_by_one(program: torch.export.ExportedProgram, images: torch.Tensor) -> torch.Tensor:
    module = program.module()
    with torch.no_grad():
        return torch.cat([module(image[None]) for image in images])


def shape_of(program: torch.export.ExportedProgram) -> list[object]:
    return [(n.target, len(n.all_input_nodes)) for n in program.graph.nodes if n.op == "call_function"]


def trained(quantized: Loaded, resnet: Loaded, learn_ranges: bool) -> FakeQuantized:
    """Every parameter moved against its gradient, far enough to change integers."""
    model = FakeQuantized(quantized.program, prepare(resnet.program), learn_ranges)
    model(batch(quantized, 4)).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel():
                assert parameter.grad is not None
                parameter -= 0.05 * parameter.abs().mean().clamp(min=0.2) * parameter.grad.sign()
    return model


def test_before_training_it_computes_what_the_quantized_program_does(quantized: Loaded, resnet: Loaded) -> None:
    model = FakeQuantized(quantized.program, prepare(resnet.program))
    images = batch(quantized, 4)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
    assert torch.equal(alone, one_by_one(quantized.program, images))


@pytest.mark.parametrize("learn_ranges", [False, True])
def test_what_is_folded_is_what_was_trained(quantized: Loaded, resnet: Loaded, learn_ranges: bool) -> None:
    model = trained(quantized, resnet, learn_ranges)
    images = batch(quantized, 4)
    folded = model.folded()
    expected = one_by_one(folded, images)
    with torch.no_grad():
        alone, together = torch.cat([model(image[None]) for image in images]), model(images)
    assert torch.equal(alone, expected)
    step = next(n.args[1] for n in reversed(folded.graph.nodes) if n.target is quantize())
    # Another order of sums at another batch size may turn a value that lies between two steps.
    assert (together - expected).abs().max() <= 1.01 * step
    assert (expected - one_by_one(quantized.program, images)).abs().max() > 2 * step, "training changed nothing"


def quantize() -> object:
    return torch.ops.quantized_decomposed.quantize_per_tensor.default


def test_the_graph_keeps_its_structure(quantized: Loaded, resnet: Loaded) -> None:
    folded = trained(quantized, resnet, True).folded()
    assert shape_of(folded) == shape_of(quantized.program)
    assert {t.dtype for t in folded.state_dict.values()} == {t.dtype for t in quantized.program.state_dict.values()}
    for node in folded.graph.nodes:
        if node.target is torch.ops.aten.conv2d.default:
            source, weight, bias = node.args[:3]
            if bias is None:
                continue
            values = {n.name: t for n, t in stored(folded)}
            steps = values[bias.name].double() / (values[weight.args[1].name].double() * source.args[1])
            assert (steps - steps.round()).abs().max() < 1e-3 * steps.abs().max().clamp(min=1)


def stored(program: torch.export.ExportedProgram) -> list[tuple[Node, torch.Tensor]]:
    targets = {s.arg.name: s.target for s in program.graph_signature.input_specs}
    nodes = [n for n in program.graph.nodes if n.op == "placeholder"]
    return [(n, program.state_dict[targets[n.name]]) for n in nodes if targets[n.name] in program.state_dict]


def test_learned_ranges_stay_shared(photos: Path, tmp_path: Path) -> None:
    """What only moves values reads and writes one scale, whatever the training does to it."""
    path = tmp_path / "pooled.py"
    path.write_text(POOLED, encoding="utf-8")
    loaded = load(ModelRequest(model=f"{path}:net", image_size=32))
    made = with_precision(loaded, "int8", photos, 16, QuantizationOptions())
    folded = trained(made, loaded, True).folded()
    before = {n.name: n.args[1] for n in made.program.graph.nodes if n.target is quantize()}
    after = {n.name: n.args[1] for n in folded.graph.nodes if n.target is quantize()}
    assert all(after[name] != before[name] for name in before)
    (pool,) = [n for n in folded.graph.nodes if n.target is torch.ops.aten.max_pool2d.default]
    (result,) = pool.users
    assert result.target is quantize()
    assert pool.args[0].args[1:3] == result.args[1:3]


def test_the_gradient_of_a_scale_is_that_of_the_paper() -> None:
    """Esser et al. 2020, equation 3: round(v) - v inside, the last step outside; times the scale of section 2.2."""
    from edgekit.training.fake_quant import _fake_quantized

    scale = torch.tensor(0.1, requires_grad=True)
    x = torch.tensor([0.234, -0.561, 40.0, -40.0], requires_grad=True)
    _fake_quantized(x, scale, 0).sum().backward()
    expected = (2 - 2.34) + (-6 + 5.61) + 127 - 128
    assert scale.grad is not None
    assert x.grad is not None
    assert scale.grad.item() == pytest.approx(expected / (4 * 127) ** 0.5, rel=1e-3)
    assert x.grad.tolist() == pytest.approx([1, 1, 0, 0], rel=1e-6)


def test_a_program_of_fixed_batch_and_float_islands_trains_in_batches(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "islands.py"
    path.write_text(NET, encoding="utf-8")
    loaded = load(ModelRequest(model=f"{path}:net", image_size=32))
    made = with_precision(loaded, "int8", photos, 16, QuantizationOptions(keep_float=("mix",)))
    model = FakeQuantized(made.program, prepare(loaded.program), learn_ranges=True)
    images = batch(made, 6)
    model(images).square().mean().backward()
    assert len(model.floats) >= 3, "the norm, the token and what --keep-float names are trained too"
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.floats.values())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model(images), one_by_one(model.folded(), images), atol=0.05, rtol=0)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, one_by_one(model.folded(), images), atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------ runs


def test_a_run_exports_and_is_evaluated(recipe: Writer, photos: Path, cli: Cli, tmp_path: Path) -> None:
    result = cli("train", recipe(), "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["steps"] == 6
    assert document["accuracy"]["float"]["n"] == 20
    assert document["accuracy"]["float"]["agreement"] == 100
    assert "fake quantization (QAT): 6 steps of 8 photos" in document["notes"][-1]
    log = [json.loads(line) for line in (tmp_path / "run" / "qat" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss"]) for line in log)
    exported = cli("export", "-m", document["path"], "-t", "onnx", "-o", tmp_path / "exported", "--json")
    assert exported.code == 0, exported.err
    (manifest,) = json.loads(exported.out)
    assert manifest["precision"] == "int8"
    assert all(v["passed"] for v in manifest["verification"])
    assert any("QAT" in note for note in manifest["notes"])


def test_training_learns(recipe: Writer, tmp_path: Path) -> None:
    """A net that knows nothing learns thirty photos, as far as the ranges of its random start let its answers grow."""
    path = tmp_path / "pooled.py"
    path.write_text(POOLED, encoding="utf-8")
    overrides = [f"model={{name: '{path}:net', image_size: 32}}", "quantization.qat.schedule.steps=120"]
    overrides += ["quantization.qat.distillation.weight=0", "quantization.qat.optimizer.lr=2e-3"]
    overrides += ["augmentation.crop_padding=0", "augmentation.flip=false", "data.holdout=0.6"]
    done = run(recipe(), overrides)
    log = [json.loads(line) for line in (done.path.parent / "qat" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log]
    assert np.mean(losses[-7:]) < 0.85 * np.mean(losses[:7])


def test_a_killed_run_resumes_to_the_same_bits(recipe: Writer, tmp_path: Path) -> None:
    whole = run(recipe(out="whole"))
    path = recipe(out="killed")
    # Killed from outside as soon as it has passed a checkpoint, in the middle of what comes after it.
    running = subprocess.Popen(process("train", path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = tmp_path / "killed" / "qat" / "log.jsonl"
    while running.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= 3:
            running.kill()
            break
        time.sleep(0.02)
    running.communicate()
    assert running.returncode == -9, "it was done before it could be killed"
    assert not (tmp_path / "killed" / "model.pt2").exists()
    resumed = run(path, resume=True)
    a, b = (read_program(done.path).state_dict for done in (whole, resumed))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert resumed.accuracy == whole.accuracy


def test_another_seed_is_another_run(recipe: Writer) -> None:
    a, b = (run(recipe(f"seed: {seed}", out=f"seed{seed}")) for seed in (1, 2))
    states = [read_program(done.path).state_dict for done in (a, b)]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0] if name in states[1])


def test_a_run_is_not_overwritten_or_mixed(recipe: Writer, tmp_path: Path) -> None:
    path = recipe()
    run(path, ["quantization.qat.schedule.steps=1"])
    with pytest.raises(BadInput, match="holds a run already") as taken:
        run(path, ["quantization.qat.schedule.steps=1"])
    assert "--resume" in taken.value.hint
    with pytest.raises(BadInput, match="seed: 0 there, 5 now"):
        run(path, ["quantization.qat.schedule.steps=1", "seed=5"], resume=True)
    run(path, ["quantization.qat.schedule.steps=2"], force=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds other things than a run"):
        run(path, [f"out={other}"], force=True)


def test_a_loss_that_is_no_number_stops_the_run(recipe: Writer, cli: Cli, tmp_path: Path) -> None:
    result = cli("train", recipe(), "quantization.qat.optimizer.lr=1e30", "quantization.qat.optimizer.name=sgd")
    assert result.code == 1
    assert "the loss is" in result.err
    assert "optimizer.lr" in result.err
    assert not (tmp_path / "run" / "model.pt2").exists()


def test_labels_are_needed_unless_the_teacher_knows(recipe: Writer, photos: Path, tmp_path: Path) -> None:
    with np.load(photos) as content:
        np.savez(tmp_path / "bare.npz", images=content["images"])
    bare = [f"data.train={tmp_path / 'bare.npz'}", "quantization.qat.schedule.steps=1"]
    with pytest.raises(BadInput, match="has no labels, which the loss needs"):
        run(recipe(), bare)
    done = run(recipe(), [*bare, "quantization.qat.distillation.weight=1"])
    assert done.accuracy["qat"].top1 is None
    assert done.accuracy["qat"].n == 20


def test_unreadable_photos_are_left_out_and_named(photos: Path, recipe: Writer, tmp_path: Path) -> None:
    images = open_images(photos)
    for i in range(40):
        folder = tmp_path / "folder" / images.classes[images.labels[i] or 0]
        folder.mkdir(parents=True, exist_ok=True)
        images[i].pixels.save(folder / f"{i}.png")
    broken = tmp_path / "folder" / "bird" / "broken.png"
    broken.write_bytes(b"no photo")
    done = run(recipe(), [f"data.train={tmp_path / 'folder'}", "quantization.qat.schedule.steps=8", "data.holdout=0.1"])
    assert any("broken.png" in note for note in done.notes)
