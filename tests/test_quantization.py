"""Int8 programs: ranges, scales, placement's laws over the zoo, bias correction, equalization and SmoothQuant."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from edgekit.errors import BadInput, UnknownName, Unsupported
from edgekit.graph._edit import Editor
from edgekit.graph.capture import capture
from edgekit.models import ZOO, create_model, deploy
from edgekit.models.mobilenet_v3 import InvertedResidual
from edgekit.quantization import _execution, prepare, quantize
from edgekit.quantization._execution import constants, live_bytes
from edgekit.quantization._ops import COMPUTE, DEQUANTIZE, QUANTIZE
from edgekit.quantization.biases import is_quantized
from edgekit.quantization.equalization import equalize
from edgekit.quantization.placement import place
from edgekit.quantization.qdq import compatible, groups
from edgekit.quantization.ranges import ESTIMATORS, Histogram, QParams, Range, histogram, qparams_of
from edgekit.quantization.smoothing import smooth
from edgekit.types import QuantizationOptions
from tests.test_zoo import SMALL
from tests.zoo import randomized, relative

Samples = list[tuple[Tensor, ...]]
_aten = torch.ops.aten


def sqnr(result: Tensor, reference: Tensor) -> float:
    """In decibels."""
    signal = reference.detach().double()
    noise = (result.detach().double() - signal).square().sum()
    return float(10 * (signal.square().sum() / noise.clamp(min=1e-300)).log10())


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
    """The float program of a module in int8's form, and the int8 one calibrated on `inputs` and others like them."""
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
            assert 0.99e-20 <= scale < 1e13
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


# With random weights these are not tested for SQNR: they amplify noise on the image, and so quantization's as well.
CHAOTIC = ("mobile-former", "micronet")


@pytest.mark.parametrize("name", SMALL)
def test_laws_of_every_family(name: str) -> None:
    channels, height, width = ZOO[name].input
    images = random(2, channels, height, width)
    family = ZOO[name].family
    model = realistic(create_model(name), images, 0.6 if family in CHAOTIC else 1.0)
    samples = [(image[None],) for image in images]
    program = capture(deploy(model), samples[0])
    before = {key: value.clone() for key, value in program.state_dict.items()}
    graph = str(program.graph)
    quantized = quantize(program, samples)
    assert str(program.graph) == graph
    assert all(torch.equal(program.state_dict[key], value) for key, value in before.items())
    prepared = prepare(program)
    layers = [u for u in place(Editor(prepared)) if u.node.target in COMPUTE]
    every = [n for n in prepared.graph.nodes if n.target in COMPUTE]
    # Small layers may cost more to change types around than they save: they have few of the weights.
    assert check(quantized) == len(layers)
    assert sum(n.args[1].meta["val"].numel() for n in every) * 0.9 < sum(
        u.node.args[1].meta["val"].numel() for u in layers
    )
    with torch.no_grad():
        exact = torch.cat([model(*sample) for sample in samples])
        result = torch.cat([quantized.module()(*sample) for sample in samples])
        assert result.dtype == torch.float32
        assert bool(result.isfinite().all())
        assert family in CHAOTIC or 10 < sqnr(result, exact) < 60
        for same in (equalize(prepared), smooth(prepared, samples)):
            assert relative(same.module()(*samples[0]), exact[:1]) < (1e-3 if family in CHAOTIC else 1e-5)


def inverted_residuals(name: str) -> tuple[list[nn.Module], list[Tensor]]:
    """The blocks of a MobileNetV3 and what arrives at each, of 20 noise images."""
    images = random(20, 3, 96, 96)
    model = realistic(create_model(name), images)
    blocks = [m for m in model.modules() if isinstance(m, InvertedResidual)]
    arriving: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: arriving.append(args[0])) for b in blocks]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return blocks, arriving


@pytest.mark.usefixtures("all_pays")
@pytest.mark.parametrize("name", ["mobilenet-v3-small", "mobilenet-v3-large"])
def test_blocks_of_mobilenet_v3_do_not_collapse(name: str) -> None:
    """SQNR of each block on images that it was not calibrated with; bias correction gains on average."""
    found: dict[str, list[float]] = {"none": [], "full": []}
    for block, arriving in zip(*inverted_residuals(name), strict=True):
        program = capture(deploy(block), (arriving[:1],))
        samples = [(x[None],) for x in arriving[:12]]
        with torch.no_grad():
            exact = block(arriving[12:])
            for method, values in found.items():
                module = quantize(program, samples, QuantizationOptions(bias_correction=method)).module()
                values.append(sqnr(torch.cat([module(x[None]) for x in arriving[12:]]), exact))
    assert min(found["full"]) >= 20, found
    assert sum(found["full"]) > sum(found["none"])


# --- ranges


def test_ranges_enclose_zero_and_represent_it() -> None:
    for low, high in ((0, 0), (-1, 0), (0, 3), (-2, 5), (0, 1e-30), (-1e10, 1e10), (0, 255.0)):
        q = qparams_of(Range(low, high))
        assert q.scale >= 0.99e-20
        assert -128 <= q.zero_point <= 127
        if high - low > 1e-10:
            assert (-128 - q.zero_point) * q.scale == pytest.approx(low, abs=q.scale)
            assert (127 - q.zero_point) * q.scale == pytest.approx(high, abs=q.scale)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_of_what_has_no_spread(estimator: str) -> None:
    estimate = ESTIMATORS[estimator]
    assert estimate(histogram([torch.zeros(3, 4)] * 2)) == Range(0, 0)
    assert estimate(histogram([torch.full((5,), 1e-30)])).high == pytest.approx(1e-30)
    assert estimate(histogram([torch.empty(0)])) == Range(0, 0)
    constant = estimate(histogram([torch.full((8,), 3.0)]))
    assert constant.low == 0
    # The nearest bin's centre, or the end.
    assert constant.high == pytest.approx(3, rel=1e-3)


def test_estimators_of_outliers() -> None:
    values = random(100_000)
    values[0] = 100.0
    ends = {name: estimate(histogram([values])) for name, estimate in ESTIMATORS.items()}
    assert ends["minmax"] == Range(float(values.min()), 100)
    assert 3 < ends["percentile"].high < 5
    assert ends["mse"].high < 90

    def error(r: Range) -> float:
        q = qparams_of(r)
        steps = ((values / q.scale).round() + q.zero_point).clamp(-128, 127)
        return float(((steps - q.zero_point) * q.scale - values).square().sum())

    assert error(ends["mse"]) < error(ends["minmax"])


def test_mse_is_the_best_of_its_candidates() -> None:
    values = random(20_000).relu()
    found, errors = ESTIMATORS["mse"](histogram([values])), {}
    for part in torch.linspace(0.2, 1, 33).tolist():
        q = qparams_of(Range(0, float(values.max()) * part))
        steps = ((values / q.scale).round() + q.zero_point).clamp(-128, 127)
        errors[part] = float(((steps - q.zero_point) * q.scale - values).square().sum())
    best = min(errors, key=errors.__getitem__)
    assert found.high == pytest.approx(float(values.max()) * best, rel=0.03)


def test_histograms_add_up() -> None:
    parts = [random(1000, seed=n) * (1 + n) for n in range(4)]
    merged: Histogram = histogram(parts[:1])
    for part in parts[1:]:
        merged = merged | histogram([part])
    whole = histogram(parts)
    assert merged.range == whole.range
    assert float(merged.counts.sum()) == float(whole.counts.sum()) == 4000
    # A value may have moved by a bin each time.
    assert float((merged.counts.cumsum(0) - whole.counts.cumsum(0)).abs().max()) < 40
    for estimate in ESTIMATORS.values():
        assert estimate(merged).high == pytest.approx(estimate(whole).high, rel=0.05)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e20])
def test_values_that_are_not_finite_are_refused_by_name(wrong: float) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(32, 32, 3)
            self.second = nn.Conv2d(32, 32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    net = Net().eval()
    with torch.no_grad():
        net.first.bias[1] = wrong
    x = random(1, 32, 8, 8)
    with pytest.raises(BadInput, match=r"conv2d in first is not finite") as error:
        quantize(capture(net, (x,)), [(x,)])
    assert "--keep-float 'first:conv2d'" in str(error.value.args) + str(error.value)


# --- the core


class Mixed(nn.Module):
    """Convolutions of every kind, a residual, shared weights, constants as operands, several inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False)
        self.same = nn.Conv2d(48, 48, 3, padding="same", dilation=2)
        self.groups = nn.Conv2d(48, 48, 3, padding=1, groups=2)
        self.depth = nn.Conv2d(48, 96, 3, padding=1, groups=48)
        self.shared = nn.Conv2d(48, 48, 1)
        self.head = nn.Linear(144, 20)
        self.register_buffer("table", torch.randn(1, 48, 1, 1))
        self.register_buffer("ones", torch.ones(1, 48, 8, 8))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x).relu_()
        y = self.stem(y)
        z = functional.relu6(self.same(x) + y)
        feature = self.shared(self.shared(z)) + self.table
        z = self.groups(feature) * self.table + feature
        wide = torch.cat([self.depth(z), functional.hardtanh(z) + self.ones], 1)
        tokens = wide.flatten(2).transpose(1, 2)
        logits = self.head(tokens) * mask.to(torch.float32)[:, :, None]
        return logits, feature, self.head(tokens.mean(1))


def mixed_inputs(batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return random(batch, 24, 16, 16), random(batch, 24, 16, 16, seed=1), torch.ones(batch, 64, dtype=torch.int64)


@pytest.mark.usefixtures("all_pays")
@pytest.mark.parametrize(
    ("batch", "estimator", "method"),
    [(1, "mse", "full"), (3, "mse", "full"), (1, "minmax", "none"), (1, "percentile", "fast")],
)
def test_every_construct_quantizes(batch: int, estimator: str, method: str) -> None:
    inputs = mixed_inputs(batch)
    torch.manual_seed(0)
    program, quantized = made(Mixed(), *inputs, range_estimator=estimator, bias_correction=method)
    assert check(quantized) >= 8
    kinds = [(tuple(y.shape), y.dtype) for y in program.module()(*inputs)]
    results = quantized.module()(*inputs)
    assert [(tuple(y.shape), y.dtype) for y in results] == kinds
    for result, exact in zip(results, program.module()(*inputs), strict=True):
        assert sqnr(result, exact) > 20


@pytest.mark.parametrize("shape", [(50, 64), (2, 50, 64), (2, 3, 20, 64)])
def test_linears_of_any_rank(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32, bias=False))
    program, quantized = made(module, random(*shape))
    assert check(quantized) == 2
    assert sqnr(quantized.module()(random(*shape)), program.module()(random(*shape))) > 25


def test_what_has_no_int8_form_stays_float() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64))
            self.plain = nn.Conv2d(64, 64, 3)

        def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, ...]:
            y = self.plain(x)
            vector = functional.linear(y.permute(0, 2, 3, 1), self.weight)  # no matrix
            computed = functional.conv2d(x, self.plain.weight, y.mean((0, 2, 3)))  # a bias that is computed
            unbatched = functional.conv2d(x[0], self.plain.weight)
            double = functional.conv2d(x.double(), self.plain.weight.double())
            return vector, computed, unbatched, double, n + 1, x

    torch.manual_seed(0)
    inputs = random(1, 64, 8, 8), torch.arange(4)
    program, quantized = made(Odd(), *inputs)
    assert check(quantized) == 1
    for result, exact in zip(quantized.module()(*inputs), program.module()(*inputs), strict=True):
        assert result.dtype == exact.dtype
        assert torch.equal(result, exact) or sqnr(result, exact) > 20


def test_dead_channels_and_dead_inputs() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 1))
    with torch.no_grad():
        module[0].weight[2] = 0
        module[0].weight[3] = 1e-25
        module[0].bias[3] = 50
        module[2].weight[:] = 0  # all of a layer, behind which nothing arrives
        module[2].bias[:] = -1
    program, quantized = made(module, random(1, 64, 8, 8))
    assert check(quantized) == 3
    x = random(1, 64, 8, 8)
    assert torch.allclose(quantized.module()(x), program.module()(x), atol=1e-3)
    black = torch.zeros(1, 64, 8, 8)
    quantized = quantize(capture(module, (black,)), [(black,)])
    check(quantized)
    assert bool(quantized.module()(x).isfinite().all())


def test_scales_that_no_kernel_requantizes_are_widened_or_refused() -> None:
    class Net(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.first, self.second, self.last = (nn.Conv2d(64, 64, 3) for _ in range(3))
            with torch.no_grad():
                self.first.weight *= factor
                self.first.bias *= factor

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) + self.second(x))

    torch.manual_seed(0)
    x = random(1, 64, 12, 12)
    for factor in (1e-9, 1e9):
        program, quantized = made(Net(factor), x)
        assert check(quantized) == 3
        add = next(n for n in quantized.graph.nodes if n.target is _aten.add.Tensor)
        (result,) = (n.args[1] for n in add.users)
        assert all(2.0**-8 <= n.args[1] / result < 2.0**8 for n in add.args)
        assert sqnr(quantized.module()(x), program.module()(x)) > 30


def test_scales_that_outgrow_each_other_are_refused() -> None:
    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.conv(torch.cat([y * y, y], 1)[:, 32:96])

    editor = Editor(prepare(capture(Squares().eval(), (random(1, 64, 16, 16),))))
    units = place(editor)
    scales = {n: QParams(1e3, 0) for group in groups(editor, units) for n in group}
    with pytest.raises(Unsupported, match="outgrow") as error:
        compatible(editor, units, scales)
    assert "--keep-float 'conv:" in str(error.value.args) + str(error.value)
    fine = compatible(editor, units, dict.fromkeys(scales, QParams(0.1, 3)))
    assert fine == dict.fromkeys(scales, QParams(0.1, 3))


def test_a_scale_is_not_shared_by_ones_and_thousands() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(128, 64, 3)
            self.register_buffer("ones", torch.ones(1, 64, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([1000 * self.conv(x), self.ones], 1))

    torch.manual_seed(0)
    x = random(1, 64, 8, 8)
    _, quantized = made(Beside(), x)
    cat = next(n for n in quantized.graph.nodes if n.target is _aten.cat.default)
    assert not any(n.target is DEQUANTIZE for n in cat.args[0])
    assert check(quantized) == 2


def test_a_difference_of_equals_stays_float() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.last((y + 0 * x) - functional.max_pool2d(y, 1) * 0.98)

    torch.manual_seed(0)
    x = random(1, 64, 8, 8)
    _, quantized = made(Centred(), x)
    sub = next(n for n in quantized.graph.nodes if n.target is _aten.sub.Tensor)
    assert not all(n.target is DEQUANTIZE for n in sub.args)


# --- options


class Stack(nn.Module):
    """A chain with a ReLU, one with a ReLU6, a depthwise pair, a flatten of maps and a layer norm with two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.c, self.d = nn.Conv2d(64, 64, 1, groups=2), nn.Conv2d(64, 64, 1)
        self.norm, self.q, self.k = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.e, self.flat = nn.Conv2d(64, 64, 1), nn.Linear(64 * 4, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.b(self.a(x).relu()), 2)
        x = self.d(functional.relu6(self.c(x)))
        x = self.norm(x.permute(0, 2, 3, 1))
        x = (self.q(x) * self.k(x)).permute(0, 3, 1, 2)
        return self.flat(functional.avg_pool2d(self.e(x), 2).flatten(1))


def stack() -> tuple[nn.Module, Tensor]:
    """With channels of very different ranges, one dead at the source and one dead at the reader."""
    torch.manual_seed(0)
    module = Stack().eval()
    with torch.no_grad():
        module.a.weight.mul_((3 * random(64)).exp()[:, None, None, None])
        module.a.weight[5], module.a.weight[6] = 0, 1e-30
        module.b.weight[7] = 0
        module.norm.weight.mul_((2 * random(64)).exp())
    return module, random(2, 3, 8, 8)


def test_equalization_is_an_identity_that_evens_channels_out() -> None:
    module, x = stack()
    program = prepare(capture(module, (x,)))
    even = equalize(program)
    assert relative(even.module()(x), program.module()(x)) < 1e-5
    names = [[n.args[1].name for n in p.graph.nodes if n.target is _aten.conv2d.default] for p in (program, even)]
    first, second = names[1][:2]
    weights = constants(even)
    assert all(bool(w.isfinite().all()) for w in weights.values())
    r1, r2 = weights[first].flatten(1).abs().amax(1), weights[second].flatten(1).abs().amax(1)
    alive = [n for n in range(64) if n not in (5, 6, 7)]
    # r1 = r2 but where a channel's scale is limited.
    assert float((r1 / r2)[alive].log().abs().median()) < 0.02
    spread = constants(program)[names[0][0]].flatten(1).abs().amax(1)[alive]
    assert float(r1[alive].log().std()) < 0.7 * float(spread.log().std())


def test_equalization_leaves_channels_that_are_pooled() -> None:
    class Across(nn.Module):
        """Local response: an average over five channels."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).reshape(1, 1, 16, 64)
            return self.second(functional.avg_pool2d(y, (5, 1), 1, (2, 0)).reshape(1, 16, 8, 8))

    torch.manual_seed(0)
    x = random(1, 8, 8, 8)
    program = prepare(capture(Across().eval(), (x,)))
    assert relative(equalize(program).module()(x), program.module()(x)) < 1e-5


def test_modules_with_names_that_are_patterns() -> None:
    class Lossy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
            self.last = nn.Conv2d(32, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([self.first(x), self.second(x)], 1))

    torch.manual_seed(0)
    net = Lossy()
    with torch.no_grad():
        net.second.weight *= 1e-4
        net.second.bias *= 1e-4
    _, plain = made(net, random(1, 16, 32, 32))
    _, named = made(Wrapped(net), random(1, 16, 32, 32))
    assert check(named) == check(plain) >= 2


class Wrapped(nn.Module):
    """A module under a name that the shell would read as a pattern."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"c[1]": inner})

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.parts["c[1]"](x))


def test_equalization_leaves_what_a_relu6_or_a_shared_weight_ties() -> None:
    module, x = stack()
    program = prepare(capture(module, (x,)))
    layers = [{n.args[1].name for n in p.graph.nodes if n.target in COMPUTE} for p in (program, equalize(program))]
    # c is behind b; d is between a ReLU6 and a norm.
    assert layers[0] & layers[1] == {"p_d_weight", "p_q_weight", "p_k_weight"}
    shared = nn.Conv2d(64, 64, 1)
    tied = prepare(capture(nn.Sequential(shared, nn.ReLU(), shared).eval(), (random(1, 64, 8, 8),)))
    assert equalize(tied) is tied


def test_smooth_quant_is_an_identity_and_evens_activations_out() -> None:
    module, x = stack()
    program = prepare(capture(module, (x,)))
    smoothed = smooth(program, [(x,)])
    assert relative(smoothed.module()(x), program.module()(x)) < 1e-5

    def spread(p: ExportedProgram) -> float:
        seen: list[Tensor] = []
        walk = _execution.Walk(p, [(x,)])
        walk.run(lambda n, v: seen.append(v[0]) if n.target is _aten.layer_norm.default else None)
        peaks = seen[0].abs().amax((0, 1, 2))
        return float(peaks.log().std())

    assert spread(smoothed) < 0.75 * spread(program)


def test_options_that_find_nothing_say_so() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU6(), nn.Conv2d(64, 64, 3))
    x = random(1, 64, 8, 8)
    notes: list[str] = []
    options = QuantizationOptions(equalize=True, smooth_quant=True)
    quantize(capture(module, (x,)), [(x,)], options, on_note=notes.append)
    assert [note.split()[0] for note in notes] == ["--equalize", "--smooth-quant"]
    notes.clear()
    module, x = stack()
    quantized = quantize(capture(module, (x,)), [(x,)], options, on_note=notes.append)
    assert not notes
    check(quantized)


def test_options_are_questioned() -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)), random(1, 64, 8, 8)
    program = capture(module, (x,))
    for wrong in ({"range_estimator": "max"}, {"bias_correction": "some"}):
        with pytest.raises(UnknownName):
            quantize(program, [(x,)], QuantizationOptions(**wrong))
    with pytest.raises(BadInput, match="blocks"):
        quantize(program, [(x,)], QuantizationOptions(keep_float=("blocks.*",)))
    with pytest.raises(BadInput, match="no samples"):
        quantize(program, [])
    kept = quantize(program, [(x,)], QuantizationOptions(keep_float=("2",)))
    assert check(kept) == 1
    with pytest.raises(Unsupported, match="nothing in the model gains"):
        quantize(program, [(x,)], QuantizationOptions(keep_float=("*",)))


# --- memory and repetition


def test_memory_is_bounded_whatever_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = mixed_inputs()
    torch.manual_seed(0)
    program = capture(Mixed().eval(), inputs)
    samples = [tuple(torch.roll(x, n, -1) for x in inputs) for n in range(6)]
    whole = quantize(program, samples)
    prepared = prepare(program)
    held: list[int] = []

    class Counting(_execution.Walk):
        def run(self, on_node: Any, on_step: Any = None) -> None:
            def see(node: Any, values: Any) -> None:
                on_node(node, values)
                computed = [v for n, vs in self._values.items() for v in vs if n.op == "call_function"]
                held.append(sum(v.nbytes for v in computed if isinstance(v, Tensor)))

            super().run(see, on_step)

    Counting(prepared, samples[:1]).run(lambda *_: None)
    assert max(held) == live_bytes(prepared)
    monkeypatch.setattr(_execution, "_MEMORY", 2 * live_bytes(prepared))
    assert [len(part) for part in _execution.in_parts(prepared, samples)] == [2, 2, 2]
    steps: list[tuple[int, int]] = []
    parted = quantize(program, samples, on_step=lambda what, n, of: steps.append((n, of)) if "cal" in what else None)
    assert [n for n, _ in steps] == sorted({n for n, _ in steps})
    assert len({of for _, of in steps}) == 1
    for result, exact in zip(parted.module()(*inputs), whole.module()(*inputs), strict=True):
        assert sqnr(result, exact) > 30


def test_the_same_twice() -> None:
    inputs = mixed_inputs()
    torch.manual_seed(0)
    program = capture(Mixed().eval(), inputs)
    once, twice = (quantize(program, [inputs]) for _ in range(2))
    assert str(once.graph) == str(twice.graph)
    assert once.state_dict.keys() == twice.state_dict.keys()
    assert all(torch.equal(value, twice.state_dict[key]) for key, value in once.state_dict.items())
