"""Accuracy and what it lost: batches, samples, pairs, and what cannot be read."""

import json
import math
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import edgekit
from edgekit.data import open_images, spread
from edgekit.data.images import Image
from edgekit.errors import BadInput
from edgekit.evaluation import answers
from edgekit.evaluation.answers import answers_of, in_torch
from edgekit.evaluation.statistics import paired_interval, wilson
from edgekit.loading import load
from edgekit.prediction import Classifier, classifier
from edgekit.types import ModelRequest, Preprocess
from tests.conftest import Cli

MODELS = """
import torch
from torch import nn


class Colours(nn.Module):
    '''Four classes by the strongest of red, green, blue, or none; a shift moves the border.'''

    def __init__(self, shift=0.0):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.cat([torch.eye(3), torch.zeros(1, 3)])[..., None, None])
            self.head.bias.copy_(torch.tensor([shift, 0.0, 0.0, 0.3]))

    def forward(self, x):
        return self.head(x).mean((-2, -1))


class One(Colours):
    '''Its batch is written into it.'''

    def forward(self, x):
        return super().forward(x.reshape(1, 3, 16, 16))


class Mixed(Colours):
    '''Each image's scores depend on the others of its batch.'''

    def forward(self, x):
        return super().forward(x - x.mean(0))


class Blind(Colours):
    '''No scores for dark images.'''

    def forward(self, x):
        return super().forward(x) + torch.log(x.amax((1, 2, 3)) - 0.2)[:, None]


def plain(): return Colours()
def shifted(): return Colours(0.25)
def maps(): return nn.Conv2d(3, 4, 1)
def five(): return nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
SIZE, NUMBER = 16, 60
OPTIONS = ("--mean", "0,0,0", "--std", "1,1,1")
STATISTICS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "colours.py"
    path.write_text(MODELS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Plain colours: the models' answers can be counted by hand."""
    flat = np.random.default_rng(0).integers(0, 256, (NUMBER, 1, 1, 3)).astype(np.uint8)
    return flat.repeat(SIZE, 1).repeat(SIZE, 2)


def by_hand(pixels: np.ndarray, shift: float) -> np.ndarray:
    colours = pixels[:, 0, 0] / 255 + np.array([shift, 0, 0])
    return np.concatenate([colours, np.full((len(pixels), 1), 0.3)], 1).argmax(1)


@pytest.fixture(scope="module")
def data(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled by the plain model, every seventh image wrongly."""
    path = tmp_path_factory.mktemp("data") / "set.npz"
    truth = by_hand(pixels, 0)
    truth[::7] = (truth[::7] + 1) % 4
    np.savez(path, images=pixels, labels=truth, classes=np.array(["red", "green", "blue", "none"]))
    return path


@pytest.fixture(scope="module")
def programs(code: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain.pt2`, `shifted.pt2` and `int8.pt2`, the plain one with activations on an int8 grid of four levels."""
    import torch.ao.quantization.fx._decomposed  # registers the ops

    folder = tmp_path_factory.mktemp("programs")
    image = torch.rand(1, 3, SIZE, SIZE)
    for name in ("plain", "shifted"):
        program = load(ModelRequest(model=f"{code}:{name}", image_size=SIZE)).program
        torch.export.save(program, folder / f"{name}.pt2")

    class Quantized(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = load(ModelRequest(model=f"{code}:plain", image_size=SIZE)).module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grid = (1 / 3, 0, -128, 127, torch.int8)
            ops = torch.ops.quantized_decomposed
            return self.plain(ops.dequantize_per_tensor.default(ops.quantize_per_tensor.default(x, *grid), *grid))

    torch.export.save(torch.export.export(Quantized(), (image,)), folder / "int8.pt2")
    return folder


# ------------------------------------------------------------------------------------------ what it cost


def test_drop_and_classes_are_those_counted_by_hand(code: Path, data: Path, pixels: np.ndarray) -> None:
    truth = np.load(data)["labels"]
    result = edgekit.evaluate(f"{code}:shifted", data, against=f"{code}:plain", **STATISTICS)
    plain, shifted = by_hand(pixels, 0), by_hand(pixels, 0.25)
    assert (plain != shifted).sum() >= 5
    assert result.n == NUMBER
    assert result.top1 == pytest.approx(100 * (shifted == truth).mean())
    assert result.top5 == 100
    assert result.reference_top1 == pytest.approx(100 * (plain == truth).mean())
    assert result.drop == pytest.approx(100 * ((plain == truth).mean() - (shifted == truth).mean()))
    assert result.drop_ci95
    assert result.drop_ci95[0] < result.drop < result.drop_ci95[1]
    assert result.agreement == pytest.approx(100 * (plain == shifted).mean())
    assert result.against == f"{code}:plain"
    assert [c.label for c in result.per_class] == ["red", "green", "blue", "none"]
    assert sum(c.n for c in result.per_class) == NUMBER
    for c in result.per_class:
        here = truth == c.index
        assert c.n == here.sum()
        assert c.top1 == pytest.approx(100 * (shifted == truth)[here].mean())
        assert c.reference_top1 == pytest.approx(100 * (plain == truth)[here].mean())
        assert c.drop == pytest.approx(c.reference_top1 - c.top1)


def test_an_artifact_is_compared_with_its_float_model(code: Path, data: Path, tmp_path: Path) -> None:
    (artifact,) = edgekit.export(
        f"{code}:shifted", "onnx", image_size=SIZE, batch_size=4, out=tmp_path, labels=None, **STATISTICS
    )
    result = edgekit.evaluate(artifact, data, model=f"{code}:shifted")
    float_one = edgekit.evaluate(f"{code}:shifted", data, **STATISTICS)
    assert (result.against, result.agreement, result.drop) == ("float", 100, 0)
    assert result.batch_size == 4
    assert "ONNX Runtime" in result.runtime
    assert (result.top1, result.n) == (float_one.top1, NUMBER), "a batch mixed images up"
    assert (float_one.agreement, float_one.drop, float_one.against, float_one.drop_ci95) == (None,) * 4
    assert all(c.drop is None for c in float_one.per_class)
    against = edgekit.evaluate(artifact, data, against=f"{code}:plain", **STATISTICS)
    assert against.drop
    assert against.drop > 0
    alone = edgekit.evaluate(artifact, data)
    assert alone.agreement is None
    assert "Python code" in alone.notes[-1]
    assert "--model" in alone.notes[-1]


def test_a_quantized_program_runs_as_a_float_one(programs: Path, data: Path, pixels: np.ndarray) -> None:
    result = edgekit.evaluate(programs / "int8.pt2", data, against=programs / "plain.pt2", **STATISTICS)
    coarse = np.rint(pixels / 255 * 3) / 3
    truth = np.load(data)["labels"]
    assert result.top1 == pytest.approx(100 * (by_hand(coarse * 255, 0) == truth).mean())
    assert result.drop
    assert result.drop > 5


def test_the_terminal_tells_what_was_lost(cli: Cli, code: Path, data: Path) -> None:
    result = cli("evaluate", f"{code}:shifted", "--data", data, "--against", f"{code}:plain", *OPTIONS)
    assert (result.code, result.err) == (0, "")
    first, drop, lost, speed = result.out.splitlines()
    assert first.startswith("top-1 ")
    assert f"agreement with {code}:plain" in first
    assert drop.startswith("  drop        ")
    assert lost.startswith("  lost most   ")
    assert "→" in lost
    assert speed.endswith(f"without preprocessing · {NUMBER} images · torch")
    same = cli("evaluate", f"{code}:plain", "--data", data, "--against", f"{code}:plain", *OPTIONS).out
    assert "drop        0.00 points" in same
    assert "lost most" not in same


def test_other_preprocessing_is_said_aloud(cli: Cli, code: Path, data: Path, tmp_path: Path) -> None:
    (artifact,) = edgekit.export(f"{code}:plain", "onnx", image_size=SIZE, out=tmp_path)
    result = cli("evaluate", f"{code}:plain", "--data", data, "--against", artifact.path, *OPTIONS)
    assert result.code == 0
    assert "prepare photos differently: " in result.err
    assert "mean (0.0, 0.0, 0.0) and (0.485, 0.456, 0.406)" in result.err


# ------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize(("model", "size"), [("plain", 32), ("One", 1), ("Mixed", 1)])
def test_torch_gets_a_batch_only_where_it_changes_nothing(code: Path, data: Path, model: str, size: int) -> None:
    loaded = load(ModelRequest(model=f"{code}:{model}", image_size=SIZE, **STATISTICS))
    assert loaded.preprocess
    judge = in_torch(loaded, NUMBER)
    assert judge.batch_size == size
    images = open_images(data)
    found = answers_of(images, range(NUMBER), [judge], None).ranked[0][:, 0]
    alone = [
        loaded.module(torch.from_numpy(edgekit.data.apply(loaded.preprocess, i.pixels))[None]).argmax() for i in images
    ]
    assert found.tolist() == alone


def test_each_image_is_read_and_prepared_once(
    code: Path, data: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[int] = Counter()
    prepared: list[Preprocess] = []
    images, apply = open_images(data), answers.apply

    class Counted:
        classes, labels = images.classes, images.labels

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> Image:
            reads[index] += 1
            return images[index]

        def __iter__(self) -> Iterator[Image]:
            return (self[i] for i in range(len(self)))

    def counted(preprocess: Preprocess, photo: Pillow.Image) -> np.ndarray:
        prepared.append(preprocess)
        return apply(preprocess, photo)

    monkeypatch.setattr(answers, "apply", counted)
    judges = [
        in_torch(load(ModelRequest(model=model, image_size=size)), NUMBER)
        for model, size in ((f"{code}:plain", SIZE), (str(programs / "shifted.pt2"), None))
    ]
    result = answers_of(Counted(), range(NUMBER), judges, None)
    assert reads == Counter(range(NUMBER))
    assert len(prepared) == NUMBER
    assert [len(r) for r in result.ranked] == [NUMBER, NUMBER]


def test_speed_is_that_of_the_runtime_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(answers, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class Slow:
        classes, labels = (), [0] * 30

        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> Image:
            clock[0] += 0.02
            return Image(Pillow.new("RGB", (8, 8)), 0, str(index))

        def __iter__(self) -> Iterator[Image]:
            return (self[i] for i in range(30))

    def run(batch: np.ndarray) -> np.ndarray:
        clock[0] += 0.005
        return np.zeros((len(batch), 3), np.float32)

    judge = Classifier(preprocess=Preprocess(resize=8, crop=(8, 8)), batch_size=2, classes=3, runtime="", run=run)
    steps: list[tuple[str, int, int]] = []
    result = answers_of(Slow(), range(30), [judge], lambda *step: steps.append(step))
    assert result.images_per_second == pytest.approx(400)  # with reading it would be 44
    assert steps[-1] == ("evaluating", 30, 30)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


# ------------------------------------------------------------------------------------------ which images


def test_a_sample_has_every_class_by_its_share() -> None:
    labels = [0] * 500 + [1] * 300 + [2] * 200
    for seed in range(5):
        sample = spread(labels, 50, seed)
        assert len(set(sample)) == 50
        assert list(sample) == sorted(sample)
        counts = Counter(labels[i] for i in sample)
        assert all(abs(counts[c] - share) <= 1 for c, share in ((0, 25), (1, 15), (2, 10)))
    assert spread(labels, 50) == spread(labels, 50, 0) != spread(labels, 50, 1)
    assert spread(labels, 1000) == spread(labels, 5000) == tuple(range(1000))
    many = [c for c in range(100) for _ in range(8)]
    assert len({many[i] for i in spread(many, 40)}) == 40
    assert len(set(spread([None] * 10, 4))) == 4


def test_a_sample_favours_no_image() -> None:
    labels = [0] * 7 + [1] * 5
    drawn = Counter(i for seed in range(4000) for i in spread(labels, 3, seed))
    assert all(drawn[i] / 4000 == pytest.approx(3 / 12, abs=0.035) for i in range(12))


def test_a_limit_does_not_stop_at_the_first_classes(cli: Cli, code: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    truth = by_hand(pixels, 0)
    order = np.argsort(truth, kind="stable")
    np.savez(tmp_path / "sorted.npz", images=pixels[order], labels=truth[order])
    command = ("evaluate", f"{code}:plain", "--data", tmp_path / "sorted.npz", "--limit", "16", "--json", *OPTIONS)
    first, second = (json.loads(cli(*command).out) for _ in range(2))
    assert first["n"] == 16
    assert [c["index"] for c in first["per_class"]] == sorted(set(truth.tolist()))
    assert first["per_class"] == second["per_class"]


def folder_of(tmp_path: Path, good: int) -> Path:
    for label in ("red", "green", "blue", "none"):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "broken.png").write_text("no image", encoding="utf-8")
        for n in range(good):
            Pillow.new("RGB", (20, 20), label if label != "none" else "black").save(
                tmp_path / "set" / label / f"{n}.png"
            )
    return tmp_path / "set"


def test_what_cannot_be_read_is_left_out_and_named(cli: Cli, code: Path, tmp_path: Path) -> None:
    result = cli("evaluate", f"{code}:plain", "--data", folder_of(tmp_path, 2), "--json", *OPTIONS)
    assert result.code == 0
    document = json.loads(result.out)
    assert (document["n"], document["unreadable"]) == (8, 4)
    assert "note: 4 of 12 images are left out: " in result.err
    assert "broken.png is not an image" in result.err
    assert [c["label"] for c in document["per_class"]] == ["blue", "green", "none", "red"]


def test_nothing_that_can_be_read_is_an_error(cli: Cli, code: Path, tmp_path: Path) -> None:
    result = cli("evaluate", f"{code}:plain", "--data", folder_of(tmp_path, 0), *OPTIONS)
    assert result.code == 2
    assert "not one of 4 images can be read" in result.err


def test_classes_go_by_name_and_otherwise_by_number_said_aloud(cli: Cli, code: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 2)
    for broken in folder.rglob("broken.png"):
        broken.unlink()
    for names, top1, said in (("red\ngreen\nblue\nnone", 100.0, False), ("a\nb\nc\nd", 25.0, True)):
        (tmp_path / "labels.txt").write_text(names, encoding="utf-8")
        (artifact,) = edgekit.export(
            f"{code}:plain",
            "onnx",
            image_size=SIZE,
            labels=tmp_path / "labels.txt",
            out=tmp_path / "out",
            force=True,
            **STATISTICS,
        )
        result = cli("evaluate", artifact.path, "--data", folder, "--json", "-m", f"{code}:plain")
        assert json.loads(result.out)["top1"] == top1
        assert ("matched by number" in result.err) == said


def test_scores_that_are_no_numbers_are_wrong_and_said(code: Path, tmp_path: Path) -> None:
    images = np.zeros((4, SIZE, SIZE, 3), np.uint8)
    images[:2, ..., 0] = 255
    np.savez(tmp_path / "set.npz", images=images, labels=np.array([0, 0, 0, 0]))
    result = edgekit.evaluate(f"{code}:Blind", tmp_path / "set.npz", against=f"{code}:Blind", **STATISTICS)
    assert (result.top1, result.top5, result.agreement) == (50, 50, 50)
    assert any("2 images are no numbers" in note for note in result.notes)


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{code}:plain --data {data} --limit 0", "--limit is at least 1, not 0"),
        ("{code}:plain --data {data} --against {code}:five", "has 4 classes"),
        ("{code}:plain --data {data} --against {code}:plain -m {code}:plain", "--against and --model"),
        ("{code}:plain --data {data} -m {code}:plain", "is a model itself"),
        ("{code}:maps --data {data}", "not a row of class scores"),
        ("{code}:five --data {data}", "the data has 4 classes, the model 5"),
        ("{programs}/plain.pt2 --data {data} -w {data}", "--weights cannot change a .pt2"),
        ("{code}:plain --data {data} --against nothing", "unknown model 'nothing'"),
        ("{code}:plain --data {data} --mean 0.5", "--mean has 1 values for 3 channels"),
    ],
)
def test_bad_input_is_refused_with_what_to_type(
    cli: Cli, code: Path, data: Path, programs: Path, arguments: str, said: str
) -> None:
    result = cli("evaluate", *arguments.format(code=code, data=data, programs=programs).split())
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert len(result.err.splitlines()) >= 2, "no word of what to type"


def test_an_artifact_takes_no_weights_or_statistics(cli: Cli, code: Path, data: Path, tmp_path: Path) -> None:
    (artifact,) = edgekit.export(f"{code}:plain", "onnx", image_size=SIZE, out=tmp_path)
    for option in (("-w", data), OPTIONS):
        result = cli("evaluate", artifact.path, "--data", data, *option)
        assert result.code == 2
        assert "cannot change an artifact" in result.err


def test_a_set_with_some_labels_missing_is_refused(code: Path, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photo, tmp_path / "set" / name)
    (tmp_path / "set" / "labels.csv").write_text("file,index\na.jpg,0\n", encoding="utf-8")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "set", "set")
    with pytest.raises(BadInput, match="no labels for 1 of its 2 images"):
        edgekit.evaluate(f"{code}:plain", tmp_path / "set.tar")


# ------------------------------------------------------------------------------------------ how sure


def test_wilson_is_the_published_interval() -> None:
    assert wilson(8, 10) == pytest.approx((49.0162, 94.3318), abs=1e-3)
    assert wilson(0, 20) == pytest.approx((0, 16.1125), abs=1e-3)


@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize(("p", "q"), [(0.005, 0.005), (0.02, 0.01), (0.05, 0.001), (0.1, 0.1), (0.3, 0.1)])
def test_the_paired_interval_covers_the_true_drop(n: int, p: float, q: float) -> None:
    """Every possible outcome, weighted by its probability: lost ~ p, gained ~ q, n images."""
    covered = total = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            log = (
                (
                    math.lgamma(n + 1)
                    - math.lgamma(lost + 1)
                    - math.lgamma(gained + 1)
                    - math.lgamma(n - lost - gained + 1)
                )
                + lost * math.log(p)
                + gained * math.log(q)
                + (n - lost - gained) * math.log(1 - p - q)
            )
            probability = math.exp(log)
            total += probability
            low, high = paired_interval(lost, gained, n)
            covered += probability * (low <= 100 * (p - q) <= high)
    assert total == pytest.approx(1)
    assert covered > 0.949


def test_the_paired_interval_is_symmetric_and_narrows() -> None:
    low, high = paired_interval(12, 5, 300)
    assert paired_interval(5, 12, 300) == pytest.approx((-high, -low))
    assert low < 100 * 7 / 300 < high
    widths = [np.ptp(paired_interval(0, 0, n)) for n in (1, 10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.6, "two unpaired shares of 80 % differ by chance by ten times as much"


# ------------------------------------------------------------------------------------------ real weights


def test_real_photos_of_every_class_give_the_known_accuracy(shared: Path) -> None:
    """80.85 % of all 8,000, as the data's own README measured; here 400, 40 of each class."""
    data = shared / "data"
    result = edgekit.evaluate(
        "resnet20-cifar", data / "cifar10_test.npz", weights=data / "resnet20_cifar10.safetensors", limit=400
    )
    assert [c.n for c in result.per_class] == [40] * 10
    assert result.per_class[0].label == "airplane"
    assert result.ci95[0] < 80.85 < result.ci95[1]
    assert result.batch_size == 32


def test_an_artifact_alone_classifies_one_photo_as_in_a_batch(code: Path, data: Path, tmp_path: Path) -> None:
    (artifact,) = edgekit.export(f"{code}:plain", "onnx", image_size=SIZE, batch_size=3, out=tmp_path, **STATISTICS)
    judge = classifier(artifact)
    images = open_images(data)
    together = answers_of(images, range(10), [judge], None).ranked[0][:, 0]
    assert together.tolist() == [int(judge(images[i].pixels).argmax()) for i in range(10)]
