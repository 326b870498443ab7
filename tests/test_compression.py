"""Low-rank factors: laws over the zoo's families, the terms that train them, and the command."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekit.compression import LowRankTerms, errors, fuse, low_rank, rank_for
from edgekit.errors import BadInput, WeightsMismatch
from edgekit.graph.capture import capture
from edgekit.graph.repeats import drop_repeats
from edgekit.loading import load
from edgekit.models import ZOO, Features, create_model, deploy, load_weights, read_card
from edgekit.models._low_rank import factored, matrix, pairs
from edgekit.types import ModelRequest
from tests.conftest import Cli
from tests.zoo import randomized, relative

# Each family, and what is left out of the largest: one block of each kind is enough.
FAMILIES: dict[str, tuple[str, ...]] = {
    "lvt": (),
    "slab-deit-tiny": ("blocks.[2-9]*", "blocks.1[01]*"),
    "slab-pvtv2-b0": (),
    "slab-swin-tiny": ("layers.[13].*", "layers.2.blocks.[2-5]*"),
    "tiny-moat-0": (),
    "mobile-former-26m": (),
    "micronet-m0": (),
    "mobilenet-v3-small": (),
}
every_family = pytest.mark.parametrize("name", FAMILIES)
# Their smallest images.
SIDES = {name: -(-64 // ZOO[name].stride) * ZOO[name].stride for name in FAMILIES}


def original(name: str) -> nn.Module:
    return randomized(ZOO[name].build(10, 3, (SIDES[name],) * 2), gain=0.4)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Net(nn.Module):
    """A linear that runs twice, an attention of torch's own, one weight in two places, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(48, 32)
        self.mix, self.attention = nn.Linear(32, 32), nn.MultiheadAttention(32, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.again = self.mlp
        self.one, self.other = nn.Linear(32, 32), nn.Linear(32, 32)
        self.other.weight = self.one.weight
        self.narrow = nn.Linear(32, 8)
        self.head = nn.Linear(8, 40)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
        x = self.mix(self.mix(x).relu())
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.narrow(self.other(self.one(self.again(self.mlp(x))))).mean(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# Laws over the families


@every_family
@torch.no_grad()
def test_the_deploy_form_is_the_train_form_and_as_small(name: str) -> None:
    whole = original(name)
    small = low_rank(whole, 2.0, FAMILIES[name])
    x = torch.randn(2, 3, *(SIDES[name],) * 2)
    deployed = deploy(small)
    assert relative(deployed(x), small(x)) < 1e-5
    for actual, expected in zip(deploy(Features(small))(x), Features(small)(x), strict=True):
        assert relative(actual, expected) < 1e-5
    saved = size(whole) - size(small)
    assert size(deploy(whole)) - size(deployed) >= 0.95 * saved > 0, "deploy() made whole layers of pairs"


@every_family
def test_pairs_have_their_share_of_the_weights_and_the_rest_stays(name: str) -> None:
    whole = original(name)
    small, before = low_rank(whole, 3.0, FAMILIES[name]), dict(whole.named_modules())
    for path, pair in pairs(small).items():
        inputs, outputs, rank = pair.in_features, pair.out_features, pair.rank
        assert matrix(before[path]).shape == (outputs, inputs)
        assert rank == rank_for(inputs, outputs, 3.0) >= 1
        assert rank * (inputs + outputs) <= inputs * outputs / 3 < (rank + 1) * (inputs + outputs)
    state, old = small.state_dict(), whole.state_dict()
    left = [key for key in old if key.rpartition(".")[0] not in pairs(small)]
    assert all(torch.equal(state[key], old[key]) for key in left)
    assert len(state) == len(old) + len(pairs(small))
    assert any("head" in key or "classifier" in key for key in left)


@every_family
@torch.no_grad()
def test_a_weights_file_of_pairs_makes_a_model_of_pairs(name: str, tmp_path: Path) -> None:
    small = low_rank(original(name), 2.0, FAMILIES[name])
    save_file({k: v.contiguous() for k, v in small.state_dict().items()}, tmp_path / "small.safetensors")
    read = create_model(name, num_classes=10, image_size=SIDES[name], weights=tmp_path / "small.safetensors")
    assert {n: p.rank for n, p in pairs(read).items()} == {n: p.rank for n, p in pairs(small).items()}
    x = torch.randn(1, 3, *(SIDES[name],) * 2)
    assert torch.equal(read(x), small(x))


# One layer


LAYERS = {
    "linear": nn.Linear(48, 20),
    "no bias": nn.Linear(20, 48, bias=False),
    "convolution": nn.Conv2d(24, 40, 1),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_pair_is_the_truncated_svd(name: str) -> None:
    """Eckart and Young: what is lost is the tail of the singular values. Each factor has sqrt(S)."""
    layer = LAYERS[name]
    weight = matrix(layer).double()
    values = torch.linalg.svdvals(weight)
    for rank in (1, 7, len(values)):
        pair = factored(layer, rank)
        lost = (weight - matrix(pair).double()).norm()
        assert float(lost) == pytest.approx(float(values[rank:].norm()), abs=1e-5)
        first, second = matrix(pair.first).double(), matrix(pair.second).double()
        for gram in (first @ first.T, second.T @ second):
            assert torch.allclose(gram, values[:rank].diag(), atol=1e-5)
    x = torch.randn(2, 24, 5, 5) if name == "convolution" else torch.randn(3, 4, weight.shape[1])
    assert relative(pair(x), layer(x)) < 1e-5
    assert relative(pair.fused()(x), layer(x)) < 1e-5


def test_layers_of_all_zeros_and_of_rank_one_are_factored() -> None:
    for weight in (torch.zeros(32, 32), torch.ones(32, 1) @ torch.randn(1, 32)):
        model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 10))
        model[0].weight = nn.Parameter(weight)
        small = low_rank(model, 2.0)
        x = torch.randn(4, 32)
        assert torch.allclose(small(x), model(x), atol=1e-5)
        assert torch.allclose(deploy(small)(x), model(x), atol=1e-5)


# A user's own module


@torch.no_grad()
def test_a_module_of_ones_own() -> None:
    model = net()
    small = low_rank(model, 2.0)
    assert set(pairs(small)) == {"mix", "mlp.0", "mlp.2"}
    assert small.again is small.mlp
    assert not pairs(model), "the original was changed"
    assert relative(fuse(small)(image()), small(image())) < 1e-5
    assert fuse(small).state_dict().keys() == model.state_dict().keys()
    program = capture(deploy(small), (image(),))
    assert relative(program.module()(image()), small(image())) < 1e-5
    assert set(pairs(deploy(small))) == set(pairs(small))


def test_skip_names_paths_what_is_below_and_patterns() -> None:
    assert set(pairs(low_rank(net(), 2.0, ["mlp"]))) == {"mix"}
    assert set(pairs(low_rank(net(), 2.0, ["mlp.[0-1]", "mix"]))) == {"mlp.2"}


class Folding(nn.Module):
    """A deploy form that writes into a layer, one that makes two of one, and one that spoils the rank."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.scaled, self.last = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(2 * self.scaled(self.both(x)))

    def deploy(self) -> nn.Module:
        with torch.no_grad():
            self.scaled.weight.mul_(2)
            self.scaled.bias.mul_(2)
        return Folded(self)


class Folded(nn.Module):
    def __init__(self, model: Folding) -> None:
        super().__init__()
        self.scaled, self.last = model.scaled, model.last
        self.halves = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        with torch.no_grad():
            for half, weight, bias in zip(
                self.halves, model.both.weight.split(32), model.both.bias.split(32), strict=True
            ):
                half.weight.copy_(weight)
                half.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scaled(torch.cat([half(x) for half in self.halves], 1)))


@torch.no_grad()
def test_a_deploy_form_may_write_and_split() -> None:
    torch.manual_seed(0)
    small = low_rank(Folding(), 3.0)
    x = torch.randn(3, 32)
    deployed = deploy(small)
    assert relative(deployed(x), small(x)) < 1e-5
    assert {name: pair.rank for name, pair in pairs(deployed).items()} == {"scaled": 10, "halves.0": 7, "halves.1": 7}
    one, other = deployed.halves
    assert one.first is other.first
    program = capture(deployed, (x,))
    merged = drop_repeats(program)
    linears = [sum(n.target is torch.ops.aten.linear.default for n in p.graph.nodes) for p in (program, merged)]
    assert linears == [7, 6]
    assert torch.equal(merged.module()(x), program.module()(x))


@torch.no_grad()
def test_a_pair_that_is_no_smaller_is_deployed_as_one_layer() -> None:
    whole = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 10))
    model = nn.Sequential(factored(whole[0], 16), whole[1])
    load_weights(whole, "net", model.state_dict(), "a file")
    x = torch.randn(2, 32)
    assert torch.equal(whole(x), model(x))
    assert not pairs(deploy(whole))
    assert relative(deploy(whole)(x), model(x)) < 1e-5


# Bad input


@pytest.mark.parametrize("ratio", [1.0, 0.5, -2.0, float("nan"), float("inf")])
def test_a_ratio_is_above_one(ratio: float) -> None:
    with pytest.raises(BadInput, match="above 1"):
        low_rank(net(), ratio)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: create_model("mobilenet-v2", image_size=32), "no linear layer to factor beside its classifier"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), "no linear layer"),
        (lambda: low_rank(net(), 2.0), "pairs of low rank already, as mix"),
    ],
)
def test_what_cannot_be_factored_is_said(model, why: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=why):
        low_rank(model(), 2.0)


def test_a_ratio_that_leaves_no_rank_a_pattern_of_nothing_and_no_numbers() -> None:
    with pytest.raises(BadInput, match="ratio 1000"):
        low_rank(net(), 1000)
    with pytest.raises(BadInput, match="'blocks' names no linear layer"):
        low_rank(net(), 2.0, ["blocks"])
    model = net()
    model.mix.weight.data[0, 0] = torch.nan
    with pytest.raises(BadInput, match="mix hold values that are no numbers"):
        low_rank(model, 2.0)


def test_a_state_whose_pairs_do_not_fit_is_named() -> None:
    state = low_rank(net(), 2.0).state_dict()
    for value in (torch.zeros(8, 31), torch.zeros(20, 32), torch.zeros(0, 32)):
        with pytest.raises(WeightsMismatch, match=r"mix\."):
            load_weights(net(), "net", {**state, "mix.first.weight": value}, "a file")


# The terms that train


def passes(student: nn.Module, teacher: nn.Module, x: Tensor) -> None:
    student(x)
    with torch.no_grad():
        teacher(x)


def test_the_terms_are_the_papers() -> None:
    teacher = net()
    student = low_rank(teacher, 4.0).train()
    found: dict[str, list[Tensor]] = {}
    for model in (student, teacher):
        for name in pairs(student):
            model.get_submodule(name).register_forward_hook(lambda m, a, y, n=name: found.setdefault(n, []).append(y))
    with LowRankTerms(student, teacher, 0.7, 0.3) as terms:
        passes(student, teacher, image())
        loss = terms.loss()
    calls = {"mix": 2, "mlp.0": 2, "mlp.2": 2}
    features = torch.stack(
        [
            ((torch.stack(ys[:n]) - torch.stack(ys[n:])) ** 2).mean()
            for ys, n in zip(found.values(), calls.values(), strict=True)
        ]
    ).mean()
    moved = [(pair.weight - teacher.get_submodule(n).weight).abs().max() - 1e-3 for n, pair in pairs(student).items()]
    expected = 0.7 * features + 0.3 * torch.stack(moved).square().mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for pair in pairs(student).values() for p in (pair.first.weight, pair.second.weight))
    assert all(p.grad is None for p in teacher.parameters())


def test_the_terms_of_what_is_no_other_model_are_zero() -> None:
    teacher = net()
    student = copy.deepcopy(teacher).train()
    student.mix = factored(student.mix, 32)
    terms = LowRankTerms(student, teacher, 1.0, 1.0)
    passes(student, teacher, image())
    assert float(terms.loss().detach()) < 1e-10


def test_hooks_come_off_and_other_passes_leave_nothing() -> None:
    teacher = net()
    student = low_rank(teacher, 2.0)
    terms = LowRankTerms(student, teacher)
    student(image())  # in eval mode
    student.train()
    with torch.no_grad():
        student(image())
    copy.deepcopy(student).eval()(image())
    wrapped = nn.Sequential(student)
    passes(wrapped, teacher, image())
    assert float(terms.loss().detach()) > 0
    with pytest.raises(RuntimeError, match="mix ran 0 times in the student and 0 times"):
        terms.loss()
    passes(wrapped, teacher, image())
    teacher(image())
    with pytest.raises(RuntimeError, match="mix ran 2 times in the student and 4 times"):
        terms.loss()
    passes(wrapped, teacher, image())
    terms.loss()
    terms.close()
    assert not any(m._forward_hooks for model in (student, teacher) for m in model.modules())
    assert all(not p.requires_grad for p in teacher.parameters())


def test_the_terms_are_in_float32_under_autocast() -> None:
    teacher = net()
    student = low_rank(teacher, 2.0).train()
    terms = LowRankTerms(student, teacher, 1.0, 1.0)
    passes(student, teacher, image())
    expected = float(terms.loss().detach())
    with torch.autocast("cpu", torch.bfloat16):
        passes(student, teacher, image())
        loss = terms.loss()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected, rel=0.05)
    loss.backward()
    terms = LowRankTerms(student, teacher, 0.0, 1.0)
    expected = float(terms.loss().detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert float(terms.loss().detach()) == expected


def test_a_teacher_is_the_original() -> None:
    student = low_rank(net(), 2.0)
    other = net()
    other.mix = nn.Linear(32, 31)
    with pytest.raises(BadInput, match="the teacher has no layer mix of 32 to 32"):
        LowRankTerms(student, other)
    with pytest.raises(BadInput, match="no pairs of low rank"):
        LowRankTerms(net(), net())


def test_training_by_the_terms_alone_brings_the_answers_back() -> None:
    teacher = net()
    student = low_rank(teacher, 3.0).train()
    x = torch.randn(32, 3, 8, 8)
    far = relative(student(x), teacher(x))
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    with LowRankTerms(student, teacher) as terms:
        for _ in range(150):
            passes(student, teacher, x)
            optimizer.zero_grad()
            terms.loss().backward()
            optimizer.step()
    assert relative(student(x), teacher(x)) < 0.5 * far


# The command


def test_compress_then_export_a_model_of_the_zoo(cli: Cli, tmp_path: Path) -> None:
    file, name = tmp_path / "small.safetensors", "micronet-m0"
    done = cli("compress", "-m", name, "--num-classes", 10, "--image-size", 32, "-o", file, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    small, whole = create_model(name, weights=file), create_model(name, num_classes=10, image_size=32)
    before, after = record["before"], record["after"]
    assert (before["parameters"], after["parameters"]) == (size(whole), size(small))
    assert all(after[key] < before[key] for key in before)
    assert after["deployed_parameters"] == size(deploy(small))
    assert record["photos"] == 4
    lost = errors(small, whole)
    assert {layer["name"]: layer["error"] for layer in record["layers"]} == pytest.approx(lost, abs=1e-6)
    card = read_card(file)
    assert card is not None
    assert (card.low_rank, card.num_classes, card.image_size) == (2.0, 10, (32, 32))
    exported = cli("export", "-m", name, "-w", file, "-t", "onnx", "--no-compare-speed", "-o", tmp_path / "out")
    assert exported.code == 0, exported.err
    assert "parity      against float" in exported.out


def test_compress_a_module_of_ones_own(cli: Cli, tiny: str, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    asked = ("compress", "-m", tiny, "--imgsz", 64, "-o", file)
    done = cli(*asked)
    assert done.code == 0, done.err
    assert "top-1 agrees on" in done.out
    assert f"Or as it is: edgekit export -m {tiny} --weights {file} -t all" in done.out
    written = file.read_bytes()
    refused = cli(*asked, "--ratio", 3)
    assert (refused.code, f"{file} is there already" in refused.err) == (2, True)
    assert file.read_bytes() == written
    assert cli(*asked, "--ratio", 3, "--force").code == 0
    loaded = load(ModelRequest(model=tiny, weights=str(file), image_size=64))
    ranks = {"attention.qkv": 4, "attention.proj": 2, "mlp.1": 3, "mlp.3": 3}
    assert {name: pair.rank for name, pair in pairs(loaded.module).items()} == ranks
    refused = cli("compress", "-m", tiny, "-w", file, "-o", tmp_path / "smaller.safetensors")
    assert (refused.code, "pairs of low rank already" in refused.err) == (2, True)
    assert not (tmp_path / "smaller.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-m", "lvt", "--ratio", "1", "-o", "x.safetensors"), "above 1"),
        (("-m", "lvt", "-o", "x.pt"), "no name of a safetensors file"),
        (("-m", "x.pt2", "-o", "x.safetensors"), "captured graph"),
        (("-m", "lvtt", "-o", "x.safetensors"), "Did you mean 'lvt'"),
        (("-m", "lvt", "--image-size", "32", "--skip", "nope", "-o", "x.safetensors"), "names no linear layer"),
    ],
)
def test_bad_input_is_said_and_nothing_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("compress", *arguments)
    assert (done.code, why in done.err) == (2, True), done.err
    assert not list(tmp_path.iterdir())
