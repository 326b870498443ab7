"""LVT against the published code's numbers, and its deploy form against its train form."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.graph import REWRITES, rewrite
from edgekit.models import lvt as family
from edgekit.models._deploy import deploy
from tests.zoo import FORBIDDEN, golden, randomized, relative

BUILDERS: dict[str, Callable[..., nn.Module]] = {"lvt_cls": family.Lvt, "lvt": family.LvtGap}


@pytest.mark.parametrize("record", BUILDERS)
@torch.no_grad()
def test_published_logits(shared: Path, record: str) -> None:
    published = golden(shared, "lvt", record)
    model = BUILDERS[record]().eval()
    model.load_state_dict(family.convert_state({f"module.{k}": v for k, v in published.state.items()}), strict=True)
    assert sum(p.numel() for p in model.parameters()) == published.record["params"]
    assert relative(model(published.image), published.logits) < 2e-5
    assert relative(deploy(model)(published.image), published.logits) < 2e-5


@pytest.mark.parametrize(("record", "params"), [("lvt_cls", 5_521_844), ("lvt", 3_686_604)])
def test_parameter_counts(record: str, params: int) -> None:
    assert sum(p.numel() for p in BUILDERS[record]().parameters()) == params


@pytest.mark.parametrize("record", BUILDERS)
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (96, 64)])
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_deploy_form_is_the_same_function(record: str, batch: int, size: tuple[int, int]) -> None:
    model = randomized(BUILDERS[record](10))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = torch.randn(batch, 3, *size)
    deployed = deploy(model)
    assert relative(deployed(image), model(image)) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "deploy changed the train form"


@pytest.mark.parametrize("record", BUILDERS)
@pytest.mark.parametrize("batch", [1, 2])
def test_deploy_graph_is_plain(record: str, batch: int) -> None:
    program = torch.export.export(deploy(BUILDERS[record](10)), (torch.randn(batch, 3, 64, 64),))
    for node in program.graph.nodes:
        assert not any(word in str(node.target) for word in FORBIDDEN), node.format_node()
        if isinstance(value := node.meta.get("val"), Tensor):
            assert value.dim() <= 4, node.format_node()


@pytest.mark.parametrize("target", REWRITES)
@torch.no_grad()
def test_every_targets_graph_agrees(target: str) -> None:
    model = randomized(family.Lvt(10))
    image = torch.randn(2, 3, 64, 64)
    program = torch.export.export(deploy(model), (image,))
    assert relative(rewrite(program, target).module()(image), model(image)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # executorch's own, at import and while lowering
def test_executorch_takes_the_graph_whole() -> None:
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(deploy(family.Lvt(10)), (torch.randn(1, 3, 64, 64),))
    lowered = to_edge_transform_and_lower(rewrite(program, "executorch"), partitioner=[XnnpackPartitioner()])
    calls = [str(n.target) for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    assert len([c for c in calls if "call_delegate" in c]) == 1
    assert [c for c in calls if "call_delegate" not in c and "getitem" not in c] == []


def test_initialization_is_seeded_and_as_published() -> None:
    torch.manual_seed(1)
    first = family.Lvt(10).state_dict()
    torch.manual_seed(1)
    second = family.Lvt(10).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert first["backbone.0.1.0.attn.weight.weight"].std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.05)
    assert first["backbone.1.1.0.attn.sr.weight"].std().item() == pytest.approx((2 / (16 * 64)) ** 0.5, rel=0.05)
    assert first["backbone.1.1.0.attn.ds.weight"].abs().max().item() <= (6 / 9) ** 0.5
    assert first["head.bias"].abs().max() == 0


def test_image_size_must_be_divisible_by_32() -> None:
    with pytest.raises(ValueError, match="divisible by 32"):
        family.LvtGap(10)(torch.zeros(1, 3, 100, 64))


def test_state_with_two_entries_for_one_name_is_refused() -> None:
    with pytest.raises(ValueError, match="two entries"):
        family.convert_state({"norm.bias": torch.zeros(1), "module.norm.bias": torch.zeros(1)})
