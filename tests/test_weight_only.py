"""Integer weights: the grid, the simulation, and the same integers in the files of all four runtimes."""

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.errors import Unsupported
from edgekit.graph.capture import capture
from edgekit.quantization.weight_only import (
    EVERY,
    LINEAR,
    POINTWISE,
    WeightScheme,
    left_float,
    nearest,
    on_grid,
    quantize_weights,
    weight_bits,
)
from edgekit.targets import TARGETS
from edgekit.types import TensorSpec
from edgekit.verification import sqnr_db
from tests.conftest import Cli

Lowered = Callable[[str, str], tuple[Path, np.ndarray, np.ndarray]]
# Where nothing but the order of sums differs; elsewhere float16, or activations that are quantized as they come.
FLOORS = {("tflite", "int8-weight"): 100, ("onnx", "int8-weight"): 100, ("onnx", "int4-weight"): 100}
PAIRS = [(name, precision) for name, target in TARGETS.items() for precision in target.schemes]


class Net(nn.Module):
    """A convolution of each kind and two linears, each weight of a shape of its own, a norm and a dead channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.mix = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.point = nn.Conv2d(32, 64, 1)
        self.wide = nn.Linear(64, 96)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.norm(self.stem(x)).relu()).relu()
        x = self.point(x).relu().flatten(2).transpose(1, 2)
        return self.head(self.wide(x).relu().mean(1))


@pytest.fixture(scope="module")
def net() -> tuple[Net, ExportedProgram, Tensor]:
    torch.manual_seed(0)
    module = Net().eval()
    with torch.no_grad():
        nn.init.uniform_(module.norm.running_var, 0.5, 1.5)
        module.stem.weight[5] = 0
        module.point.weight[7] *= 1e-9
    x = torch.randn(1, 3, 16, 16)
    return module, capture(module, (x,)), x


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e-30, 1e4])
def test_a_rounded_weight_gives_its_integers_back(bits: int, size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(48, 1, generator=generator).exp().pow(3)
    weight = torch.randn(48, 96, generator=generator) * spread * size
    weight[3] = 0
    weight[4] *= 1e-12
    grid = nearest(weight, bits)
    rounded = (grid.scale * grid.ints).reshape(weight.shape)
    found = on_grid(rounded, bits)
    assert found is not None
    assert torch.equal(found.ints, grid.ints)
    assert torch.equal(found.scale, grid.scale)
    assert on_grid(weight, bits) is None
    assert on_grid(rounded, 12 - bits) is None
    assert int(grid.ints.abs().max()) == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_rounded_to_float16_after_the_grid_is_still_on_it(bits: int) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        weight = torch.randn(32, 64, generator=generator) * torch.rand(32, 1, generator=generator) * 0.1
        weight[0] *= 1e-4
        grid = nearest(weight, bits)
        found = on_grid((grid.scale * grid.ints).reshape(weight.shape).half(), bits)
        assert found is not None
        assert torch.equal(found.ints, grid.ints)


def test_int8_is_within_half_a_step_and_int4_clips_where_that_is_nearer() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    grid = nearest(weight, 8)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((grid.scale * grid.ints).reshape(16, 64) - weight).abs().le(step * 0.57).all())
    fine = nearest(weight, 4)
    plain = weight.reshape(16, 2, 32).abs().amax(-1, keepdim=True) / 7
    naive = (weight.reshape(16, 2, 32) / plain).round() * plain
    error = (fine.scale * fine.ints - weight.reshape(16, 2, 32)).square().sum()
    assert error < 0.95 * (naive - weight.reshape(16, 2, 32)).square().sum()


def test_the_simulation_rounds_the_folded_weights_and_nothing_else(net: tuple[Net, ExportedProgram, Tensor]) -> None:
    module, program, x = net
    rounded = quantize_weights(program, WeightScheme(int8=EVERY))
    # By hand: the norm folded in float64, each weight on its grid.
    copy = Net().eval()
    copy.load_state_dict(module.state_dict())
    scale = module.norm.weight.double() / (module.norm.running_var.double() + module.norm.eps).sqrt()
    with torch.no_grad():
        copy.stem.weight.copy_(module.stem.weight.double() * scale.reshape(-1, 1, 1, 1))
        for layer in (copy.stem, copy.mix, copy.point, copy.wide, copy.head):
            grid = nearest(layer.weight, 8)
            layer.weight.copy_((grid.scale * grid.ints).reshape(layer.weight.shape))
        shift = module.norm.bias - module.norm.running_mean * scale.float()
        y = copy.mix((copy.stem(x) + shift.reshape(1, -1, 1, 1)).relu()).relu()
        y = copy.head(copy.wide(copy.point(y).relu().flatten(2).transpose(1, 2)).relu().mean(1))
        assert torch.allclose(rounded.module()(x), y, atol=1e-6)
        assert 30 < sqnr_db(module(x).numpy(), y.numpy()) < 60
    assert torch.equal(program.state_dict["point.weight"], module.point.weight), "the program given in was changed"


def test_kinds_that_a_scheme_leaves_out_stay_float_and_are_named(net: tuple[Net, ExportedProgram, Tensor]) -> None:
    program = net[1]
    scheme = WeightScheme(int8=frozenset({LINEAR}), int4=frozenset({POINTWISE}), why_float="of a reason")
    bits = weight_bits(program, scheme)
    assert bits == {"point.weight": 4, "wide.weight": 8, "head.weight": 8}
    notes = "\n".join(left_float(program, scheme))
    assert "1 convolution weight (3,456 bytes in float32) stays float: of a reason" in notes
    assert "1 depthwise convolution weight (1,152 bytes in float32) stays float: of a reason" in notes
    # stem bias from the folded norm 32, mix 32, point 64, wide 96, head 10
    assert "biases, norms and tables (936 bytes in float32) stay float" in notes


def test_channels_that_do_not_fill_blocks_take_eight_bits() -> None:
    program = capture(nn.Linear(40, 8).eval(), (torch.randn(2, 40),))
    assert weight_bits(program, WeightScheme(int8=EVERY, int4=frozenset({LINEAR}))) == {"weight": 8}
    assert weight_bits(program, WeightScheme(int4=frozenset({LINEAR}))) == {}


def _coreml(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from edgekit.targets.mil_package import read

    program = read(path)
    for op in program.operations:
        if op.kind.startswith("constexpr_"):
            given = {
                name: program.constants[value[0]] if isinstance(value[0], str) else value[0].value
                for name, value in op.arguments.items()
            }
            data = given.get("quantized_data", given.get("data"))
            assert isinstance(data, Tensor)
            assert isinstance(given["scale"], Tensor)
            yield data.numpy(), given["scale"].float().numpy()


def _onnx(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    import onnx

    model = onnx.load(str(path))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    products = {n.input[1]: n for n in model.graph.node if n.op_type in ("MatMulInteger", "MatMulNBits")}
    for name, ints in stored.items():
        if not name.endswith("_integers"):
            continue
        scale = stored[name.replace("_integers", "_scale")]
        node = products.get(name)
        if node is not None and node.op_type == "MatMulNBits":
            ints = np.stack([ints & 15, ints >> 4], -1).reshape(ints.shape[0], -1).astype(np.int8) - 8
        elif node is not None or (ints.ndim == 2 and scale.shape[0] == 1):
            ints = ints.T
        yield ints, scale


def _tflite(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from ai_edge_litert.tools import flatbuffer_utils
    from ai_edge_quantizer.qtyping import TensorType

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(path.read_bytes()))
    graph = model.subgraphs[0]
    for tensor in graph.tensors:
        if tensor.type not in (TensorType.INT8, TensorType.INT4):
            continue
        data = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.uint8)
        if tensor.type == TensorType.INT4:
            ints = (np.stack([data & 15, data >> 4], -1).astype(np.int8) ^ 8) - 8
            scales = graph.tensors[tensor.quantization.details.scales]
            scale = np.frombuffer(bytes(model.buffers[scales.buffer].data), np.float16).astype(np.float32)
        else:
            ints, scale = data.view(np.int8), np.asarray(tensor.quantization.scale)
        ints = ints.reshape(tuple(tensor.shape))
        if ints.ndim == 4:  # outputs last for depthwise convolutions, else first; channels last
            depthwise = tensor.quantization.quantizedDimension == 3
            ints = ints.transpose(3, 0, 1, 2) if depthwise else ints.transpose(0, 3, 1, 2)
        yield ints, scale


READERS = {"coreml": _coreml, "onnx": _onnx, "tflite": _tflite}


@pytest.fixture(scope="module")
def lowered(net: tuple[Net, ExportedProgram, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """`lowered(target, precision)`: the net's model file, what it computes and what the simulation does, made once."""
    return lru_cache(maxsize=None)(
        lambda target, precision: _lowered(net, target, precision, tmp_path_factory.mktemp(target))
    )


def _lowered(
    net: tuple[Net, ExportedProgram, Tensor], target: str, precision: str, folder: Path
) -> tuple[Path, np.ndarray, np.ndarray]:
    """The model file, what it computes, and what the simulation does."""
    to = TARGETS[target]
    program, x = quantize_weights(net[1], to.schemes[precision]), net[2]
    inputs = to.io((TensorSpec(name="image", shape=tuple(x.shape), layout="NCHW"),))
    outputs = to.io((TensorSpec(name="logits", shape=(1, 10)),))
    path = folder / f"{precision}{to.suffix}"
    to.lower(program, precision, path, inputs, outputs)
    given = x.numpy() if inputs[0].layout == "NCHW" else x.permute(0, 2, 3, 1).contiguous().numpy()
    with torch.no_grad():
        return path, to.runner(path, inputs, outputs)([given])[0], program.module()(x).numpy()


@pytest.mark.parametrize(("target", "precision"), PAIRS)
def test_an_artifact_holds_the_integers_of_the_simulation(
    net: tuple[Net, ExportedProgram, Tensor], lowered: Lowered, target: str, precision: str
) -> None:
    path, actual, simulation = lowered(target, precision)
    assert sqnr_db(simulation, actual) > FLOORS.get((target, precision), 35)
    if target == "executorch":
        return  # its delegate packs weights: the next test weighs them
    scheme = TARGETS[target].schemes[precision]
    weights = [v for v in quantize_weights(net[1], scheme).state_dict.values() if v.dim() > 1]
    grids = [grid for grid in (on_grid(w, 4) or on_grid(w, 8) for w in weights) if grid is not None]
    expected = {g.ints.numel(): g for g in grids}
    found = {ints.size: (ints, scale) for ints, scale in READERS[target](path)}
    # Every weight of the net has a size of its own.
    assert len(expected) == 5
    assert set(found) == set(expected)
    for size, (ints, scale) in found.items():
        assert np.array_equal(ints.reshape(-1), expected[size].ints.numpy().reshape(-1))
        assert np.array_equal(scale.reshape(-1), expected[size].scale.numpy().reshape(-1))
    assert sum(g.bits == 4 for g in grids) == (2 if precision == "int4-weight" else 0)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(256, 512), nn.Linear(512, 256)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


@pytest.mark.parametrize(("target", "precision"), PAIRS)
def test_the_file_is_as_small_as_its_integers(target: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, to = torch.randn(1, 256), TARGETS[target]
    program = quantize_weights(capture(Mlp().eval(), (x,)), to.schemes[precision])
    path = tmp_path / f"model{to.suffix}"
    to.lower(program, precision, path, (TensorSpec(name="x", shape=(1, 256)),), (TensorSpec(name="y", shape=(1, 256)),))
    size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())
    bits = 4 if precision == "int4-weight" else 8
    assert size < 1.3 * (2 * 256 * 512 * bits / 8) + 8192


@pytest.mark.parametrize(("target", "precision"), PAIRS)
def test_the_same_program_gives_the_same_bytes(
    net: tuple[Net, ExportedProgram, Tensor], lowered: Lowered, target: str, precision: str, tmp_path: Path
) -> None:
    contents: list[Any] = []
    for path in (lowered(target, precision)[0], _lowered(net, target, precision, tmp_path)[0]):
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        contents.append([(p.relative_to(path.parent), p.read_bytes()) for p in files])
    assert contents[0] == contents[1]


def test_a_target_without_a_precision_names_those_that_have_it(cli: Cli) -> None:
    with pytest.raises(Unsupported, match="executorch has no precision 'int8-weight'; coreml, tflite, onnx have it"):
        TARGETS["executorch"].check("int8-weight", TARGETS.values())
    result = cli("export", "-m", "micronet-m0", "-t", "coreml", "-p", "int8-dynamic")
    assert result.code == 2
    assert "coreml has no precision 'int8-dynamic'; executorch, tflite, onnx have it" in result.err
    assert "Type -t executorch,tflite,onnx for int8-dynamic. coreml has fp32, fp16, " in result.err


def test_export_proves_against_the_simulation_and_against_float(cli: Cli, tiny: str, tmp_path: Path) -> None:
    result = cli("export", "-m", tiny, "-t", "onnx", "-p", "w8", "--imgsz", "64", "-o", tmp_path, "--json")
    assert result.code == 0, result.err
    manifest = json.loads(result.out)[0]
    assert manifest["precision"] == "int8-weight"
    against = {v["against"]: v["sqnr_db"] for v in manifest["verification"]}
    assert against["simulation"] > 100 > against["float"] > 25
    assert any("biases, norms and tables" in note for note in manifest["notes"])
    assert manifest["layers"]["head"] == 16 * 10 + 4 * 10
