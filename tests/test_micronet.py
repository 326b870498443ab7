"""MicroNet against the published code's numbers, and its deploy form against its train form."""

import pathlib

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgekit.errors import WeightsMismatch
from edgekit.graph import REWRITES, rewrite
from edgekit.models import _micronet_algebra as algebra
from edgekit.models import micronet as family
from edgekit.models._deploy import deploy
from edgekit.models._micronet_deploy import Shift
from edgekit.models._weights import load_weights, same_names
from edgekit.types import ModelSpec
from tests.zoo import FORBIDDEN, golden, randomized, relative

SPECS = {spec.name.removeprefix("micronet-"): spec for spec in family.MODELS}


def small(variant: str, classes: int = 10, channels: int = 3) -> nn.Module:
    """Random weights, not too large: activations multiply maps by functions of themselves, and float32 loses digits."""
    model = randomized(SPECS[variant].build(classes, channels, (64, 64)), gain=0.8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("fc.2.bias"):
                parameter.mul_(10)  # coefficients that differ between channels
    return model


@pytest.mark.parametrize("variant", SPECS)
@torch.no_grad()
def test_published_logits(shared: pathlib.Path, variant: str) -> None:
    record = golden(shared, "micronet", variant)
    spec = SPECS[variant]
    model = spec.build(1000, 3, (224, 224)).eval()
    load_weights(model, spec.name, spec.convert_state(record.state), "golden")
    assert sum(p.numel() for p in model.parameters()) == record.record["params"] == spec.params
    assert relative(model(record.image), record.logits) < 2e-5
    assert relative(deploy(model)(record.image), record.logits) < 2e-5


@pytest.mark.parametrize("variant", SPECS)
@torch.no_grad()
def test_published_maps(shared: pathlib.Path, variant: str) -> None:
    record = golden(shared, "micronet", variant)
    model = SPECS[variant].build(1000, 3, (224, 224)).eval()
    load_weights(model, variant, same_names(record.state), "golden")
    maps = dict(zip(model.ends, model.forward_features(record.image), strict=True))
    seen = 0
    for name, tap in record.record["taps"].items():
        if name.startswith("features.") and (index := int(name.split(".")[1])) in maps:
            seen += 1
            assert list(maps[index].shape) == tap["shape"]
            assert torch.allclose(maps[index].flatten()[:8], torch.tensor(tap["first8"]), rtol=1e-4, atol=1e-4)
    assert seen >= 2


@pytest.mark.parametrize("spec", family.MODELS, ids=lambda s: s.name)
@torch.no_grad()
def test_card_counts(spec: ModelSpec) -> None:
    model = spec.build(1000, 3, (224, 224)).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *spec.input))
    assert counter.get_total_flops() / 2 == pytest.approx(spec.macs, rel=0.01)


@pytest.mark.parametrize("variant", SPECS)
@pytest.mark.parametrize(("batch", "size"), [(1, (64, 64)), (3, (96, 64)), (1, (160, 128))])
@torch.no_grad()
def test_deploy_form_is_the_same_function(variant: str, batch: int, size: tuple[int, int]) -> None:
    model = small(variant)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = torch.randn(batch, 3, *size)
    deployed = deploy(model)
    assert relative(deployed(image), model(image)) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "deploy changed the train form"


@pytest.mark.parametrize("variant", SPECS)
@torch.no_grad()
def test_features_are_those_of_the_train_form(variant: str) -> None:
    model, image = small(variant), torch.randn(2, 3, 96, 64)
    deployed = deploy(model)
    maps, deployed_maps = model.forward_features(image), deployed.forward_features(image)
    assert deployed.feature_strides == model.feature_strides == (4, 8, 16, 32)
    assert deployed.feature_channels == model.feature_channels
    shapes = [(2, c, 96 // s, 64 // s) for c, s in zip(model.feature_channels, model.feature_strides, strict=True)]
    assert [tuple(x.shape) for x in maps] == shapes
    for one, other in zip(deployed_maps, maps, strict=True):
        assert relative(one, other) < 1e-5


@pytest.mark.parametrize("variant", ["m0", "m3"])
@pytest.mark.parametrize("batch", [1, 2])
def test_deploy_graph_is_plain(variant: str, batch: int) -> None:
    program = torch.export.export(deploy(small(variant)), (torch.randn(batch, 3, 64, 64),))
    for node in program.graph.nodes:
        called = str(node.target) if node.op == "call_function" else ""
        assert not any(word in called for word in (*FORBIDDEN, "maximum")), node.format_node()
        if isinstance(value := node.meta.get("val"), Tensor):
            assert value.dim() <= 4, node.format_node()


@pytest.mark.parametrize("target", REWRITES)
@torch.no_grad()
def test_every_targets_graph_agrees(target: str) -> None:
    model, image = small("m0"), torch.randn(2, 3, 64, 64)
    program = torch.export.export(deploy(model), (image,))
    assert relative(rewrite(program, target).module()(image), model(image)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # executorch's own, at import and while lowering
def test_executorch_takes_a_block_whole() -> None:
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    block = deploy(small("m0")).features[4]  # a full one: both kinds of activation
    program = torch.export.export(block, (torch.randn(1, 16, 8, 8),))
    lowered = to_edge_transform_and_lower(rewrite(program, "executorch"), partitioner=[XnnpackPartitioner()])
    calls = [str(n.target) for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    assert len([c for c in calls if "call_delegate" in c]) == 1
    assert [c for c in calls if "call_delegate" not in c and "getitem" not in c] == []


@pytest.mark.parametrize("variant", SPECS)
def test_shifts_are_few_slices_and_pointwise_convolutions_stay_grouped(variant: str) -> None:
    deployed = deploy(small(variant))
    assert all(len(m.ranges) <= 4 for m in deployed.modules() if isinstance(m, Shift))
    rows = family.VARIANTS[variant].rows
    for row, block in zip(rows, list(deployed.features)[1:], strict=True):
        if row.expand_groups and row.compress_groups:
            assert block.expansion.groups == row.expand_groups
            assert block.compress.conv.groups > 1


def test_strict_and_idempotent_names() -> None:
    model, spec = small("m0"), SPECS["m0"]
    state = spec.convert_state(model.state_dict())
    assert spec.convert_state(state).keys() == state.keys()
    assert not any(k.endswith(("num_batches_tracked", "order")) for k in state)
    state["features.1.layers.9.weight"] = state.pop("features.1.layers.4.conv.0.weight")
    with pytest.raises(WeightsMismatch, match=r"layers\.9"):
        load_weights(model, spec.name, spec.convert_state(state), "here")


@torch.no_grad()
def test_other_classes_and_channels() -> None:
    model, image = small("m1", 7, 1), torch.randn(2, 1, 64, 64)
    assert model(image).shape == (2, 7)
    assert relative(deploy(model)(image), model(image)) < 1e-5


@pytest.mark.parametrize("variant", ["m2", "m3"])
def test_every_parameter_learns(variant: str) -> None:
    model = small(variant).train()
    model(torch.randn(4, 3, 64, 64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A shift in front of a batch norm, which takes the mean away, learns nothing.
        if not name.endswith("linear.0.bias"):
            assert parameter.grad.abs().max() > 0, name


def test_initialization() -> None:
    torch.manual_seed(0)
    state = family.MicroNet("m3").state_dict()
    assert state["features.0.stem.0.conv.0.weight"].std().item() == pytest.approx((2 / (3 * 4)) ** 0.5, rel=0.3)
    assert state["features.10.layers.0.conv.0.weight"].std().item() == pytest.approx((2 / 720) ** 0.5, rel=0.05)
    assert state["classifier.2.linear.0.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert state["classifier.2.linear.0.bias"].abs().max() == 0


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (12, 4), (96, 8), (144, 6), (480, 10)])
def test_shuffles_multiply_modulo_the_last_channel(channels: int, groups: int) -> None:
    image = torch.arange(channels).reshape(1, channels, 1, 1)
    both = family.Shuffle(channels // 2)(family.Shuffle(groups)(image))
    assert torch.equal(both, family.Shuffle(groups // 2)(image))
    order = algebra.shuffled(channels, [groups, channels // 2])
    assert torch.equal(both.flatten(), order)
    inner = order[:-1] if groups > 2 else order[:0]
    assert all(int(source) * groups // 2 % (channels - 1) == i for i, source in enumerate(inner))


def test_logits_pass_a_hard_swish(shared: pathlib.Path) -> None:
    assert golden(shared, "micronet", "m0").logits.min() >= -0.375
