"""Int8 programs: ranges, scales, placement's laws over the zoo, bias correction, equalization and SmoothQuant."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from edgekit.errors import BadInput, UnknownName, Unsupported
from edgekit.graph._edit import Editor
from edgekit.graph.capture import capture
from edgekit.models import ZOO, create_model, deploy
from edgekit.quantization import prepare, quantize
from edgekit.quantization import _execution
from edgekit.quantization._execution import constants, live_bytes
from edgekit.quantization._ops import COMPUTE, DEQUANTIZE, QUANTIZE
from edgekit.quantization.biases import is_quantized
from edgekit.quantization.equalization import equalize
from edgekit.quantization.placement import place
from edgekit.quantization.ranges import ESTIMATORS, Histogram, Range, histogram, qparams_of
from edgekit.quantization.smoothing import smooth
from edgekit.types import QuantizationOptions
from tests.test_zoo import SMALL
from tests.zoo import randomized, relative

Samples = list[tuple[Tensor, ...]]
_aten = torch.ops.aten


def sqnr(result: Tensor, reference: Tensor) -> float:
    """In decibels."""
    noise = (result.double() - reference.double()).square().sum()
    return float(10 * (reference.double().square().sum() / noise.clamp(min=1e-300)).log10())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def realistic(model: nn.Module, images: Tensor, gain: float = 1.0) -> nn.Module:
    """`model` with random weights and the batch norms that training would have left, measured on `images`.

    Weights N(0, gain² / fan in); gamma log-normal(0, 0.3), beta N(0, 0.3²); each running variance is the measured one
    times log-normal(0, 0.3), each running mean the measured one plus N(0, 0.1²) deviations, layer after layer.
    """
    generator = torch.Generator().manual_seed(0)
    model = randomized(model, gain)

    def draw(like: Tensor, deviation: float) -> Tensor:
        return torch.randn(like.shape, generator=generator) * deviation

    def measure(norm: nn.Module, args: tuple[Tensor]) -> None:
        dims = [d for d in range(args[0].dim()) if d != 1]
        variance = args[0].var(dims, unbiased=False) + 1e-3 * args[0].var()
        norm.running_var.copy_(variance * draw(variance, 0.3).exp())
        norm.running_mean.copy_(args[0].mean(dims) + draw(variance, 0.1) * variance.sqrt())

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(draw(norm.weight, 0.3).exp())
            norm.bias.copy_(draw(norm.bias, 0.3))
        hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
        model(images)
        for hook in hooks:
            hook.remove()
    return model


def made(module: nn.Module, *inputs: Tensor, count: int = 2, **options: Any) -> tuple[ExportedProgram, ExportedProgram]:
    """The float program of a module in int8's form, and the int8 program calibrated on `inputs` and others like them."""
    program = capture(module.eval(), inputs)
    others = [tuple(torch.roll(x, n, -1) for x in inputs) for n in range(count)]
    return prepare(program), quantize(program, others, QuantizationOptions(**options))


def check(program: ExportedProgram) -> int:
    """Every scale can be represented, zero is exact, biases are int32; the number of layers in int8."""
    known = constants(program)
    layers = 0
    for node in program.graph.nodes:
        if node.target in (QUANTIZE, DEQUANTIZE):
            scale, zero = node.args[1:3]
            assert 1e-20 <= scale < 1e13
            assert scale == float(torch.tensor(scale))
            assert isinstance(zero, int)
            assert -128 <= zero <= 127
            zeros = torch.ops.quantized_decomposed.quantize_per_tensor(torch.zeros(1), *node.args[1:])
            assert torch.equal(zeros, torch.tensor([zero], dtype=torch.int8))
        if is_quantized(node):
            layers += 1
            stored, scales, zeros = (known[n.name] for n in node.args[1].args[:3])
            assert stored.dtype == torch.int8
            assert int(stored.min()) >= -127
            assert not zeros.any()
            assert bool((scales.isfinite() & (scales > 0)).all())
            step = scales.double() * node.args[0].args[1]
            result = next(iter(n for n in _results(node) if n.target is QUANTIZE)).args[1]
            assert bool((step / result >= 2.0**-32).all())
            assert bool((step / result < 256).all())
            if len(node.args) > 2 and node.args[2] is not None:
                steps = known[node.args[2].name].double() / step
                assert bool((steps.abs() < 2**31).all())
                # A bias is stored in float32: what is left is its own rounding.
                assert torch.allclose(steps, steps.round(), rtol=1e-6, atol=1e-3)
    return layers


def _results(layer: Any) -> list[Any]:
    """What reads a layer, or the clamp behind it."""
    (reader,) = layer.users
    return [reader] if reader.target is QUANTIZE else list(reader.users)


@pytest.mark.parametrize("name", SMALL)
def test_laws_of_every_family(name: str) -> None:
    channels, height, width = ZOO[name].input
    images = random(4, channels, height, width)
    # With gain 1 the attention of the one and the gates of the other amplify a rounding of the input tenfold.
    gain = 0.6 if ZOO[name].family in ("mobile-former", "micronet") else 1.0
    model = realistic(create_model(name), images, gain)
    samples = [(image[None],) for image in images[:2]]
    program = capture(deploy(model), samples[0])
    before = {key: value.clone() for key, value in program.state_dict.items()}
    graph = str(program.graph)
    quantized = quantize(program, samples)
    assert str(program.graph) == graph
    assert all(torch.equal(program.state_dict[key], value) for key, value in before.items())
    assert check(quantized) == sum(u.node.target in COMPUTE for u in place(Editor(prepare(program)))) > 0
    assert not any(n.target in (QUANTIZE, DEQUANTIZE) and n.op == "placeholder" for n in quantized.graph.nodes)
    with torch.no_grad():
        exact = torch.cat([model(*sample) for sample in samples])
        result = torch.cat([quantized.module()(*sample) for sample in samples])
        assert result.dtype == torch.float32
        assert 10 < sqnr(result, exact) < 60
        prepared = prepare(program)
        for same in (equalize(prepared), smooth(prepared, samples)):
            assert relative(same.module()(*samples[0]), prepared.module()(*samples[0])) < 1e-5
