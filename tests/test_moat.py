"""tiny-MOAT against the published code's numbers, and its deploy form against its train form."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgekit.errors import WeightsMismatch
from edgekit.graph import REWRITES, rewrite
from edgekit.models import load_weights
from edgekit.models import moat as family
from edgekit.models._deploy import deploy
from edgekit.models.moat import MODELS, Moat
from tests.zoo import FORBIDDEN, golden, randomized, relative

RECORDS: dict[str, Callable[[], Moat]] = {
    "tiny_moat_0": partial(Moat, 32, image_size=(224, 224)),
    "tiny_moat_0_256": partial(Moat, 32),
    "tiny_moat_0_pool3": partial(Moat, 32, pool_size=3, image_size=(224, 224)),
    "tiny_moat_0_no_pe": partial(Moat, 32, False, image_size=(224, 224)),
    "tiny_moat_1": partial(Moat, 40, image_size=(224, 224)),
    "tiny_moat_2": partial(Moat, 56, image_size=(224, 224)),
    "tiny_moat_3": partial(Moat, 80, image_size=(224, 224)),
}
KEY_BIAS = "attention.k.bias"  # softmax does not see it
SIZE = (64, 96)


def small(num_classes: int = 10, **options: object) -> Moat:
    """The smallest member at a small size that is not square, every parameter drawn anew."""
    return randomized(Moat(32, num_classes=num_classes, **{"image_size": SIZE, **options}))  # type: ignore[arg-type]


def shallow() -> Moat:
    """`small` with one block a stage, which leaves every kind of block: a stage's first strides and widens."""
    model = small()
    model.stages = nn.Sequential(*(stage[:1] for stage in model.stages))
    return model


@pytest.mark.parametrize("record", RECORDS)
@torch.no_grad()
def test_published_logits(shared: Path, record: str) -> None:
    published = golden(shared, "moat", record)
    model = RECORDS[record]().eval()
    load_weights(model, record, family.convert_state(published.state), "golden")
    assert sum(p.numel() for p in model.parameters()) == published.record["params"]
    assert relative(model(published.image), published.logits) < 2e-5
    assert relative(deploy(model)(published.image), published.logits) < 2e-5


@torch.no_grad()
def test_published_stages(shared: Path) -> None:
    published = golden(shared, "moat", "tiny_moat_0")
    model = RECORDS["tiny_moat_0"]().eval()
    load_weights(model, "tiny-moat-0", family.convert_state(published.state), "golden")
    for i, feature in enumerate(model.forward_features(published.image)):
        tap = published.record["taps"][f"stage{i + 2}"]  # stage1 is the stem
        flat = feature.permute(0, 2, 3, 1).reshape(-1)
        assert [*feature.permute(0, 2, 3, 1).shape] == tap["shape"]
        torch.testing.assert_close(flat[:8], torch.tensor(tap["first8"]), rtol=1e-4, atol=1e-5)
        assert flat.std(correction=0).item() == pytest.approx(tap["std"], rel=1e-5)


@pytest.mark.parametrize("spec", MODELS, ids=lambda s: s.name)
def test_card(spec: family.ModelSpec) -> None:
    with torch.device("meta"):
        model = spec.build(spec.num_classes, 3, spec.input[1:])
        counter = FlopCounterMode(display=False)
        with counter:
            model.eval()(torch.empty(1, *spec.input))
    assert sum(p.numel() for p in model.parameters()) == spec.params
    assert counter.get_total_flops() // 2 == spec.macs
    tables = [n for n, _ in model.named_parameters() if n.endswith("position_table")]
    assert len(tables) == (0 if spec.name.endswith("-nope") else 9)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (64, 96)),
        ({"image_size": (224, 224)}, (224, 224)),
        ({"position_bias": False, "image_size": (32, 32)}, (96, 64)),
        ({"pool_size": 3}, (64, 96)),
        ({"padding": "symmetric"}, (64, 96)),
        ({"padding": "symmetric", "pool_size": 3}, (64, 96)),
        ({"in_channels": 1, "image_size": (32, 32)}, (32, 32)),
    ],
)
@torch.no_grad()
def test_deploy_form_is_the_same_function(options: dict[str, object], size: tuple[int, int], batch: int) -> None:
    model = small(**options)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = torch.randn(batch, model.stem.conv1.in_channels, *size)
    deployed = deploy(model)
    logits, features = model(image), model.forward_features(image)
    assert relative(deployed(image), logits) < 1e-5
    for stride, channels, theirs, ours in zip(
        model.feature_strides, model.feature_channels, features, deployed.forward_features(image), strict=True
    ):
        assert theirs.shape == (batch, channels, size[0] // stride, size[1] // stride)
        assert relative(ours, theirs) < 1e-5
    torch.testing.assert_close(model.head(features[-1]), logits, rtol=0, atol=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "deploy changed the train form"


@torch.no_grad()
def test_every_parameter_but_a_keys_bias_matters() -> None:
    model = shallow()
    image = torch.randn(1, 3, *SIZE)
    deployed = deploy(model)(image)
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter.add_(0.5 * torch.randn_like(parameter))
        moved = relative(model(image), deployed)
        assert (moved < 1e-5) == name.endswith(KEY_BIAS), name
        parameter.copy_(kept)


@pytest.mark.parametrize("options", [{}, {"pool_size": 3}, {"padding": "symmetric"}, {"position_bias": False}])
@pytest.mark.parametrize("batch", [1, 2])
def test_deploy_graph_is_plain(options: dict[str, object], batch: int) -> None:
    program = torch.export.export(deploy(small(**options)), (torch.randn(batch, 3, *SIZE),))
    for node in program.graph.nodes:
        assert not any(word in str(node.target) for word in FORBIDDEN), node.format_node()
        if isinstance(value := node.meta.get("val"), Tensor):
            assert value.dim() <= 4, node.format_node()


@pytest.mark.parametrize("target", REWRITES)
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_every_targets_graph_agrees(target: str, batch: int) -> None:
    model = shallow()
    image = torch.randn(batch, 3, *SIZE)
    program = torch.export.export(deploy(model), (image,))
    assert relative(rewrite(program, target).module()(image), model(image)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # executorch's own, at import and while lowering
def test_executorch_takes_the_graph_whole() -> None:
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(deploy(shallow()), (torch.randn(1, 3, *SIZE),))
    lowered = to_edge_transform_and_lower(rewrite(program, "executorch"), partitioner=[XnnpackPartitioner()])
    calls = [str(n.target) for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    assert len([c for c in calls if "call_delegate" in c]) == 1
    assert [c for c in calls if "call_delegate" not in c and "getitem" not in c] == []


@torch.no_grad()
def test_deploy_form_refuses_maps_that_it_has_no_position_logits_for() -> None:
    deployed = deploy(small())
    with pytest.raises(ValueError, match=r"position logits of 4x6 maps, not of 6x4.*image_size"):
        deployed(torch.zeros(1, 3, 96, 64))


@torch.no_grad()
def test_position_logits_are_read_by_key_minus_query() -> None:
    attention = family.Attention(64, 7)
    assert attention.position_table is not None
    nn.init.normal_(attention.position_table)
    logits = attention.position_logits(7, 7)
    assert logits.shape == (2, 49, 49)
    query, key = (2, 5), (6, 1)
    found = logits[1, query[0] * 7 + query[1], key[0] * 7 + key[1]]
    assert found == attention.position_table[1, 6 - 2 + 6, 1 - 5 + 6]
    assert attention.position_logits(3, 8).shape == (2, 24, 24)


def test_training_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = small(survival=0.9).train()
    model(torch.randn(4, 3, *SIZE)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_stochastic_depth_grows_over_the_blocks_and_keeps_the_mean() -> None:
    model = small(survival=0.3)
    rates = [m.survival for m in model.modules() if isinstance(m, family.DropPath)]
    assert rates[:2] == pytest.approx([1, 1 - 0.7 / 14])
    assert rates[-2:] == pytest.approx([1 - 0.7 * 13 / 14] * 2)  # one for the convolution, one for attention
    torch.manual_seed(0)
    drop, ones = family.DropPath(0.25), torch.ones(4000, 2, 3, 3)
    kept = drop.train()(ones)
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert (kept.flatten(1).std(1) == 0).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(drop.eval()(ones), ones)


def test_initialization_is_seeded_and_as_published() -> None:
    torch.manual_seed(1)
    first = Moat(32).state_dict()
    torch.manual_seed(1)
    second = Moat(32).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    for name in ("stages.2.1.attention.position_table", "stages.2.1.mbconv.expansion.weight", "head.classifier.weight"):
        assert first[name].std().item() == pytest.approx(0.02, rel=0.05)
    assert first["stages.0.0.squeeze_excite.reduction.bias"].abs().max() == 0
    assert (first["stages.0.0.pre_norm.weight"] == 1).all()


def test_converter_is_strict_and_idempotent(shared: Path) -> None:
    published = golden(shared, "moat", "tiny_moat_0").state
    ours = family.convert_state(published)
    again = family.convert_state(ours)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[k], v) for k, v in ours.items())
    for name, other in (
        ("moat/block_02_00/attention/q/weight", "moat/block_02_00/attention/query/weight"),
        ("moat/stem/conv_0/kernel", "conv_0/kernel"),
        ("moat/block_00_00/pre_norm/gamma", "moat/block_00_00/pre_norm/Adam"),
    ):
        renamed = {other if k == name else k: v for k, v in published.items()}
        with pytest.raises(WeightsMismatch) as caught:
            load_weights(Moat(32), "tiny-moat-0", family.convert_state(renamed), "renamed")
        assert caught.value.unexpected == [other]
    misshapen = published | {"moat/stem/conv_0/kernel": torch.zeros(3, 32)}
    with pytest.raises(WeightsMismatch):
        load_weights(Moat(32), "tiny-moat-0", family.convert_state(misshapen), "misshapen")


def test_converter_takes_averages_only_where_there_is_nothing_else(shared: Path) -> None:
    published = golden(shared, "moat", "tiny_moat_0").state
    plain = family.convert_state(published)
    averages = {f"{k}/ExponentialMovingAverage": v for k, v in published.items()}
    step = {"global_step": torch.tensor(1)}
    for state in ({**{k: v + 1 for k, v in averages.items()}, **published, **step}, averages):
        converted = family.convert_state(state)
        assert converted.keys() == plain.keys()
        assert all(torch.equal(converted[k], v) for k, v in plain.items())


def test_sizes_and_options_are_refused_with_what_is_possible() -> None:
    with pytest.raises(ValueError, match="divisible by 32"):
        Moat(32)(torch.zeros(1, 3, 100, 64))
    with pytest.raises(ValueError, match="divisible by 32"):
        Moat(32, image_size=(100, 64))
    with pytest.raises(ValueError, match="pool_size"):
        Moat(32, pool_size=4)
    with pytest.raises(ValueError, match="symmetric"):
        Moat(32, padding="valid")
