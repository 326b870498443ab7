"""The checks before training: each finding on a set that has it, with the names, and quiet on one that has not."""

import io
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.data import ImageSet, open_images
from edgekit.data.checks import Findings, check
from edgekit.data.parts import Part
from edgekit.errors import BadInput
from tests.conftest import Cli


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, classes: Mapping[str, Sequence[int]]) -> Path:
    """Class folders with the pictures of these seeds."""
    for name, seeds in classes.items():
        (root / name).mkdir(parents=True)
        for seed in seeds:
            picture(seed).save(root / name / f"{seed:03d}.png")
    return root


def npz(path: Path, images: np.ndarray, labels: Sequence[int], classes: Sequence[str] = ()) -> ImageSet:
    named = {"classes": np.array(classes)} if classes else {}
    np.savez(path, images=images, labels=np.array(labels), **named)
    return open_images(path)


def found(data: Path, *others: Path, num_classes: int | None = None, channels: int = 3) -> Findings:
    return check(*map(open_images, (data, *others)), num_classes=num_classes, channels=channels)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 10, 12, 3), np.uint8)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return folder(tmp_path / "pets", {"cat": range(20), "dog": range(20, 40)})


def test_nothing_is_said_of_good_data_and_nothing_is_refused(pets: Path, tmp_path: Path) -> None:
    held = folder(tmp_path / "held", {"cat": [50], "dog": [51]})
    findings = found(pets, held, num_classes=2)
    assert findings == Findings((), ())
    findings.refuse()


def test_threads_leave_the_filters_of_warnings_as_before(pets: Path) -> None:
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet within `read_image`, which sets filters
    try:
        check(Part(open_images(pets), [*range(40)] * 32))
        assert warnings.filters == before
    finally:
        sys.setswitchinterval(interval)
        warnings.filters[:] = before


# -------------------------------------------------------------------------------------------- images and labels


def test_a_few_unreadable_images_are_left_out_many_are_refused(pets: Path) -> None:
    (pets / "cat" / "003.png").write_bytes(b"no image")
    whole = (pets / "dog" / "025.png").read_bytes()
    (pets / "dog" / "025.png").write_bytes(whole[: len(whole) // 2])
    findings = found(pets)
    assert findings.unreadable == (3, 25)
    (note,) = findings.notes
    assert note.startswith("2 of 40 training images (5.0%) cannot be read and are left out: ")
    assert "cat/003.png is not an image" in note
    assert "dog/025.png is not an image" in note
    for n in range(4, 12):
        (pets / "cat" / f"{n:03d}.png").write_bytes(b"")
    findings = found(pets)
    assert not findings.notes
    with pytest.raises(BadInput, match=r"10 of 40 training images \(25.0%\) cannot be read: .*003.png.*; and 5 more"):
        findings.refuse()


def test_empty_classes_and_all_other_problems_come_at_once(pets: Path) -> None:
    (pets / "bird").mkdir()
    (pets / "fish").mkdir()
    (pets / "fish" / "1.png").write_bytes(b"no image")
    for n in range(20, 40):
        (pets / "dog" / f"{n:03d}.png").unlink()
    (pets / "dog" / "notes.txt").write_text("photos of dogs")
    findings = found(pets, num_classes=3)
    assert "3 of 4 classes have no image: add some, or remove the folders: bird; dog; fish" in findings.problems
    assert "all training images are of one class, cat: there is nothing to tell apart" in findings.problems
    assert "the training data has 4 classes, the model 3" in findings.problems
    with pytest.raises(BadInput, match=r"the data has 3 problems\n.*\n.*\n.*\n.*edgekit data check"):
        findings.refuse()


def test_labels_out_of_range_are_named(tmp_path: Path) -> None:
    images = npz(tmp_path / "a.npz", noise(6), [0, 1, 0, 12, -1, 1])
    assert check(images, num_classes=10).problems == (
        "2 of 6 training images have labels such as 12, and the model has 10 classes: a.npz[3]; a.npz[4]",
    )
    named = npz(tmp_path / "b.npz", noise(4), [0, 1, 0, 2], ["x", "y"])
    assert check(named).problems == (
        "1 of 4 training images have labels such as 2, and the data names 2 classes: b.npz[3]",
    )


def test_images_without_labels_among_others_are_a_problem_and_only_such_are_none(tmp_path: Path) -> None:
    class Some:
        classes = ("a", "b")
        labels: Sequence[int | None] = [0, 1, None, 0]

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> object:
            return open_images(flat)[index]

    flat = tmp_path / "flat"
    flat.mkdir()
    for n in range(4):
        picture(n).save(flat / f"{n}.png")
    (problem,) = check(Some()).problems  # type: ignore[arg-type]
    assert problem.startswith("1 of 4 training images have no label: ")
    assert problem.endswith("flat/2.png")
    assert found(flat) == Findings((), ())


def test_classes_out_of_balance_are_noted(tmp_path: Path) -> None:
    images = npz(tmp_path / "a.npz", noise(65), [0] * 42 + [1] * 21 + [2] * 2, ["x", "y", "z"])
    assert check(images).notes == ("classes are out of balance: 42 training images of x, 2 of z",)
    assert check(Part(images, range(2, 65))) == Findings((), ())


# ----------------------------------------------------------------------------------------------- copies, leaks


def test_copies_with_another_label_are_told_with_their_classes(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"cat": range(60), "dog": range(60, 119)})
    picture(7).save(root / "dog" / "seven.webp", lossless=True)
    picture(3).save(root / "cat" / "three.bmp")
    findings = found(root)
    assert not findings.problems
    contradicted, copied = findings.notes
    assert contradicted.startswith("2 of 121 training images have copies with another label: ")
    assert "cat/007.png (cat) = " in contradicted
    assert contradicted.endswith("dog/seven.webp (dog)")
    assert copied.startswith("1 of 121 training images are copies of others: ")
    assert copied.endswith("cat/three.bmp")
    for n in range(10, 13):
        picture(n).save(root / "dog" / f"{n}.png")
    (problem,) = found(root).problems
    assert problem.startswith("8 of 124 training images have copies with another label")


def test_images_in_both_sets_are_told_in_pairs(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", {"cat": range(200), "dog": range(200, 400)})
    held = folder(tmp_path / "held", {"cat": range(400, 500), "dog": [*range(500, 599), 33]})
    findings = found(train, held)
    assert not findings.problems
    (note,) = findings.notes
    assert note.startswith(
        "1 of 200 evaluation images (0.5%) are trained on too, so accuracy may be that much too high: "
    )
    assert note.endswith("train/cat/033.png (cat) = " + str(held / "dog" / "033.png") + " (dog)")
    picture(34).save(held / "cat" / "a.png")
    picture(35).save(held / "cat" / "b.png")
    (problem,) = found(train, held).problems
    assert problem.startswith("3 of 202 evaluation images (1.5%) are trained on too")


def test_parts_of_a_set_are_sets(tmp_path: Path) -> None:
    images = npz(tmp_path / "a.npz", np.concatenate([noise(8), noise(1)]), [0, 1] * 4 + [0], ["x", "y"])
    train, held = Part(images, range(8)), Part(images, [8, 1])
    assert (len(held), held.labels, held.classes) == (2, [0, 1], ("x", "y"))
    assert [image.name for image in held] == ["a.npz[8]", "a.npz[1]"]
    (problem,) = check(train, held).problems
    assert problem.startswith("2 of 2 evaluation images (100.0%) are trained on too")


# ----------------------------------------------------------------------------------------------------- classes


def test_classes_of_the_two_sets_are_compared_by_name(pets: Path, tmp_path: Path) -> None:
    held = folder(tmp_path / "held", {"bird": [60], "dog": [61]})
    findings = found(pets, held)
    assert findings.problems == ("1 evaluation classes are not trained: bird",)
    assert findings.notes == ("1 trained classes are not evaluated: cat",)
    turned = npz(tmp_path / "turned.npz", noise(2, 700), [0, 1], ["dog", "cat"])
    assert check(open_images(pets), turned) == Findings(
        (), ("the evaluation data has the classes in another order; they are matched by name",)
    )
    more = npz(tmp_path / "more.npz", noise(3, 700), [0, 1, 5])
    (problem,) = check(open_images(pets), more).problems
    assert problem.startswith("1 of 3 evaluation images have labels such as 5, and the model has 2 classes")


def test_a_held_out_set_that_lacks_classes_is_noted_only(pets: Path, tmp_path: Path) -> None:
    held = folder(tmp_path / "held", {"cat": [60], "dog": []})
    assert found(pets, held) == Findings(
        (),
        (
            "1 of 2 classes have no image to evaluate on: dog",
            "all evaluation images are of one class, cat: there is nothing to tell apart",
        ),
    )


# ------------------------------------------------------------------------------------------------------ pixels


def test_other_channels_and_depths_are_converted_and_counted(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"cat": range(10), "dog": range(10, 20)})
    half = picture(50).convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(half.size))
    opaque = picture(51).convert("RGBA")
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (10, 12)).astype(np.uint16))
    for name, image in (
        ("grey.png", picture(52).convert("L")),
        ("half.png", half),
        ("opaque.png", opaque),
        ("cmyk.jpg", picture(53).convert("CMYK")),
        ("deep.png", deep),
    ):
        image.save(root / "cat" / name)
    findings = found(root)
    assert not findings.problems
    for kind, name in (
        ("grey, and become RGB", "grey.png"),
        ("transparent, and their alpha is dropped", "half.png"),
        ("CMYK, and become RGB", "cmyk.jpg"),
        ("16-bit grey, and become 8-bit", "deep.png"),
    ):
        (note,) = (note for note in findings.notes if kind in note)
        assert note.startswith("1 of 25 training images are ")
        assert note.endswith(name)
    assert len(findings.notes) == 4  # an alpha that hides nothing is not worth a word
    grey = found(root, channels=1)
    assert any("21 of 25 training images are in colour, and become grey" in note for note in grey.notes)


def test_32_bits_and_channels_that_no_photo_has_are_problems(pets: Path) -> None:
    Image.fromarray(np.random.default_rng(1).random((10, 12)).astype(np.float32)).save(pets / "cat" / "float.tif")
    (problem,) = found(pets).problems
    assert "1 of 41 training images are of 32 bits a pixel" in problem
    assert problem.endswith("float.tif")
    assert "the model takes 4 channels; photos give it 1 (grey) or 3 (RGB)" in found(pets, channels=4).problems


def test_sixteen_bit_and_transparent_images_that_differ_are_no_copies(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"cat": range(2), "dog": range(2, 4)})
    for n in range(3):
        Image.fromarray(np.full((10, 12), 1000 + n, np.uint16)).save(root / "cat" / f"deep{n}.png")
        icon = Image.new("RGBA", (12, 10))
        icon.putpixel((n, 0), (0, 0, 0, 255))
        icon.save(root / "dog" / f"icon{n}.png")
    assert not [note for note in found(root).notes if "cop" in note]


def test_tiny_images_and_damaged_exif_are_noted(pets: Path) -> None:
    picture(90, (100, 3)).save(pets / "cat" / "line.png")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(91).save(buffer, "JPEG", exif=exif)
    (pets / "dog" / "exif.jpg").write_bytes(buffer.getvalue().replace(b"Exif\0\0MM", b"Exif\0\0MX"))
    tiny, damaged = found(pets).notes
    assert tiny.startswith("1 of 42 training images are less than 8 pixels high or wide: ")
    assert tiny.endswith("line.png")
    assert damaged.startswith("1 of 42 training images have damaged EXIF data")


# ------------------------------------------------------------------------------------------- speed, the command


def test_a_limit_looks_at_images_of_all_classes_and_says_so(pets: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    findings = check(open_images(pets), limit=10, on_step=lambda *step: steps.append(step))
    assert findings.notes == ("only 10 of 40 training images were looked at",)
    assert steps[-1] == ("checking the training images", 10, 10)


def test_real_data_is_quick_and_without_findings(shared: Path) -> None:
    train = open_images(shared / "data" / "cifar10_train_jpeg50k.npz")
    began = time.process_time()
    part = Part(train, range(5_000))
    assert check(part, Part(open_images(shared / "data" / "cifar10_test.npz"), range(1000))) == Findings((), ())
    assert time.process_time() - began < 3  # of one core; measured: 0.6, and 4.2 for all 50,000


def test_the_command_names_everything_and_refuses(pets: Path, tmp_path: Path, cli: Cli) -> None:
    good = cli("data", "check", pets)
    assert (good.code, good.err) == (0, "")
    assert good.out == "nothing against training with these 40 images\n"
    (pets / "cat" / "003.png").write_bytes(b"no image")
    (pets / "bird").mkdir()
    bad = cli("data", "check", pets, "--json")
    assert bad.code == 2
    assert "1 of 3 classes have no image: add some, or remove the folders: bird" in bad.err
    document = json.loads(bad.out)
    assert (len(document["problems"]), len(document["notes"]), document["unreadable"]) == (1, 1, [3])
    assert cli("data", "check", tmp_path / "nowhere").code == 2


def test_the_command_compares_the_splits_of_a_folder(tmp_path: Path, cli: Cli) -> None:
    folder(tmp_path / "train", {"cat": range(5), "dog": range(5, 10)})
    folder(tmp_path / "val", {"cat": [20], "dog": [7]})
    done = cli("data", "check", tmp_path)
    assert done.code == 2
    assert "1 of 2 evaluation images (50.0%) are trained on too" in done.err
