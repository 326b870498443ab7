"""int8 on the two XNNPACK runtimes: one delegate, integer kernels, the steps of the simulation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.graph import rewrite
from edgekit.graph.hard_activations import hard_activations
from edgekit.graph.quantized_xnnpack import maxima_as_sums
from edgekit.quantization import quantize
from edgekit.targets import TARGETS
from edgekit.types import Delegation, QuantizationOptions, TensorSpec

RUNTIMES = ("tflite", "executorch")
CHANNELS, SIZE = 16, 32


class Padded(nn.Module):
    """SAME padding of a convolution with a stride: one more on the right and at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.after = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(F.pad(F.relu6(self.before(x)), (0, 1, 0, 1)))


class Pair(nn.Module):
    """Two convolutions of the image, and a third of what `join` makes of them."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.join = join
        self.first, self.second = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        joined = {
            "maximum": lambda: torch.maximum(a, b),
            "minimum": lambda: torch.minimum(a, b),
            "hardswish": lambda: F.hardswish(a) + b,
            "gate": lambda: a * F.hardsigmoid(self.second(a.mean((2, 3), keepdim=True))),
            "gelu": lambda: F.gelu(a),
            "sum": lambda: F.relu(a + b),
            "cat": lambda: torch.cat([a, b], 1)[:, 8:24],
        }[self.join]()
        return self.last(joined)


JOINS = ("maximum", "minimum", "hardswish", "gate", "gelu", "sum", "cat")


@dataclass(frozen=True)
class Lowered:
    delegation: Delegation
    kinds: dict[str, int]
    steps: NDArray[np.float64]
    """How many steps of the result lie between the runtime and the simulation."""


def captured(module: nn.Module) -> tuple[ExportedProgram, list[tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    samples: list[tuple[Tensor, ...]] = [(torch.randn(1, CHANNELS, SIZE, SIZE),) for _ in range(3)]
    return torch.export.export(module.eval(), samples[0]), samples


def lowered(module: nn.Module, name: str, folder: Path) -> Lowered:
    program, samples = captured(module)
    quantized = quantize(program, samples)
    with torch.no_grad():
        expected = np.concatenate([quantized.module()(*s).numpy() for s in samples])
    target = TARGETS[name]
    path = folder / f"model{target.suffix}"
    inputs = target.io((TensorSpec(name="image", shape=(1, CHANNELS, SIZE, SIZE), layout="NCHW"),))
    outputs = target.io((TensorSpec(name="map", shape=tuple(expected[:1].shape)),))
    delegation = target.lower(quantized, "int8", path, inputs, outputs)
    run = target.runner(path, inputs, outputs)
    images = [s[0].numpy() for s in samples]
    if inputs[0].layout == "NHWC":
        images = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in images]
    actual = np.concatenate([run([x])[0] for x in images])
    assert actual.dtype == np.float32
    scale = [n for n in quantized.graph.nodes if n.target is torch.ops.quantized_decomposed.quantize_per_tensor.default]
    steps = (actual - expected).astype(np.float64) / scale[-1].args[1]
    return Lowered(delegation, {op.op: op.count for op in target.inspect(path)}, steps)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("join", ["pad", *JOINS])
def test_one_delegate_and_the_steps_of_the_simulation(join: str, name: str, tmp_path: Path) -> None:
    result = lowered(Padded() if join == "pad" else Pair(join), name, tmp_path)
    assert (result.delegation.partitions, result.delegation.fallback) == (1, ())
    assert np.abs(result.steps).max() < 1.01
    assert (np.abs(result.steps) > 0.5).mean() < 1e-3


@pytest.mark.parametrize("join", ["maximum", "minimum", "hardswish", "gate", "sum", "cat"])
def test_nothing_is_float_between_int8_convolutions(join: str, tmp_path: Path) -> None:
    kinds = lowered(Pair(join), "tflite", tmp_path).kinds
    assert (kinds["QUANTIZE"], kinds["DEQUANTIZE"]) == (1, 1)


def test_litert_moves_no_transpose_around_a_pad(tmp_path: Path) -> None:
    kinds = lowered(Padded(), "tflite", tmp_path).kinds
    assert kinds["TRANSPOSE"] == 1  # of the result


def test_a_float_op_is_one_island(tmp_path: Path) -> None:
    kinds = lowered(Pair("gelu"), "tflite", tmp_path).kinds
    assert (kinds["GELU"], kinds["QUANTIZE"], kinds["DEQUANTIZE"]) == (1, 2, 2)


@pytest.mark.parametrize("join", ["maximum", "minimum"])
def test_maxima_as_sums_are_the_same_integers(join: str) -> None:
    program, samples = captured(Pair(join))
    before = quantize(program, samples)
    after = maxima_as_sums(before)
    assert after is not before
    with torch.no_grad():
        # Sums of float32 for sums of integers: the last place.
        for sample in samples:
            torch.testing.assert_close(after.module()(*sample), before.module()(*sample), rtol=0, atol=1e-5)


def test_hard_activations_are_identities() -> None:
    for join in ("hardswish", "gate"):
        program, samples = captured(Pair(join))
        after = hard_activations(rewrite(program, "coreml"))
        # The gate's convolution is used once, hardswish's too: both fire.
        names = {str(n.target) for n in after.graph.nodes}
        assert not names & {"aten.hardswish.default", "aten.hardsigmoid.default"}
        with torch.no_grad():
            torch.testing.assert_close(after.module()(*samples[0]), program.module()(*samples[0]), atol=1e-5, rtol=1e-5)


def test_a_hard_activation_of_what_others_read_stays() -> None:
    class Tapped(Pair):
        def forward(self, x: Tensor) -> Tensor:
            a = self.first(x)
            return F.hardswish(a) + a

    program, _ = captured(Tapped("sum"))
    assert hard_activations(program) is program


def _integers(x: Tensor, scale: float) -> Tensor:
    arguments = (scale, 3, -128, 127, torch.int8)
    quantized = torch.ops.quantized_decomposed.quantize_per_tensor(x, *arguments)
    return torch.ops.quantized_decomposed.dequantize_per_tensor(quantized, *arguments)


# What a float part of a graph makes of integers and another tensor.
ISLANDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cat with a constant": lambda a, y: torch.cat([a, torch.full((1, 1, 16), 0.4)], 1),
    "cat with another": lambda a, y: torch.cat([a.reshape(1, 16, 8), y.exp().reshape(1, 16, 8)], 1),
    "stack": lambda a, y: torch.stack([a, y]),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "clamp": lambda a, y: a.clamp(-0.37, 0.37),
    "pad": lambda a, y: F.pad(a, (0, 0, 0, 1), value=0.37),
    "where": lambda a, y: torch.where(y > 0.5, a, y),
    "average": lambda a, y: F.avg_pool2d(a[None], 2),
    "bilinear": lambda a, y: F.interpolate(a[None], scale_factor=2, mode="bilinear"),
    "another scale": lambda a, y: _integers(torch.maximum(a, _integers(y, 0.1)), 0.2137),
    "an average made integers": lambda a, y: _integers(F.avg_pool2d(a[None], 2), 0.2137),
    "a clamp of what others read": lambda a, y: _integers(y.sin().clamp(-0.1, 0.37), 0.2137) + y.sin(),
}


@pytest.mark.parametrize("name", ISLANDS)
def test_litert_computes_in_float_what_is_float(name: str, tmp_path: Path) -> None:
    class Island(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (ISLANDS[name](_integers(x, 0.3), y) * 0.1).exp()

    torch.manual_seed(0)
    samples = (torch.randn(1, 8, 16) * 3, torch.rand(1, 8, 16))
    module = Island()
    target, expected = TARGETS["tflite"], module(*samples).numpy()
    inputs = tuple(TensorSpec(name=n, shape=(1, 8, 16)) for n in ("x", "y"))
    outputs = (TensorSpec(name="z", shape=tuple(expected.shape)),)
    path = tmp_path / "model.tflite"
    target.lower(torch.export.export(module, samples), "int8", path, inputs, outputs)
    (actual,) = target.runner(path, inputs, outputs)([s.numpy() for s in samples])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("pad", [{"mode": "reflect"}, {"value": 1.0}])
def test_litert_pads_with_what_was_asked_for(pad: dict[str, Any], tmp_path: Path) -> None:
    class Edge(Padded):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(F.pad(F.relu(self.before(x)), (1, 1, 1, 1), **pad))

    assert np.abs(lowered(Edge(), "tflite", tmp_path).steps).max() < 1.01


class Attention(nn.Module):
    """Two sums with one table, which is more than a mask where it has values of its own."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(1, CHANNELS, 1)
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x).flatten(2)
        a = ((tokens.transpose(1, 2) @ tokens)[:, :64, :64] + self.table).softmax(-1)
        b = ((tokens.transpose(1, 2) @ tokens)[:, 64:128, 64:128] + self.table).softmax(-1)
        return self.second((a + b).reshape(1, 1, 64, 64))


BIAS = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
MASK = torch.full((64, 64), 1.0).triu(1)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_table_that_two_operations_read(name: str, tmp_path: Path) -> None:
    assert np.abs(lowered(Attention(BIAS), name, tmp_path).steps).max() < 3


def test_a_table_of_what_is_kept_in_float_stays_float() -> None:
    program, samples = captured(nn.Sequential(Attention(BIAS), nn.Conv2d(CHANNELS, CHANNELS, 3)))

    def is_stored(options: QuantizationOptions) -> bool:
        kept = quantize(program, samples, options)
        return not any(t.shape == (64, 64) and t.dtype == torch.float32 for t in kept.state_dict.values())

    assert is_stored(QuantizationOptions())
    assert not is_stored(QuantizationOptions(keep_float=("0",)))


@pytest.mark.parametrize("table", [MASK * -torch.inf, BIAS + MASK * -1e4], ids=["infinite", "with values of its own"])
def test_a_mask_is_no_table_of_small_steps(table: Tensor) -> None:
    program, samples = captured(Attention(table.nan_to_num(0.0, neginf=-torch.inf)))
    quantized = quantize(program, samples)
    with torch.no_grad():
        expected, actual = program.module()(*samples[0]), quantized.module()(*samples[0])
    error = float((actual - expected).square().mean() / expected.square().mean())
    assert error < 0.01
