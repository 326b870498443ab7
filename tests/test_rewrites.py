"""Each rewrite: the same outputs, fires where it should, leaves the program alone where it should not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.errors import UnknownName
from edgekit.graph import REWRITES, rewrite
from edgekit.graph.activations import half_gelu, plain_sigmoids
from edgekit.graph.batch_norm import fold_batch_norms
from edgekit.graph.half import to_half
from edgekit.graph.layer_norm import layer_norm
from edgekit.graph.matmul import attention, batched_matmul, transposed_products
from edgekit.graph.noops import drop_noops
from edgekit.graph.permutes import merge_layouts, merge_permutes
from edgekit.graph.pools import explicit_strides, floor_pools, spatial_maxima, spatial_means
from edgekit.graph.reductions import line_sums
from edgekit.graph.softmaxes import short_softmaxes
from edgekit.graph.views import cropping_pads, merge_reshapes, reshape_views, slice_selects

Rule = Callable[[ExportedProgram], ExportedProgram]
MAP = (2, 8, 4, 6)


class Call(nn.Module):
    """A function as a module, with a parameter and submodules for those that need one."""

    def __init__(self, function: Callable[["Call", Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        self.register_buffer("mask", torch.rand(4, 4) > 0.3)
        self.register_buffer("dead", torch.tensor([[True], [False], [True], [True]]).expand(4, 4).clone())
        self.register_buffer("large", torch.randn(1, 1, 1, 20000))
        self.conv, self.bn = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
        for values in (self.bn.weight, self.bn.bias, self.bn.running_mean):
            nn.init.normal_(values)
        nn.init.uniform_(self.bn.running_var, 0.1, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self, x)


def captured(function: Callable[[Call, Tensor], Tensor | tuple[Tensor, ...]], x: Tensor) -> ExportedProgram:
    return torch.export.export(Call(function).eval().to(x.dtype), (x,))


def captured_of(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> ExportedProgram:
    class Many(nn.Module):
        def forward(self, x: Tensor, d: Tensor, i: Tensor) -> Any:
            return function(x, d, i)

    return torch.export.export(Many().eval(), inputs)


def assert_equal(before: ExportedProgram, after: ExportedProgram, x: Tensor, tolerance: float) -> None:
    with torch.no_grad():
        old, new = before.module()(x), after.module()(x)
    for a, b in zip(old if isinstance(old, tuple) else (old,), new if isinstance(new, tuple) else (new,), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert float((a - b).double().norm() / a.double().norm().clamp_min(1e-9)) <= tolerance


def targets(program: ExportedProgram) -> list[str]:
    return [str(n.target) for n in program.graph.nodes if n.op == "call_function"]


def inplace(m: Call, x: Tensor) -> Tensor:
    y = x.clone()
    y.add_(1)
    return F.silu(x) + y


def shares(m: Call, x: Tensor, bias: bool) -> Tensor:
    """Logits of a linear layer, softmax over fours of them."""
    weight = m.token.reshape(8, 1) * m.token.reshape(1, 8)
    return F.linear(x, weight, m.norm.bias if bias else None).reshape(-1, 2, 4).softmax(-1)


def unwound(m: Call, x: Tensor) -> Tensor:
    turned = x.permute(1, 0, 2, 3).reshape(8, 48).permute(1, 0)
    return turned.permute(1, 0).reshape(8, 2, 4, 6).permute(1, 0, 2, 3) + 1


def inner(m: Call, x: Tensor) -> Tensor:
    return m.bn(m.conv(x)).relu()


FIRES: list[tuple[str, Rule, Callable[[Call, Tensor], Tensor | tuple[Tensor, ...]], tuple[int, ...], str]] = [
    ("last dimension", layer_norm, lambda m, x: m.norm(x), (3, 5, 8), "layer_norm"),
    ("matrix", layer_norm, lambda m, x: F.layer_norm(x, (8,)), (5, 8), "layer_norm"),
    ("channels", layer_norm, lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), MAP, "permute"),
    ("two uses", layer_norm, lambda m, x: (m.norm(x), m.norm(x * 2)), (3, 8), "layer_norm"),
    ("rank 3", batched_matmul, lambda m, x: x @ x.transpose(1, 2), (3, 4, 8), "matmul"),
    ("rank 4", batched_matmul, lambda m, x: x @ x.transpose(-1, -2), MAP, "matmul"),
    ("plain", attention, lambda m, x: F.scaled_dot_product_attention(x, x * 0.5, x + 1), MAP, "scaled_dot"),
    ("scaled", attention, lambda m, x: F.scaled_dot_product_attention(x, x, x, scale=0.7), MAP, "scaled_dot"),
    ("causal", attention, lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True), MAP, "scaled_dot"),
    ("masked", attention, lambda m, x: F.scaled_dot_product_attention(x, x, x, m.mask), MAP, "scaled_dot"),
    ("product", transposed_products, lambda m, x: (x @ (x + 1).transpose(1, 2)).transpose(1, 2), (2, 3, 4), ""),
    ("inverse", merge_permutes, lambda m, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2) + 1, MAP, "permute"),
    ("three", merge_permutes, lambda m, x: x.transpose(1, 2).permute(0, 2, 1, 3).transpose(-1, 1) * 2, MAP, "permute"),
    ("squeeze", reshape_views, lambda m, x: x[:, :1].squeeze(1).unsqueeze(-1).flatten(1), MAP, "squeeze"),
    ("view", reshape_views, lambda m, x: x.view(2, -1).unflatten(1, (4, -1)), MAP, "view"),
    ("select", slice_selects, lambda m, x: x[:, 1] + x[:, -1], MAP, "select"),
    ("unbind", slice_selects, lambda m, x: x.unbind(1)[1] * x.unbind(-3)[2], MAP, "unbind"),
    ("split", slice_selects, lambda m, x: torch.cat(x.split([3, 5], 1)[::-1], 1), MAP, "split"),
    ("chunk", slice_selects, lambda m, x: x.chunk(3, -1)[2] * 2, (2, 3, 7), "chunk"),
    ("chain", merge_reshapes, lambda m, x: x.reshape(2, 48, 4).reshape(16, 24) + 1, MAP, "48, 4"),
    ("moved", cropping_pads, lambda m, x: F.pad(x[:, :, 1:, :-1], (1, 0, 0, 1)), MAP, "slice"),
    ("cropped", cropping_pads, lambda m, x: F.pad(x[:, -6:-1, :3], (2, 1), value=0.5), MAP, "slice"),
    ("unwound", merge_layouts, unwound, MAP, "permute"),
    ("rows", short_softmaxes, lambda m, x: shares(m, x, True), (300, 8), "softmax"),
    ("map without bias", short_softmaxes, lambda m, x: shares(m, x, False), (2, 16, 10, 8), "softmax"),
    ("huge logits", short_softmaxes, lambda m, x: shares(m, x * 1e4, True), (300, 8), "softmax"),
    ("noop", drop_noops, lambda m, x: F.dropout(x.contiguous().clone().detach(), 0.1, False) + 1, MAP, "clone"),
    ("mean", spatial_means, lambda m, x: x.mean((2, 3)), MAP, ""),
    ("mean of NHWC", spatial_means, lambda m, x: x.mean((1, 2), keepdim=True), MAP, ""),
    ("adaptive", spatial_means, lambda m, x: F.adaptive_avg_pool2d(x, 1).flatten(1), MAP, "adaptive"),
    ("channel mean", line_sums, lambda m, x: x.mean(-1), (2, 3, 8), "mean"),
    ("channel mean keepdim", line_sums, lambda m, x: x - x.mean(-1, keepdim=True), (2, 3, 8), "mean"),
    ("token mean", line_sums, lambda m, x: x.mean(1), (2, 3, 8), "mean"),
    ("channel mean of a map", line_sums, lambda m, x: x.mean(1, keepdim=True), MAP, "mean"),
    ("amax", spatial_maxima, lambda m, x: x.amax((2, 3)), MAP, "amax"),
    (
        "adaptive",
        spatial_maxima,
        lambda m, x: F.adaptive_max_pool2d(x, 1) + F.adaptive_max_pool2d(x, (1, 1)),
        MAP,
        "amax",
    ),
    ("ceil", floor_pools, lambda m, x: F.avg_pool2d(x, 2, ceil_mode=True), MAP, ""),
    ("stride", explicit_strides, lambda m, x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2), MAP, ""),
    ("functions", fold_batch_norms, inner, MAP, "batch_norm"),
    ("twice", fold_batch_norms, lambda m, x: m.bn(m.conv(F.pad(inner(m, x), (1, 1, 1, 1)))), MAP, "batch_norm"),
    ("padding", fold_batch_norms, lambda m, x: m.bn(F.conv2d(x, m.conv.weight, padding="same")), MAP, "batch_norm"),
    ("keywords", explicit_strides, lambda m, x: F.avg_pool2d(x, 2, divisor_override=3), MAP, ""),
    ("silu", plain_sigmoids, lambda m, x: F.silu(x), (4, 5), "silu"),
]


@pytest.mark.parametrize("case", FIRES, ids=[f"{f[1].__name__}-{f[0]}" for f in FIRES])
def test_fires_and_agrees(case: tuple[str, Rule, Any, tuple[int, ...], str]) -> None:
    _, rule, function, size, gone = case
    torch.manual_seed(1)
    x = torch.randn(size)
    before = captured(function, x)
    nodes_before = [n.format_node() for n in before.graph.nodes]
    after = rule(before)
    assert after is not before, "did not fire"
    assert [n.format_node() for n in before.graph.nodes] == nodes_before, "changed the program given in"
    assert not gone or not any(gone in str(n.format_node()) for n in after.graph.nodes if n.op == "call_function")
    assert_equal(before, after, x, 2e-6)
    if rule is not drop_noops:
        traced = [n for n in after.graph.nodes if n.op == "call_function"]
        assert all("test_rewrites.py" in n.meta.get("stack_trace", "") for n in traced), "lost a source line"
    assert rule(after) is after or rule in (layer_norm, transposed_products), "fires on its own result"


STAYS: list[tuple[str, Rule, Callable[[Call, Tensor], Tensor | tuple[Tensor, ...]], tuple[int, ...]]] = [
    ("two dimensions", layer_norm, lambda m, x: F.layer_norm(x, (4, 6)), MAP),
    ("vector", layer_norm, lambda m, x: F.layer_norm(x, (8,)), (8,)),
    ("broadcast", batched_matmul, lambda m, x: x @ x[:1].transpose(-1, -2), MAP),
    ("matrix", batched_matmul, lambda m, x: x @ x.transpose(0, 1), (3, 4)),
    ("grouped", attention, lambda m, x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True), MAP),
    ("two users", transposed_products, lambda m, x: (y := x @ x.transpose(1, 2)) + y.transpose(1, 2), (2, 3, 4)),
    ("single", merge_permutes, lambda m, x: x.permute(0, 2, 3, 1) + 1, MAP),
    ("cuts and pads one side", cropping_pads, lambda m, x: F.pad(x[:, 1:], (0, 0, 0, 0, 1, 0)), MAP),
    ("reflects", cropping_pads, lambda m, x: F.pad(x[:, :, :, 1:], (1, 1, 0, 0), mode="reflect"), MAP),
    ("every second", cropping_pads, lambda m, x: F.pad(x[:, ::2], (1, 1)), MAP),
    ("few rows", short_softmaxes, lambda m, x: shares(m, x, True), (100, 8)),
    ("logits used twice", short_softmaxes, lambda m, x: (y := F.linear(x, m.token[0])).softmax(-1) + y, (300, 8)),
    ("other dimension", short_softmaxes, lambda m, x: F.linear(x, m.token[0]).softmax(0), (300, 8)),
    ("one dimension", spatial_means, lambda m, x: x.mean(1), MAP),
    ("kept", spatial_means, lambda m, x: x.mean((2, 3), keepdim=True), MAP),
    ("to 2x2", spatial_means, lambda m, x: F.adaptive_avg_pool2d(x, 2), MAP),
    ("over channels", spatial_maxima, lambda m, x: x.amax(1), MAP),
    ("ceil counts", floor_pools, lambda m, x: F.avg_pool2d(x, 3, 2, ceil_mode=True), MAP),
    ("dropout in training", drop_noops, lambda m, x: F.dropout(x, 0.5, True), MAP),
    ("expand of a value", drop_noops, lambda m, x: x[:1].expand(4, -1, -1, -1) + 1, MAP),
    ("of strides", drop_noops, lambda m, x: x.transpose(2, 3).contiguous().as_strided((4, 4), (1, 4)) + 1, MAP),
    ("two outputs", drop_noops, lambda m, x: (y := x + 1, y.clone()), MAP),
    ("of strides", merge_layouts, lambda m, x: x.mT.reshape(2, -1).reshape(8, -1).as_strided((4, 4), (1, 4)), MAP),
    ("integers", spatial_maxima, lambda m, x: x.int().amax((2, 3)), MAP),
    ("booleans", spatial_maxima, lambda m, x: (x > 0).amax((2, 3)), MAP),
    ("blind query", attention, lambda m, x: F.scaled_dot_product_attention(x, x, x, m.dead), MAP),
    ("vector", transposed_products, lambda m, x: (m.token[0, 0] @ x.transpose(1, 2)).transpose(0, 1), (4, 3, 8)),
    ("tapped", fold_batch_norms, lambda m, x: m.bn(y := m.conv(x)) + y, MAP),
    ("activation between", fold_batch_norms, lambda m, x: m.bn(m.conv(x).relu()), MAP),
    ("computed weight", fold_batch_norms, lambda m, x: m.bn(F.conv2d(x, m.conv.weight / x.amax())), MAP),
    ("transposed", fold_batch_norms, lambda m, x: m.bn(F.conv_transpose2d(x, m.conv.weight)), MAP),
    ("of a batch", fold_batch_norms, lambda m, x: F.batch_norm(m.conv(x), None, None, training=True), MAP),
    ("half only", half_gelu, lambda m, x: F.gelu(x), (4, 5)),
    ("writes in place", plain_sigmoids, inplace, (4, 5)),
    ("nothing there", plain_sigmoids, lambda m, x: torch.sigmoid(x), (4, 5)),
]


@pytest.mark.parametrize("case", STAYS, ids=[f"{s[1].__name__}-{s[0]}" for s in STAYS])
def test_stays(case: tuple[str, Rule, Any, tuple[int, ...]]) -> None:
    _, rule, function, size = case
    program = captured(function, torch.randn(size))
    assert rule(program) is program


def test_half_gelu_is_within_half_precision() -> None:
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-6e4, 6e4, 0.0])]).half()
    program = captured(lambda m, x: F.gelu(x), x)
    after = half_gelu(program)
    assert not any("gelu" in t for t in targets(after))
    exact = F.gelu(x.double())
    with torch.no_grad():
        error = (after.module()(x).double() - exact).abs()
    # A unit in the last place of the result, and what rounding Phi and its argument to float16 costs near -2.
    assert bool((error <= exact.abs() * 2**-10 + 1.2e-4).all())
    common = x.abs() < 6
    assert float(exact[common].norm() / error[common].norm()) > 10 ** (76 / 20)  # float16 GELU rounded once: 80 dB


def test_a_program_never_returns_its_input() -> None:
    x = torch.randn(2, 3)
    program = captured(lambda m, x: x.contiguous(), x)
    assert_equal(program, rewrite(program, "executorch"), x, 0.0)


@pytest.mark.parametrize("target", REWRITES)
def test_in_place_code_is_rewritten_for_every_target(target: str) -> None:
    x = torch.randn(2, 8, 4, 4)
    program = captured(lambda m, x: F.relu6(F.silu(x).add_(1), inplace=True).mean((2, 3)), x)
    assert_equal(program, rewrite(program, target), x, 2e-6)


@pytest.mark.parametrize("target", REWRITES)
def test_batch_norm_folds_for_every_target_also_before_an_activation_in_place(target: str) -> None:
    x = torch.randn(2, 8, 6, 6)
    program = captured(lambda m, x: F.relu(m.bn(m.conv(x)), inplace=True).add_(1), x)
    after = rewrite(program, target)
    assert not any("batch_norm" in t for t in targets(after))
    assert_equal(program, after, x, 2e-6)


def test_norm_of_half_precision_follows_float32_far_out_and_close_in() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 64)
    rows[0, 3] = 1500.0  # its square is no float16
    rows[1] = 0.7  # no variance at all
    rows[2] *= 0.05
    before = captured(lambda m, x: F.layer_norm(x, (64,), eps=1e-12), rows.half())
    after = layer_norm(before)
    with torch.no_grad():
        got, exact = after.module()(rows.half()).float(), F.layer_norm(rows.half().float(), (64,), eps=1e-12)
    assert bool(got.isfinite().all())
    assert float((got - exact).norm(dim=1).div(exact.norm(dim=1).clamp_min(1)).max()) < 3e-3


@torch.no_grad()
def test_half_keeps_fills_finite() -> None:
    def fills(m: Call, x: Tensor) -> tuple[Tensor, ...]:
        low = x.masked_fill(m.mask, -1e9)
        chosen = torch.where(m.mask, x, -1e9) + torch.where(m.mask, 0.0, -1e9)
        return (
            low.softmax(-1), chosen.softmax(-1), F.pad(x, (1, 1), value=1e30), torch.full_like(x, -1e38),
            m.mask.float() * -1e9, torch.where(m.mask, x, torch.tensor(-3e38)), x.masked_fill(m.mask, -torch.inf),
            x.masked_fill(m.mask, -(10**9)), torch.full((2,), 1e9) + x[0, :2], x + m.mask * 1e8,
        )  # fmt: skip

    x = torch.randn(4, 4)
    program = captured(fills, x)
    whole, half = program.module()(x), to_half(program, (x,)).module()(x)
    for a, b in zip(whole, half, strict=True):
        assert b.dtype is torch.float32
        assert torch.equal(a.isinf(), b.isinf())
        assert torch.allclose(a.clamp(-65504, 65504), b.clamp(-65504, 65504), rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_half_keeps_the_types_of_inputs_and_outputs() -> None:
    x = (torch.randn(3), torch.randn(3, dtype=torch.float64) * 1e-9, torch.arange(3))
    outputs = captured_of(lambda x, d, i: (x + 1, d * 2, i + 1, x.half(), x.bfloat16(), x > 0), x)
    got = to_half(outputs, x).module()(*x)
    expected = outputs.module()(*x)
    assert [y.dtype for y in got] == [y.dtype for y in expected]
    assert torch.equal(got[1], expected[1])


@torch.no_grad()
def test_half_folds_before_it_rounds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-12)).eval()
    nn.init.constant_(model[1].running_var, 1e-9)  # 0 in float16
    model[0].weight.mul_(1e-4)
    x = torch.randn(2, 3, 4, 4)
    program = torch.export.export(model, (x,))
    half, whole = to_half(program, (x,)).module()(x)[0], model(x)
    assert float((half - whole).norm() / whole.norm()) < 2e-3


@pytest.mark.parametrize("target", REWRITES)
def test_a_users_transformer_keeps_its_function(target: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True).eval()
    x = torch.randn(2, 10, 32)
    program = torch.export.export(layer, (x,))
    assert_equal(program, rewrite(program, target), x, 2e-6)


def test_unknown_target() -> None:
    program = captured(lambda m, x: x + 1, torch.randn(2))
    with pytest.raises(UnknownName, match="executorch"):
        rewrite(program, "executorc")
