"""SLAB's Swin backbones against the published code's numbers, and their deploy form against their train form."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import WeightsMismatch
from edgekit.graph import REWRITES, rewrite
from edgekit.models import load_weights
from edgekit.models._deploy import deploy
from edgekit.models.slab import swin as family
from edgekit.models.slab import windows
from edgekit.models.slab.attention import SimplifiedLinearAttention
from edgekit.models.slab.prepbn import PRepBN, RepBN, set_schedule
from tests.zoo import FORBIDDEN, golden, randomized, relative

RECORDS = {"slab-swin-tiny": "swin_tiny", "swin-tiny-prepbn": "swin_tiny_prepbn"}
SPECS = {spec.name: spec for spec in family.MODELS}
BUILDERS: dict[str, Callable[..., nn.Module]] = {name: spec.build for name, spec in SPECS.items()}


def random_model(name: str, size: tuple[int, int], classes: int = 10) -> nn.Module:
    """A model whose every table, weight and statistic matters.

    No norm rescales its activations: with a larger gain they grow until softmax is a maximum, which no rounding leaves
    as it is.
    """
    model = randomized(BUILDERS[name](classes, 3, size), gain=0.4)
    for module in model.modules():
        if isinstance(module, RepBN):
            nn.init.uniform_(module.alpha, 0.8, 1.2)
        elif isinstance(module, windows.WindowAttention):
            nn.init.normal_(module.relative_position_bias_table)
        elif isinstance(module, SimplifiedLinearAttention):
            nn.init.normal_(module.positional_encoding)
    return model


@pytest.mark.parametrize("name", RECORDS)
@torch.no_grad()
def test_published_logits(shared: Path, name: str) -> None:
    spec, expected = SPECS[name], golden(shared, "slab", RECORDS[name])
    model = spec.build(1000, 3, (224, 224)).eval()
    load_weights(model, name, spec.convert_state(expected.state), "golden")
    assert sum(p.numel() for p in model.parameters()) == spec.params == expected.record["params"]
    assert relative(model(expected.image), expected.logits) < 2e-5
    assert relative(deploy(model)(expected.image), expected.logits) < 2e-5
    maps = model.forward_features(expected.image)
    tokens = maps[-1].flatten(2).transpose(1, 2)
    recorded = expected.record["taps"]["layers.3"]
    assert list(tokens.shape) == recorded["shape"]
    assert torch.allclose(tokens.flatten()[:8], torch.tensor(recorded["first8"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(("size", "batch"), [((64, 64), 3), ((96, 64), 1), ((224, 64), 2), ((128, 160), 1)])
@torch.no_grad()
def test_deploy_form_is_the_same_function(name: str, batch: int, size: tuple[int, int]) -> None:
    model, image = random_model(name, size), torch.randn(batch, 3, *size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    deployed = deploy(model)
    assert relative(deployed(image), model(image)) < 1e-5
    for ours, theirs in zip(deployed.forward_features(image), model.forward_features(image), strict=True):
        assert relative(ours, theirs) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "deploy changed the train form"
    kinds = (nn.LayerNorm, nn.BatchNorm1d, RepBN, PRepBN)
    assert not any(isinstance(m, kinds) for m in deployed.modules()), "a norm is left"


@pytest.mark.parametrize("name", RECORDS)
@torch.no_grad()
def test_features_are_the_stages_outputs(name: str) -> None:
    model = random_model(name, (96, 64))
    image = torch.randn(2, 3, 96, 64)
    maps = model.forward_features(image)
    assert model.feature_strides == deploy(model).feature_strides == (4, 8, 16, 32)
    assert model.feature_channels == deploy(model).feature_channels == (96, 192, 384, 768)
    assert [tuple(m.shape) for m in maps] == [(2, 96 * 2**i, 24 >> i, 16 >> i) for i in range(4)]
    first, last = model.layers[0], maps[-1].flatten(2).transpose(1, 2)
    assert torch.equal(maps[0].flatten(2).transpose(1, 2), first.blocks(model.patch_embed(image)))
    assert torch.equal(model(image), model.head(model.norm(last).mean(1)))


def test_classes_channels_and_image_size() -> None:
    model = family.swin_tiny_prepbn(7, 1, (32, 64)).eval()
    assert model(torch.randn(2, 1, 32, 64)).shape == (2, 7)
    with pytest.raises(ValueError, match="built for images"):
        model(torch.randn(1, 1, 64, 32))
    with pytest.raises(ValueError, match="divisible by 32"):
        family.slab_swin_tiny(image_size=(112, 112))


@pytest.mark.parametrize(("image", "side"), [(224, 7), (448, 7), (384, 12), (256, 8), (64, 2), (416, 13), (640, 10)])
def test_windows_divide_every_map(image: int, side: int) -> None:
    assert windows.window_side(image // 32) == side
    assert all((image // stride) % side == 0 for stride in (4, 8, 16, 32))


@pytest.mark.parametrize(("resolution", "window"), [((6, 8), (2, 4)), ((4, 9), (4, 3)), ((6, 6), (3, 3))])
@torch.no_grad()
def test_shifted_windows_are_attention_between_pixels_of_one_region(
    resolution: tuple[int, int], window: tuple[int, int]
) -> None:
    """Against attention over the whole map that leaves out every pair which is not in one moved window."""
    torch.manual_seed(0)
    shift = windows.window_shift(resolution, window)
    block = windows.WindowBlock(64, resolution, window, shift, RepBN, 0.0).eval()
    nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(2, resolution[0] * resolution[1], 64)
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in resolution), indexing="ij")
    pixels = torch.stack([rows.flatten(), columns.flatten()], 1)
    cells = (pixels - torch.tensor(shift)).div(torch.tensor(window), rounding_mode="floor")
    together = (cells[:, None] == cells[None]).all(-1)
    offsets = pixels[:, None] - pixels[None] + torch.tensor(window) - 1
    index = (offsets[..., 0] * (2 * window[1] - 1) + offsets[..., 1]).where(together, torch.tensor(0))
    bias = block.attn.relative_position_bias_table[index].permute(2, 0, 1)
    q, k, v = (t.unflatten(2, (2, 32)).transpose(1, 2) for t in block.attn.qkv(x).chunk(3, -1))
    logits = (q @ k.mT * 32**-0.5 + bias).masked_fill(~together, -torch.inf)
    expected = block.attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert relative(block.attend(x), expected) < 1e-6


@pytest.mark.parametrize("name", RECORDS)
def test_state_is_read_strictly(name: str) -> None:
    spec, model = SPECS[name], BUILDERS[name](10, 3, (32, 32))
    state = model.state_dict()
    published = state | {
        "layers.2.blocks.1.attn_mask": torch.zeros(4, 49, 49),
        "layers.2.blocks.1.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long),
    }
    converted = spec.convert_state(published)
    load_weights(model, name, converted, "state")
    again = spec.convert_state(converted)
    assert again.keys() == converted.keys() == state.keys()
    assert all(torch.equal(again[k], converted[k]) for k in again)
    renamed = {k.replace("layers.3.blocks.1.mlp.fc1", "layers.3.blocks.1.mlp.fc0"): v for k, v in published.items()}
    with pytest.raises(WeightsMismatch, match="fc0"):
        load_weights(model, name, spec.convert_state(renamed), "state")


@torch.no_grad()
def test_norm_pairs_and_plain_norms_are_read_by_both() -> None:
    """Each model's state, with the norms of the other kind, gives the same function as the state itself."""
    image = torch.randn(1, 3, 32, 32)
    plain = random_model("swin-tiny-prepbn", (32, 32))
    pairs = SPECS["slab-swin-tiny"].convert_state(plain.state_dict())
    assert {"norm.norm1.weight", "layers.3.blocks.1.norm2.norm2.bn.bias", "norm.total_step"} <= pairs.keys()
    model = family.Swin(0, PRepBN, 10, image_size=(32, 32)).eval()
    load_weights(model, "pairs", pairs, "state")
    assert torch.equal(model(image), plain(image))
    back = SPECS["swin-tiny-prepbn"].convert_state(pairs)
    assert back.keys() == plain.state_dict().keys()
    load_weights(plain, "plain", back, "state")
    assert torch.equal(model(image), plain(image))


@torch.no_grad()
def test_tables_are_fitted_to_another_image_size() -> None:
    spec = SPECS["slab-swin-tiny"]
    state = random_model("slab-swin-tiny", (64, 64)).state_dict()
    table, keys = "layers.2.blocks.1.attn.relative_position_bias_table", "layers.1.blocks.0.attn.positional_encoding"
    wide = BUILDERS["slab-swin-tiny"](10, 3, (64, 96))
    assert spec.fit_state is not None
    fitted = spec.fit_state(state, wide)
    load_weights(wide, spec.name, fitted, "state")
    expected = nn.functional.interpolate(state[table].T.reshape(1, -1, 3, 3), (3, 5), mode="bicubic")
    assert torch.allclose(fitted[table], expected.flatten(2)[0].T)
    assert fitted[keys].shape == (1, 8 * 12, 192)
    same = spec.fit_state(state, BUILDERS["slab-swin-tiny"](10, 3, (64, 64)))
    assert all(torch.equal(same[k], state[k]) for k in state)


@pytest.mark.parametrize("name", RECORDS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = random_model(name, (64, 64)).train()
    set_schedule(model, 4)
    for module in model.modules():
        if isinstance(module, PRepBN):
            module.iter.fill_(2)  # LayerNorm and RepBN take part
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        assert float(parameter.grad.abs().max()) > 0, key


def test_branches_are_left_out_in_training_only() -> None:
    torch.manual_seed(0)
    block = windows.LinearBlock(32, (2, 2), RepBN, drop=0.25)
    ones = torch.ones(400, 4, 32)
    kept = block.kept(ones)
    assert kept.flatten(1).amin(1).equal(kept.flatten(1).amax(1)), "a branch is left out for a whole image"
    assert sorted(kept.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.1)
    assert block.eval().kept(ones) is ones
    everything = windows.LinearBlock(32, (2, 2), RepBN, drop=1 - 1e-9).train()
    assert torch.equal(everything(ones), ones)
    drops = [b.drop for stage in family.swin_tiny_prepbn(10).layers for b in stage.blocks]
    assert drops == pytest.approx([0.2 * i / 11 for i in range(12)])


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_deploy_graph_is_plain(name: str, batch: int) -> None:
    program = torch.export.export(deploy(BUILDERS[name](10, 3, (64, 64))), (torch.randn(batch, 3, 64, 64),))
    for node in program.graph.nodes:
        assert not any(word in str(node.target) for word in FORBIDDEN), node.format_node()
        if isinstance(value := node.meta.get("val"), Tensor):
            assert value.dim() <= 4, node.format_node()


@pytest.mark.parametrize("target", REWRITES)
@torch.no_grad()
def test_every_targets_graph_agrees(target: str) -> None:
    model, image = random_model("slab-swin-tiny", (64, 64)), torch.randn(2, 3, 64, 64)
    program = torch.export.export(deploy(model), (image,))
    assert relative(rewrite(program, target).module()(image), model(image)) < 1e-5


def test_initialization_is_seeded() -> None:
    torch.manual_seed(1)
    first = family.swin_tiny_prepbn(10, image_size=(32, 32)).state_dict()
    torch.manual_seed(1)
    second = family.swin_tiny_prepbn(10, image_size=(32, 32)).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert first["layers.3.blocks.0.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert first["head.bias"].abs().max() == 0
