"""The Core ML evaluator against torch, on packages that coremltools really wrote, and the packages themselves."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("coremltools")

from edgekit.errors import LoweringFailed
from edgekit.targets import coreml_package, mil

IMAGE = (1, 8, 12, 12)
Function = Callable[[Tensor], Tensor]


class Many(nn.Module):
    """Several functions of one input: one conversion checks them all, each as an output of its own."""

    def __init__(self, *parts: Function) -> None:
        super().__init__()
        self.parts = parts
        self.modules_of_parts = nn.ModuleList(p for p in parts if isinstance(p, nn.Module))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts)


class Attention(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.qkv, self.out = form, nn.Linear(32, 96), nn.Linear(32, 32)
        self.register_buffer("bias", torch.randn(1, 4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if self.form == "unbind":
            q, k, v = self.qkv(x).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (t.reshape(b, n, 4, 8).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.form == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.3 + self.bias
            y = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        elif self.form == "matmul":
            y = (q @ k.transpose(-2, -1) * 0.3 + self.bias).softmax(-1) @ v
        else:
            mask = {"float": self.bias, "bool": self.bias > -1}.get(self.form)
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.form == "causal")
        return self.out(y.transpose(1, 2).reshape(b, n, c))


def _conv_bn(*layers: nn.Module) -> nn.Sequential:
    sequence = nn.Sequential(*layers)
    for norm in (m for m in sequence.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    return sequence


def _resized(size: object, mode: str, align: bool | None = None) -> Function:
    return lambda x: F.interpolate(x, size=size, mode=mode, align_corners=align)


# name: (input shape, what makes the functions); made in the test, after seeding
GROUPS: dict[str, tuple[tuple[int, ...], Callable[[], list[Function]]]] = {
    "conv": (IMAGE, lambda: [
        _conv_bn(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        _conv_bn(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False), nn.Hardswish()),
        nn.Conv2d(8, 8, 3, padding=3, dilation=3, groups=8), nn.Conv2d(8, 16, (3, 5), padding=(1, 2), groups=4),
        nn.Conv2d(8, 6, 4, padding="same"), nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(8, 6, 3, 2, 1), nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1),
        nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2, bias=False), _conv_bn(nn.ReLU(), nn.BatchNorm2d(8)),
    ]),
    "conv1d": ((2, 8, 20), lambda: [nn.Conv1d(8, 16, 3, 2, 1), nn.Conv1d(8, 8, 5, padding=2, groups=8)]),
    "conv3d": ((1, 4, 5, 6, 7), lambda: [nn.Conv3d(4, 6, 3, 1, 1), nn.Conv3d(4, 4, 2, 2)]),
    "activation": (IMAGE, lambda: [
        nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.PReLU(8), nn.ELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(),
        nn.Sigmoid(), nn.Hardsigmoid(), nn.Hardswish(), nn.Tanh(), nn.Softplus(), nn.Mish(), nn.Hardtanh(-0.5, 0.7),
        nn.CELU(), nn.SELU(), nn.Softsign(), nn.LogSigmoid(), nn.Softshrink(), nn.GLU(1),
    ]),
    "attention": ((1, 16, 32), lambda: [
        Attention(form) for form in ("matmul", "unbind", "einsum", "plain", "float", "bool", "causal")
    ]),
    "norm": (IMAGE, lambda: [
        nn.LayerNorm(12), nn.LayerNorm((12, 12), elementwise_affine=False), nn.GroupNorm(4, 8), nn.RMSNorm(12),
        nn.InstanceNorm2d(8, affine=True), lambda x: F.normalize(x, dim=1), nn.LocalResponseNorm(3),
        lambda x: (x - x.mean(1, True)) * torch.rsqrt(x.var(1, keepdim=True, correction=0) + 1e-6),
    ]),
    "pool": (IMAGE, lambda: [
        nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(4),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(3, 2, 1, True, False), nn.AdaptiveMaxPool2d(1),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), nn.AdaptiveAvgPool2d(5),
    ]),
    "resize": (IMAGE, lambda: [
        _resized((24, 24), "nearest"), _resized((18, 30), "nearest"), _resized((24, 24), "bilinear"),
        _resized((17, 25), "bilinear"), _resized((17, 25), "bilinear", True), _resized((5, 7), "bilinear"),
        _resized((6, 6), "area"), lambda x: F.pixel_shuffle(x, 2), lambda x: F.pixel_unshuffle(x, 2),
        lambda x: F.grid_sample(x, torch.linspace(-1, 0.9, 50).reshape(1, 5, 5, 2), align_corners=False),
    ]),
    "layout": (IMAGE, lambda: [
        lambda x: torch.cat([t * (i + 2) for i, t in enumerate(x.split([3, 5], 1))][::-1], 1),
        lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], lambda x: sum(x.unbind(1)),
        lambda x: torch.stack([x, x * 2], 2).flatten(1, 2), lambda x: torch.roll(x, (3, -2), (2, 3)),
        lambda x: x.flip(2, 3), lambda x: torch.cat([x[:, :, 0::2, 0::2], x[:, :, 1::2, 1::2]], 1),
        lambda x: x[:, 0] + x[:, -1], lambda x: x[:, torch.tensor([3, 1, 2])], lambda x: F.channel_shuffle(x, 2),
        lambda x: torch.gather(x, 3, torch.arange(12).flip(0).expand(1, 8, 12, 12)), lambda x: x.unfold(2, 4, 2),
        *(partial(F.pad, pad=(1, 2, 3, 0), mode=mode) for mode in ("constant", "reflect", "replicate", "circular")),
        lambda x: x[:, :1].expand(1, 8, 12, 12) * x, lambda x: x.repeat(1, 2, 1, 1), lambda x: x.tril() + x.triu(1),
        lambda x: x.repeat_interleave(2, 1), lambda x: x.detach().clone() + torch.ops.aten.alias(x),
        lambda x: x.reshape(1, 8, 3, 4, 3, 4).permute(0, 2, 4, 3, 5, 1).reshape(9, 16, 8),
        lambda x: x[:, :1].squeeze(1).unsqueeze(-1), lambda x: F.fold(F.unfold(x, 2, stride=2), (12, 12), 2, stride=2),
    ]),
    "reduce": (IMAGE, lambda: [
        lambda x: x.mean((2, 3)), lambda x: x * x.mean((2, 3), keepdim=True), lambda x: x.amax((2, 3)),
        lambda x: x.amin(1), lambda x: x.max(1)[0], lambda x: x.topk(3, -1)[0], lambda x: x.sort(-1)[0],
        lambda x: x.sum(1), lambda x: x.prod(1), lambda x: x.var((2, 3), correction=0), lambda x: x.std(1),
        lambda x: x.norm(dim=1), lambda x: x.logsumexp(1), lambda x: x.cumsum(2), lambda x: x.softmax(1),
        lambda x: x.log_softmax(1), lambda x: torch.einsum("bchw,bdhw->bcd", x, x), lambda x: x @ torch.arange(12.0),
        lambda x: torch.bmm(x.flatten(0, 1), x.flatten(0, 1).mT), lambda x: torch.addmm(x[0, 0], x[0, 1], x[0, 2]),
    ]),
    "elementwise": (IMAGE, lambda: [
        lambda x: x.clamp(-0.5, 0.5), lambda x: x.clamp(min=0.1), lambda x: torch.where(x > 0, x, x * 0.1),
        lambda x: x.masked_fill(x < 0, -3.0), lambda x: x.abs().pow(1.5) + x**2, lambda x: 1.0 / (x.abs() + 1),
        lambda x: torch.rsqrt(x.abs() + 0.1) + x.abs().sqrt(), lambda x: torch.log(x.exp() + 1) + torch.log1p(x * x),
        lambda x: torch.erf(x) + torch.sin(x) + torch.atan(x), lambda x: torch.maximum(x, -x) + torch.minimum(x, x * 2),
        lambda x: ((x > 0) & (x < 1) | ~(x > -1)).float(), lambda x: (x * 4).to(torch.int32).to(torch.float32),
        lambda x: torch.lerp(x, x * 2, 0.3), lambda x: torch.addcmul(x, x, x, value=0.5), lambda x: x.abs().trunc(),
        lambda x: torch.where(x > 0, x, 0.5), lambda x: torch.where(x > 0, 2.0, x), lambda x: x + torch.tensor([2.0]),
    ]),
}  # fmt: skip

# not functions that survive a rounding of their input: a value next to a step moves by the whole step
STEPS = {"elementwise": {10, 11, 14}}


def _sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    error = float(np.square(wanted.astype(np.float64) - got).sum())
    return float("inf") if error == 0 else 10 * np.log10(float(np.square(wanted, dtype=np.float64).sum()) / error)


def _packaged(model: nn.Module, x: Tensor, precision: str, package: Path) -> list[np.ndarray]:
    """Convert `model` into `package` (input "x", outputs "y0" …); returns what torch computes."""
    with torch.no_grad():
        results = model.eval()(x)
    results = results if isinstance(results, tuple) else (results,)
    program = torch.export.export(model, (x,))
    coreml_package.convert(program, precision, package, ["x"], [f"y{i}" for i in range(len(results))])
    return [r.float().numpy() for r in results]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, np.ndarray]:
    """A package of a small classifier, its input and what torch computes for it."""
    torch.manual_seed(0)
    model = _conv_bn(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.GELU(), nn.Flatten(), nn.Linear(16 * 64, 10))
    package, x = tmp_path_factory.mktemp("small") / "m.mlpackage", torch.randn(1, 3, 16, 16)
    return package, x, _packaged(model, x, "fp32", package)[0]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("group", GROUPS)
def test_evaluator_agrees_with_torch(group: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape, make = GROUPS[group]
    x = torch.randn(shape)
    wanted = _packaged(Many(*make()), x, precision, tmp_path / "m.mlpackage")
    program = mil.load(tmp_path / "m.mlpackage")
    assert [o.dtype for o in (*program.inputs, *program.outputs)] == ["fp32"] * (len(wanted) + 1)
    got = program({"x": x.numpy()})
    steps = STEPS.get(group, set()) if precision == "fp16" else set()
    quality = {i: _sqnr(w, got[f"y{i}"]) for i, w in enumerate(wanted) if i not in steps}
    limit = 100 if precision == "fp32" else 50
    assert not {i: q for i, q in quality.items() if q < limit}


def test_half_precision_is_rounded_after_each_op(tmp_path: Path) -> None:
    x = torch.linspace(-4, 4, 64).reshape(1, 64)
    _packaged(Many(lambda x: x * 1.1 + 1000), x, "fp16", tmp_path / "m.mlpackage")
    got = mil.load(tmp_path / "m.mlpackage")({"x": x.numpy()})["y0"]
    expected = (x.half().float() * torch.tensor(1.1).half().float()).half().float() + 1000
    np.testing.assert_array_equal(got, expected.half().float().numpy())
    assert got.dtype == np.float32


def test_program_describes_itself(small: tuple[Path, Tensor, np.ndarray]) -> None:
    program = mil.load(small[0])
    assert program.inputs == (mil.TensorInfo("x", (1, 3, 16, 16), "fp32"),)
    assert program.outputs == (mil.TensorInfo("y0", (1, 10), "fp32"),)
    assert program.ops() == {"conv": 1, "gelu": 1, "linear": 1, "reshape": 1}


def test_unknown_op_is_named(small: tuple[Path, Tensor, np.ndarray]) -> None:
    package, x, _ = small
    without = {name: rule for name, rule in mil.RULES.items() if name != "gelu"}
    program = mil.load(package, without)
    assert program.ops()["gelu"] == 1
    with pytest.raises(mil.UnknownMilOp, match=r"gelu -> gelu\b"):
        program({"x": x.numpy()})


@pytest.mark.parametrize(("old", "new"), [("custom", "cust0m"), ("EXACT", "EXAKT"), ("pad_type", "pad_tipe")])
def test_unknown_option_or_parameter_is_named(
    old: str, new: str, small: tuple[Path, Tensor, np.ndarray], tmp_path: Path
) -> None:
    package, x, _ = small
    broken = shutil.copytree(package, tmp_path / "m.mlpackage")
    model = broken / "Data/com.apple.CoreML/model.mlmodel"
    assert old.encode() in model.read_bytes()
    model.write_bytes(model.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(mil.UnknownMilOp, match=new):
        mil.load(broken)({"x": x.numpy()})


def test_wrong_inputs_are_refused(small: tuple[Path, Tensor, np.ndarray]) -> None:
    program = mil.load(small[0])
    for inputs, said in (
        ({"image": np.zeros((1, 3, 16, 16), np.float32)}, "image"),
        ({"x": np.zeros((1, 3, 16, 8), np.float32)}, "shape"),
        ({"x": np.zeros((1, 3, 16, 16))}, "float64"),
    ):
        with pytest.raises(ValueError, match=said):
            program(inputs)


@pytest.mark.parametrize("place", [0.0, 0.001, 0.3, 0.6, 0.9])
def test_corrupt_weights_never_pass(place: float, small: tuple[Path, Tensor, np.ndarray], tmp_path: Path) -> None:
    package, x, wanted = small
    broken = shutil.copytree(package, tmp_path / "m.mlpackage")
    weights = broken / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(weights.read_bytes())
    start = max(64, int(place * len(data)))  # the file's own header only counts the weights
    data[start : start + 16] = bytes(b ^ 0x5A for b in data[start : start + 16])
    weights.write_bytes(data)
    try:
        got = mil.load(broken)({"x": x.numpy()})["y0"]
    except ValueError as error:
        said = str(error)
    else:
        said = "damaged" if not _sqnr(wanted, got) > 60 else "equal all the same"
    assert "damaged" in said or "truncated" in said


@pytest.mark.parametrize("file", ["Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files_are_refused(
    file: str, kept: float, small: tuple[Path, Tensor, np.ndarray], tmp_path: Path
) -> None:
    broken = shutil.copytree(small[0], tmp_path / "m.mlpackage")
    data = (broken / file).read_bytes()
    (broken / file).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"truncated|damaged|cut off|not an ML program"):
        mil.load(broken)


def test_incomplete_packages_are_refused(small: tuple[Path, Tensor, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Manifest\.json"):
        mil.load(tmp_path)
    broken = shutil.copytree(small[0], tmp_path / "m.mlpackage")
    (broken / "Data/com.apple.CoreML/weights/weight.bin").unlink()
    with pytest.raises(ValueError, match=r"weight\.bin"):
        mil.load(broken)
    manifest = broken / "Manifest.json"
    manifest.write_text(manifest.read_text().replace("com.apple.CoreML/model.mlmodel", "../../secret"))
    with pytest.raises(ValueError, match="outside"):
        mil.load(broken)


_CONVERT = """
import sys, torch
from pathlib import Path
from torch import nn
from edgekit.targets import coreml_package
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 8, 3, groups=8),
                      nn.GELU("tanh"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 5)).eval()
program = torch.export.export(model, (torch.randn(1, 3, 12, 12),))
coreml_package.convert(program, "fp16", Path(sys.argv[1]), ["image"], ["logits"])
"""


def test_same_bytes_in_every_process_and_quietly(tmp_path: Path) -> None:
    digests, packages = [], [tmp_path / seed / "m.mlpackage" for seed in ("1", "2")]
    running = []
    for package in packages:
        package.parent.mkdir()
        running.append(subprocess.Popen(
            [sys.executable, "-c", _CONVERT, str(package)], env={**os.environ, "PYTHONHASHSEED": package.parent.name},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parents[1],
        ))  # fmt: skip
    for package, process in zip(packages, running, strict=True):
        assert process.communicate()[0] == ""
        assert process.returncode == 0
        files = sorted(p for p in package.rglob("*") if p.is_file())
        digests.append([(str(p.relative_to(package)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
        assert list(package.parent.iterdir()) == [package]
    assert digests[0] == digests[1]
    names = [name for name, _ in digests[0]]
    data = "Data/com.apple.CoreML"
    assert names == [f"{data}/model.mlmodel", f"{data}/weights/weight.bin", "Manifest.json"]


def test_coremltools_reads_the_package(small: tuple[Path, Tensor, np.ndarray]) -> None:
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(small[0]), skip_model_load=True)
    spec = model.get_spec()
    assert [f.name for f in (*spec.description.input, *spec.description.output)] == ["x", "y0"]
    program = load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
    assert {op.op_type for op in program.functions["main"].operations} >= {"conv", "gelu", "linear"}


def test_weights_of_the_program_are_left_alone(tmp_path: Path) -> None:
    model = _conv_bn(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False), nn.ReLU()).eval()
    program = torch.export.export(model, (torch.randn(IMAGE),))
    before = {name: value.clone() for name, value in program.state_dict.items()}
    coreml_package.convert(program, "fp32", tmp_path / "m.mlpackage", ["x"], ["y"])
    assert all(torch.equal(value, program.state_dict[name]) for name, value in before.items())


def test_what_cannot_be_converted_is_named_with_its_line(tmp_path: Path) -> None:
    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x[0], x[0])

    class Overlap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.fold(F.unfold(x, 3, padding=1), (12, 12), 3, padding=1)

    for model, op, line in ((Distances(), "cdist", "torch.cdist(x[0], x[0])"), (Overlap(), "col2im", "F.fold(")):
        program = torch.export.export(model, (torch.randn(IMAGE),))
        with pytest.raises(LoweringFailed) as failure:
            coreml_package.convert(program, "fp32", tmp_path / "m.mlpackage", ["x"], ["y"])
        assert op in failure.value.message
        assert "test_mil.py" in failure.value.message
        assert line in failure.value.message
        assert not list(tmp_path.iterdir())


def _compute(op: str, **arguments: object) -> np.ndarray:
    return mil.RULES[op].compute(**arguments).numpy()


def test_ops_that_no_torch_model_reaches() -> None:
    x = torch.arange(2 * 8 * 4 * 6, dtype=torch.float32).reshape(2, 8, 4, 6)
    a = x.numpy()
    np.testing.assert_array_equal(
        _compute("slice_by_index", x=x, begin=[0, 6, 3, 0], end=[2, 0, 0, 0], stride=[1, -2, 1, 3],
                 begin_mask=[False, False, False, True], end_mask=[False, False, False, True],
                 squeeze_mask=[False, False, True, False]), a[0:2, 6:0:-2, 3, ::3])  # fmt: skip
    deep = _compute("depth_to_space", x=x, block_size=2)
    for i in range(2):  # as in TensorFlow: the place in the block is the slow part of the channel
        for j in range(2):
            np.testing.assert_array_equal(deep[:, :, i::2, j::2], a[:, (2 * i + j) * 2 : (2 * i + j) * 2 + 2])
    np.testing.assert_array_equal(_compute("space_to_depth", x=torch.from_numpy(deep), block_size=2), a)
    picks = torch.tensor([[1, -1, 0], [7, 2, 2]], dtype=torch.int32)
    batched = np.stack([a[n][picks[n].numpy()] for n in range(2)])
    np.testing.assert_array_equal(_compute("gather", x=x, indices=picks, axis=1, batch_dims=1), batched)
    np.testing.assert_array_equal(_compute("gather_nd", x=x, indices=picks[:, :, None], batch_dims=1), batched)
    np.testing.assert_array_equal(_compute("gather", x=x, indices=picks, axis=1), a[:, picks.numpy()])
    two = [x[:, :1], x[:, 1:2]]
    np.testing.assert_array_equal(_compute("concat", values=two, axis=2, interleave=True)[:, 0, 1::2], a[:, 1])
    np.testing.assert_array_equal(_compute("cumsum", x=x, axis=3, exclusive=True, reverse=True)[..., -1], 0 * a[..., 0])
    np.testing.assert_array_equal(_compute("band_part", x=x, lower=1, upper=0), np.tril(np.triu(a, -1)))
    np.testing.assert_array_equal(_compute("sliding_windows", x=x, axis=2, size=2, stride=2)[:, :, 1], a[:, :, 2:4])
    ones = torch.ones(1, 1, 5, 5)  # "same": an odd row of padding goes to the end, with "same_lower" to the start
    corner = {"same": (4, 1), "same_lower": (1, 4)}
    for kind, (first, last) in corner.items():
        y = _compute("conv", x=ones, weight=torch.ones(1, 1, 2, 2), pad_type=kind)[0, 0]
        assert y.shape == (5, 5)
        assert (y[0, 0], y[-1, -1]) == (first, last)
    # the tables in the documentation of resize_bilinear, for two pixels 0 and 1
    line = torch.tensor([[[[0.0, 1.0]]]])
    for mode, points in {
        "UNALIGN_CORNERS": [0, 0.1, 0.5, 0.9, 1], "ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
        "DEFAULT": [0, 0.4, 0.8, 1, 1], "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
    }.items():  # fmt: skip
        y = _compute("resize_bilinear", x=line, target_size_height=1, target_size_width=5, sampling_mode=mode)
        np.testing.assert_allclose(y[0, 0, 0], points, atol=1e-6)


def _built(body: Callable[..., object], shape: tuple[int, ...], package: Path, target: str) -> None:
    """Write a package of a hand-made MIL program, for ops that no torch model gives."""
    with coreml_package._quiet():
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb

        system = getattr(ct.target, target)
        ct.convert(
            mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=system)(body),
            minimum_deployment_target=system, skip_model_load=True, compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY, package_dir=str(package),
        )  # fmt: skip


def test_compressed_weights_as_coremltools_unpacks_them(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    rng = np.random.default_rng(0)
    int8 = rng.integers(-128, 128, (4, 6)).astype(np.int8)
    scale = rng.random((4, 1), dtype=np.float32) + 0.5
    blocks = rng.random((4, 3), dtype=np.float32) + 0.5
    int4 = rng.integers(-8, 8, (4, 6)).astype(types.nptype_from_builtin(types.int4))
    palette = rng.standard_normal((2, 1, 4, 1)).astype(np.float32)
    indices = rng.integers(0, 4, (4, 6)).astype(types.nptype_from_builtin(types.uint2))
    vectors = rng.standard_normal((1, 1, 4, 2)).astype(np.float32)
    halves = rng.integers(0, 4, (2, 6)).astype(types.nptype_from_builtin(types.uint2))
    expected = [
        int8 * scale, int4.astype(np.float32) * np.repeat(blocks, 2, 1),
        np.stack([palette[i // 2, 0, indices[i].astype(int), 0] for i in range(4)]),
        vectors[0, 0][halves.astype(int)].transpose(0, 2, 1).reshape(4, 6),
    ]  # fmt: skip

    def body(x: object) -> object:
        weights = [
            mb.constexpr_blockwise_shift_scale(data=int8, scale=scale),
            mb.constexpr_blockwise_shift_scale(data=int4, scale=blocks),
            mb.constexpr_lut_to_dense(indices=indices, lut=palette),
            mb.constexpr_lut_to_dense(indices=halves, lut=vectors, vector_axis=0),
        ]
        return mb.concat(values=[mb.linear(x=x, weight=w) for w in weights], axis=-1)

    _built(body, (1, 6), tmp_path / "m.mlpackage", "iOS18")
    program = mil.load(tmp_path / "m.mlpackage")
    assert program.ops() == {"linear": 4, "concat": 1}
    got = np.concatenate([next(iter(program({"x": row[None]}).values())) for row in np.eye(6, dtype=np.float32)])
    np.testing.assert_allclose(got.reshape(6, 4, 4).transpose(1, 2, 0), np.stack(expected), rtol=1e-6)


@pytest.mark.parametrize("stage", ["affine", "palette", "sparse"])
def test_compressed_weights_of_older_systems(stage: str, tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb

    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, 24).astype(np.uint8)
    if stage == "affine":
        data = rng.integers(-128, 128, (4, 6)).astype(np.int8)
        zero, scale = rng.integers(-9, 9, 4).astype(np.int8), rng.random(4, dtype=np.float32)
        expected = (data.astype(np.float32) - zero[:, None]) * scale[:, None]
    elif stage == "palette":
        lut = rng.standard_normal(2).astype(np.float32)
        expected = lut[bits].reshape(4, 6)
    else:
        values = rng.standard_normal(int(bits.sum())).astype(np.float32)
        expected = np.zeros(24, np.float32)
        expected[bits == 1] = values
        expected = expected.reshape(4, 6)
    packed, shape = np.packbits(bits, bitorder="little"), np.array([4, 6], np.uint32)

    def body(x: object) -> object:
        if stage == "affine":
            weight = mb.constexpr_affine_dequantize(quantized_data=data, zero_point=zero, scale=scale, axis=0)
        elif stage == "palette":
            weight = mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=shape)
        else:
            weight = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=packed, shape=shape)
        return mb.linear(x=x, weight=weight)

    _built(body, (6, 6), tmp_path / "m.mlpackage", "iOS16")
    got = next(iter(mil.load(tmp_path / "m.mlpackage")({"x": np.eye(6, dtype=np.float32)}).values()))
    np.testing.assert_allclose(got.T, expected, rtol=1e-6)


def test_quantized_program_agrees_with_its_simulation(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(1152, 7))
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model.eval(), (x,)).module(), quantizer)
    prepared(x)
    simulated = convert_pt2e(prepared)
    wanted = simulated(x).detach().numpy()
    program = torch.export.export(simulated, (x,))
    coreml_package.convert(program, "fp32", tmp_path / "m.mlpackage", ["x"], ["y"])
    evaluated = mil.load(tmp_path / "m.mlpackage")
    assert evaluated.ops()["quantize"] >= 3
    assert _sqnr(wanted, evaluated({"x": x.numpy()})["y"]) > 36
