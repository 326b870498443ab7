"""Int8 without data: priors, stored statistics, images made to fit them, stand-ins, rounding, and the command."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit import data_free
from edgekit.data_free import DATA_FREE, calibrate_without_data, chosen
from edgekit.data_free.analytic import recalibrated, stand_in
from edgekit.data_free.heads import head_ranges
from edgekit.data_free.matching import StoredMoments
from edgekit.data_free.priors import PRIORS, bounds, prior_images, to_inputs, to_pixels
from edgekit.data_free.synthesis import SynthesisOptions, synthesize
from edgekit.errors import BadInput, EnvironmentProblem, UnknownName
from edgekit.loading import Loaded, load
from edgekit.quantization import prepare, quantize, ranges_of
from edgekit.quantization.rounding import ROUNDINGS
from edgekit.types import ModelRequest, Preprocess, QuantizationOptions
from tests.conftest import Cli
from tests.test_quantization import realistic, sqnr
from tests.zoo import randomized

SIZE = 32
PREPROCESS = Preprocess(resize=SIZE, crop=(SIZE, SIZE))
SHAPE = (3, SIZE, SIZE)


class Small(nn.Module):
    """Convolutions with batch norms, a mean, a linear: what is stored, and what lies behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x).mean((2, 3)))
        return result


class Tokens(nn.Module):
    """Layer norms alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.stem(x).flatten(2).mT).mean(1))
        return result


def photos(count: int, seed: int = 5) -> Tensor:
    return prior_images("dead_leaves", count, SHAPE, PREPROCESS, seed)


def loaded_of(module: nn.Module, batch: int = 1) -> Loaded:
    request = ModelRequest(model="own", image_size=SIZE, batch_size=batch)
    return load(request, module)


@pytest.fixture(scope="module")
def small() -> Loaded:
    return loaded_of(realistic(Small(), photos(16)))


@pytest.mark.parametrize("kind", PRIORS)
def test_priors_are_photos_of_nothing(kind: str) -> None:
    images = prior_images(kind, 4, SHAPE, PREPROCESS, 0)
    low, high = bounds(PREPROCESS)
    assert images.shape == (4, *SHAPE)
    assert bool((images >= low - 1e-5).all())
    assert bool((images <= high + 1e-5).all())
    assert torch.equal(images, prior_images(kind, 4, SHAPE, PREPROCESS, 0))
    assert not torch.equal(images, prior_images(kind, 4, SHAPE, PREPROCESS, 1))
    assert torch.allclose(to_inputs(to_pixels(images, PREPROCESS), PREPROCESS), images, atol=1e-4)
    assert prior_images(kind, 1, (1, 8, 6), None, 0).shape == (1, 1, 8, 6)


def test_what_photos_have_and_noise_has_not() -> None:
    """Neighbours are alike, and colours pale."""
    for kind in PRIORS:
        images = prior_images(kind, 8, SHAPE, PREPROCESS, 0)
        near = float(images.diff(dim=-1).std() / (images[..., 16:] - images[..., :-16]).std())
        assert (near < 0.8) == (kind != "noise")


def test_unknown_prior() -> None:
    with pytest.raises(UnknownName):
        prior_images("fractal", 1, SHAPE, PREPROCESS, 0)


def test_moments_are_those_of_what_enters() -> None:
    module, images = randomized(Small()), photos(6)
    with torch.no_grad(), StoredMoments(module) as seen:
        module(images)
    assert list(seen.layers) == ["body.1", "body.4"]
    x = module.body[0](images).detach()
    mean, var = seen.layers["body.1"].moments()
    assert torch.allclose(mean, x.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(var, x.var((0, 2, 3), correction=0), atol=1e-5)
    # Stored as they are seen, nothing is off.
    for name, layer in seen.layers.items():
        norm = module.get_submodule(name)
        norm.running_mean.copy_(layer.moments()[0])  # type: ignore[operator, union-attr]
        norm.running_var.copy_(layer.moments()[1])  # type: ignore[operator, union-attr]
        break
    with torch.no_grad(), StoredMoments(module) as seen:
        module(images)
    assert seen.misfits()["body.1"] < 1e-8


def test_moments_of_parts_add_up_and_programs_have_them_too(small: Loaded) -> None:
    images = photos(4)
    with torch.no_grad(), StoredMoments(small.module) as whole:
        small.module(images)
    program = small.program.module()
    with torch.no_grad(), StoredMoments(program) as parts:
        for image in images.split(1):
            program(image)
    assert list(parts.layers) == list(whole.layers)
    assert torch.allclose(parts.loss(), whole.loss(), rtol=1e-4)


def test_images_are_made_to_fit(small: Loaded) -> None:
    options = SynthesisOptions(count=8, batch=8, steps=40, prior="noise", classes=0.0)
    before = {n: t.clone() for n, t in small.module.state_dict().items()}
    made = synthesize(small, options)
    again = synthesize(small, options)
    assert torch.equal(made.images, again.images)
    assert made.images.shape == (8, *SHAPE)
    assert made.labels is not None
    assert len(made.labels.unique()) == 8
    assert made.curve[-1] < 0.8 * made.curve[0]
    assert set(made.misfit) == {"body.1", "body.4"}
    low, high = bounds(PREPROCESS)
    assert bool(((made.images >= low - 1e-5) & (made.images <= high + 1e-5)).all())
    # Nothing is left in the model.
    assert all(torch.equal(before[n], t) for n, t in small.module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in small.module.parameters())
    assert not any(m._forward_pre_hooks for m in small.module.modules())


def test_every_part_of_the_loss_has_a_gradient() -> None:
    torch.manual_seed(0)
    loaded = loaded_of(Tokens().eval())
    nothing = SynthesisOptions(count=4, batch=4, steps=1, matching=0.0, classes=0.0)
    curves = set()
    for options in (
        SynthesisOptions(count=4, batch=4, steps=20, matching=0.0, classes=0.0, diversity=1.0),
        SynthesisOptions(count=4, batch=4, steps=20, matching=0.0, classes=0.0, consistency=1.0),
        SynthesisOptions(count=4, batch=4, steps=20, matching=0.0, classes=0.0, variation=1.0),
        SynthesisOptions(count=4, batch=4, steps=20, matching=0.0, low_pass=1.0),
    ):
        made = synthesize(loaded, options)
        assert min(made.curve[1:]) < made.curve[0]
        curves.add(made.curve)
    assert len(curves) == 4
    with pytest.raises(BadInput, match="every weight"):
        synthesize(loaded, nothing)


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_devices(small: Loaded, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        assert synthesize(small, SynthesisOptions(count=2, steps=2, device="cuda")).images.device.type == "cpu"
        return
    with pytest.raises(BadInput if device == "tpu" else EnvironmentProblem, match=device):
        calibrate_without_data(small, "images", device=device)


def test_a_stand_in_has_the_stored_statistics_on_any_images(small: Loaded) -> None:
    """Mean b and deviation |g| behind each batch norm, though the images are white noise."""
    samples = [(x[None],) for x in prior_images("noise", 8, SHAPE, PREPROCESS, 1)]
    found = stand_in(small, samples)
    assert found is not None
    assert found.is_trusted
    assert set(recalibrated(small.program, samples)) >= {"body.1.running_mean", "body.4.running_var"}
    assert [n.name for n in prepare(found.program).graph.nodes] == [n.name for n in prepare(small.program).graph.nodes]
    outputs: list[Tensor] = []
    interpreted = torch.fx.Interpreter(found.program.module())
    run = interpreted.call_function

    def see(target: object, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> object:
        value = run(target, args, kwargs)  # type: ignore[arg-type]
        if target is torch.ops.aten.batch_norm.default:
            outputs.append(value)
        return value

    interpreted.call_function = see  # type: ignore[method-assign, assignment]
    for sample in samples:
        interpreted.run(*sample)
    for place, name in enumerate(("body.1", "body.4")):
        norm = small.module.get_submodule(name)
        y = torch.cat(outputs[place::2]).detach()
        assert torch.allclose(y.mean((0, 2, 3)), norm.bias, atol=1e-3)  # type: ignore[arg-type]
        assert torch.allclose(y.std((0, 2, 3)), norm.weight.abs(), rtol=2e-2)  # type: ignore[operator, union-attr]


def test_statistics_of_other_weights_are_not_trusted() -> None:
    module = Small()
    for norm in (module.body[1], module.body[4]):
        norm.running_mean.fill_(3.0)  # type: ignore[union-attr, operator]
        norm.running_var.fill_(0.01)  # type: ignore[union-attr, operator]
    made = calibrate_without_data(loaded_of(module.eval()), "analytic")
    assert made.stand_in is None
    assert "not of these weights" in made.notes[0]


def test_no_statistics() -> None:
    made = calibrate_without_data(loaded_of(Tokens().eval()), "analytic")
    assert made.stand_in is None
    assert "no statistics" in made.notes[0]


def test_a_head_is_run_on_single_places(small: Loaded) -> None:
    samples = [(x[None],) for x in photos(8)]
    heads = head_ranges(small.program, samples, "minmax")
    whole = ranges_of(small.program, samples, QuantizationOptions(range_estimator="minmax"))
    assert heads
    assert all(heads[n].span > whole[n].span for n in heads if n in whole and "mean" in n)


@pytest.mark.parametrize("method", DATA_FREE)
def test_int8_without_data_is_as_good_as_with(small: Loaded, method: str) -> None:
    made = calibrate_without_data(small, method)
    assert made.record.kind == "synthetic"
    assert made.record.source == method
    assert made.record.samples == len(made.images)
    options = QuantizationOptions(rounding="balanced")
    ours = quantize(small.program, made.samples, options, stand_in=made.stand_in, at_least=made.at_least)
    real = quantize(small.program, [(x[None],) for x in photos(32)])
    tests = photos(16, seed=9)
    with torch.no_grad():
        float32, with_data, without = (
            torch.cat([p.module()(x) for x in tests.split(1)]) for p in (small.program, real, ours)
        )
    assert sqnr(without, float32) > sqnr(with_data, float32) - 3


def test_images_that_do_not_come_to_fit_are_not_used(small: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_free, "UNFIT", 0.0)
    made = calibrate_without_data(small, "images")
    assert made.record.source == "analytic"
    assert made.stand_in is not None
    assert "no images could be made that fit" in made.notes[0]


def test_where_estimates_disagree_the_wider_is_taken(small: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_free, "DISAGREE", 1.01)
    made = calibrate_without_data(small, "images")
    assert made.disputed
    assert set(made.estimates) == set(DATA_FREE)
    for name in made.disputed:
        spans = [e[name].span for e in made.estimates.values()]
        assert max(spans) > 1.01 * min(spans)
        assert made.at_least[name].span >= max(spans)


def test_a_stand_in_of_another_program_is_refused(small: Loaded) -> None:
    samples = [(x[None],) for x in photos(2)]
    with pytest.raises(BadInput, match="another program"):
        quantize(small.program, samples, stand_in=loaded_of(Tokens().eval()).program)
    with pytest.raises(BadInput, match="--equalize"):
        quantize(small.program, samples, QuantizationOptions(equalize=True), stand_in=small.program)


def test_the_choice_of_images_follows_from_the_size(small: Loaded) -> None:
    assert chosen(small) == chosen(small)
    assert chosen(small).count == 64
    assert chosen(small, trusted=False).matching == 0


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (16, 1, 3, 3), (8, 32), (8, 32, 1, 1), (4, 1, 1, 1)])
def test_balanced_rounding_cancels_its_sums(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scales = weight.flatten(1).abs().amax(1) / 127
    steps = weight / scales.reshape(-1, *[1] * (weight.dim() - 1))
    q = ROUNDINGS["balanced"](weight, scales)
    error = (q - steps).reshape(shape[0], shape[1], -1)
    assert q.dtype == torch.int8
    assert int(q.abs().max()) <= 127
    assert float(error.abs().max()) < 1 + 1e-4
    if weight[0].numel() > 1:
        assert float(error.sum((1, 2)).abs().max()) <= 0.5 + 1e-3
    assert float(error.sum(2).abs().max()) <= 1.5 + 1e-3
    assert not torch.equal(q, ROUNDINGS["nearest"](weight, scales)) or weight[0].numel() == 1


CONFLICT = ("--data-free", "--calibration", "photos")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (CONFLICT, "both say what to calibrate with"),
        (("--data-free=magic",), "magic"),
        (("--data-free", "--device", "tpu"), "tpu"),
        (("--device", "cuda"), "--data-free"),
    ],
)
def test_what_the_command_refuses(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    result = cli("quantize", "-m", "resnet20-cifar", "-o", tmp_path / "m.pt2", *arguments)
    assert result.code == 2
    assert text in result.err


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    """An option without a value does not take the next one, and what was done is on record."""
    out = tmp_path / "m.pt2"
    result = cli("quantize", "-m", "micronet-m0", "--image-size", "32", "--data-free=analytic", "-o", out, "--json")
    assert result.code == 0, result.err
    said = json.loads(result.out)
    assert said["calibration"]["kind"] == "synthetic"
    assert said["calibration"]["source"] == "analytic"
    assert said["options"]["rounding"] == "balanced"
