"""Risk without labels: the number is right, a model that synthetic calibration harms is named, a good one is not."""

import copy
import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgekit.data import apply, open_images
from edgekit.data_free import calibrate_without_data, calls
from edgekit.data_free.explain import contact_sheet, explained, plot
from edgekit.data_free.held_out import collages, stock_photos
from edgekit.data_free.layer_errors import disagreement, errors, grids
from edgekit.data_free.priors import prior_images
from edgekit.data_free.risk import assess
from edgekit.data_free.stored import EMPTY, described, norm_fits, norm_inventory, train_form
from edgekit.data_free.verdict import (
    CLIPPED,
    DISPUTED,
    FEW_STEPS,
    KL,
    KL_OTHERS,
    MISFIT,
    ROUGH_WEIGHTS_DB,
    SCALE,
    SQNR_DB,
    judged,
    with_reasons,
)
from edgekit.graph.capture import capture
from edgekit.loading import Loaded, load
from edgekit.models import deploy
from edgekit.programs import read_quantized
from edgekit.quantization import Simulation, prepare, quantize
from edgekit.quantization.ranges import Range
from edgekit.types import (
    Agreement,
    Calibration,
    ModelRequest,
    NormFit,
    Preprocess,
    QuantizationOptions,
    Quantized,
    Risk,
    TensorRisk,
)
from tests.conftest import Cli

TRAINED = {
    "resnet20-cifar": "resnet20_cifar10.safetensors",
    "mobilenet-v1-025": "mobilenetv1_025_imagenet.safetensors",
}


@pytest.fixture(scope="module")
def trained(shared: Path) -> dict[str, Loaded]:
    return {n: load(ModelRequest(model=n, weights=str(shared / "data" / w))) for n, w in TRAINED.items()}


def norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}


def shifted(loaded: Loaded, index: int, deviations: float, times: float, compensated: bool) -> tuple[str, Loaded]:
    """`loaded` with other stored statistics in one norm; the function stays the same where that is compensated."""
    module = copy.deepcopy(loaded.module)
    name, norm = list(norms(module).items())[index]
    with torch.no_grad():
        before = (norm.running_var + norm.eps).sqrt()
        norm.running_mean += deviations * before
        norm.running_var *= times
        if compensated:
            norm.bias += deviations * norm.weight
            norm.weight *= (norm.running_var + norm.eps).sqrt() / before
    return name, replace(loaded, module=module)


def images(loaded: Loaded, kind: str = "dead_leaves", count: int = 8) -> Tensor:
    _, *shape = loaded.inputs[0].shape
    return prior_images(kind, count, (shape[0], shape[1], shape[2]), loaded.preprocess, 5)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", ["dead_leaves", "pink", "noise"])
def test_trained_statistics_fit_whatever_the_images(trained: dict[str, Loaded], name: str, kind: str) -> None:
    loaded = trained[name]
    fits = norm_fits(train_form(loaded), calls(loaded, images(loaded, kind)))
    assert [f.name for f in fits] == list(norms(loaded.module))
    assert max(f.mean for f in fits) < MISFIT[0]
    assert max(max(f.scale, 1 / f.scale) for f in fits) < SCALE[0]


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize(("deviations", "times"), [(3, 1), (0, 25)])
@pytest.mark.parametrize("index", [0, 9, 18])
def test_a_shifted_norm_is_found(
    trained: dict[str, Loaded], index: int, deviations: float, times: float, compensated: bool
) -> None:
    name, loaded = shifted(trained["resnet20-cifar"], index, deviations, times, compensated)
    fit = {f.name: f for f in norm_fits(train_form(loaded), calls(loaded, images(loaded)))}[name]
    if deviations:
        assert fit.mean > MISFIT[1]
    else:
        assert fit.scale == pytest.approx(times**-0.5, rel=0.5)
        assert max(fit.scale, 1 / fit.scale) > SCALE[1]


def test_norms_that_stored_nothing_are_not_judged() -> None:
    loaded = load(ModelRequest(model="mobilenet-v2", image_size=64))
    form = train_form(loaded)
    assert norm_inventory(form) == {EMPTY: len(norms(loaded.module))}
    assert norm_fits(form, calls(loaded, images(loaded))) == ()
    assert described(loaded, prepare(loaded.program), loaded.inputs) == set()


class Branches(nn.Module):
    """One tensor of each kind: described by stored statistics, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(2))
        self.plain = nn.Conv2d(8, 8, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        for norm in (self.norm1, self.norm2):
            nn.init.normal_(norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.relu(self.norm1(self.first(x))) + self.norm2(self.second(x))
        return self.head((torch.relu(both) + self.plain(both)).mean((2, 3)))


def test_what_stored_statistics_describe() -> None:
    torch.manual_seed(0)
    loaded = load(ModelRequest(model="branches", image_size=16), Branches())
    prepared = prepare(loaded.program)
    known = described(loaded, prepared, loaded.inputs)
    convolutions = [n for n in prepared.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    first, second, plain = ((n, next(iter(n.users))) for n in convolutions)
    # relu(first), second, their sum and its relu; not: the convolution without a norm, and all behind it.
    (both,) = second[0].users
    relu = next(n for n in both.users if n is not plain[0])
    expected = {first[0], first[1], second[0], both, relu}
    assert known == {n.name for n in expected}
    assert plain[0].name not in known


def quantized_pair() -> tuple[Loaded, list[tuple[Tensor, ...]]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 144, 5))
    loaded = load(ModelRequest(model="plain", image_size=16), net)
    return loaded, [(torch.randn(1, 3, 16, 16),) for _ in range(6)]


@pytest.mark.usefixtures("all_pays")
def test_errors_are_those_of_the_two_programs() -> None:
    loaded, samples = quantized_pair()
    prepared, int8 = prepare(loaded.program), quantize(loaded.program, samples)
    tensors, answers = errors(prepared, int8, samples)
    with torch.no_grad():
        a, b = (torch.cat([program.module()(*s) for s in samples]) for program in (loaded.program, int8))
    assert answers.rows == 6
    assert answers.same == int((a.argmax(1) == b.argmax(1)).sum())
    assert answers.noise == pytest.approx(float((a - b).square().sum()), rel=0.05)
    assert answers.nats / 6 == pytest.approx(
        float(nn.functional.kl_div(b.log_softmax(1), a.log_softmax(1), log_target=True, reduction="batchmean")), rel=0.1
    )
    (first,) = [g for g in grids(int8) if g.layer == "input"]
    x = torch.cat([s[0] for s in samples])
    on_grid = ((x / first.scale).round() + first.zero_point).clamp(-128, 127)
    noise = ((on_grid - first.zero_point) * first.scale - x).square().sum()
    assert tensors[first.tensor].own == pytest.approx(float(noise), rel=1e-3)
    # Errors add up on the way.
    assert [tensors[g.tensor].sqnr_db for g in grids(int8)] == sorted(
        (tensors[g.tensor].sqnr_db for g in grids(int8)), reverse=True
    )


@pytest.mark.usefixtures("all_pays")
@pytest.mark.parametrize(("times", "clipped", "few"), [(1, False, False), (8, True, False), (1 / 64, False, True)])
def test_ranges_that_do_not_fit_are_seen(times: float, clipped: bool, few: bool) -> None:
    loaded, samples = quantized_pair()
    int8 = quantize(loaded.program, samples, QuantizationOptions(range_estimator="minmax"))
    tensors, _ = errors(prepare(loaded.program), int8, [(s[0] * times,) for s in samples])
    (first,) = [g for g in grids(int8) if g.layer == "input"]
    seen = tensors[first.tensor]
    x = torch.cat([s[0] for s in samples]) * times
    assert seen.saturation == pytest.approx(
        float(((x > first.range.high) | (x < first.range.low)).float().mean()), abs=2e-3
    )
    assert (seen.saturation > CLIPPED) == clipped
    assert (first.steps_of(seen.bulk) < FEW_STEPS) == few


def test_disagreement() -> None:
    assert disagreement([Range(-1, 1), Range(0, 5)]) == 2.5
    assert disagreement([Range(0, 1)]) == 1
    assert disagreement([Range(0, 1), Range(0, 0)]) == 1000


def test_stock_photos_and_collages() -> None:
    loaded = load(ModelRequest(model="mobilenet-v2", image_size=64))
    crops = stock_photos(loaded, 6, 3)
    assert crops is not None
    assert crops.shape == (6, 3, 64, 64)
    assert len({x.numpy().tobytes() for x in crops}) == 6
    assert torch.equal(crops, stock_photos(loaded, 6, 3))  # type: ignore[arg-type]
    quarters = collages(crops)
    assert torch.equal(quarters[2, :, :32, :32], crops[2, :, :32, :32])
    assert torch.equal(quarters[2, :, 32:, 32:], crops[5, :, 32:, 32:])


TENSOR = TensorRisk(
    layer="conv", tensor="conv2d", range=(0, 1), ranges={"analytic": (0, 1), "images": (0, 0.9)}, disagreement=1.1,
    prior_spread=1.2, saturation=0.001, steps=200, own_db=40.0, sqnr_db=30.0, weight_db=40.0, stored=True,
)  # fmt: skip
NEAR = Agreement(family="images", relation="in-family", images=16, top1=1.0, kl=0.01, sqnr_db=30.0)
FAR = Agreement(family="dead leaves", relation="cross-family", images=16, top1=0.9, kl=0.1, sqnr_db=20.0)
FIT = NormFit(name="bn", mean=0.1, scale=1.1, channel=0.3)
GOOD = Risk(
    level="", reasons=(), advice="", agreements=(NEAR, FAR), stored_share=1.0, norms={"batch norm": 1},
    norm_fits=(FIT,), tensors=(TENSOR,), worst=(),
)  # fmt: skip


def beyond(limits: tuple[float, float], made: Callable[[float], Risk]) -> list[tuple[str, Risk]]:
    """What is a little worse than each of two limits, with the level that it should have."""
    step = 0.01 if limits[1] > limits[0] else -1
    return [(level, made(limit + step)) for level, limit in zip(("raised", "high"), limits, strict=True)]


@pytest.mark.parametrize(
    ("level", "risk"),
    [
        ("low", GOOD),
        ("raised", replace(GOOD, norm_fits=())),
        *beyond(MISFIT, lambda x: replace(GOOD, norm_fits=(FIT, replace(FIT, mean=x)))),
        *beyond(SCALE, lambda x: replace(GOOD, norm_fits=(replace(FIT, scale=1 / x),))),
        *beyond(KL, lambda x: replace(GOOD, agreements=(replace(NEAR, kl=x), FAR))),
        *beyond(KL_OTHERS, lambda x: replace(GOOD, agreements=(NEAR, replace(FAR, kl=x)))),
        *beyond(SQNR_DB, lambda x: replace(GOOD, agreements=(replace(NEAR, kl=None, top1=None, sqnr_db=x),))),
        ("raised", replace(GOOD, trusted=False, norm_fits=(replace(FIT, mean=MISFIT[1] + 1),))),
        ("raised", replace(GOOD, tensors=(TENSOR, replace(TENSOR, disagreement=DISPUTED + 0.1)))),
        ("raised", replace(GOOD, tensors=(TENSOR, replace(TENSOR, prior_spread=DISPUTED + 0.1, stored=False)))),
    ],
)
def test_each_limit_decides(level: str, risk: Risk) -> None:
    found = judged(risk)
    assert found.level == level
    assert len(found.reasons) == 1
    assert found.verdict == f"{level} risk: {found.reasons[0]}"
    assert "--calibration PATH" in found.advice
    assert found.accuracy == "not measured"


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("clipped", {"saturation": CLIPPED + 0.01}),
        ("estimators disagree", {"disagreement": DISPUTED + 0.1}),
        ("families of images disagree", {"prior_spread": DISPUTED + 0.1}),
        ("too wide", {"steps": FEW_STEPS - 1}),
        ("weights round badly", {"weight_db": ROUGH_WEIGHTS_DB - 1}),
    ],
)
def test_what_is_wrong_is_named_and_comes_first(word: str, change: dict[str, float]) -> None:
    bad = with_reasons(replace(TENSOR, tensor="bad", own_db=50.0, **change))  # type: ignore[arg-type]
    assert len(bad.why) == 1
    assert word in bad.why[0]
    assert judged(replace(GOOD, tensors=(TENSOR, bad))).worst[0] == "bad"
    assert any(word in line for line in explained(judged(replace(GOOD, tensors=(TENSOR, bad)))))


@dataclass(frozen=True)
class Case:
    """A model in int8, by photos and without: its share of the float model's answers, and the risk."""

    loaded: Loaded
    by_photos: float
    without: float
    risk: Risk


def in_int8(loaded: Loaded, program: torch.export.ExportedProgram) -> Loaded:
    record = Calibration(kind="synthetic", source="analytic", samples=32)
    quantized = Quantized(
        scheme="int8", name=loaded.name, request=loaded.request, weights=loaded.weights, calibration=record,
        options=QuantizationOptions(), preprocess=loaded.preprocess,
    )  # fmt: skip
    return replace(loaded, program=program, module=Simulation(program), quantized=quantized)


def case(loaded: Loaded, data: Path) -> Case:
    assert loaded.preprocess is not None
    found = itertools.islice(open_images(data), 96)
    photos = calls(loaded, torch.stack([torch.from_numpy(apply(loaded.preprocess, i.pixels)) for i in found]))
    free = calibrate_without_data(loaded, "analytic")
    by_photos = quantize(loaded.program, photos[:32])
    without = quantize(loaded.program, free.samples, stand_in=free.stand_in, at_least=free.at_least)
    with torch.no_grad():
        classes = [
            np.array([int(p.module()(*x).argmax()) for x in photos[32:]]) for p in (loaded.program, by_photos, without)
        ]
    same = [float((classes[0] == c).mean()) for c in classes[1:]]
    return Case(loaded, *same, assess(loaded, in_int8(loaded, without), free))


@pytest.fixture(scope="module")
def good(shared: Path, trained: dict[str, Loaded]) -> Case:
    return case(trained["resnet20-cifar"], shared / "data" / "cifar10_test.npz")


def odd(trained: dict[str, Loaded]) -> Loaded:
    """The same function, with another stored mean in the first norm."""
    _, loaded = shifted(trained["resnet20-cifar"], 0, -10, 1, compensated=True)
    return replace(loaded, program=capture(deploy(loaded.module), loaded.inputs))


@pytest.fixture(scope="module")
def bad(shared: Path, trained: dict[str, Loaded]) -> Case:
    """Calibrated with what it has stored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.data_free.analytic.TRUSTED", math.inf)
        return case(odd(trained), shared / "data" / "cifar10_test.npz")


@pytest.fixture(scope="module")
def distrusted(shared: Path, trained: dict[str, Loaded]) -> Case:
    """Calibrated as edgekit does."""
    return case(odd(trained), shared / "data" / "cifar10_test.npz")


def test_a_model_that_synthetic_calibration_suits_passes(good: Case) -> None:
    assert good.by_photos > 0.9
    assert good.without > 0.9
    assert good.risk.level == "low"
    assert good.risk.stored_share == 1
    relations = [a.relation for a in good.risk.agreements]
    assert relations[0] == "in-family"
    assert "cross-family" in relations


def test_a_model_that_it_breaks_is_named_with_the_reason(bad: Case) -> None:
    assert bad.by_photos > 0.9
    assert bad.without < 0.7
    assert bad.risk.level == "high"
    assert "bn1 stores a mean" in bad.risk.reasons[0]
    worst = {t.tensor: t for t in bad.risk.tensors}[bad.risk.worst[0]]
    assert worst.layer == "conv1"
    assert worst.why[0].startswith("clipped")


def test_statistics_that_do_not_fit_are_not_used_and_that_is_said(distrusted: Case) -> None:
    assert distrusted.without > 0.9
    assert distrusted.risk.level == "raised"
    assert "do not fit the weights and were not used: bn1" in distrusted.risk.reasons[0]


def test_the_plot_and_the_contact_sheet_are_pictures(bad: Case) -> None:
    with Image.open(io.BytesIO(plot(bad.risk, "bad"))) as picture:
        assert min(picture.size) > 400
    preprocess = Preprocess(resize=4, crop=(4, 4))
    pixels = torch.randint(0, 256, (9, 3, 4, 4)).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    with Image.open(io.BytesIO(contact_sheet((pixels * preprocess.scale - mean) / std, preprocess))) as sheet:
        shown = np.asarray(sheet)
    # Eight to a row, each pixel 24 wide, four between; the ninth begins the second row.
    assert (shown[22 + 12 : 22 + 96 : 24, 4 + 12 : 4 + 96 : 24] == pixels[0].permute(1, 2, 0).numpy()).all()
    assert (shown[122 + 12 : 122 + 96 : 24, 4 + 12 : 4 + 96 : 24] == pixels[8].permute(1, 2, 0).numpy()).all()


@pytest.mark.usefixtures("all_pays")
def test_the_command_says_what_it_does_not_know(cli: Cli, tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "net.pt2"
    command = ("quantize", "-m", tiny, "--image-size", "32", "--data-free=analytic", "-o", out)
    result = cli(*command, "--explain")
    assert result.code == 0, result.err
    assert "accuracy on real data: not measured" in result.out
    assert "  risk        raised: stored statistics do not fit the weights and were not used" in result.out
    for text in ("in-family", "cross-family", "stored", "worst layers"):
        assert text in result.out
    files = [tmp_path / f"net.{end}" for end in ("data-free.json", "data-free.png", "images.png")]
    assert all(str(f) in result.out and f.stat().st_size for f in files)
    stored = read_quantized(out)
    assert stored is not None
    risk = stored[0].risk
    assert risk is not None
    assert json.loads(files[0].read_text())["level"] == risk.level == "raised"
    assert any(risk.verdict in note and "not measured" in note for note in stored[0].notes)


def test_explain_is_for_what_has_no_data(cli: Cli, tiny: str, tmp_path: Path) -> None:
    result = cli("quantize", "-m", tiny, "--calibration", tmp_path, "--explain", "-o", tmp_path / "net.pt2")
    assert result.code == 2
    assert "Add --data-free" in result.err
