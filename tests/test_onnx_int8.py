"""Q/DQ graphs for ONNX Runtime: the numbers of the simulation, from its integer kernels alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.ao.quantization.fx._decomposed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.graph.quantized import drop_clamps
from edgekit.graph.quantized_integers import (
    flat_linears,
    integer_biases,
    integer_clamps,
    integer_moves,
    unsigned_activations,
)
from edgekit.graph.quantized_kernels import (
    aligned_channels,
    dense_groups,
    long_runs,
    merge_alignments,
    pools_as_convs,
)
from edgekit.loading import load
from edgekit.quantization import quantize
from edgekit.targets import TARGETS
from edgekit.types import ModelRequest, QuantizationOptions, TensorSpec

Rule = Callable[[ExportedProgram], ExportedProgram]
_qd = torch.ops.quantized_decomposed
QUANTIZE = _qd.quantize_per_tensor.default
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
SUMS_IN_32_BITS = "vnni" in CPU or ("GenuineIntel" not in CPU and "AuthenticAMD" not in CPU)
"""Whether ONNX Runtime's kernels add products of bytes without saturation."""
IMAGE = (1, 3, 15, 14)
MAP = (1, 8, 8, 4)


# Scales are powers of two, so sums in float are exact; zero points are even, so a tie goes to the even side before and
# after they are added: there is one right answer for each value.
STEP = 2.0**-5


def q(x: Tensor, scale: float = STEP, zero: int = -6) -> Tensor:
    """`x` through int8 and back."""
    arguments = (scale, zero, -128, 127, torch.int8)
    return _qd.dequantize_per_tensor(_qd.quantize_per_tensor(x, *arguments), *arguments)


class Layer(nn.Module):
    """A convolution (four dimensions) or linear (two) with int8 weights, for inputs of the scale that `q` gives."""

    weight: Tensor
    bias: Tensor

    def __init__(self, *size: int, stride: int = 1, padding: int = 0, groups: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(sum(size))
        weight = torch.randint(-127, 128, size, generator=generator, dtype=torch.int8)
        scales = 2.0 ** -torch.randint(8, 11, (size[0],), generator=generator)
        steps = torch.randint(-500, 500, (size[0],), generator=generator)
        self.settings = (stride, padding, 1, groups)
        for name, value in (
            ("weight", weight),
            ("scales", scales),
            ("zeros", torch.zeros(size[0], dtype=torch.int64)),
            ("bias", steps * scales * STEP),
        ):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        weight = _qd.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        if self.weight.dim() == 2:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, *self.settings)


class Net(nn.Module):
    def __init__(self, layers: Sequence[Layer], forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(q(x), *self.layers)


def clamped(x: Tensor, layer: Layer) -> Tensor:
    """Clamps that cut off what int8 still has."""
    y = q(torch.clamp(layer(x), -1.0, 2.0))
    return q(F.relu(y))


def stem(x: Tensor, first: Layer, depthwise: Layer, last: Layer) -> Tensor:
    """As TensorFlow pads: one row and column more at the end; channels that no kernel takes as they are."""
    x = q(F.hardtanh(first(q(F.pad(x, (0, 1, 0, 1)))), 0.0, 6.0), STEP / 2, -128)
    x = q(F.relu(depthwise(x)), zero=-128)
    return q(last(x))


def scaled(x: Tensor, squeeze: Layer) -> Tensor:
    gate = q(squeeze(q(x.mean((-2, -1), keepdim=True))))
    return q(q(x * gate) + x)


def moved(x: Tensor, layer: Layer) -> Tensor:
    tokens = q(q(x.reshape(1, 8, 32)).permute(0, 2, 1))
    y = q(layer(tokens))
    y = q(torch.cat([y, q(y[:, 1:5])], 1))
    return q(torch.maximum(y, q(y[:, :1])))


def pooled(x: Tensor) -> Tensor:
    return q(F.avg_pool2d(x, (2, 4), 2))


def grouped(x: Tensor, layer: Layer) -> Tensor:
    return q(layer(x))


def residual(x: Tensor, first: Layer, depthwise: Layer) -> Tensor:
    """The padded depthwise convolution reads what an addition reads too."""
    y = q(first(x))
    return q(y + q(depthwise(y)))


NETS: dict[str, tuple[tuple[Layer, ...], Callable[..., Tensor], tuple[int, ...]]] = {
    "stem": (
        (Layer(12, 3, 3, 3, stride=2), Layer(12, 1, 3, 3, padding=1, groups=12), Layer(5, 12, 1, 1)), stem, IMAGE,
    ),
    "scaled": ((Layer(8, 8, 1, 1),), scaled, (1, 8, 32, 16)),
    "moved": ((Layer(6, 8),), moved, MAP),
    "pooled": ((), pooled, MAP),
    "multiplied": ((Layer(24, 1, 3, 3, padding=1, groups=8),), grouped, MAP),
    "grouped": ((Layer(48, 8, 1, 1, groups=6),), grouped, (1, 48, 4, 4)),
    "clamped": ((Layer(16, 8, 1, 1),), clamped, MAP),
    "residual": ((Layer(20, 8, 1, 1), Layer(20, 1, 3, 3, padding=1, groups=20)), residual, MAP),
}  # fmt: skip


def captured(name: str) -> tuple[ExportedProgram, Tensor]:
    layers, function, size = NETS[name]
    x = torch.randn(size, generator=torch.Generator().manual_seed(1))
    return torch.export.export(Net(layers, function).eval(), (x,)), x


def count(program: ExportedProgram, *targets: object) -> int:
    return sum(n.target in targets for n in program.graph.nodes)


RULES: tuple[Rule, ...] = (
    drop_clamps, unsigned_activations, integer_clamps, flat_linears, integer_moves, pools_as_convs, dense_groups,
    aligned_channels, merge_alignments, long_runs, integer_biases,
)  # fmt: skip
# The rules that must fire in each net; all others must leave it alone.
FIRES = {
    "stem": {drop_clamps, integer_moves, aligned_channels, merge_alignments, integer_biases},
    "scaled": {long_runs, integer_biases},
    "moved": {flat_linears, integer_moves, integer_biases},
    "pooled": {pools_as_convs, aligned_channels},
    "multiplied": {dense_groups, integer_biases},
    "grouped": {dense_groups, integer_biases},
    "clamped": {integer_clamps, integer_biases},
    "residual": {aligned_channels, integer_biases},
}


@pytest.mark.parametrize("name", NETS)
def test_each_rule_keeps_every_number(name: str) -> None:
    program, x = captured(name)
    with torch.no_grad():
        expected = program.module()(x)
        for rule in RULES:
            after = rule(program)
            assert (after is not program) == (rule in FIRES[name] or rule is unsigned_activations), rule.__name__
            assert torch.equal(after.module()(x), expected), rule.__name__
            program = after


@pytest.mark.parametrize(("low", "high", "scale", "zero", "dropped"), [
    (0.0, 6.0, 6 / 255, -128, True),
    (0.0, 6.0, 5 / 255, -128, True),  # the range ends before the clamp does
    (0.0, 6.0, 7 / 255, -128, False),
    (0.0, 6.0, 6 / 255, -100, False),  # int8 has negative numbers that the clamp cuts off
    (-1.0, float("inf"), 3 / 255, -43, True),
])  # fmt: skip
def test_a_clamp_goes_where_the_range_clamps_as_much(
    low: float, high: float, scale: float, zero: int, dropped: bool
) -> None:
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return q(torch.clamp(x, low, high), scale, zero)

    x = torch.linspace(-9, 9, 1001)[None]
    program = torch.export.export(Clamped(), (x,))
    after = drop_clamps(program)
    assert (count(after, torch.ops.aten.clamp.default) == 0) == dropped
    assert torch.equal(after.module()(x), program.module()(x))


def test_a_clamp_that_others_read_stays() -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x)
            return q(y, zero=-128) + y

    program = torch.export.export(Shared(), (torch.randn(1, 4),))
    assert drop_clamps(program) is program


def lowered(program: ExportedProgram, path: Path) -> Path:
    x = next(n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs).meta["val"]
    result = next(n for n in program.graph.nodes if n.op == "output").all_input_nodes[0].meta["val"]
    TARGETS["onnx"].lower(
        program,
        "int8",
        path,
        (TensorSpec(name="image", shape=tuple(x.shape)),),
        (TensorSpec(name="logits", shape=tuple(result.shape)),),
    )
    return path


def optimized(path: Path) -> Counter[str]:
    """The ops that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def run(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


INTEGER = {
    "QLinearConv", "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "QGemm", "QuantizeLinear",
    "DequantizeLinear", "Clip", "Max", "Transpose", "Reshape", "Slice", "Concat", "Pad", "Expand",
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_runs_in_integer_kernels_alone(name: str, tmp_path: Path) -> None:
    program, x = captured(name)
    path = lowered(program, tmp_path / "model.onnx")
    ops = optimized(path)
    assert set(ops) <= INTEGER
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 1
    with torch.no_grad():
        expected = program.module()(x)
    assert len(expected.unique()) > 20
    if not SUMS_IN_32_BITS:
        pytest.skip("without VNNI, ONNX Runtime adds products in 16 bits, which saturate")
    assert torch.equal(run(path, x), expected)


def test_what_pads_one_side_is_the_convolutions_own(tmp_path: Path) -> None:
    path = lowered(captured("stem")[0], tmp_path / "model.onnx")
    nodes = onnx.load(path).graph.node
    first = next(node for node in nodes if node.op_type == "Conv")
    assert next(list(a.ints) for a in first.attribute if a.name == "pads") == [0, 0, 1, 1]
    (pad,) = [node for node in nodes if node.op_type == "Pad"]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    assert stored[pad.input[1]].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]  # the fourth channel alone
    assert not any(node.op_type in ("Clip", "Relu") for node in nodes)


def test_activations_are_unsigned_weights_signed_and_biases_int32(tmp_path: Path) -> None:
    graph = onnx.load(lowered(captured("stem")[0], tmp_path / "model.onnx")).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convs) == 3
    for conv in convs:
        source, weight, bias = (made[name] for name in conv.input)
        assert stored[source.input[2]].dtype == np.uint8
        assert stored[weight.input[0]].dtype == np.int8
        assert stored[bias.input[0]].dtype == np.int32
        np.testing.assert_allclose(stored[bias.input[1]], stored[source.input[1]] * stored[weight.input[1]], rtol=1e-6)


def test_a_mean_over_other_dimensions_is_no_pool(tmp_path: Path) -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return q(q(x).mean((-2, -1), keepdim=True))

    x = torch.randn(2, 3, 4)
    program = torch.export.export(Means(), (x,))
    path = lowered(program, tmp_path / "model.onnx")
    assert "ReduceMean" in optimized(path)
    torch.testing.assert_close(run(path, x), program.module()(x), rtol=0, atol=STEP * 1.01)


def test_same_program_same_bytes(tmp_path: Path) -> None:
    files = [lowered(captured("stem")[0], tmp_path / f"{n}.onnx").read_bytes() for n in range(2)]
    assert files[0] == files[1]


def test_mobilenet_v2_is_integers_from_end_to_end(shared: Path, tmp_path: Path) -> None:
    weights = shared / "data" / "mobilenetv2_imagenet.safetensors"
    loaded = load(ModelRequest(model="mobilenet-v2", weights=str(weights), image_size=96))
    generator = torch.Generator().manual_seed(0)
    samples = [(F.interpolate(torch.rand(1, 3, 6, 6, generator=generator), 96) * 2 - 1,) for _ in range(4)]
    program = quantize(loaded.program, samples, QuantizationOptions(bias_correction="none"))
    path = lowered(program, tmp_path / "model.onnx")
    ops = optimized(path)
    assert set(ops) <= INTEGER
    assert ops["QLinearConv"] == 52
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 1
    assert path.stat().st_size < 0.30 * weights.stat().st_size
    with torch.no_grad():
        for sample in samples:
            expected, actual = program.module()(*sample), run(path, *sample)
            error = float((expected - actual).square().sum() / expected.square().sum())
            assert error < 10**-1.5  # 15 dB
