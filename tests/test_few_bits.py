"""wXaY and int8 without data from the command line: what is written, what is said, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from edgekit import few_bits
from edgekit.data_free.clusterq import VARIANTS
from edgekit.loading import load
from edgekit.low_bit import LowBitOptions
from edgekit.low_bit.distillation import DistillationOptions
from edgekit.low_bit.reconstruction import ReconstructionOptions
from edgekit.programs import read_quantized
from edgekit.types import ModelRequest
from tests.conftest import Cli

SHORT = LowBitOptions(
    reconstruction=ReconstructionOptions(steps=2, batch=8), distillation=DistillationOptions(steps=0, batch=8)
)


@pytest.fixture
def resnet(shared: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The real weights, and a budget of seconds."""
    monkeypatch.setattr(few_bits, "options_for", lambda loaded: SHORT)
    monkeypatch.setattr(few_bits, "IMAGES", {True: (8, 8, 3), False: (8, 8, 3)})
    short = {"epochs": 2, "steps": 1, "warm_up": 1, "observe": 1, "width": 8, "images_per_class": 2}
    variants = {name: type(options)(**{**vars(options), **short}) for name, options in VARIANTS.items()}
    monkeypatch.setattr(few_bits, "VARIANTS", variants)
    monkeypatch.setattr(few_bits, "affordable", lambda options, loaded, device: options)
    return "-m", "resnet20-cifar", "-w", str(shared / "data" / "resnet20_cifar10.safetensors")


@pytest.mark.parametrize("method", ["images", "clusterq", "gdfq"])
def test_few_bits_without_data_are_written_and_measured(
    cli: Cli, resnet: tuple[str, ...], shared: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "r.pt2"
    made = cli(
        "quantize", *resnet, "--scheme", "w4a8", "--protocol", "a", f"--data-free={method}", "--explain", "-o", out
    )
    assert made.code == 0, made.err
    assert "simulated in torch" in made.err
    assert "accuracy on real data: not measured" in made.err
    assert f"synthetic ({method})" in made.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.data-free.json", "r.images.png", "r.pt2"]
    stored = read_quantized(out)
    assert stored is not None
    risk = stored[0].risk
    assert risk is not None
    assert {a.family: a.relation for a in risk.agreements} == {
        "images that fit, another seed": "in-family" if method == "images" else "cross-family",
        **dict.fromkeys(("crops of two stock photos", "collages", "dead leaves"), "cross-family"),
    }
    assert json.loads((tmp_path / "r.data-free.json").read_text(encoding="utf-8"))["scheme"] == "w4a8"
    assert f"risk        {risk.level}: " in made.out
    assert (stored[0].scheme, stored[0].protocol, stored[0].calibration.kind) == ("w4a8", "a", "synthetic")
    data = shared / "data" / "cifar10_test.npz"
    measured = cli("evaluate", out, "--data", data, "--limit", "60", "--json")
    assert measured.code == 0, measured.err
    result = json.loads(measured.out)
    assert result["n"] == 60
    if method == "images":
        assert result["agreement"] > 60


def test_answers_that_are_not_those_of_float_are_a_high_risk(cli: Cli, resnet: tuple[str, ...], tmp_path: Path) -> None:
    risks = {}
    for scheme in ("w7a8", "w2a2"):
        made = cli("quantize", *resnet, "--scheme", scheme, "--data-free", "-o", tmp_path / f"{scheme}.pt2", "--json")
        assert made.code == 0, made.err
        risks[scheme] = json.loads(made.out)["risk"]
    assert risks["w7a8"]["level"] == "low"
    assert risks["w2a2"]["level"] == "high"
    assert any(reason.startswith("w2a2 answers otherwise than float on ") for reason in risks["w2a2"]["reasons"])
    assert "take more bits" in risks["w2a2"]["advice"]
    # Images that fit are the last to tell: what costs 20 points is not seen on them.
    kl = {a["family"]: a["kl"] for a in risks["w2a2"]["agreements"]}
    assert kl["crops of two stock photos"] > 1


def test_few_bits_are_learned_from_photos_too(cli: Cli, resnet: tuple[str, ...], shared: Path, tmp_path: Path) -> None:
    out, photos = tmp_path / "r.pt2", shared / "data" / "cifar10_train_jpeg50k.npz"
    made = cli(
        "quantize", *resnet, "--scheme", "w4a8", "--calibration", photos, "--num-calibration-samples", "32", "-o", out,
        "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    said = json.loads(made.out)
    assert (said["scheme"], said["protocol"], said["calibration"]["kind"]) == ("w4a8", "h", "images")
    assert said["risk"] is None


def test_a_simulation_is_not_exported(cli: Cli, resnet: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "r.pt2"
    assert cli("quantize", *resnet, "--scheme", "w3a3", "--data-free", "-o", out).code == 0
    refused = cli("export", "-m", out, "-t", "onnx", "-o", tmp_path)
    assert refused.code != 0
    assert "w3a3, a simulation in torch" in refused.err
    assert "-p int4-weight" in refused.err
    loaded = load(ModelRequest(model=str(out)))
    with torch.no_grad():
        assert loaded.module(*loaded.inputs).shape == (1, 10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--scheme", "w4a99", "--data-free"), "not a scheme of 2 to 8 bits"),
        (("--scheme", "w4a4", "--protocol", "z", "--data-free"), "unknown protocol 'z'"),
        (("--scheme", "w4a4"), "learned from images"),
        (("--scheme", "w4a4", "--data-free=analytic"), "unknown data-free method of w4a4"),
        (("--scheme", "w4a4", "--data-free", "--equalize"), "have no options"),
        (("--scheme", "w4a4", "--data-free", "--calibration", "x"), "both say what"),
        (("--scheme", "w4a4", "--data-free", "--device", "cuda"), "CUDA"),
        (("--scheme", "w4a4", "--data-free=clusterq", "--device", "cuda"), "CUDA"),
        (("--protocol", "a", "--data-free"), "is for wXaY"),
        (("--data-free=nonsense",), "unknown data-free method"),
        (("--data-free", "--device", "tpu"), "tpu"),
        (("--explain", "--calibration", "x"), "--data-free"),
    ],
)
def test_what_does_not_go_together_is_refused(
    cli: Cli, resnet: tuple[str, ...], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    refused = cli("quantize", *resnet, *options, "-o", tmp_path / "r.pt2")
    assert refused.code in (2, 3)
    assert said in refused.err
    assert not list(tmp_path.iterdir())


def test_int8_without_data_is_exported_in_one_step(cli: Cli, resnet: tuple[str, ...], tmp_path: Path) -> None:
    made = cli("export", *resnet, "-t", "onnx", "-p", "int8", "--calibration", "synthetic", "-o", tmp_path, "--json")
    assert made.code == 0, made.err
    (manifest,) = tmp_path.glob("*/edgekit.json")
    content = json.loads(manifest.read_text())
    assert content["calibration"]["kind"] == "synthetic"
    assert content["verification"][0]["passed"]
    assert any("accuracy on real data: not measured" in note for note in content["notes"])
