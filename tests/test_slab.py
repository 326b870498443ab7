"""SLAB's norms and attention by themselves; SLAB-DeiT and SLAB-PVT against the published code's numbers."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgekit.errors import BadInput, WeightsMismatch
from edgekit.graph import REWRITES, rewrite
from edgekit.models import load_weights
from edgekit.models._deploy import deploy
from edgekit.models.slab import PRepBN, RepBN, SimplifiedLinearAttention, deit, pvt, recalibrate, set_schedule
from edgekit.models.slab.prepbn import fold_into_next, fold_into_previous
from tests.zoo import FORBIDDEN, Golden, golden, randomized, relative

Size = tuple[int, int]
SPECS = {spec.name: spec for spec in (*deit.MODELS, *pvt.MODELS)}
RECORDS = {"deit_tiny": "slab-deit-tiny", "pvt_tiny": "slab-pvt-tiny"}


def build(name: str, classes: int = 10, channels: int = 3, size: Size = (64, 64)) -> nn.Module:
    """A randomized model; position tables have a scale at which they matter."""
    model = randomized(SPECS[name].build(classes, channels, size))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 3:
                parameter.normal_(0, 0.5)
            elif key.endswith("alpha"):
                parameter.uniform_(0.8, 1.2)
    return model


SMALL: dict[str, Callable[[], nn.Module]] = {
    "deit": lambda: deit.SlabDeit(32, 2, 1, num_classes=5, image_size=(32, 32), norm_steps=2),
    "pvt": lambda: pvt.SlabPvt((16, 16, 32, 32), (1, 1, 2, 2), (2,) * 4, (1,) * 4, False, 5, 3, (64, 64), 2),
    "pvtv2": lambda: pvt.SlabPvt((16, 16, 32, 32), (1, 1, 2, 2), (2,) * 4, (1,) * 4, True, 5, 3, (64, 64), 2),
}


def norm_of(kind: type[nn.Module] = PRepBN, channels: int = 6, steps: int = 4) -> nn.Module:
    norm = randomized(kind(channels) if kind is RepBN else kind(channels, steps))
    nn.init.constant_(norm.get_parameter("alpha" if kind is RepBN else "norm2.alpha"), 0.7)
    return norm


# The norms


def test_prepbn_goes_from_layer_norm_to_repbn_linearly() -> None:
    norm = norm_of().train()
    for step in range(6):
        x = torch.randn(2, 5, 6)
        share = max(0.0, 1 - step / 4)
        expected = share * norm.norm1(x) + (1 - share) * copy.deepcopy(norm.norm2)(x)
        assert torch.equal(norm(x), expected)
        assert int(norm.iter) == max(0, 3 - step)
    assert not torch.equal(norm.eval()(x), norm.norm1(x))
    assert torch.equal(norm(x), norm.norm2(x))
    assert int(norm.iter) == 0


def test_eval_is_repbn_at_any_step_and_counts_nothing() -> None:
    norm = norm_of().eval()
    x = torch.randn(2, 5, 6)
    assert torch.equal(norm(x), norm.norm2(x))
    assert int(norm.iter) == 4


@torch.no_grad()
def test_warm_phase_is_layer_norm_alone() -> None:
    norm = norm_of().train()
    norm.set_schedule(2, warm=2)
    shares = []
    for _ in range(5):
        x = torch.randn(2, 5, 6)
        first, second = norm.norm1(x), copy.deepcopy(norm.norm2)(x)
        result = norm(x)
        shares.append(round(float(((result - second) / (first - second)).median()), 3))
        if len(shares) == 1:
            with pytest.raises(BadInput, match="step 0 of 2") as caught:
                norm.affine()
            assert "3 steps that are left" in caught.value.hint
            # A file has no counters of batch norm: what it holds is refused all the same.
            resumed = PRepBN(6)
            resumed.load_state_dict({k: v for k, v in norm.state_dict().items() if "tracked" not in k}, strict=False)
            with pytest.raises(BadInput, match="step 0 of 2"):
                resumed.affine()
    assert shares == [1, 1, 1, 0.5, 0]


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_training_equals_an_uninterrupted_run(stop: int) -> None:
    batches = [torch.randn(3, 5, 6) for _ in range(6)]

    def trained(norm: nn.Module, part: list[Tensor]) -> nn.Module:
        optimizer = torch.optim.SGD(norm.parameters(), 0.1)
        for x in part:
            optimizer.zero_grad()
            norm(x).square().sum().backward()
            optimizer.step()
        return norm

    whole = trained(norm_of(steps=5).train(), batches).state_dict()
    state = trained(norm_of(steps=5).train(), batches[:stop]).state_dict()
    resumed = PRepBN(6, steps=99)
    resumed.load_state_dict(state, strict=True)
    rest = trained(resumed.train(), batches[stop:]).state_dict()
    assert all(torch.equal(whole[key], rest[key]) for key in whole)


def test_counters_do_not_break_a_compiled_graph() -> None:
    norm = norm_of().train()
    compiled, x = torch.compile(norm, backend="eager", fullgraph=True), torch.randn(2, 5, 6)
    plain = copy.deepcopy(norm)
    for _ in range(6):
        torch.testing.assert_close(compiled(x), plain(x))
    assert int(norm.iter) == 0


def test_training_form_cannot_be_exported() -> None:
    with pytest.raises(BadInput, match=r"model\.eval\(\)"):
        torch.export.export(norm_of().train(), (torch.randn(2, 5, 6),))
    torch.export.export(norm_of().eval(), (torch.randn(2, 5, 6),))


@pytest.mark.parametrize(("steps", "deploys"), [(0, True), (1, False), (3, False), (4, True), (7, True)])
@torch.no_grad()
def test_only_fresh_and_finished_norms_deploy(steps: int, deploys: bool) -> None:
    model = nn.Sequential(norm_of().train())
    x = torch.randn(2, 5, 6)
    for _ in range(steps):
        model(x)
    if deploys:
        assert relative(deploy(model)(x), model.eval()(x)) < 1e-5
        return
    with pytest.raises(BadInput, match=f"step {steps} of 4") as caught:
        deploy(model)
    assert f"{4 - steps} steps that are left" in caught.value.hint
    set_schedule(model, 100)
    deploy(model)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(BadInput, match="0 steps"):
        PRepBN(4, 0)


@pytest.mark.parametrize("kind", [RepBN, PRepBN])
@torch.no_grad()
def test_folding_into_what_follows(kind: type[nn.Module]) -> None:
    norm, tokens, maps = norm_of(kind), torch.randn(2, 12, 6), torch.randn(2, 6, 8, 8)
    normed = norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    for layer in (randomized(nn.Linear(6, 7)), randomized(nn.Linear(6, 7, bias=False))):
        before = copy.deepcopy(layer.state_dict())
        assert relative(fold_into_next(norm, layer)(tokens), layer(norm(tokens))) < 1e-5
        assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    for conv in (nn.Conv2d(6, 4, 2, 2), nn.Conv2d(6, 4, 3, bias=False), nn.Conv2d(6, 4, 1, groups=2)):
        assert relative(fold_into_next(norm, randomized(conv))(maps), conv(normed)) < 1e-5
    for padding in (1, "same"):
        with pytest.raises(ValueError, match="padding"):
            fold_into_next(norm, nn.Conv2d(6, 4, 3, padding=padding))


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_folding_into_what_precedes(bias: bool) -> None:
    norm, tokens, maps = norm_of(), torch.randn(2, 12, 5), torch.randn(2, 4, 8, 8)
    linear = randomized(nn.Linear(5, 6, bias))
    assert relative(fold_into_previous(linear, norm)(tokens), norm(linear(tokens))) < 1e-5
    conv = randomized(nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=bias))
    expected = norm(conv(maps).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert relative(fold_into_previous(conv, norm)(maps), expected) < 1e-5


@torch.no_grad()
def test_recalibration_takes_the_statistics_of_the_whole_set() -> None:
    model, images = randomized(SMALL["pvtv2"]()), torch.randn(8, 3, 64, 64)
    model.head.train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    other = copy.deepcopy(model)
    # One batch: what a batch norm with momentum 1 keeps. The norms' own counters must not move.
    for module in other.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train().momentum = 1.0
    other(images)
    recalibrate(model, [images])
    after, expected = model.state_dict(), other.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == {key for key in after if key.endswith(("running_mean", "running_var"))}
    for key in changed:
        torch.testing.assert_close(after[key], expected[key])
    assert [m.training for m in model.modules()] == modes
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm1d))

    # Batches of different sizes: the first norm sees the same values, whatever the batches are.
    first = model.patch_embed1.norm.norm2.bn
    recalibrate(model, iter(images.split([1, 5, 2])))
    torch.testing.assert_close(first.running_var, expected["patch_embed1.norm.norm2.bn.running_var"])
    torch.testing.assert_close(first.running_mean, expected["patch_embed1.norm.norm2.bn.running_mean"])
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(BadInput, match="no images"):
        recalibrate(model, [])
    with pytest.raises(BadInput, match="a batch is a tuple"):
        recalibrate(model, [(images, torch.zeros(8))])
    with pytest.raises(ValueError, match="built for"):
        recalibrate(model, [images, images[:, :, :32]])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


# Attention


@pytest.mark.parametrize("style", ["fused", "separate"])
@pytest.mark.parametrize(("heads", "size"), [(1, (8, 6)), (2, (8, 6)), (1, (3, 4)), (2, (3, 4))])
@torch.no_grad()
def test_attention_is_the_papers_equation(style: str, heads: int, size: Size) -> None:
    attention = randomized(SimplifiedLinearAttention(32, heads, size, style))
    attention.positional_encoding.normal_()
    count, width = size[0] * size[1], 32 // heads
    x = torch.randn(3, count, 32)
    q, k, v = attention.projections(x)
    q, k = q.relu(), (k + attention.positional_encoding).relu()
    parts = []
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        weights = q[..., own] @ k[..., own].mT  # (B, N, N), explicit: what the linear form never makes
        local = attention.dwc(v[..., own].mT.reshape(3, width, *size)).flatten(2).mT
        parts.append(weights @ v[..., own] / (weights.sum(-1, keepdim=True) + 1e-6) + local)
    expected = attention.proj(torch.cat(parts, -1))
    assert relative(attention(x), expected) < 1e-5
    deployed = deploy(attention)
    assert relative(deployed(x), expected) < 1e-5
    assert relative(deployed(x[:1]), expected[:1]) < 1e-5


@torch.no_grad()
def test_deployed_attention_stays_in_range_in_float16() -> None:
    attention = randomized(SimplifiedLinearAttention(32, 1, (56, 56)), 4.0)
    x = 4 * torch.randn(1, 56 * 56, 32)
    q, k, _ = attention.projections(x)
    assert (q.relu() @ k.relu().sum(1).mT).max() > torch.finfo(torch.float16).max
    dead = deploy(attention).half()
    assert relative(dead(x.half()).float(), attention(x)) < 1e-2
    dead.on_maps.q.weight.zero_()
    dead.on_maps.q.bias.zero_()
    assert dead(x.half()).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2])
def test_deployed_numerators_stay_in_range_in_float16(heads: int) -> None:
    """Where sums over N tokens, divided by N, exceed what float16 holds, as in SLAB-DeiT's last block on a photo."""
    attention = randomized(SimplifiedLinearAttention(64 * heads, heads, (14, 14)), 4.0)
    x = 12 * torch.randn(1, 14 * 14, 64 * heads)
    q, k, v = (t[..., :64] for t in attention.projections(x))
    assert (q.relu() @ (k.relu().mT @ v) / (14 * 14)).abs().max() > torch.finfo(torch.float16).max
    assert relative(deploy(attention).half()(x.half()).float(), attention(x)) < 1e-2


# The backbones


def loaded(published: Golden, record: str) -> nn.Module:
    spec = SPECS[RECORDS[record]]
    model = spec.build(1000, 3, (224, 224)).eval()
    load_weights(model, spec.name, spec.convert_state(published.state), record)
    return model


@pytest.mark.parametrize("record", RECORDS)
@torch.no_grad()
def test_published_logits(shared: Path, record: str) -> None:
    published = golden(shared, "slab", record)
    model = loaded(published, record)
    assert sum(p.numel() for p in model.parameters()) == published.record["params"]
    assert relative(model(published.image), published.logits) < 2e-5
    assert relative(deploy(model)(published.image), published.logits) < 2e-5
    tap = {"deit_tiny": ["blocks.11"], "pvt_tiny": ["block1.1", "block2.1", "block3.1", "block4.1"]}[record]
    for name, maps in zip(tap, model.forward_features(published.image), strict=True):
        tokens = maps.flatten(2).transpose(1, 2).flatten()
        probes = torch.tensor(published.record["taps"][name]["probe8"])
        picked = tokens[[len(tokens) * (2 * i + 1) // 16 for i in range(8)]]
        torch.testing.assert_close(picked, probes, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_states_of_plain_repbn_and_without_counters_are_taken(shared: Path) -> None:
    published = golden(shared, "slab", "deit_tiny")
    assert int(loaded(published, "deit_tiny").norm.iter) == deit.STEPS
    pairs = {key.removesuffix(".norm2.alpha") for key in published.state if key.endswith(".norm2.alpha")}
    plain = {}
    for key, value in published.state.items():
        norm = next((p for p in pairs if key.startswith(f"{p}.norm")), None)
        if norm is None:
            plain[key] = value
        elif key.startswith(f"{norm}.norm2."):
            plain[norm + key.removeprefix(f"{norm}.norm2")] = value
    assert "blocks.0.norm2.alpha" in plain
    assert "blocks.0.norm1.norm1.weight" not in plain
    model = loaded(Golden(published.record, plain, published.image, published.logits), "deit_tiny")
    assert relative(model(published.image[:1]), published.logits[:1]) < 2e-5
    assert int(model.norm.iter) == 0


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_card_and_converter(name: str) -> None:
    spec = SPECS[name]
    model = spec.build(1000, *spec.input[:1], spec.input[1:])
    assert sum(p.numel() for p in model.parameters()) == spec.params
    with FlopCounterMode(display=False) as flops:
        model.eval()(torch.zeros(1, *spec.input))
    assert flops.get_total_flops() // 2 == spec.macs
    state = model.state_dict()
    converted = spec.convert_state(state)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)
    wrong = {("hat.bias" if key == "head.bias" else key): value for key, value in state.items()}
    with pytest.raises(WeightsMismatch) as caught:
        load_weights(model, name, spec.convert_state(wrong), "file")
    assert (caught.value.missing, caught.value.unexpected) == (["head.bias"], ["hat.bias"])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_deploy_form_is_the_same_function(name: str, size: Size, batch: int) -> None:
    model = build(name, size=size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = torch.randn(batch, 3, *size)
    deployed, features = deploy(model), model.forward_features(image)
    assert relative(deployed(image), model(image)) < 1e-5
    for ours, theirs in zip(deployed.forward_features(image), features, strict=True):
        assert relative(ours, theirs) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "deploy changed the train form"
    assert not any(isinstance(m, nn.LayerNorm | nn.BatchNorm1d) for m in deployed.modules())
    shapes = [
        (batch, c, size[0] // s, size[1] // s)
        for c, s in zip(model.feature_channels, model.feature_strides, strict=True)
    ]
    assert [tuple(maps.shape) for maps in features] == shapes
    assert (deployed.feature_channels, deployed.feature_strides) == (model.feature_channels, model.feature_strides)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("batch", [1, 2])
def test_deploy_graph_is_plain(name: str, batch: int) -> None:
    program = torch.export.export(deploy(build(name)), (torch.randn(batch, 3, 64, 64),))
    for node in program.graph.nodes:
        assert not any(word in str(node.target) for word in FORBIDDEN), node.format_node()
        if node.op == "call_function":
            assert not any(word in str(node.target) for word in ("sum", "reciprocal", "norm")), node.format_node()
        if isinstance(value := node.meta.get("val"), Tensor):
            assert value.dim() <= 4, node.format_node()


@pytest.mark.parametrize("target", REWRITES)
@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_every_targets_graph_agrees(kind: str, target: str) -> None:
    model = randomized(SMALL[kind]())
    image = torch.randn(2, 3, *model.image_size)
    program = torch.export.export(deploy(model), (image,))
    assert relative(rewrite(program, target).module()(image), model(image)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # executorch's own, at import and while lowering
@pytest.mark.parametrize("kind", ["deit", "pvtv2"])
def test_executorch_takes_the_graph_whole(kind: str) -> None:
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model = SMALL[kind]()
    program = torch.export.export(deploy(model), (torch.randn(1, 3, *model.image_size),))
    lowered = to_edge_transform_and_lower(rewrite(program, "executorch"), partitioner=[XnnpackPartitioner()])
    calls = [str(n.target) for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    assert len([c for c in calls if "call_delegate" in c]) == 1
    assert [c for c in calls if "call_delegate" not in c and "getitem" not in c] == []


@pytest.mark.parametrize("kind", SMALL)
def test_gradient_reaches_every_parameter(kind: str) -> None:
    model = randomized(SMALL[kind]()).train()
    image = torch.randn(4, 3, *model.image_size)
    model(image)  # to the middle of the schedule, where both halves of a norm count
    model(image).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name == "cls_token":
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_classes_channels_and_sizes(name: str) -> None:
    model = build(name, classes=7, channels=1, size=(64, 96))
    image = torch.randn(2, 1, 64, 96)
    assert model(image).shape == (2, 7)
    assert relative(deploy(model)(image), model(image)) < 1e-5
    with pytest.raises(ValueError, match=r"built for images of \(64, 96\)"):
        model(torch.zeros(1, 1, 96, 64))
    with pytest.raises(ValueError, match="divisible by"):
        SPECS[name].build(7, 1, (100, 64))


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_tables_of_another_size_are_resized(name: str) -> None:
    spec = SPECS[name]
    state, model = build(name).state_dict(), build(name, size=(96, 128))
    own = model.state_dict()
    fitted = spec.fit_state(state, model)
    load_weights(model, name, fitted, "file")
    tables = {key for key in state if state[key].shape != own[key].shape}
    assert {key.rpartition(".")[2].rstrip("1234") for key in tables} <= {"pos_embed", "positional_encoding"}
    assert all(fitted[key] is state[key] for key in state.keys() - tables)
    key = "pos_embed" if name == "slab-deit-tiny" else "block1.0.attn.positional_encoding"
    side = round(state[key].shape[1] ** 0.5)
    square = state[key].reshape(side, side, -1).permute(2, 0, 1)[None]
    expected = F.interpolate(square, (side * 3 // 2, side * 2), mode="bicubic", align_corners=False)
    torch.testing.assert_close(fitted[key], expected[0].permute(1, 2, 0).flatten(0, 1)[None])
    if name == "slab-pvt-tiny":
        table = state["pos_embed2"].reshape(8, 8, -1).permute(2, 0, 1)[None]
        expected = F.interpolate(table, (12, 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(fitted["pos_embed2"], expected[0].permute(1, 2, 0).flatten(0, 1)[None])
    same = spec.fit_state(own, model)
    assert all(same[key] is own[key] for key in own)


def test_initialization_is_seeded_and_as_published() -> None:
    torch.manual_seed(1)
    first = SPECS["slab-pvtv2-b0"].build(10, 3, (64, 64)).state_dict()
    torch.manual_seed(1)
    second = SPECS["slab-pvtv2-b0"].build(10, 3, (64, 64)).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert first["patch_embed1.proj.weight"].std().item() == pytest.approx((2 / (49 * 32)) ** 0.5, rel=0.05)
    assert first["block4.0.mlp.dwconv.weight"].std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert first["block4.0.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert first["block1.0.attn.positional_encoding"].abs().max() == 0
    table = SPECS["slab-pvt-tiny"].build(10, 3, (64, 64)).state_dict()["pos_embed1"]
    assert table.std().item() == pytest.approx(0.02, rel=0.05)
