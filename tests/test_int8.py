"""int8, from photos to artifacts: one Q/DQ program, the same numbers on every runtime, small, and exact errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit
from edgekit.errors import BadInput
from edgekit.models import ZOO
from edgekit.targets import TARGETS
from tests.zoo import FAMILIES, golden

# The exporters take minutes for each of the others: `pytest -m slow`.
QUICK = ("micronet-m0",)


def cases() -> list[object]:
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


@pytest.mark.parametrize("name", cases())
def test_every_family_is_the_same_in_int8_on_every_runtime(name: str, shared: Path, tmp_path: Path) -> None:
    torch.save(golden(shared, *FAMILIES[name]).state, tmp_path / "weights.pth")
    made = edgekit.quantize(
        name,
        tmp_path / "model.pt2",
        weights=tmp_path / "weights.pth",
        calibration=shared / "data" / "imagenet_sample800.tar",
        num_calibration_samples=32,
    )
    artifacts = edgekit.export(str(made.path), "all", compare_speed=False, out=tmp_path)
    assert [a.manifest.target for a in artifacts] == list(TARGETS)
    for artifact in artifacts:
        manifest = artifact.manifest
        simulation, floats = manifest.verification
        assert (simulation.against, floats.against) == ("simulation", "float")
        assert simulation.passed
        assert floats.passed
        assert manifest.calibration.samples == 32
        assert (manifest.inputs[0].dtype, manifest.outputs[0].dtype) == ("float32", "float32")
        assert edgekit.verify(artifact.path).passed
        # XNNPACK stores in float what it computes in float; in a small file the graph counts.
        limit = 0.40 if manifest.target == "executorch" or name == "micronet-m0" else 0.36
        assert artifact.size_bytes < limit * 4 * ZOO[name].params


@pytest.mark.parametrize("name", ["resnet20-cifar", "mobilenet-v1-025"])
def test_real_weights_lose_next_to_nothing_on_any_runtime(name: str, shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    weights, calibration, images, limit = {
        "resnet20-cifar": ("resnet20_cifar10.safetensors", "cifar10_train_jpeg50k.npz", "cifar10_test.npz", 1000),
        "mobilenet-v1-025": (
            "mobilenetv1_025_imagenet.safetensors", "imagenet_sample800.tar", "imagenet_sample800.tar", 800,
        ),
    }[name]  # fmt: skip
    made = edgekit.quantize(name, tmp_path / "model.pt2", weights=data / weights, calibration=data / calibration)
    targets = ("executorch", "tflite", "onnx")
    artifacts = edgekit.export(
        str(made.path), targets, calibration=data / calibration, compare_speed=False, out=tmp_path
    )
    drops = []
    for artifact in artifacts:
        simulation = artifact.manifest.verification[0]
        assert simulation.sqnr_db >= 30
        assert simulation.top1_agreement is not None
        assert simulation.top1_agreement >= 0.98
        assert simulation.samples >= 64
        result = edgekit.evaluate(artifact.path, data / images, limit=limit)
        assert result.drop is not None
        drops.append(result.drop)
    assert max(drops) <= 0.5
    assert max(drops) - min(drops) <= 0.5


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_the_published_figures_keep_what_is_promised() -> None:
    accuracy = json.loads((RESULTS / "int8_accuracy.json").read_text(encoding="utf-8"))["results"]
    published = {"mobilenet-v2", "mobilenet-v1-025", "resnet20-cifar", "resnet56-cifar"}
    assert set(accuracy) == published | {"micronet-m2", "mobile-former-52m"}  # and the weights that are shipped
    for found in accuracy.values():
        assert set(found) == set(TARGETS)
        assert all(result["drop"] <= 0.5 and result["n"] >= 800 for result in found.values())
    zoo = json.loads((RESULTS / "int8_zoo.json").read_text(encoding="utf-8"))["results"]
    assert {ZOO[name].family for name in zoo} >= {ZOO[name].family for name in FAMILIES}
    for found in zoo.values():
        assert set(found) == set(TARGETS)
        # "Never slower than fp32": the median of the turns, not its best case.
        assert all(result["speed"] is None or result["speed"][0] >= 1 for result in found.values())
    assert all(r["speed"][0] >= 1.5 for t, r in zoo["mobilenet-v2"].items() if t != "coreml")


def test_the_same_command_gives_the_same_bytes(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    for number in range(2):
        edgekit.quantize(
            "resnet20-cifar", tmp_path / f"{number}.pt2", weights=data / "resnet20_cifar10.safetensors",
            calibration=data / "cifar10_test.npz", num_calibration_samples=32,
        )  # fmt: skip
    assert (tmp_path / "0.pt2").read_bytes() == (tmp_path / "1.pt2").read_bytes()


def test_a_users_own_module_is_quantized_with_what_stays_float(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "photos.npz", images=images)
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, groups=8, padding=1),
        torch.nn.Hardswish(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5),
    ).eval()  # fmt: skip
    options = edgekit.QuantizationOptions(keep_float=("2",))
    (artifact,) = edgekit.export(
        module, "onnx", precision="int8", calibration=tmp_path / "photos.npz", image_size=32, options=options,
        compare_speed=False, out=tmp_path,
    )  # fmt: skip
    assert artifact.manifest.quantization == options
    assert artifact.manifest.verification[0].passed
    with pytest.raises(BadInput, match="names no module"):
        edgekit.export(
            module, "onnx", precision="int8", calibration=tmp_path / "photos.npz", image_size=32,
            options=edgekit.QuantizationOptions(keep_float=("nothing.*",)), out=tmp_path,
        )  # fmt: skip


def test_int8_without_photos_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--calibration PATH"):
        edgekit.export("resnet20-cifar", "onnx", precision="int8", out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "int8-weight"])
def test_options_of_int8_are_refused_elsewhere(precision: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="are for int8, not"):
        edgekit.export(
            "resnet20-cifar", "onnx", precision=precision, out=tmp_path,
            options=edgekit.QuantizationOptions(keep_float=("conv1",)),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
