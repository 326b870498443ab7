"""LVT against the published code's numbers, and its deploy form against its train form."""

import importlib.util
import json
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekit.graph import REWRITES, rewrite
from edgekit.models import lvt as family
from edgekit.models._deploy import deploy

BUILDERS: dict[str, Callable[..., nn.Module]] = {"lvt_cls": family.lvt, "lvt": family.lvt_gap}
# Gathers, scatters and windows: what the deploy form is there to avoid.
FORBIDDEN = ("im2col", "col2im", "gather", "index", "scatter", "unfold", "einsum", "expand", "roll")


def relative(result: Tensor, reference: Tensor) -> float:
    """The largest relative L2 error over the samples of a batch."""
    difference = (result - reference).flatten(1).norm(dim=1)
    return float((difference / reference.flatten(1).norm(dim=1)).max())


def golden(shared: pathlib.Path, record: str) -> tuple[dict[str, Any], dict[str, Tensor], Tensor, Tensor]:
    """Record, published state, input and the reference's logits."""
    spec = importlib.util.spec_from_file_location("golden_weights", shared / "golden" / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    rule: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    rec = json.loads((shared / "golden" / "lvt" / f"{record}.json").read_text())
    state = rule.weights(rec["state"], rec["gain"])
    assert rule.checksum(state.values()) == rec["crc32"]["weights"]
    logits = torch.tensor(rec["output"]["values"]).reshape(rec["output"]["shape"])
    image = torch.from_numpy(rule.example_input(rec["input"]))
    return rec, {k: torch.from_numpy(v) for k, v in state.items()}, image, logits


def randomized(build: Callable[..., nn.Module], classes: int) -> nn.Module:
    """A model whose every parameter matters: the initialization has zero biases and tiny linears."""
    torch.manual_seed(0)
    model = build(classes)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 0
            parameter.copy_(torch.randn_like(parameter) * (1.2 / fan_in**0.5 if fan_in else 0.1))
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1.0)
    return model.eval()


@pytest.mark.parametrize("record", BUILDERS)
@torch.no_grad()
def test_published_logits(shared: pathlib.Path, record: str) -> None:
    rec, state, image, logits = golden(shared, record)
    model = BUILDERS[record]().eval()
    model.load_state_dict(family.convert_state({f"module.{k}": v for k, v in state.items()}), strict=True)
    assert sum(p.numel() for p in model.parameters()) == rec["params"]
    assert relative(model(image), logits) < 2e-5
    assert relative(deploy(model)(image), logits) < 2e-5


@pytest.mark.parametrize(("record", "params"), [("lvt_cls", 5_521_844), ("lvt", 3_686_604)])
def test_parameter_counts(record: str, params: int) -> None:
    assert sum(p.numel() for p in BUILDERS[record]().parameters()) == params


@pytest.mark.parametrize("record", BUILDERS)
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (96, 64)])
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_deploy_form_is_the_same_function(record: str, batch: int, size: tuple[int, int]) -> None:
    model = randomized(BUILDERS[record], 10)
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
    model = randomized(family.lvt, 10)
    image = torch.randn(2, 3, 64, 64)
    program = torch.export.export(deploy(model), (image,))
    assert relative(rewrite(program, target).module()(image), model(image)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # executorch's own, at import and while lowering
def test_executorch_takes_the_graph_whole() -> None:
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(deploy(family.lvt(10)), (torch.randn(1, 3, 64, 64),))
    lowered = to_edge_transform_and_lower(rewrite(program, "executorch"), partitioner=[XnnpackPartitioner()])
    calls = [str(n.target) for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    assert len([c for c in calls if "call_delegate" in c]) == 1
    assert [c for c in calls if "call_delegate" not in c and "getitem" not in c] == []


def test_initialization_is_seeded_and_as_published() -> None:
    torch.manual_seed(1)
    first = family.lvt(10).state_dict()
    torch.manual_seed(1)
    second = family.lvt(10).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert first["backbone.0.1.0.attn.weight.weight"].std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.05)
    assert first["backbone.1.1.0.attn.sr.weight"].std().item() == pytest.approx((2 / (16 * 64)) ** 0.5, rel=0.05)
    assert first["backbone.1.1.0.attn.ds.weight"].abs().max().item() <= (6 / 9) ** 0.5
    assert first["head.bias"].abs().max() == 0


def test_image_size_must_be_divisible_by_32() -> None:
    with pytest.raises(ValueError, match="divisible by 32"):
        family.lvt_gap(10)(torch.zeros(1, 3, 100, 64))


def test_state_with_two_entries_for_one_name_is_refused() -> None:
    with pytest.raises(ValueError, match="two entries"):
        family.convert_state({"norm.bias": torch.zeros(1), "module.norm.bias": torch.zeros(1)})
