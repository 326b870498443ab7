"""Mobile-Former against the published code's numbers, and its deploy form against its train form."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import WeightsMismatch
from edgekit.graph import REWRITES, rewrite
from edgekit.models import load_weights
from edgekit.models import mobile_former as family
from edgekit.models._deploy import deploy
from edgekit.models._weights import same_names
from edgekit.models.mobile_former import DynamicRelu, MobileFormer, Row, Variant
from tests.zoo import FORBIDDEN, golden, randomized, relative

# One block of each kind: what exporters take long for is the number of blocks.
ROWS = (Row(12, (24,)), Row(16, (72, 64), 2), Row(16, (48,)), Row(24, (64,)))
TINY = {"tiny": Variant(12, 4, 32, 64, 0.2, ROWS), "tiny-groups": Variant(12, 3, 32, 64, 0.2, ROWS, groups=4)}


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(family, "VARIANTS", TINY)
    return randomized(MobileFormer(request.param, 10), gain=1.0)


@pytest.mark.parametrize("variant", family.VARIANTS)
@torch.no_grad()
def test_published_logits(shared: Path, variant: str) -> None:
    published = golden(shared, "mobileformer", variant)
    model = MobileFormer(variant).eval()
    model.load_state_dict(same_names(published.state), strict=True)
    assert sum(p.numel() for p in model.parameters()) == published.record["params"]
    assert relative(model(published.image), published.logits) < 2e-5
    assert relative(deploy(model)(published.image), published.logits) < 2e-5


@pytest.mark.parametrize("variant", ["26m", "52m", "96m", "214m"])
@pytest.mark.parametrize(("batch", "size"), [(1, (64, 64)), (3, (96, 64))])
@torch.no_grad()
def test_deploy_form_is_the_same_function(variant: str, batch: int, size: tuple[int, int]) -> None:
    model = randomized(MobileFormer(variant, 10), gain=1.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = torch.randn(batch, 3, *size)
    deployed = deploy(model)
    assert relative(deployed(image), model(image)) < 1e-5
    for ours, theirs in zip(deployed.forward_features(image), model.forward_features(image), strict=True):
        assert relative(ours, theirs) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "deploy changed the train form"


@pytest.mark.parametrize("batch", [1, 2])
def test_deploy_graph_is_plain(tiny: nn.Module, batch: int) -> None:
    program = torch.export.export(deploy(tiny), (torch.randn(batch, 3, 64, 64),))
    for node in program.graph.nodes:
        assert not any(word in str(node.target) for word in FORBIDDEN), node.format_node()
        if isinstance(value := node.meta.get("val"), Tensor):
            assert value.dim() <= 4, node.format_node()


@pytest.mark.parametrize("target", REWRITES)
@torch.no_grad()
def test_every_targets_graph_agrees(tiny: nn.Module, target: str) -> None:
    image = torch.randn(2, 3, 64, 96)
    program = torch.export.export(deploy(tiny), (image,))
    assert relative(rewrite(program, target).module()(image), tiny(image)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # executorch's own, at import and while lowering
def test_executorch_takes_the_graph_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    monkeypatch.setattr(family, "VARIANTS", {"short": TINY["tiny"]._replace(rows=ROWS[:3])})
    program = torch.export.export(deploy(MobileFormer("short", 10)), (torch.randn(1, 3, 64, 64),))
    lowered = to_edge_transform_and_lower(rewrite(program, "executorch"), partitioner=[XnnpackPartitioner()])
    calls = [str(n.target) for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    assert len([c for c in calls if "call_delegate" in c]) == 1
    assert [c for c in calls if "call_delegate" not in c and "getitem" not in c] == []


@pytest.mark.parametrize("spec", family.MODELS, ids=lambda spec: spec.name)
@torch.no_grad()
def test_features_of_every_variant(spec: family.ModelSpec) -> None:
    model = spec.build(7, 1, (64, 96)).eval()
    image = torch.randn(2, 1, 64, 96)
    maps = model.forward_features(image)
    assert model.feature_strides == (4, 8, 16, 32)
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(model.feature_channels, model.feature_strides, strict=True)
    ]
    deployed = deploy(model)
    assert deployed.feature_strides == model.feature_strides
    assert deployed.feature_channels == model.feature_channels
    assert model(image).shape == (2, 7)


def test_every_parameter_learns() -> None:
    model = randomized(MobileFormer("26m", 10), gain=1.0).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        assert bool(gradient.isfinite().all()), name
        # One value added to the logits of all keys of a pixel: softmax removes it, rounding apart.
        assert gradient.abs().max() > 0 or name.endswith("global_local.k.bias"), name


@torch.no_grad()
def test_dynamic_relu_starts_as_relu() -> None:
    torch.manual_seed(0)
    model = MobileFormer("52m", 10)
    block = next(m for m in model.modules() if isinstance(m, DynamicRelu))
    x = torch.randn(2, block.hyper[2].out_features // 2, 4, 4)
    assert relative(block(x, torch.randn(2, 3, 128)), x.relu()) < 0.05
    assert model.tokens.weight.std().item() == pytest.approx(1, rel=0.1)
    # Fan out counts all output channels, also those of a depthwise convolution.
    weight = model.features[1].conv2[0].weight
    assert weight.std().item() == pytest.approx((2 / (9 * len(weight))) ** 0.5, rel=0.15)


def test_converter_is_strict_and_idempotent() -> None:
    model = MobileFormer("26m", 10)
    state = same_names(model.state_dict())
    assert same_names(state).keys() == state.keys()
    load_weights(model, "mobile-former-26m", state, "test")
    state["features.1.hyper9.hyper.0.weight"] = state.pop("features.1.hyper1.hyper.0.weight")
    with pytest.raises(WeightsMismatch, match="hyper9"):
        load_weights(model, "mobile-former-26m", same_names(state), "test")
