"""Calibration sets on real weights and photos: right ones pass in silence, wrong ones are named with what was seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.calibration import CalibrationSet, calibration_set
from edgekit.data import apply, open_images
from edgekit.errors import BadInput
from edgekit.loading import Loaded, load
from edgekit.types import ModelRequest

WEIGHTS = {
    "resnet20-cifar": "resnet20_cifar10",
    "mobilenet-v1-025": "mobilenetv1_025_imagenet",
    "mobilenet-v2": "mobilenetv2_imagenet",
}
RANGES = {"unscaled": (0.0, 1 / 255), "0 to 1": (0.0, 1.0), "-1 to 1": (0.5, 0.5), "of 255": (127.5, 127.5)}


def trained(shared: Path, name: str, preprocessing: str = "", batch: int = 1) -> Loaded:
    """The model with its published weights, fed as it was trained or with another mean and std."""
    mean, std = ((v,) * 3 for v in RANGES[preprocessing]) if preprocessing else ((), ())
    weights = str(shared / "data" / f"{WEIGHTS[name]}.safetensors")
    return load(ModelRequest(model=name, weights=weights, mean=mean, std=std, batch_size=batch))


@pytest.fixture(scope="session")
def resnet(shared: Path) -> Loaded:
    return trained(shared, "resnet20-cifar")


@pytest.fixture(scope="session")
def cifar(shared: Path) -> Path:
    return shared / "data" / "cifar10_test.npz"


@pytest.fixture(scope="session")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photos of CIFAR-10 in a folder, 4 a class, as `train/<class>`, and one other as `val/<class>`."""
    root = tmp_path_factory.mktemp("photos")
    images = open_images(shared / "data" / "cifar10_test.npz")
    for label, name in enumerate(images.classes):
        places = [i for i in range(len(images)) if images.labels[i] == label][:5]
        for split, chosen in (("train", places[:4]), ("val", places[4:])):
            (root / split / name).mkdir(parents=True)
            for i in chosen:
                images[i].pixels.save(root / split / name / f"{i}.png")
    return root


def stacked(calibration: CalibrationSet) -> torch.Tensor:
    return torch.cat([x for (x,) in calibration.samples])


# ------------------------------------------------------------------------------------------------ which photos


def test_photos_are_spread_over_the_classes_and_prepared_as_the_model_wants(resnet: Loaded, cifar: Path) -> None:
    calibration = calibration_set(resnet, cifar, samples=40, seed=3)
    assert resnet.preprocess is not None
    images = open_images(cifar)
    known = {apply(resnet.preprocess, image.pixels).tobytes(): image.label for image in images}
    labels = [known[x.numpy().tobytes()] for x in stacked(calibration)]
    assert np.bincount(np.array(labels)).tolist() == [4] * 10
    assert (calibration.record.kind, calibration.record.source) == ("images", "cifar10_test.npz")
    assert (calibration.record.samples, calibration.record.seed) == (40, 3)


def test_the_seed_decides_which_photos(resnet: Loaded, cifar: Path) -> None:
    one, same, other = (stacked(calibration_set(resnet, cifar, samples=8, seed=s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_photos_that_were_trained_on_come_first_and_are_all_used(resnet: Loaded, photos: Path) -> None:
    calibration = calibration_set(resnet, photos)
    assert calibration.record.samples == 40
    assert calibration.warnings == ("128 photos were asked for; there are 40, and all are used",)


def test_only_the_chosen_photos_are_decoded(resnet: Loaded, cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Image.Image] = []
    original = Image.fromarray

    def counted(array: np.ndarray) -> Image.Image:
        decoded.append(original(array))
        return decoded[-1]

    monkeypatch.setattr(Image, "fromarray", counted)
    calibration_set(resnet, cifar, samples=5)
    assert len(decoded) == 5


def test_the_last_batch_is_filled_with_the_first_photos(shared: Path, photos: Path) -> None:
    calibration = calibration_set(trained(shared, "resnet20-cifar", batch=3), photos, samples=4)
    assert [tuple(x.shape) for (x,) in calibration.samples] == [(3, 3, 32, 32)] * 2
    inputs = stacked(calibration)
    assert torch.equal(inputs[4:], inputs[:2])
    assert calibration.record.samples == 4


# ------------------------------------------------------------------------------------------------ nothing to use


@pytest.mark.parametrize("content", [None, "empty", "text"])
def test_no_photos(resnet: Loaded, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "set"
    if content:
        path.mkdir()
    if content == "text":
        (path / "notes.txt").write_text("no photo", encoding="utf-8")
    with pytest.raises(BadInput, match="there is no data" if content is None else "holds no images"):
        calibration_set(resnet, path)


def test_a_model_without_images_cannot_be_calibrated_with_photos(photos: Path) -> None:
    loaded = load(ModelRequest(model="memory", input_shape=((1, 8),)), torch.nn.Linear(8, 2))
    with pytest.raises(BadInput, match="no image") as caught:
        calibration_set(loaded, photos)
    assert "fp16" in caught.value.hint


def test_no_samples(resnet: Loaded, photos: Path) -> None:
    with pytest.raises(BadInput, match="0 photos") as caught:
        calibration_set(resnet, photos, samples=0)
    assert "--num-calibration-samples" in caught.value.hint


@pytest.mark.parametrize(("broken", "refused"), [(2, False), (10, True), (40, True)])
def test_photos_that_cannot_be_read_are_named(
    resnet: Loaded, photos: Path, tmp_path: Path, broken: int, refused: bool
) -> None:
    for i, path in enumerate(sorted((photos / "train").rglob("*.png"))):
        content = b"not a picture" if i < broken else path.read_bytes()
        (tmp_path / f"{i:02}.png").write_bytes(content)
    if refused:
        with pytest.raises(BadInput, match=r"cannot be read\n.*0\d.png is not an image"):
            calibration_set(resnet, tmp_path, samples=40)
        return
    calibration = calibration_set(resnet, tmp_path, samples=40)
    assert calibration.record.samples == 38
    (warning,) = calibration.warnings
    assert "2 images cannot be read" in warning
    assert "00.png" in warning
    assert "01.png" in warning


# ------------------------------------------------------------------------------------------------ what photos show


def save(folder: Path, *colours: tuple[int, int, int]) -> Path:
    for i, colour in enumerate(colours):
        Image.new("RGB", (32, 32), colour).save(folder / f"{i:03}.png")
    return folder


@pytest.mark.parametrize("colour", [(0, 0, 0), (200, 30, 90)])
def test_photos_of_one_colour_are_refused(resnet: Loaded, tmp_path: Path, colour: tuple[int, int, int]) -> None:
    with pytest.raises(BadInput, match=r"all the 40 photos .* one colour"):
        calibration_set(resnet, save(tmp_path, *[colour] * 40))


def test_some_black_photos_are_counted(resnet: Loaded, photos: Path, tmp_path: Path) -> None:
    save(tmp_path, (0, 0, 0), (0, 0, 0))
    for i, path in enumerate(sorted((photos / "train").rglob("*.png"))):
        (tmp_path / f"photo{i}.png").write_bytes(path.read_bytes())
    (warning,) = calibration_set(resnet, tmp_path, samples=42).warnings
    assert "2 of the 42 photos are of one colour" in warning


def test_one_photo(resnet: Loaded, cifar: Path) -> None:
    (warning,) = calibration_set(resnet, cifar, samples=1).warnings
    assert "only 1 different photo" in warning
    assert "cut off" in warning


def test_copies(resnet: Loaded, photos: Path, tmp_path: Path) -> None:
    content = next((photos / "train").rglob("*.png")).read_bytes()
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(content)
    few, copies, *_ = calibration_set(resnet, tmp_path, samples=10).warnings
    assert "only 1 different photo" in few
    assert "9 of the 10 photos are copies" in copies


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P", "L"])
def test_photos_that_are_not_rgb(resnet: Loaded, photos: Path, tmp_path: Path, mode: str) -> None:
    for i, path in enumerate(sorted((photos / "train").rglob("*.png"))):
        with Image.open(path) as image:
            image.convert(mode).save(tmp_path / f"{i:02}.tif")
    warnings = calibration_set(resnet, tmp_path, samples=40).warnings
    assert [w for w in warnings if "40 of the 40 photos are grey" in w] == list(warnings if mode == "L" else ())


# ------------------------------------------------------------------------------------------------ what networks know


def test_right_photos_raise_no_doubt(resnet: Loaded, cifar: Path) -> None:
    assert calibration_set(resnet, cifar).warnings == ()


@pytest.mark.parametrize(
    ("name", "data", "samples"),
    [
        ("mobilenet-v1-025", "imagenet_sample800.tar", 32),
        ("mobilenet-v1-025", "clothing10_folder.tar", 32),
        ("resnet20-cifar", "imagenet_sample800.tar", 32),
        ("mobilenet-v2", "clothing10_folder.tar", 32),
    ],
)
def test_natural_photos_raise_no_doubt(shared: Path, name: str, data: str, samples: int) -> None:
    assert calibration_set(trained(shared, name), shared / "data" / data, samples=samples).warnings == ()


@pytest.mark.parametrize("preprocessing", RANGES)
def test_other_preprocessing_is_seen_at_the_batch_norms(shared: Path, cifar: Path, preprocessing: str) -> None:
    loaded = trained(shared, "resnet20-cifar", preprocessing)
    (warning,) = calibration_set(loaded, cifar, samples=32).warnings
    assert "trained on other inputs" in warning
    assert "would fit with ImageNet" in warning
    assert "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" in warning


def test_mobilenet_v1_with_the_statistics_of_resnets(shared: Path) -> None:
    loaded = trained(shared, "mobilenet-v1-025")
    assert loaded.preprocess is not None
    other = replace(loaded.preprocess, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    data = shared / "data" / "imagenet_sample800.tar"
    (warning,) = calibration_set(replace(loaded, preprocess=other), data, samples=32).warnings
    assert "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5" in warning


def test_a_program_file_remembers_too(resnet: Loaded, cifar: Path, tmp_path: Path) -> None:
    path = tmp_path / "resnet.pt2"
    torch.export.save(torch.export.export(resnet.module, resnet.inputs), path)
    wrong = load(ModelRequest(model=str(path), mean=(0.0,) * 3, std=(1.0,) * 3))
    (warning,) = calibration_set(wrong, cifar, samples=32).warnings
    assert "trained on other inputs" in warning
    assert calibration_set(load(ModelRequest(model=str(path))), cifar, samples=32).warnings == ()


def test_drawn_digits_are_no_photos(resnet: Loaded, shared: Path) -> None:
    grey, other = calibration_set(resnet, shared / "data" / "mnist_test3k.npz", samples=32).warnings
    assert "grey" in grey
    assert "of another kind" in other


@pytest.mark.parametrize("preprocessing", ["unscaled", "0 to 1", "of 255"])
def test_a_network_without_batch_norm_tells_photos_apart(shared: Path, preprocessing: str) -> None:
    loaded = trained(shared, "mobilenet-v2", preprocessing)
    samples = 64 if preprocessing == "0 to 1" else 32
    (warning,) = calibration_set(loaded, shared / "data" / "imagenet_sample800.tar", samples=samples).warnings
    assert "After preprocessing" in warning
    assert "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5" in warning


# ------------------------------------------------------------------------------------------------ untrained networks


def test_random_weights_know_nothing(cifar: Path) -> None:
    right = load(ModelRequest(model="resnet20-cifar"))
    assert calibration_set(right, cifar, samples=32).warnings == ()
    unscaled = load(ModelRequest(model="resnet20-cifar", mean=(0.0,) * 3, std=(1 / 255,) * 3))
    (warning,) = calibration_set(unscaled, cifar, samples=32).warnings
    assert "mean of about 0" in warning


def test_a_users_untrained_network_knows_nothing(tiny: str, cifar: Path) -> None:
    loaded = load(ModelRequest(model=tiny, image_size=32))
    assert calibration_set(loaded, cifar, samples=32).warnings == ()
