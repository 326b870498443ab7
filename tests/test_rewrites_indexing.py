"""Rewrites of constants, movements, reductions and numbers: the same outputs, only where they hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.graph import REWRITES, rewrite
from edgekit.graph._edit import REFUSAL
from edgekit.graph.activations import plain_sigmoids
from edgekit.graph.arithmetic import plain_powers, typed_numbers
from edgekit.graph.batch_norm import fold_batch_norms
from edgekit.graph.capture import capture
from edgekit.graph.concats import distinct_cats
from edgekit.graph.constants import drop_unused, fold_constants
from edgekit.graph.layer_norm import rms_norm
from edgekit.graph.map_norms import map_norms
from edgekit.graph.movements import drop_expands, explicit_gathers, explicit_movements, form
from edgekit.graph.pools import padded_pools
from edgekit.graph.reductions import line_maxima, line_sums, plain_norms
from edgekit.graph.softmaxes import last_softmaxes
from edgekit.targets import TARGETS
from edgekit.types import TensorSpec
from tests.test_rewrites import assert_equal, targets

Rule = Callable[[ExportedProgram], ExportedProgram]
MAP = (2, 12, 6, 8)


class Call(nn.Module):
    """A function as a module with constants to index, to be indexed and to be folded."""

    def __init__(self, function: Callable[["Call", Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.table = nn.Parameter(torch.randn(15, 3))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.conv = nn.Conv2d(12, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        nn.init.normal_(self.norm.running_mean)
        self.register_buffer("index", torch.randint(0, 15, (4, 4)))
        self.register_buffer("shuffled", torch.arange(12).view(3, 4).T.reshape(-1))
        self.register_buffer("shifted", torch.arange(12).view(3, 4).roll((1, 1), (0, 1)).reshape(-1))
        self.register_buffer("random", torch.randperm(48))
        self.register_buffer("mask", torch.arange(12) > 4)
        self.register_buffer("large", torch.randn(1, 1, 1, 20000))
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def captured(function: Callable[[Call, Tensor], Any], x: Tensor) -> ExportedProgram:
    return torch.export.export(Call(function).eval().to(x.dtype), (x,))


def standardized(m: Call, x: Tensor) -> Tensor:
    weight = m.conv.weight - m.conv.weight.mean((1, 2, 3), keepdim=True)
    return m.norm(F.conv2d(x, weight / weight.var((1, 2, 3), keepdim=True).add(1e-5).sqrt(), padding=1))


def window_mask(m: Call, x: Tensor) -> Tensor:
    i = torch.arange(x.shape[-1])
    allowed = (i[None] - i[:, None]).abs() < 3
    return x[..., :8, :] + torch.zeros(8, 8).masked_fill(~allowed, -100.0)[:6]


def counting(m: Call, x: Tensor) -> Tensor:
    m.count.add_(1)
    return x * (m.count * 2).sum()


FIRES: list[tuple[str, Rule, Callable[[Call, Tensor], Any], tuple[int, ...], str]] = [
    ("bias", fold_constants, lambda m, x: x @ m.table[m.index.view(-1)].view(4, 4, 3)[..., 0], (3, 4, 4), "index"),
    ("mask", fold_constants, window_mask, MAP, "masked_fill"),
    ("token", fold_constants, lambda m, x: torch.cat([m.token.repeat(3, 1, 1), x], 1), (3, 4, 8), "repeat"),
    ("expand", fold_constants, lambda m, x: torch.cat([m.token.expand(3, -1, -1), x], 1), (3, 4, 8), "expand"),
    ("like an input", fold_constants, lambda m, x: x + torch.ones_like(x) * 2, MAP, "ones_like"),
    ("several results", fold_constants, lambda m, x: x + m.table.max(0)[0].sum(), MAP, "max"),
    ("roll", explicit_gathers, lambda m, x: x.roll((-3, 2), (-2, -1)), MAP, "roll"),
    ("roll beyond", explicit_gathers, lambda m, x: x.roll(17, 1), MAP, "roll"),
    ("flip", explicit_gathers, lambda m, x: x.flip(-1, 1), MAP, "flip"),
    ("every second", explicit_gathers, lambda m, x: x[:, :, 1::2, ::2] * 2, MAP, "9223372036854775807, 2)"),
    ("every third", explicit_gathers, lambda m, x: x[:, 1:-2:3, :, 2::5] * 2, MAP, ", 10, 3)"),
    ("every fourth of odd", explicit_gathers, lambda m, x: x[..., ::4] * 2, (2, 3, 5), "7, 4)"),
    ("shuffle", explicit_gathers, lambda m, x: x[:, m.shuffled], MAP, "index"),
    ("shift in groups", explicit_gathers, lambda m, x: x[:, m.shifted], MAP, "index"),
    ("negative indices", explicit_gathers, lambda m, x: x[:, [-1, -2, 0, 0, 3]], MAP, "index"),
    ("index_select", explicit_gathers, lambda m, x: x.index_select(-3, m.shuffled), MAP, "index_select"),
    ("table of indices", explicit_gathers, lambda m, x: x[:, m.shuffled.view(2, 6)], MAP, "index"),
    ("two axes", explicit_gathers, lambda m, x: x[:, :, [0, 1, 1], [2, 3, 7]], MAP, "index"),
    ("reflect", explicit_movements, lambda m, x: F.pad(x, (1, 2, 3, 0), "reflect"), MAP, "reflect"),
    ("circular", explicit_movements, lambda m, x: F.pad(x, (1, 2, 3, 0), "circular"), MAP, "circular"),
    ("replicate", explicit_movements, lambda m, x: F.pad(x, (2, 1), "replicate"), (2, 3, 4), "replicate"),
    ("nearest", explicit_movements, lambda m, x: F.interpolate(x, scale_factor=2), MAP, "upsample"),
    ("nearest to 9x8", explicit_movements, lambda m, x: F.interpolate(x[:, :, :3], (9, 8)), MAP, "upsample"),
    ("repeat", explicit_movements, lambda m, x: x.repeat(2, 1, 3, 1), (2, 4, 3), "repeat"),
    ("interleave", explicit_movements, lambda m, x: x.repeat_interleave(3, -2), MAP, "repeat"),
    ("expand of a value", explicit_movements, lambda m, x: x[:, :1].expand(-1, 5, -1, -1) - 1, MAP, "expand"),
    ("to groups", explicit_movements, lambda m, x: F.channel_shuffle(x, 3), MAP, "channel_shuffle"),
    ("gate", drop_expands, lambda m, x: x * x.mean((2, 3), keepdim=True).expand_as(x), MAP, "expand"),
    ("new axis", drop_expands, lambda m, x: x[0, 0].expand(2, 12, 6, 8) - x, MAP, "expand"),
    ("sum of a map", line_sums, lambda m, x: x.sum((2, 3)), MAP, "sum"),
    ("sum of all", line_sums, lambda m, x: x * x.sum() + x.mean(), MAP, "sum"),
    ("sum of tokens", line_sums, lambda m, x: x.sum(dim=-2, keepdim=True), (2, 7, 5), "sum"),
    ("sum of channels", line_sums, lambda m, x: x.sum([1, -1]), MAP, "sum"),
    ("sum of two", line_sums, lambda m, x: x.view(2, 2, 6, 6, 8).sum(1), MAP, "sum"),
    ("mean of three", line_sums, lambda m, x: x[:, :3].mean(1, keepdim=True), MAP, "mean"),
    ("mean of lines", line_sums, lambda m, x: x.mean((1, 2)), MAP, "mean"),
    ("pool of lines", line_sums, lambda m, x: F.adaptive_avg_pool1d(x, 1), (2, 7, 5), "adaptive"),
    ("max", line_maxima, lambda m, x: x.max(1, keepdim=True)[0] + x.amax(-1, keepdim=True), MAP, "max.dim"),
    ("min", line_maxima, lambda m, x: x.min(-2)[0] - x.amin(2), MAP, "min.dim"),
    ("max of two", line_maxima, lambda m, x: x.view(2, 2, 6, 6, 8).max(1).values, MAP, "max.dim"),
    ("unit length", plain_norms, lambda m, x: F.normalize(x, dim=1), MAP, "norm"),
    ("length 1", plain_norms, lambda m, x: x.norm(1, dim=(-1, 1)), MAP, "norm"),
    ("variance", plain_norms, lambda m, x: x.var(1) + x.std((0, 1), unbiased=False), MAP, "var"),
    ("deviation", plain_norms, lambda m, x: x.std((2, 3), keepdim=True, correction=3), MAP, "std"),
    ("powers", plain_powers, lambda m, x: x**3 + x**2.0 + 1 / x, MAP, "pow"),
    ("roots", plain_powers, lambda m, x: x.abs() ** 0.5 + x.abs().pow(-0.5), MAP, "pow"),
    ("whole numbers", typed_numbers, lambda m, x: (x + 1) * 1 / 3 - 2, MAP, ", 1)"),
    ("from a number", typed_numbers, lambda m, x: 1 - x, MAP, "rsub"),
    ("channels", last_softmaxes, lambda m, x: x.softmax(1), MAP, ", 1)"),
    ("a map", last_softmaxes, lambda m, x: m.conv(x).softmax(-1), MAP, ""),
    ("vector of rows", last_softmaxes, lambda m, x: x.softmax(0), (5, 3), ", 0)"),
    ("groups", map_norms, lambda m, x: F.group_norm(x, 3, m.norm.running_mean, m.norm.bias + 1), MAP, "group_norm"),
    ("instances", map_norms, lambda m, x: F.instance_norm(x, weight=m.norm.running_mean, eps=1e-3), MAP, "instance"),
    ("whole maps", map_norms, lambda m, x: F.layer_norm(x, MAP[1:], eps=1e-3), MAP, "layer_norm"),
    ("roots of squares", rms_norm, lambda m, x: F.rms_norm(x, (8,), m.token[0, 0]) + F.rms_norm(x, (8,)), MAP, "rms"),
    ("counted border", padded_pools, lambda m, x: F.avg_pool2d(x, 3, 2, (1, 0)), MAP, ", [1, 0]"),
    ("equal windows", padded_pools, lambda m, x: F.adaptive_avg_pool2d(x, (3, 2)), MAP, "adaptive"),
    ("one window a pixel", padded_pools, lambda m, x: F.adaptive_avg_pool2d(x, (6, 8)) + 1, MAP, "adaptive"),
    ("itself", distinct_cats, lambda m, x: torch.cat([x, x, x], -3), MAP, ""),
    ("gates", plain_sigmoids, lambda m, x: F.hardsigmoid(x) + F.glu(torch.cat([x, x], 1), 1), MAP, "sigmoid."),
]  # fmt: skip


@pytest.mark.parametrize("case", FIRES, ids=[f"{f[1].__name__}-{f[0]}" for f in FIRES])
def test_fires_and_agrees(case: tuple[str, Rule, Any, tuple[int, ...], str]) -> None:
    name, rule, function, size, gone = case
    torch.manual_seed(1)
    x = torch.randn(size)
    before = captured(function, x)
    before = fold_constants(before) if rule is explicit_gathers else before
    nodes_before = [n.format_node() for n in before.graph.nodes]
    after = rule(before)
    assert after is not before, "did not fire"
    assert [n.format_node() for n in before.graph.nodes] == nodes_before, "changed the program given in"
    calls = [n for n in after.graph.nodes if n.op == "call_function"]
    assert not gone or name == "gates" or not any(gone in n.format_node() for n in calls)
    assert_equal(before, after, x, 2e-6)
    assert all("test_rewrites_indexing.py" in n.meta.get("stack_trace", "") for n in calls), "lost a source line"
    assert rule(after) is after or rule is line_maxima, "fires on its own result"


STAYS: list[tuple[str, Rule, Callable[[Call, Tensor], Any], tuple[int, ...]]] = [
    ("of inputs", fold_constants, lambda m, x: m.table[x.long()[:, 0, 0, 0]] * 1.0, MAP),
    ("counted buffer", fold_constants, counting, MAP),
    ("random numbers", fold_constants, lambda m, x: x + torch.rand(8), MAP),
    ("large repetition", fold_constants, lambda m, x: m.large.expand(2, 2, 2, -1) + x.sum(), MAP),
    ("returned", fold_constants, lambda m, x: (x + 1, m.table * 2), MAP),
    ("by an input", explicit_gathers, lambda m, x: x[:, x[0, :, 0, 0].argsort()], MAP),
    ("at random", explicit_gathers, lambda m, x: x.flatten(2)[..., m.random], MAP),
    ("integers", explicit_gathers, lambda m, x: x.long().roll(1, 1), MAP),
    ("flattened", explicit_gathers, lambda m, x: x.roll(1), MAP),
    ("axes apart", explicit_gathers, lambda m, x: x[:, [0, 1], :, [1, 2]], MAP),
    ("plain slices", explicit_movements, lambda m, x: F.pad(x[:, 1:], (1, 1)), MAP),
    ("whole result", drop_expands, lambda m, x: x[:, :1].expand(-1, 12, -1, -1) * 2, MAP),
    ("twice itself", drop_expands, lambda m, x: (y := x[:, :1].expand(-1, 12, -1, -1)) * y, MAP),
    ("mean of a map", line_sums, lambda m, x: x.mean((2, 3), keepdim=True), MAP),
    ("other type", line_sums, lambda m, x: x.sum(1, dtype=torch.float64), MAP),
    ("booleans", line_sums, lambda m, x: (x > 0).sum(1), MAP),
    ("vector", line_sums, lambda m, x: x.sum(), (5,)),
    ("where it is", line_maxima, lambda m, x: x.max(1)[1], MAP),
    ("length 3", plain_norms, lambda m, x: x.norm(3, dim=1), MAP),
    ("of one", plain_norms, lambda m, x: x[:, :1].std(1), MAP),
    ("other power", plain_powers, lambda m, x: x.abs() ** 1.5, MAP),
    ("one of another", distinct_cats, lambda m, x: torch.cat([x, x * 2, x], 1), MAP),
    ("one wide", distinct_cats, lambda m, x: torch.cat([x[:, :1]] * 2, 1), MAP),
    ("integers", typed_numbers, lambda m, x: x.long() + 1, MAP),
    ("scaled", typed_numbers, lambda m, x: torch.sub(x, 1, alpha=2), MAP),
    ("rounded", typed_numbers, lambda m, x: torch.div(x, 2, rounding_mode="floor"), MAP),
    ("unequal windows", padded_pools, lambda m, x: F.adaptive_avg_pool2d(x, (4, 2)), MAP),
    ("border left out", padded_pools, lambda m, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), MAP),
    ("statistics of training", map_norms, lambda m, x: m.norm(x), MAP),
    ("last dimension", map_norms, lambda m, x: F.layer_norm(x, (8,)), MAP),
    ("two dimensions", rms_norm, lambda m, x: F.rms_norm(x, (6, 8)), MAP),
    ("attention", last_softmaxes, lambda m, x: (x @ x.mT).softmax(-1), MAP),
    ("rows", last_softmaxes, lambda m, x: x.softmax(-1), (2, 3, 4)),
]


@pytest.mark.parametrize("case", STAYS, ids=[f"{s[1].__name__}-{s[0]}" for s in STAYS])
def test_stays(case: tuple[str, Rule, Any, tuple[int, ...]]) -> None:
    _, rule, function, size = case
    program = captured(function, torch.randn(size))
    assert rule(program) is program


@pytest.mark.parametrize("target", REWRITES)
@pytest.mark.parametrize("case", FIRES, ids=[f"{f[1].__name__}-{f[0]}" for f in FIRES])
def test_every_target_computes_the_same(case: tuple[str, Rule, Any, tuple[int, ...], str], target: str) -> None:
    x = torch.randn(case[3])
    program = captured(case[2], x)
    assert_equal(program, rewrite(program, target), x, 2e-6)


def test_forms_reach_every_order_of_axes() -> None:
    """Each form against the order it was found from, by taking its steps on positions."""
    numbers = torch.arange(24)
    orders = (
        numbers.roll(3), numbers.view(4, 6).T, numbers.view(4, 6).roll((1, 1), (0, 1)), numbers[1::2], numbers[::7],
        numbers.flip(0), numbers.repeat(3), numbers.repeat_interleave(2), numbers[:6].repeat(2).repeat_interleave(2),
        numbers[5:6].expand(7), numbers[[3, 4, 0, 1, 1]], numbers.view(2, 3, 4).transpose(0, 1), numbers[3:4],
    )  # fmt: skip
    for order in orders:
        steps = form(order.reshape(-1).tolist(), 24)
        assert steps is not None
        x = torch.randn(2, 24, 3)
        index = order.reshape(-1)
        program = capture(_Take(index), [x])
        after = explicit_gathers(program)
        assert after is not program
        assert not any("index" in t for t in targets(after))
        assert torch.equal(after.module()(x), x[:, index])
    assert form(torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist(), 24) is None


class _Take(nn.Module):
    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.index]


def test_infinities_and_zeros_survive_a_repeat() -> None:
    x = torch.tensor([[torch.inf, -torch.inf, 0.0, -0.0, torch.nan, 1e-45]])
    program = captured(lambda m, x: x.repeat(3, 2), x)
    got = explicit_movements(program).module()(x)
    assert torch.equal(got.view(torch.int32), x.repeat(3, 2).view(torch.int32))


def test_standardized_weights_fold_into_the_norm_behind() -> None:
    x = torch.randn(MAP)
    program = captured(standardized, x)
    after = fold_batch_norms(fold_constants(program))
    assert targets(after) == ["aten.conv2d.default"]
    assert_equal(program, after, x, 2e-6)


def test_no_constant_takes_more_than_4_mib() -> None:
    x = torch.randn(4)
    program = captured(lambda m, x: torch.arange(3000.0)[:, None] * torch.arange(3000.0) + x.sum(), x)
    after = fold_constants(program)
    assert targets(after) == ["aten.mul.Tensor", "aten.sum.default", "aten.add.Tensor"]
    assert max(t.numel() for t in after.state_dict.values()) <= 20000
    assert_equal(program, after, x, 0.0)


def test_equal_constants_are_stored_once() -> None:
    x = torch.randn(MAP)
    program = captured(lambda m, x: window_mask(m, window_mask(m, x)), x)
    after = fold_constants(program)
    assert len(after.state_dict) == len(program.state_dict) + 1


@pytest.mark.parametrize("target", REWRITES)
def test_what_nothing_reads_is_left_out(target: str) -> None:
    x = torch.randn(MAP)
    program = captured(lambda m, x: m.conv(x), x)
    after = rewrite(program, target)
    assert sorted(after.state_dict) == ["conv.bias", "conv.weight"]
    assert_equal(program, after, x, 0.0)
    assert drop_unused(after) is after
    assert len(program.state_dict) > 2, "changed the program given in"


def test_half_precision_keeps_its_type() -> None:
    x = torch.randn(MAP).half()
    program = captured(lambda m, x: F.hardsigmoid(1 / (x * x + 1)) * (2 - x.roll(1, 1)).mean(1, keepdim=True), x)
    after = rewrite(program, "executorch")
    assert all(n.meta["val"].dtype is torch.float16 for n in after.graph.nodes if n.op == "call_function")
    assert not any(isinstance(a, float | int) for n in after.graph.nodes if "mul" in n.name for a in n.args)
    assert_equal(program, after, x, 2e-3)


def test_a_refusal_is_reported_where_the_op_is_left_out(tmp_path: Path) -> None:
    x = torch.randn(MAP)
    program = captured(lambda m, x: m.conv(x).flatten(2)[:, :, m.random].relu(), x)
    noted = [n.meta["custom"][REFUSAL] for n in explicit_gathers(program).graph.nodes if "custom" in n.meta]
    assert len(noted) == 1
    inputs, outputs = (TensorSpec(name="x", shape=MAP),), (TensorSpec(name="y", shape=(2, 12, 48)),)
    delegation = TARGETS["executorch"].lower(program, "fp32", tmp_path / "model.pte", inputs, outputs)
    (left,) = delegation.fallback
    assert noted[0] in left.reason
    assert "test_rewrites_indexing.py" in left.source
