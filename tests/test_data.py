"""Image sets and preprocessing, against what numpy and Pillow compute by themselves."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.data import apply, open_images, read_image, sample_photos
from edgekit.errors import BadInput, UnknownName
from edgekit.types import Preprocess

RAW = Preprocess(resize=32, crop=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
GREY = Preprocess(resize=32, crop=(32, 32), mean=(0.0,), std=(1.0,))


def picture(seed: int, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
    """A picture whose pixels, and so whose orientation and channels, are all different."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], bands) if bands > 1 else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def contents(path: Path) -> list[tuple[bytes, int | None]]:
    """Pixels and labels of an image set, after checking that its length is the number it gives."""
    images = open_images(path)
    found = [(image.pixels.convert("RGB").tobytes(), image.label) for image in images]
    assert len(images) == len(found)
    return found


PICTURES = [picture(n) for n in range(3)]
PIXELS = [p.tobytes() for p in PICTURES]


def save(folder: Path, *numbers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        PICTURES[n].save(folder / f"{n}.png")


# ------------------------------------------------------------------------------------------ the forms of a set


def test_a_flat_folder_has_no_labels_and_is_in_the_order_of_its_names(tmp_path: Path) -> None:
    save(tmp_path, 2, 0, 1)
    (tmp_path / "notes.txt").write_text("not a photo", encoding="utf-8")
    assert contents(tmp_path) == [(pixels, None) for pixels in PIXELS]


def test_a_folder_of_folders_is_labelled_by_their_sorted_names(tmp_path: Path) -> None:
    save(tmp_path / "zebra", 1)
    save(tmp_path / "ant", 0, 2)
    assert open_images(tmp_path).classes == ("ant", "zebra")
    assert contents(tmp_path) == [(PIXELS[0], 0), (PIXELS[2], 0), (PIXELS[1], 1)]


def test_where_there_are_splits_the_held_out_one_is_used(tmp_path: Path) -> None:
    save(tmp_path / "train" / "ant", 0)
    save(tmp_path / "val" / "ant", 1)
    save(tmp_path / "val" / "zebra", 2)
    assert open_images(tmp_path).classes == ("ant", "zebra")
    assert contents(tmp_path) == [(PIXELS[1], 0), (PIXELS[2], 1)]


def test_npz_of_images_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=np.stack([np.asarray(p) for p in PICTURES]), labels=np.array([4, 0, 9]))
    assert contents(path) == list(zip(PIXELS, [4, 0, 9], strict=True))


def test_npz_of_grey_images_without_labels(tmp_path: Path) -> None:
    grey = [picture(n, mode="L") for n in range(2)]
    path = tmp_path / "set.npz"
    np.savez(path, images=np.stack([np.asarray(p) for p in grey]))
    assert contents(path) == [(p.convert("RGB").tobytes(), None) for p in grey]


def test_npz_of_jpeg_bytes_with_offsets(tmp_path: Path) -> None:
    files = [encoded(p, "JPEG") for p in PICTURES]
    path = tmp_path / "set.npz"
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(path, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=np.array([0, 1, 2]))
    decoded = [Image.open(io.BytesIO(f)).tobytes() for f in files]
    assert contents(path) == list(zip(decoded, [0, 1, 2], strict=True))


def test_npz_names_its_classes(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=np.zeros((1, 8, 8, 3), np.uint8), labels=np.array([1]), classes=np.array(["ant", "zebra"]))
    assert open_images(path).classes == ("ant", "zebra")


def test_tar_with_a_table_of_labels(tmp_path: Path) -> None:
    members = {f"set/{n}.png": encoded(p) for n, p in enumerate(PICTURES)}
    table = b"file,index,name\n1.png,7,x\n0.png,5,y\n2.png,5,y\n"
    path = write_tar(tmp_path / "set.tar", {"set/labels.csv": table, **members})
    assert contents(path) == [(PIXELS[0], 5), (PIXELS[1], 7), (PIXELS[2], 5)]


def test_tar_without_a_table_is_labelled_by_its_folders(tmp_path: Path) -> None:
    names = ("train/ant/0.png", "val/zebra/1.png", "val/ant/2.png")
    path = write_tar(tmp_path / "set.tar", {n: encoded(p) for n, p in zip(names, PICTURES, strict=True)})
    assert open_images(path).classes == ("ant", "zebra")
    assert contents(path) == [(PIXELS[2], 0), (PIXELS[1], 1)]


def test_a_tar_that_names_files_outside_it_writes_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    names = ("../escaped.png", f"{tmp_path}/absolute.png", "a/../../b.png")
    path = write_tar(inside / "set.tar", {n: encoded(p) for n, p in zip(names, PICTURES, strict=True)})
    assert sorted(pixels for pixels, _ in contents(path)) == sorted(PIXELS)
    assert sorted(tmp_path.rglob("*")) == [inside, path]


def test_a_tar_of_links_holds_no_images(tmp_path: Path) -> None:
    path, secret = tmp_path / "set.tar", tmp_path / "secret.png"
    PICTURES[0].save(secret)
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(BadInput, match="holds no images"):
        open_images(path)


@pytest.mark.parametrize(
    ("name", "arrays", "reason"),
    [
        ("objects", {"images": np.array([{}], object)}, "cannot be read"),
        ("other", {"x": np.zeros(3)}, "no array `images`"),
        ("floats", {"images": np.zeros((1, 8, 8, 3))}, "not uint8"),
        ("channels", {"images": np.zeros((1, 8, 8, 7), np.uint8)}, "not uint8"),
        ("short", {"images": np.zeros((2, 8, 8, 3), np.uint8), "labels": np.array([0])}, "not 2 whole numbers"),
        ("words", {"images": np.zeros((1, 8, 8, 3), np.uint8), "labels": np.array(["ant"])}, "not 1 whole numbers"),
    ],
)
def test_an_npz_of_something_else_is_refused(
    tmp_path: Path, name: str, arrays: Mapping[str, np.ndarray], reason: str
) -> None:
    path = tmp_path / f"{name}.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match=reason):
        list(open_images(path))


def test_an_npz_of_no_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((0, 8, 8, 3), np.uint8), labels=np.zeros(0, np.int64))
    with pytest.raises(BadInput, match="holds no images"):
        open_images(tmp_path / "set.npz")


@pytest.mark.parametrize("members", [{}, {"labels.csv": b"file,index\na.png,1\n"}])
def test_a_tar_of_no_images_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(BadInput, match="holds no images"):
        open_images(write_tar(tmp_path / "set.tar", members))


@pytest.mark.parametrize("offsets", [[0, 5, 3], [0, 10**9], [-4, 2]])
def test_jpeg_offsets_outside_their_bytes_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, jpeg=np.zeros(8, np.uint8), offsets=np.array(offsets))
    with pytest.raises(BadInput):
        list(open_images(path))


@pytest.mark.parametrize(
    "table", [b"name,label\na.png,1\n", b"file,index\n0.png,one\n", b"file,index\n0.png\n", b"\xff"]
)
def test_a_table_of_labels_that_cannot_be_used_is_refused(tmp_path: Path, table: bytes) -> None:
    path = write_tar(tmp_path / "set.tar", {"0.png": encoded(PICTURES[0]), "labels.csv": table})
    with pytest.raises(BadInput, match=r"labels\.csv"):
        open_images(path)


@pytest.mark.parametrize("name", ["missing", "empty", "text.npz", "text.tar", "text.csv"])
def test_what_is_no_set_of_images_is_refused_with_the_forms_that_are(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    if name.startswith("text"):
        (tmp_path / name).write_text("not images", encoding="utf-8")
    with pytest.raises(BadInput, match="A data path is a folder of images"):
        open_images(tmp_path / name)


# ------------------------------------------------------------------------------------------ preprocessing


def by_hand(p: Preprocess, image: Image.Image) -> np.ndarray:
    """The contract's words in numpy: resize the shorter side, centre crop, (pixel * scale - mean) / std."""
    width, height = image.size
    factor = p.resize / min(width, height)
    resized = np.asarray(image.resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC))
    top, left = (round((resized.shape[i] - p.crop[i]) / 2) for i in (0, 1))
    crop = resized[top : top + p.crop[0], left : left + p.crop[1]].astype(np.float64)
    return ((crop * p.scale - np.array(p.mean)) / np.array(p.std)).transpose(2, 0, 1)


@pytest.mark.parametrize("crop", [(64, 64), (48, 64)])
def test_preprocessing_is_what_the_contract_says(photo: Path, crop: tuple[int, int]) -> None:
    image = Image.open(photo)
    p = Preprocess(resize=73, crop=crop)
    values = apply(p, image)
    assert values.dtype == np.float32
    assert values.shape == (3, *crop)
    np.testing.assert_allclose(values, by_hand(p, image), atol=2e-6)


def test_bgr_is_rgb_with_its_channels_turned_round_before_mean_and_std() -> None:
    p = Preprocess(resize=32, crop=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), channel_order="BGR")
    rgb = np.asarray(PICTURES[0].crop((4, 0, 36, 32)), np.float64)
    expected = (rgb[..., ::-1] / 255 - p.mean) / p.std
    np.testing.assert_allclose(apply(p, PICTURES[0]), expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_as_its_camera_says(orientation: int) -> None:
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    upright = picture(5, (32, 32))
    stored = Image.fromarray(np.ascontiguousarray(turned[orientation](np.asarray(upright))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(apply(RAW, read_image(buffer.getvalue())), apply(RAW, upright))


def test_grey_pictures_become_three_equal_channels() -> None:
    grey = picture(6, (32, 32), "L")
    values = apply(RAW, grey)
    for channel in values:
        np.testing.assert_allclose(channel, np.asarray(grey) / 255, atol=1e-6)


def test_a_model_of_grey_images_takes_colour_as_luminance() -> None:
    values = apply(GREY, PICTURES[0])
    luminance = np.asarray(PICTURES[0].crop((4, 0, 36, 32)), np.float64) @ [0.299, 0.587, 0.114]
    assert values.shape == (1, 32, 32)
    np.testing.assert_allclose(values[0], luminance / 255, atol=1 / 255)


def test_what_is_transparent_keeps_its_colour() -> None:
    colour = picture(7, (32, 32))
    transparent = colour.copy()
    transparent.putalpha(picture(8, (32, 32), "L"))
    np.testing.assert_array_equal(apply(RAW, transparent), apply(RAW, colour))


def test_cmyk_is_converted_to_rgb() -> None:
    flat = Image.new("CMYK", (32, 32), (255, 0, 0, 0))  # all cyan: no red
    values = apply(RAW, read_image(encoded(flat, "JPEG")))
    assert values[0].max() < 0.1
    assert values[1:].min() > 0.9


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    deep = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    values = apply(RAW, read_image(encoded(Image.fromarray(deep))))
    np.testing.assert_allclose(values, np.broadcast_to(deep / 65535, (3, 32, 32)), atol=1 / 255)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "PA", "RGBA", "I", "F", "HSV", "YCbCr"])
def test_white_is_white_in_every_mode_of_pillow(mode: str) -> None:
    via = {"PA": "P", "I": "L", "F": "L"}.get(mode, "RGB")
    white = Image.new("RGB", (32, 32), "white").convert(via).convert(mode)
    assert white.mode == mode
    np.testing.assert_allclose(apply(RAW, white), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2000, 3), (31, 33)])
def test_a_picture_of_any_size_fills_the_input(size: tuple[int, int]) -> None:
    values = apply(Preprocess(resize=36, crop=(32, 32)), Image.new("RGB", size, "white"))
    assert values.shape == (3, 32, 32)
    np.testing.assert_allclose(values, np.broadcast_to(values[:, :1, :1], values.shape), atol=1e-5)


def test_an_interpolation_that_is_none_is_refused() -> None:
    with pytest.raises(UnknownName, match="bicubic"):
        apply(Preprocess(resize=32, crop=(32, 32), interpolation="bicubik"), PICTURES[0])


def test_the_sample_photos_are_four_different_real_ones() -> None:
    photos = sample_photos()
    assert len(photos) == 4
    assert len({p.tobytes() for p in photos}) == 4
    assert all(min(p.size) > 400 and np.asarray(p).std() > 30 for p in photos)
