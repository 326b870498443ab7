"""The `.pt2` file of an int8 program: written, read back, damaged, misused; and the commands that make and take it."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.errors import BadInput
from edgekit.loading import load
from edgekit.programs import FLOAT, QUANTIZED, read_program, read_quantized
from edgekit.types import ModelRequest
from tests.conftest import Cli, process

NET = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU6(), nn.Conv2d(32, 64, 3), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )


def norm():
    return nn.Sequential(nn.Flatten(2), nn.Softmax(-1))
"""
Entries = dict[str, bytes]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "small.py"
    path.write_text(NET, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth noise in colour."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for n in range(32):
        small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((72, 72), Image.Resampling.BICUBIC).save(folder / f"{n:02}.png")
    return folder


@pytest.fixture(scope="module")
def command(source: Path, photos: Path) -> list[str | Path]:
    return [
        "quantize",
        "-m",
        f"{source}:net",
        "--calibration",
        photos,
        "--imgsz",
        "64",
        "--num-calibration-samples",
        "16",
    ]


@pytest.fixture(scope="module")
def file(command: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import subprocess

    path = tmp_path_factory.mktemp("made") / "small.pt2"
    done = subprocess.run(process(*command, "-o", path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def entries(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {i.filename: archive.read(i) for i in archive.infolist()}


def altered(path: Path, to: Path, change: Callable[[Entries], None]) -> Path:
    """A copy of an archive with other entries."""
    content = entries(path)
    change(content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    to.write_bytes(buffer.getvalue())
    return to


def test_a_file_gives_back_what_was_quantized(file: Path) -> None:
    stored = read_quantized(file)
    assert stored is not None
    quantized, float_outputs = stored
    assert (quantized.scheme, quantized.name, quantized.calibration.samples) == ("int8", "net", 16)
    loaded = load(ModelRequest(model=str(file)))
    assert loaded.quantized == quantized
    assert loaded.preprocess == quantized.preprocess
    assert len(float_outputs) >= 4
    assert all(y.shape == (1, 10) and y.dtype == np.float32 for (y,) in float_outputs)
    targets = {str(n.target) for n in read_program(file).graph.nodes}
    assert "quantized_decomposed.dequantize_per_channel.default" in targets
    floats = load(quantized.request)
    x = floats.inputs
    with torch.no_grad():
        exact, result = floats.module(*x), loaded.module(*x)
    assert 20 < float(10 * (exact.square().sum() / (exact - result).square().sum()).log10()) < 60


def test_a_file_of_int8_is_small(file: Path) -> None:
    weights = sum(len(data) for name, data in entries(file).items() if "/data/weights/weight_" in name)
    floats = 4 * (32 * 27 + 64 * 32 * 9 + 64 * 10)
    assert weights < 0.5 * floats


def test_same_command_same_bytes(cli: Cli, command: list[str | Path], file: Path, tmp_path: Path) -> None:
    assert cli(*command, "-o", tmp_path / "again.pt2").code == 0
    assert (tmp_path / "again.pt2").read_bytes() == file.read_bytes()
    assert cli(*command, "--seed", "1", "-o", tmp_path / "other.pt2").code == 0
    assert (tmp_path / "other.pt2").read_bytes() != file.read_bytes()


def _set(name: str, data: bytes) -> Callable[[Entries], None]:
    return lambda e: e.update({f"program/{name}": data})


def _without(name: str) -> Callable[[Entries], None]:
    return lambda e: e.pop(f"program/{name}") and None


def _edit(**values: object) -> Callable[[Entries], None]:
    def change(e: Entries) -> None:
        e[f"program/{QUANTIZED}"] = json.dumps({**json.loads(e[f"program/{QUANTIZED}"]), **values}).encode()

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set(QUANTIZED, b"{"),
        _set(QUANTIZED, b"[]"),
        _set(QUANTIZED, b"null"),
        _set(QUANTIZED, b"\xff\xfe"),
        _edit(schema=2),
        _edit(calibration=None),
        _edit(request="lvt"),
        _edit(labels=3),
        _set(FLOAT, b""),
        _set(FLOAT, b"\xff" * 64),
        _without(FLOAT),
    ],
)
def test_a_damaged_record_is_refused(file: Path, tmp_path: Path, change: Callable[[Entries], None]) -> None:
    bad = altered(file, tmp_path / "bad.pt2", change)
    with pytest.raises(BadInput, match="nothing readable about how it was quantized"):
        load(ModelRequest(model=str(bad)))


def test_what_lies_beside_the_record_never_reaches_torch(file: Path, tmp_path: Path) -> None:
    """A pickle that would run code, native code, a path out of the archive: as extra files they are never opened."""
    import pickle

    class Bad:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    for name in ("extra/model.pt", "extra/x.so", "extra/../../escaped", "extra/models/model.json"):
        bad = altered(file, tmp_path / "bad.pt2", _set(name, pickle.dumps(Bad())))
        loaded = load(ModelRequest(model=str(bad)))
        assert loaded.quantized is not None
        assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pt2"]
    for name in ("data/weights/weight_0.so", "data/aotinductor/model/x.so", "data/constants/custom_obj_0"):
        with pytest.raises(BadInput, match="more than tensors and a graph"):
            load(ModelRequest(model=str(altered(file, tmp_path / "bad.pt2", _set(name, pickle.dumps(Bad()))))))


@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_refused(cli: Cli, file: Path, tmp_path: Path, kept: float) -> None:
    data = file.read_bytes()
    (tmp_path / "cut.pt2").write_bytes(data[: int(kept * len(data))])
    result = cli("export", "-m", tmp_path / "cut.pt2", "-t", "onnx", "-o", tmp_path / "out")
    assert result.code == 2
    assert "error: " in result.err
    assert not (tmp_path / "out").exists()


def test_quantize_refuses_what_it_cannot_do(
    cli: Cli, command: list[str | Path], source: Path, photos: Path, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.pt2"
    for extra, said in (
        (["--range-estimator", "max"], "minmax"),
        (["--bias-correction", "some"], "full"),
        (["--keep-float", "blocks.3.*"], "--keep-float blocks.3.* names no module"),
        (["--keep-float", "*"], "nothing in the model gains from int8"),
        (["--scheme", "int3"], "int8"),
    ):
        result = cli(*command, *extra, "-o", out)
        assert (result.code, said in result.err) == (2, True), result.err
        assert "Traceback" not in result.err
        assert not out.exists()
    nothing = cli("quantize", "-m", f"{source}:norm", "--calibration", photos, "--imgsz", "64", "-o", out)
    assert (nothing.code, "nothing in the model gains from int8" in nothing.err) == (2, True), nothing.err
    assert cli(*command, "-o", tmp_path / "x.onnx").code == 2
    before = file.read_bytes()
    assert cli(*command, "-o", file).code == 2
    assert file.read_bytes() == before
    again = cli("quantize", "-m", file, "--calibration", photos, "-o", out)
    assert (again.code, "is quantized already" in again.err, out.exists()) == (2, True, False), again.err


def test_options_that_found_nothing_are_noted_and_stored(cli: Cli, command: list[str | Path], tmp_path: Path) -> None:
    result = cli(*command, "--equalize", "--smooth-quant", "-o", tmp_path / "x.pt2", "--json")
    assert result.code == 0, result.err
    notes = json.loads(result.out)["notes"]
    assert any(note.startswith("--equalize found nothing to do") for note in notes)
    assert any(note.startswith("--smooth-quant found nothing to do") for note in notes)
    stored = read_quantized(tmp_path / "x.pt2")
    assert stored is not None
    assert list(stored[0].notes) == notes
    assert stored[0].options.equalize


def test_an_export_of_the_file_and_one_in_a_single_step_are_the_same(
    cli: Cli, command: list[str | Path], file: Path, tmp_path: Path
) -> None:
    one = cli("export", "-m", file, "-t", "onnx", "-o", tmp_path / "one", "--json")
    assert one.code == 0, one.err
    two = cli("export", *command[1:], "-p", "int8", "-t", "onnx", "-o", tmp_path / "two", "--json")
    assert two.code == 0, two.err
    (first,), (second,) = json.loads(one.out), json.loads(two.out)
    assert (first["precision"], second["precision"]) == ("int8", "int8")
    models = [(Path(m["path"]) / "model.onnx").read_bytes() for m in (first, second)]
    assert models[0] == models[1]
    for proof in first["verification"]:
        assert proof["passed"]


def test_export_in_int8_needs_photos_and_only_int8_takes_them(
    cli: Cli, command: list[str | Path], source: Path, photos: Path, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for arguments, said in (
        (["-m", f"{source}:net", "-p", "int8"], "--calibration"),
        (["-m", f"{source}:net", "--calibration", photos], "--precision int8"),
        (["-m", file, "-p", "fp16"], "int8 already"),
        (["-m", file, "--equalize"], "its options are fixed"),
        (["-m", file, "--imgsz", "32"], "--image-size"),
    ):
        result = cli("export", *arguments, "-t", "onnx", "-o", out)
        assert (result.code, said in result.err) == (2, True), result.err
        assert not out.exists()
