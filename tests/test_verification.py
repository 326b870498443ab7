"""Verification passes what is equal and fails what is not: each fault here is a valid artifact that computes another
function, with a manifest whose hashes fit it, so that only the comparison of numbers can see it."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from edgekit.loading import load
from edgekit.types import ModelRequest, Preprocess
from edgekit.verification import HALF_SUMS_DB, MIN_SQNR_DB, sqnr_db
from tests.conftest import PRECISIONS, TARGETS, Cli, Exporter, process

Copier = Callable[..., Path]
ALL = [(t, p) for t in TARGETS for p in PRECISIONS]


def model_files(artifact: Path) -> list[Path]:
    return sorted(p for top in artifact.glob("model.*") for p in (top, *top.rglob("*")) if p.is_file())


def manifest_of(artifact: Path) -> dict[str, object]:
    return json.loads((artifact / "edgekit.json").read_text(encoding="utf-8"))


def edit(artifact: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest, and make its hashes fit the files as they are now."""
    manifest = manifest_of(artifact)
    change(manifest)
    manifest["files"] = {
        p.relative_to(artifact).as_posix(): {
            "bytes": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in (*model_files(artifact), artifact / "golden.safetensors")
    }
    (artifact / "edgekit.json").write_text(json.dumps(manifest), encoding="utf-8")


def reseal(artifact: Path) -> None:
    edit(artifact, lambda manifest: None)


@pytest.fixture(scope="session")
def head(tiny: str) -> torch.Tensor:
    """A weight of the tiny model; every target stores it as it is."""
    return load(ModelRequest(model=tiny, image_size=64)).module.get_parameter("head.weight").detach()


def overwrite(artifact: Path, old: torch.Tensor, new: torch.Tensor, precision: str) -> None:
    dtype = torch.float16 if precision == "fp16" else torch.float32
    before, after = (t.to(dtype).numpy().tobytes() for t in (old, new))
    (holder,) = [f for f in model_files(artifact) if before in f.read_bytes()]
    content = holder.read_bytes()
    assert content.count(before) == 1
    holder.write_bytes(content.replace(before, after))
    reseal(artifact)


# ------------------------------------------------------------------------------------------ what is equal passes


@pytest.mark.parametrize(("target", "precision"), ALL)
def test_a_fresh_artifact_verifies(cli: Cli, artifact: Copier, target: str, precision: str) -> None:
    folder = artifact(target, precision)
    result = cli("verify", folder, "--json")
    assert result.code == 0, result.err
    measured = json.loads(result.out)
    assert measured["passed"]
    half = 40 if target == "executorch" else 50  # whose sums are float16, too, where the processor can
    assert measured["sqnr_db"] >= {"fp32": 100, "fp16": half}[precision]
    assert measured["top1_agreement"] == 1
    (stored,) = manifest_of(folder)["verification"]  # pyright: ignore[reportGeneralTypeIssues]
    assert stored["against"] == "float"
    assert stored["samples"] == measured["samples"] >= 4
    assert stored["passed"]


@pytest.mark.parametrize(("target", "precision"), ALL)
def test_golden_vectors_hold_four_real_photos_and_the_float_models_outputs(
    export_tiny: Exporter, tiny: str, target: str, precision: str
) -> None:
    golden = load_file(export_tiny(precision).artifact(target) / "golden.safetensors")
    inputs = [golden[f"input.{n}"] for n in range(len(golden) // 2)]
    assert len(inputs) >= 4
    module = load(ModelRequest(model=tiny, image_size=64)).module
    for n, image in enumerate(inputs):
        nchw = torch.from_numpy(image.transpose(0, 3, 1, 2) if target == "tflite" else image).contiguous()
        assert nchw.shape == (1, 3, 64, 64)
        with torch.no_grad():
            np.testing.assert_array_equal(module(nchw).numpy(), golden[f"output.{n}"])
    # A photo is smooth: neighbours are far more alike than in noise.
    rough = [float(np.abs(np.diff(i, axis=2)).mean() / i.std()) for i in inputs]
    assert sum(r < 0.5 for r in rough) >= 4


@pytest.mark.parametrize(("target", "precision"), ALL)
def test_the_manifest_lists_every_file_with_its_size_and_hash(
    export_tiny: Exporter, target: str, precision: str
) -> None:
    folder = export_tiny(precision).artifact(target)
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    del found["edgekit.json"]
    assert manifest_of(folder)["files"] == {
        name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for name, p in found.items()
    }


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_command_gives_the_same_bytes_in_another_process(export_tiny: Exporter, target: str) -> None:
    one, other = (export_tiny(hash_seed=seed).artifact(target) for seed in (1, 2))
    names = [sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file()) for a in (one, other)]
    assert names[0] == names[1]
    assert [n for n in names[0] if (one / n).read_bytes() != (other / n).read_bytes()] == []


# ------------------------------------------------------------------------------------------ what is not equal fails


def fails(cli: Cli, artifact: Path, *said: str) -> None:
    result = cli("verify", artifact)
    assert result.code == 1, result
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    assert result.out.startswith("FAILED")
    for text in said:
        assert text in result.err


@pytest.mark.parametrize("target", TARGETS)
def test_one_weight_with_another_sign_fails(cli: Cli, artifact: Copier, head: torch.Tensor, target: str) -> None:
    folder, changed = artifact(target), head.clone()
    changed[3, 5] = -changed[3, 5]
    overwrite(folder, head, changed, "fp32")
    fails(cli, folder, "output logits: SQNR", f"below {MIN_SQNR_DB['fp32']:g} dB", "max error")


@pytest.mark.parametrize("target", TARGETS)
def test_a_class_whose_half_precision_weights_have_another_sign_fails(
    cli: Cli, artifact: Copier, head: torch.Tensor, target: str
) -> None:
    folder, changed = artifact(target, "fp16"), head.clone()
    changed[3] = -changed[3]
    overwrite(folder, head, changed, "fp16")
    floor = HALF_SUMS_DB if target == "executorch" else MIN_SQNR_DB["fp16"]
    fails(cli, folder, "output logits: SQNR", f"below {floor:g} dB", "max error")


@pytest.mark.parametrize("target", TARGETS)
def test_a_weight_that_is_no_number_fails(cli: Cli, artifact: Copier, head: torch.Tensor, target: str) -> None:
    folder, changed = artifact(target), head.clone()
    changed[0, 0] = float("nan")
    overwrite(folder, head, changed, "fp32")
    fails(cli, folder, "output logits")


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("mean and std swapped", lambda p: p.update(mean=p["std"], std=p["mean"])),
        ("means of other channels", lambda p: p["mean"].reverse()),
        ("a mean 1 % off", lambda p: p.update(mean=[m + 0.01 for m in p["mean"]])),
        ("pixels not scaled", lambda p: p.update(scale=1.0)),
        ("another channel order", lambda p: p.update(channel_order="BGR")),
        ("another resize", lambda p: p.update(resize=p["resize"] + 8)),
        ("another interpolation", lambda p: p.update(interpolation="nearest")),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
@pytest.mark.parametrize("target", ["onnx", "tflite"])  # one that takes NCHW and one that takes NHWC
def test_another_preprocess_in_the_manifest_fails(
    cli: Cli, artifact: Copier, target: str, fault: str, change: Callable[[dict], object]
) -> None:
    folder = artifact(target)
    edit(folder, lambda manifest: change(manifest["preprocess"]))
    fails(cli, folder, "preprocess")


@pytest.mark.parametrize("target", TARGETS)
def test_swapped_mean_and_std_fail_on_a_users_photo_too(
    cli: Cli, artifact: Copier, target: str, tiny: str, photo: Path
) -> None:
    folder = artifact(target)
    edit(folder, lambda m: m["preprocess"].update(mean=m["preprocess"]["std"], std=m["preprocess"]["mean"]))
    result = cli("verify", folder, "--images", photo, "--model", tiny)
    assert result.code == 1
    assert "preprocess" in result.err


def test_a_preprocess_of_another_size_fails(cli: Cli, artifact: Copier) -> None:
    folder = artifact()
    edit(folder, lambda manifest: manifest["preprocess"].update(crop=[32, 64]))
    fails(cli, folder, "preprocess")


def test_a_preprocess_taken_out_of_the_manifest_fails(cli: Cli, artifact: Copier) -> None:
    folder = artifact()
    edit(folder, lambda manifest: manifest.update(preprocess=None))
    fails(cli, folder, "preprocess")


def turned(target: str, image: np.ndarray) -> np.ndarray:
    """Height and width exchanged."""
    return np.ascontiguousarray(image.swapaxes(1, 2) if target == "tflite" else image.swapaxes(2, 3))


def bgr(target: str, image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1] if target == "tflite" else image[:, ::-1])


@pytest.mark.parametrize("fault", [turned, bgr])
@pytest.mark.parametrize("target", TARGETS)
def test_golden_inputs_turned_or_with_other_channels_fail(
    cli: Cli, artifact: Copier, target: str, fault: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    folder = artifact(target)
    golden = load_file(folder / "golden.safetensors")
    changed = {k: fault(target, v) if k.startswith("input") else v for k, v in golden.items()}
    save_file(changed, folder / "golden.safetensors")
    reseal(folder)
    fails(cli, folder, "output logits: SQNR", "preprocess: the sample photos")


TWIN = """
import torch
from torch import nn

from unseen import net as plain


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = plain()

    def forward(self, x):
        return self.inner(x.transpose(2, 3))


def net():
    return Turned()
"""


@pytest.fixture(scope="session")
def twin(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All artifacts of the tiny model with the same weights and height and width exchanged."""
    out = tmp_path_factory.mktemp("twin")
    file = Path(tiny.rpartition(":")[0]).with_name("twin.py")
    file.write_text(TWIN, encoding="utf-8")
    command = process("export", "-m", f"{file}:net", "--imgsz", "64", "--no-verify", "-o", out)
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_file_that_takes_its_input_turned_fails(cli: Cli, artifact: Copier, twin: Path, target: str) -> None:
    folder = artifact(target)
    for old in folder.glob("model.*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    (other,) = (twin / f"net-{target}-fp32").glob("model.*")
    if other.is_dir():
        shutil.copytree(other, folder / other.name)
    else:
        shutil.copy(other, folder)
    reseal(folder)
    fails(cli, folder, "output logits: SQNR")


# ------------------------------------------------------------------------------------------ the gate at export


@pytest.mark.parametrize("target", TARGETS)
def test_a_failed_gate_leaves_nothing_and_says_which_output_and_how_far(
    cli: Cli, tiny: str, tmp_path: Path, target: str
) -> None:
    result = cli("export", "-m", tiny, "-t", target, "--imgsz", "64", "--min-sqnr", "199", "-o", tmp_path / "out")
    assert result.code == 1
    assert result.err.startswith(f"error: net for {target} in fp32 ")
    assert "output logits: SQNR 1" in result.err
    assert "is below 199 dB (max error " in result.err
    assert not (tmp_path / "out").exists()


NOT_A_NUMBER = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, x):
        return torch.sqrt(-1 - self.conv(x).square().mean((2, 3)))
"""


def test_a_float_model_that_gives_no_numbers_is_never_proven_equal(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "nan.py").write_text(NOT_A_NUMBER, encoding="utf-8")
    out = tmp_path / "out"
    result = cli("export", "-m", f"{tmp_path}/nan.py:Net", "-t", "onnx", "--imgsz", "32", "-o", out)
    assert result.code == 1
    assert "output logits: SQNR -200.0 dB" in result.err
    assert not out.exists()


def test_an_artifact_made_without_proof_says_so_and_can_be_proven_later(cli: Cli, tiny: str, tmp_path: Path) -> None:
    options = ("-t", "onnx", "--imgsz", "64", "--no-verify", "-o", tmp_path)
    result = cli("export", "-m", tiny, *options)
    assert result.code == 0
    assert "NOT VERIFIED" in result.out
    assert manifest_of(tmp_path / "net-onnx-fp32")["verification"] == []
    assert cli("verify", tmp_path / "net-onnx-fp32").code == 0


MANY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x, gate):
        y = self.conv(x) * gate
        best, place = y.mean((2, 3)).topk(2)
        # Neither in the order of the names nor of one type.
        rest = [y.sum(1), y.amax(1)]
        return {"mask": y.argmax(1), "found": (y > 0).any(1), "best": best, "place": place, "all": rest}
"""


@pytest.mark.parametrize("target", TARGETS)
def test_several_inputs_and_outputs_of_several_types_keep_their_order(cli: Cli, tmp_path: Path, target: str) -> None:
    (tmp_path / "many.py").write_text(MANY, encoding="utf-8")
    shapes = ("--input-shape", "1,3,16,16", "--input-shape", "1,5,1,1")
    result = cli("export", "-m", f"{tmp_path}/many.py:Net", "-t", target, *shapes, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    folder = tmp_path / "out" / f"Net-{target}-fp32"
    manifest = manifest_of(folder)
    assert manifest["preprocess"] is None
    golden = load_file(folder / "golden.safetensors")
    for kind, specs in (("input", manifest["inputs"]), ("output", manifest["outputs"])):
        for m, spec in enumerate(specs):  # pyright: ignore[reportArgumentType]
            array = golden[f"{kind}.3.{m}"]
            assert (list(array.shape), str(array.dtype)) == (spec["shape"], spec["dtype"])
    assert [golden[f"output.0.{m}"].ndim for m in range(6)] == [3, 3, 2, 2, 3, 3]
    whole = {"coreml": "int32", "tflite": "int32"}.get(target, "int64")
    assert str(golden["output.0.0"].dtype) == str(golden["output.0.3"].dtype) == whole


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        return self.table(places).sum(1)


@pytest.mark.parametrize("target", TARGETS)
def test_whole_numbers_as_inputs_are_those_that_the_program_knows(cli: Cli, tmp_path: Path, target: str) -> None:
    path = tmp_path / "table.pt2"
    torch.export.save(torch.export.export(Table(), (torch.arange(6)[None],)), path)
    result = cli("export", "-m", path, "-t", target, "-o", tmp_path)
    assert result.code == 0, result.err
    golden = load_file(tmp_path / f"table-{target}-fp32" / "golden.safetensors")
    assert all(sorted(golden[f"input.{n}"][0]) == list(range(6)) for n in range(4))


# ------------------------------------------------------------------------------------------ the measure


def test_sqnr_is_ten_log_signal_over_noise() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=1000)
    for scale in (1e-1, 1e-3, 1e-6):
        noise = rng.normal(size=1000) * scale
        expected = 10 * np.log10(np.square(signal).sum() / np.square(noise).sum())
        assert sqnr_db(signal, signal + noise) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("reference", "actual", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 200.0),
        ([0.0, 0.0], [0.0, 0.0], 200.0),
        ([0.0, 0.0], [0.0, 1e-9], -200.0),
        ([1.0, 2.0], [1.0, np.nan], -200.0),
        ([1.0, 2.0], [1.0, np.inf], -200.0),
        ([1.0, np.nan], [1.0, 2.0], -200.0),
        ([1.0, np.nan], [1.0, np.nan], -200.0),
    ],
)
def test_sqnr_at_its_ends(reference: list[float], actual: list[float], expected: float) -> None:
    assert sqnr_db(np.array(reference), np.array(actual)) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": (0, 4)},
        {"crop": (4,)},
        {"resize": 0},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (0.5,)},
        {"channel_order": "GRB"},
    ],
)
def test_a_preprocess_that_fits_no_photo_cannot_be_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"crop|mean|order"):
        Preprocess(**{"resize": 4, "crop": (4, 4), **wrong})  # pyright: ignore[reportArgumentType]
