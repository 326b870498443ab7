"""Accuracy control: the layer that int8 breaks is found and stays in float, and no other does."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from edgekit.accuracy_control import AccuracyTarget
from edgekit.accuracy_control.journal import Journal
from edgekit.accuracy_control.search import fewest
from edgekit.data import apply
from edgekit.errors import BadInput
from edgekit.graph.capture import capture
from edgekit.loading import load
from edgekit.programs import read_program
from edgekit.quantization import float_form, quantize
from edgekit.quantization._ops import COMPUTE
from edgekit.quantization.biases import is_quantized
from edgekit.quantization.sensitivity import Sensitivity
from edgekit.quantizing import quantize as quantize_model
from edgekit.quantizing import work_file
from edgekit.types import ModelRequest, QuantizationOptions
from tests.conftest import Cli, process

NET = """
from torch import nn
from torch.nn.functional import relu


class Net(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2)
        self.conv2 = nn.Conv2d(16, 16, 3)
        self.conv3 = nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        x = relu(self.conv1(x))
        x = relu(self.conv2(x))
        x = relu(self.conv3(x))
        return self.head(x.mean((2, 3)))


def net(num_classes=4):
    return Net(num_classes)

"""
SIZE, NUMBER = 32, 80


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Noisy stripes of four directions, (N, H, W, 3), and which they are."""
    rng = np.random.default_rng(0)
    labels = np.arange(NUMBER) % 4
    y, x = np.mgrid[:SIZE, :SIZE]
    waves = [np.sin(1.6 * d) for d in (x, y, (x + y) / 1.5, (x - y) / 1.5)]
    images = np.stack([128 + 60 * waves[c][..., None] + rng.normal(0, 25, (SIZE, SIZE, 3)) for c in labels])
    return images.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


@dataclass(frozen=True)
class Broken:
    """A model that classifies `data`, and what the command line needs to quantize it."""

    model: str
    weights: Path
    data: Path

    @property
    def arguments(self) -> list[str]:
        statistics = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--imgsz", str(SIZE)]
        return ["quantize", "-m", self.model, "-w", str(self.weights), "--calibration", str(self.data), *statistics]

    def quantize(self, out: Path, max_drop: float = 2, **more: object):  # type: ignore[no-untyped-def]
        return quantize_model(
            self.model, out, weights=self.weights, calibration=self.data, mean=(0.5,) * 3, std=(0.5,) * 3,
            image_size=SIZE, accuracy=AccuracyTarget(data=self.data, max_drop=max_drop), **more,  # type: ignore[arg-type]
        )  # fmt: skip


def made(folder: Path, damage: Callable[[nn.Module], None]) -> Broken:
    """Random convolutions, `damage` done to them that changes nothing in float, and the best linear head for them."""
    (folder / "broken.py").write_text(NET, encoding="utf-8")
    images, labels = pictures()
    np.savez(folder / "stripes.npz", images=images, labels=labels)
    names: dict[str, object] = {}
    exec(NET, names)
    torch.manual_seed(0)
    net: nn.Module = names["net"]()  # type: ignore[operator]
    for conv in (net.conv1, net.conv2, net.conv3):
        nn.init.kaiming_normal_(conv.weight)
        nn.init.constant_(conv.bias, 0.1)
    damage(net)
    # As `preprocess` makes them of pictures of this size, but for the crop: near enough for a head.
    preprocess = load(
        ModelRequest(model=f"{folder}/broken.py:net", image_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    ).preprocess
    x = torch.from_numpy(np.stack([apply(preprocess, Image.fromarray(image)) for image in images]))
    features: list[torch.Tensor] = []
    hook = net.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        net(x)
        hook.remove()
        given = torch.cat([features[0], torch.ones(len(x), 1)], 1).double()
        wanted = 8 * nn.functional.one_hot(torch.from_numpy(labels)).double() - 2
        best = torch.linalg.lstsq(given.T @ given + 1e-4 * torch.eye(17), given.T @ wanted).solution.T.float()
        net.head.weight.copy_(best[:, :-1])
        net.head.bias.copy_(best[:, -1])
        assert (net(x).argmax(1).numpy() == labels).mean() > 0.9
    save_file(net.state_dict(), folder / "broken.safetensors")
    return Broken(f"{folder}/broken.py:net", folder / "broken.safetensors", folder / "stripes.npz")


def one_coarse_layer(net: nn.Module) -> None:
    """Channel 7 is dead, and what conv2 would make of it is a thousand times the rest: its steps become as coarse."""
    with torch.no_grad():
        net.conv1.weight[7] = 0
        net.conv1.bias[7] = -1
        net.conv2.weight[:, 7] = 1000 * net.conv2.weight[:, :7].abs().amax()


def one_coarse_tensor(net: nn.Module) -> None:
    """Channel 0 between conv2 and conv3 is a thousand times the others, and scaled back behind."""
    with torch.no_grad():
        net.conv2.weight[0] *= 1000
        net.conv2.bias[0] *= 1000
        net.conv3.weight[:, 0] /= 1000


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    return made(tmp_path_factory.mktemp("layer"), one_coarse_layer)


@pytest.mark.usefixtures("all_pays")
def test_keeps_the_one_layer_in_float_that_int8_breaks(broken: Broken, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "a.pt2"
    result = cli(*broken.arguments, "--accuracy-data", broken.data, "--max-drop", "2", "-o", out)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "a.sensitivity.json").read_text())
    assert found["chosen"]["keep_float"] == ["conv2"]
    assert found["trials"][0]["drop"] > 20
    assert found["chosen"]["drop"] <= 2
    assert found["layers"][0]["name"] == "conv2"
    assert found["layers"][0]["nats"] > 5 * found["layers"][1]["nats"]
    assert {layer["name"] for layer in found["layers"]} == {"conv1", "conv2", "conv3"}
    # 13x13 results of 16x16x3x3 weights, three bytes more each.
    assert (found["macs"], found["bytes"]) == (13 * 13 * 16 * 144, 3 * 16 * 144)
    assert found["macs_total"] == 15 * 15 * 16 * 27 + 13 * 13 * 16 * 144 + 11 * 11 * 16 * 144
    nodes = [n for n in read_program(out).graph.nodes if n.op == "call_function" and n.target in COMPUTE]
    assert [is_quantized(n) for n in nodes] == [True, False, True, False]
    with Image.open(tmp_path / "a.sensitivity.png") as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt2", "a.sensitivity.json", "a.sensitivity.png"]
    assert "kept float  1 of 3 layers: conv2" in result.out
    # The command that is printed makes the same file.
    (line,) = [x for x in result.out.splitlines() if x.startswith("Without measuring again: edgekit ")]
    again = shlex.split(line)[4:]
    assert again[-2:] == ["--keep-float", "conv2"]
    assert not {"--accuracy-data", "--max-drop"} & set(again)
    first = out.read_bytes()
    assert cli(*again, "--force").code == 0
    assert out.read_bytes() == first


def test_evaluate_gives_the_same_drop(broken: Broken, cli: Cli, tmp_path: Path) -> None:
    kept = broken.quantize(tmp_path / "a.pt2")
    result = cli("evaluate", kept.path, "--data", broken.data, "--model", broken.model, "--json")
    assert result.code == 0, result.err
    measured, accuracy = json.loads(result.out), kept.accuracy
    assert measured["top1"] == accuracy.chosen.top1
    assert measured["drop"] == accuracy.chosen.drop
    assert tuple(measured["drop_ci95"]) == accuracy.chosen.drop_ci95
    assert measured["n"] == accuracy.n == NUMBER


@pytest.mark.usefixtures("all_pays")
def test_a_tensor_that_int8_breaks_takes_both_layers_beside_it(tmp_path: Path) -> None:
    broken = made(tmp_path, one_coarse_tensor)
    accuracy = broken.quantize(tmp_path / "a.pt2").accuracy
    assert set(accuracy.chosen.keep_float) == {"conv2", "conv3"}
    assert {layer.name for layer in accuracy.layers[:2]} == {"conv2", "conv3"}
    # In float alone neither helps, in int8 alone each does the damage.
    for layer in accuracy.layers[:2]:
        assert layer.alone > 10 * abs(layer.spared)


def test_keeps_nothing_where_the_target_is_met_already(broken: Broken, cli: Cli, tmp_path: Path) -> None:
    arguments = ("--accuracy-data", broken.data, "--max-drop", "100", "--num-accuracy-samples", "20", "--json")
    result = cli(*broken.arguments, *arguments, "-o", tmp_path / "a.pt2")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["options"]["keep_float"] == []
    assert found["accuracy"]["n"] == 20
    assert len(found["accuracy"]["trials"]) == 1
    said = cli(*broken.arguments, *arguments[:-1], "-o", tmp_path / "b.pt2")
    assert "kept float  nothing: that is within 100 points" in said.out


def test_a_target_out_of_reach_fails_and_leaves_nothing(broken: Broken, cli: Cli, tmp_path: Path) -> None:
    others = [text for name in ("conv1", "conv3") for text in ("--keep-float", name)]
    out = tmp_path / "new" / "a.pt2"
    result = cli(*broken.arguments, *others, "--accuracy-data", broken.data, "--max-drop", "2", "-o", out)
    assert result.code == 1
    assert "not within 2 points" in result.err
    assert "with 0 of them it is" in result.err
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from edgekit.quantizing import quantize
from edgekit.accuracy_control import AccuracyTarget

model, weights, data, out, when = sys.argv[1:]

def step(what, done, total):
    if what.startswith(when) and done == total:
        os.kill(os.getpid(), signal.SIGKILL)

quantize(
    model, out, weights=weights, calibration=data, mean=(0.5,) * 3, std=(0.5,) * 3, image_size=32,
    accuracy=AccuracyTarget(data=data, max_drop=2), on_step=step,
)
"""


def test_goes_on_where_it_was_killed(broken: Broken, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.pt2", tmp_path / "killed.pt2"
    expected = broken.quantize(whole)
    command = [sys.executable, "-c", KILLED, broken.model, str(broken.weights), str(broken.data), str(out)]
    killed = subprocess.run([*command, "evaluating int8 with 1 layers"], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    work = work_file(out)
    assert work.exists()
    assert not out.exists()
    with work.open("ab") as file:
        file.write(b'{"name": "keep conv2", "val')  # a line that was cut off
    steps: list[str] = []
    made = broken.quantize(out, on_step=lambda what, done, total: steps.append(what))
    assert "evaluating int8 with 1 layers in float" in steps
    assert "evaluating the float model" not in steps
    assert "evaluating int8 with 0 layers in float" not in steps
    assert made.accuracy == expected.accuracy
    assert out.read_bytes() == whole.read_bytes()
    for suffix in (".sensitivity.json", ".sensitivity.png"):
        assert out.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()
    assert not work.exists()


def test_an_interrupt_says_where_the_measurements_are(broken: Broken, tmp_path: Path) -> None:
    out = tmp_path / "a.pt2"
    target = ["--accuracy-data", str(broken.data), "--max-drop", "2"]
    started = subprocess.Popen(process(*broken.arguments, *target, "-o", out), stderr=subprocess.PIPE, text=True)
    while not work_file(out).exists():
        assert started.poll() is None, started.stderr and started.stderr.read()
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=300)
    assert started.returncode == 130
    assert f"note: what was measured is in {work_file(out)}: the same command goes on from there" in said
    assert [p.name for p in tmp_path.iterdir()] == [work_file(out).name]


def test_measurements_under_other_conditions_are_forgotten(broken: Broken, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def until(last: str, seen: list[str], options: QuantizationOptions) -> None:
        def step(what: str, done: int, total: int) -> None:
            seen.append(what)
            if what.startswith(last) and done == total:
                raise Stop

        with pytest.raises(Stop):
            broken.quantize(tmp_path / "a.pt2", on_step=step, options=options)

    default = QuantizationOptions()
    until("evaluating int8 with 0", first := [], default)
    until("evaluating int8 with 0", same := [], default)
    until("evaluating int8 with 0", other := [], replace(default, range_estimator="minmax"))
    assert "evaluating the float model" in first
    assert "evaluating the float model" not in same
    assert "evaluating the float model" in other


def test_a_journal_does_not_write_over_files_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BadInput, match="file of something else"):
        Journal(tmp_path / "notes", "key")
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-drop", "1"], "--max-drop alone says too little"),
        (["--accuracy-data", "DATA"], "--accuracy-data alone says too little"),
        (["--num-accuracy-samples", "9"], "--num-accuracy-samples alone says too little"),
        (["--accuracy-data", "DATA", "--max-drop", "-1"], "from 0 to 100, not -1"),
        (["--accuracy-data", "DATA", "--max-drop", "nan"], "from 0 to 100, not nan"),
        (["--accuracy-data", "DATA", "--max-drop", "1", "--num-accuracy-samples", "0"], "at least 1, not 0"),
        (["--accuracy-data", "UNLABELLED", "--max-drop", "1"], "has no labels"),
        (["--accuracy-data", "OTHER", "--max-drop", "1"], "the data has a label 6"),
        (["--accuracy-data", "/nowhere", "--max-drop", "1"], "there is no data at"),
        (["--accuracy-data", "DATA", "--max-drop", "1", "-o", "THERE"], "sensitivity.json exists already"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], said: str, broken: Broken, cli: Cli, tmp_path: Path) -> None:
    images, labels = pictures()
    np.savez(tmp_path / "unlabelled.npz", images=images)
    np.savez(tmp_path / "other.npz", images=images, labels=labels + 6)
    (tmp_path / "there.sensitivity.json").write_text("mine")
    before = sorted(tmp_path.iterdir())
    places = {
        "DATA": str(broken.data), "UNLABELLED": str(tmp_path / "unlabelled.npz"), "OTHER": str(tmp_path / "other.npz"),
        "THERE": str(tmp_path / "there.pt2"),
    }  # fmt: skip
    typed = [places.get(a, a) for a in arguments]
    result = cli(*broken.arguments, *([] if "-o" in typed else ["-o", tmp_path / "a.pt2"]), *typed)
    assert result.code == 2, result.err
    assert said in result.err
    assert sorted(tmp_path.iterdir()) == before


def test_refuses_a_model_that_is_int8_already(broken: Broken, tmp_path: Path) -> None:
    int8 = quantize_model(
        broken.model, tmp_path / "a.pt2", weights=broken.weights, calibration=broken.data, mean=(0.5,) * 3,
        std=(0.5,) * 3, image_size=SIZE,
    )  # fmt: skip
    target = AccuracyTarget(data=broken.data, max_drop=1)
    with pytest.raises(BadInput, match="is int8 already"):
        quantize_model(str(int8.path), tmp_path / "b.pt2", calibration=broken.data, accuracy=target)


class Inner(nn.Module):
    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.weights = nn.ParameterList([nn.Parameter(0.2 * torch.randn(16, n, 3, 3)) for n in (3, 16)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = nn.functional.conv2d(x, self.weights[0]).relu()
        second = nn.functional.conv2d(first, self.weights[1], padding=1).relu()
        return second + first if self.residual else second


class Plain(nn.Module):
    """Operations without a module of their own: two in one module, one in none, and perhaps an addition between."""

    def __init__(self, residual: bool = True) -> None:
        super().__init__()
        self.inner = Inner(residual)
        self.weight = nn.Parameter(torch.randn(8, 16, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(self.inner(x), self.weight).mean((2, 3))


@pytest.mark.usefixtures("all_pays")
def test_operations_without_a_module_have_names_that_keep_them_alone_in_float() -> None:
    torch.manual_seed(0)
    calls = [(torch.randn(1, 3, 24, 24),) for _ in range(4)]
    program = capture(Plain().eval(), calls[0])
    options = QuantizationOptions(bias_correction="none")
    whole = quantize(program, calls, options)
    sensitivity = Sensitivity(float_form(program, calls, options), whole)
    assert len(sensitivity.layers) == len({layer.name for layer in sensitivity.layers}) == 3
    for layer in sensitivity.layers:
        kept = quantize(program, calls, replace(options, keep_float=(layer.name,)))
        computing = [n for n in kept.graph.nodes if n.op == "call_function" and n.target in COMPUTE]
        assert [n.name for n in computing if not is_quantized(n)] == [layer.node]


@pytest.mark.usefixtures("all_pays")
@pytest.mark.parametrize("residual", [True, False])
def test_the_sensitivity_is_that_of_the_programs_themselves(residual: bool) -> None:
    """`alone` and `spared` as they come out when a program is made for each layer: nothing in between is assumed."""
    torch.manual_seed(0)
    calls = [(torch.randn(2, 3, 24, 24),) for _ in range(3)]
    program = capture(Plain(residual).eval(), calls[0])
    options = QuantizationOptions(range_estimator="minmax", bias_correction="none")
    whole, in_float = quantize(program, calls, options), program.module()
    sensitivity = Sensitivity(float_form(program, calls, options), whole)

    def damage(module: nn.Module) -> float:
        with torch.no_grad():
            p, q = (m(*calls[0]).double().log_softmax(1) for m in (in_float, module))
        return float((p.exp() * (p - q)).sum(1).mean())

    torch.testing.assert_close(sensitivity.scores(calls[0]), whole.module()(*calls[0]), rtol=0, atol=1e-6)
    names = [layer.name for layer in sensitivity.layers]
    kept = names[1:2]
    together = quantize(program, calls, replace(options, keep_float=tuple(kept)))
    measured = zip(
        sensitivity.layers, sensitivity.alone(calls[0]), sensitivity.spared(calls[0]),
        sensitivity.spared(calls[0], tuple(kept)), strict=True,
    )  # fmt: skip
    for layer, alone, spared, beside in measured:
        others = tuple(name for name in names if name != layer.name)
        only = quantize(program, calls, replace(options, keep_float=others))
        but = quantize(program, calls, replace(options, keep_float=(layer.name,)))
        if not residual:  # else the addition is rounded with its neighbour, which is not the neighbour's doing
            assert alone == pytest.approx(damage(only.module()), rel=1e-3, abs=1e-9), layer
        assert spared == pytest.approx(damage(whole.module()) - damage(but.module()), rel=1e-3, abs=1e-9), layer
        both = quantize(program, calls, replace(options, keep_float=(*kept, layer.name)))
        assert beside == pytest.approx(damage(together.module()) - damage(both.module()), rel=1e-3, abs=1e-9), layer


@pytest.mark.parametrize("seed", range(20))
def test_fewest_members_that_reach_a_target(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(int(rng.integers(2, 30)))]
    worth = dict(zip(names, rng.exponential(size=len(names)), strict=True))
    target = float(rng.random() * sum(worth.values()) * 0.9)
    asked: list[tuple[str, ...]] = []

    def reaches(chosen: tuple[str, ...]) -> bool:
        asked.append(chosen)
        return sum(worth[c] for c in chosen) >= target

    def rank(taken: tuple[str, ...]) -> list[str]:
        return sorted(set(names) - set(taken), key=lambda n: -(worth[n] + rng.normal(0, 0.3)))

    found = fewest(len(names), rank, reaches)
    if found is None:
        assert len(asked[-1]) == len(names) - 1
        assert not reaches(asked[-1])
        return
    assert reaches(found)
    assert all(not reaches(tuple(f for f in found if f != member)) for member in found)


def test_fewest_asks_little_where_little_is_needed() -> None:
    names = [str(i) for i in range(200)]
    ranked: list[tuple[str, ...]] = []
    asked: list[tuple[str, ...]] = []

    def rank(taken: tuple[str, ...]) -> list[str]:
        ranked.append(taken)
        return [n for n in names if n not in taken]

    def three(chosen: tuple[str, ...]) -> bool:
        asked.append(chosen)
        return len(chosen) >= 3

    assert fewest(200, rank, three) == ("0", "1", "2")
    assert len(asked) == 7
    assert ranked == [(), ("0",), ("0", "1")]
    assert fewest(200, rank, lambda chosen: True) == ()
    assert fewest(200, rank, lambda chosen: False) is None
    assert fewest(1, rank, bool) is None
