"""Tar shards: read as webdataset reads them, the same batches from any step, and damage that is named."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edgekit.data import open_images
from edgekit.data.shards import Shards, open_shards, shard_paths
from edgekit.errors import BadInput
from edgekit.training.data import Batches
from edgekit.training.recipe import AugmentationSection
from edgekit.training.sharding import write_shards
from edgekit.training.shards import ShardSamples
from tests.conftest import Cli


@dataclass(frozen=True)
class Seen:
    """A transform whose output tells which photo it was, and with which seed."""

    def __call__(self, image: Image.Image, seed: Sequence[int]) -> Tensor:
        red = float(np.asarray(image.convert("RGB"))[0, 0, 0])
        return torch.tensor([red, float(np.random.default_rng(seed).random())])[:, None, None].expand(2, 4, 4)


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


SIZES = (7, 5, 6, 7, 7, 7, 4, 7, 6, 5)
PATTERN = "s-{000..009}.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten shards; photo n is of the red n and the class n % 3."""
    number = 0
    for shard, size in enumerate(SIZES):
        members = []
        for n in range(number, number + size):
            members += [(f"{n:04d}.png", png(n)), (f"{n:04d}.cls", str(n % 3).encode())]
        write_tar(tmp_path / f"s-{shard:03d}.tar", members)
        number += size
    return tmp_path


def shards_of(folder: Path) -> Shards:
    return open_shards(str(folder / PATTERN))


def batches_of(folder: Path, size: int = 8, seed: int = 0, rank: int = 0, world: int = 1, workers: int = 0) -> Batches:
    return Batches(ShardSamples(shards_of(folder)), size, seed, Seen(), rank=rank, world=world, workers=workers)


def reds(batches: Batches, start: int, stop: int) -> list[list[int]]:
    return [batch.images[:, 0, 0, 0].int().tolist() for batch in batches.stream(start, stop)]


def same(one: Batches, other: Batches, start: int, stop: int) -> bool:
    pairs = zip(one.stream(start, stop), other.stream(start, stop), strict=True)
    return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)


# -------------------------------------------------------------------------------------------------- the format


def test_what_webdataset_writes_is_read_and_the_other_way_round(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    tariterators = pytest.importorskip("webdataset.tariterators")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for shard in range(2):
        with wds.TarWriter(str(theirs / f"s-{shard}.tar")) as writer:
            for n in range(3):
                writer.write({"__key__": f"a/{shard}{n}", "png": png(10 * shard + n), "cls": n, "note.txt": "x"})
    images = open_shards(str(theirs / "s-{0..1}.tar"))
    assert [np.asarray(i.pixels)[0, 0, 0] for i in images] == [0, 1, 2, 10, 11, 12]
    assert list(images.labels) == [0, 1, 2] * 2
    written = write_shards(images, tmp_path / "ours", size=4, seed=1)
    assert (written.shards, written.samples, written.unreadable) == (2, 6, ())
    ours = open_shards(written.pattern)
    samples = []
    for path in shard_paths(written.pattern):
        with path.open("rb") as stream:  # which WebDataset itself would leave open
            files = tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            samples += list(tariterators.group_by_keys(files))
    assert [s["cls"] for s in samples] == [str(label).encode() for label in ours.labels]
    for sample, image in zip(samples, ours, strict=True):
        with Image.open(io.BytesIO(sample["png"])) as pixels:
            assert pixels.tobytes() == image.pixels.tobytes()


def test_keys_suffixes_and_labels_are_read_as_webdataset_does(tmp_path: Path) -> None:
    members = [
        ("__meta__/info.png", png(99)),
        ("a/1.JPG", png(1)),
        ("a/1.seg.png", png(98)),
        ("a/1.json", b'{"label": 4}'),
        ("b/1.cls", b"2\n"),
        ("b/1.webp", png(2)),
        ("b/1.json", b'{"label": 3}'),
        ("c/1.txt", b"no image"),
        ("c/2.png", png(3)),
        ("c/3.png", png(4)),
        ("c/3.cls", b"cat"),
        ("c/4.png", png(5)),
        ("c/4.json", b'{"label": true}'),
        ("c/5.png", png(6)),
        ("c/5.cls", b"-1"),
        ("c/5.png", png(8)),
        ("c/" + "long" * 60 + ".png", png(7)),
    ]
    images = open_shards(str(write_tar(tmp_path / "s-0.tar", members)).replace("s-0", "s-{0..0}"))
    assert [(np.asarray(i.pixels)[0, 0, 0], i.label) for i in images] == [
        (1, 4), (2, 2), (3, None), (4, None), (5, None), (6, None), (8, None), (7, None)
    ]  # fmt: skip
    assert images[1].name == "s-0.tar/b/1.webp"
    assert list(images.labels[1:3]) == [2, None]
    with pytest.raises(IndexError):
        images[8]


def test_nothing_is_unpickled_and_nothing_is_unpacked(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    evil = pickle.dumps(Evil())
    members = [("0.pyd", evil), ("0.pkl", evil), ("0.pth", evil), ("0.cls", evil), ("0.json", evil), ("0.png", png(0))]
    members += [("../escaped.png", png(1)), ("1.png", evil)]
    write_tar(tmp_path / "in" / "s-0.tar", members)
    images = open_shards(str(tmp_path / "in" / "s-{0..0}.tar"))
    batch = Batches(ShardSamples(images), 3, 0, Seen())[0]
    assert len(batch.images) == 2
    assert "s-0.tar/1.png is not an image" in batch.unreadable[2]
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "s-0.tar"]


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:touch {a,b}.tar",
        "http://host/s-{0..1}.tar",
        "s3://b/s-{0..1}.tar",
        "file:s-{0..1}.tar",
        "gopen:{0..1}.tar",
    ],
)
def test_commands_and_addresses_are_not_followed(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no path on this machine"):
        open_shards(pattern)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s-{0..99999999999}.tar", "more than 100,000"),
        ("s-{0..9999}{0..9999}.tar", "more than 100,000"),
        ("s-{0..3.tar", "not a pattern"),
        ("s-{000..009,003}.tar", "1 of the 2 shards .* are missing"),
        ("s-{003,003}.tar", "twice"),
        ("s-{008..017}.tar", r"8 of the 10 shards .* are missing: .*s-010\.tar; .*; and 3 more"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(folder: Path, pattern: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_shards(str(folder / pattern))


# --------------------------------------------------------------------------------------------------- the batches


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own(folder: Path) -> None:
    batches = batches_of(folder, size=1)
    assert batches.per_epoch == len(batches) == sum(SIZES)
    epochs = [[red for batch in reds(batches, start, start + 61) for red in batch] for start in (0, 61)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(61))
    assert epochs[0] != epochs[1]
    assert reds(batches_of(folder, size=61, seed=1), 0, 1) != [epochs[0]]
    labels = torch.cat([batch.labels for batch in batches.stream(0, 61)]).tolist()
    assert labels == [red % 3 for red in epochs[0]]
    # The first photos are of many shards, but not of those that come last.
    shard_of = np.repeat(range(10), SIZES)
    assert len({shard_of[red] for red in epochs[0][:30]}) > 4
    first = [{shard_of[red] for red in epoch[:40]} for epoch in epochs]
    assert first[0] != first[1]


def test_the_samples_of_one_shard_are_shuffled_and_augmented_anew_each_epoch(folder: Path) -> None:
    batches = Batches(ShardSamples(open_shards(str(folder / "s-{000..000}.tar"))), 7, 0, Seen())
    one, other = (batch.images[:, :, 0, 0].tolist() for batch in batches.stream(0, 2))
    assert [red for red, _ in one] != [red for red, _ in other]
    assert not set(map(tuple, one)) & set(map(tuple, other))


def test_a_stream_from_any_step_is_the_rest_of_the_whole_one(folder: Path) -> None:
    whole = list(batches_of(folder).stream(0, 21))
    for start in (1, 7, 13):
        rest = list(batches_of(folder).stream(start, 21))
        for one, other in zip(whole[start:], rest, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


def test_what_is_before_a_step_is_not_read(folder: Path) -> None:
    (folder / "sizes.json").write_text(json.dumps({f"s-{n:03d}.tar": size for n, size in enumerate(SIZES)}))
    batches = batches_of(folder, size=6)
    known = {int(np.searchsorted(shards_of(folder).starts, n, "right")) - 1 for n in batches.numbers(9)} | {0}
    for shard in set(range(10)) - known:
        (folder / f"s-{shard:03d}.tar").unlink()
    assert len(batches[9].images) == 6


def test_processes_share_a_batch(folder: Path) -> None:
    one = list(batches_of(folder).stream(5, 12))
    parts = [list(batches_of(folder, rank=rank, world=2).stream(5, 12)) for rank in range(2)]
    for whole, left, right in zip(one, *parts, strict=True):
        assert torch.equal(whole.images, torch.cat([left.images, right.images]))
        assert torch.equal(whole.labels, torch.cat([left.labels, right.labels]))


def test_workers_change_nothing(folder: Path) -> None:
    assert same(batches_of(folder), batches_of(folder, workers=2), 5, 12)


def test_batches_that_cannot_be_parted_or_filled_are_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="cannot be parted equally"):
        batches_of(folder, size=8, world=3)
    with pytest.raises(BadInput, match="more than the 61 samples"):
        batches_of(folder, size=62, world=2)


def test_mixed_targets_are_shares_of_classes(folder: Path) -> None:
    mixing = AugmentationSection(mixup=1.0)
    batch = Batches(ShardSamples(shards_of(folder)), 8, 0, Seen(), mixing, classes=3)[0]
    assert batch.labels.shape == (8, 3)
    assert torch.allclose(batch.labels.sum(1), torch.ones(8))


# ----------------------------------------------------------------------------------------------------- damage


def test_bad_samples_are_left_out_of_their_batch_and_named(tmp_path: Path) -> None:
    members = [("0.png", png(0)), ("0.cls", b"0"), ("1.png", png(1)), ("2.png", png(2)[:50]), ("2.cls", b"0")]
    members += [("3.png", png(3)), ("3.cls", b"7"), ("4.png", png(4)), ("4.cls", b"1")]
    write_tar(tmp_path / "s-0.tar", members)
    shards = open_shards(str(tmp_path / "s-{0..0}.tar"))
    batch = Batches(ShardSamples(shards, classes=2, to_class=(1, 0)), 5, 0, Seen())[0]
    assert sorted(zip(batch.images[:, 0, 0, 0].tolist(), batch.labels.tolist(), strict=True)) == [(0, 1), (4, 0)]
    assert sorted(batch.unreadable) == [1, 2, 3]
    assert "s-0.tar/1.png has no label" in batch.unreadable[1]
    assert "s-0.tar/2.png is not an image" in batch.unreadable[2]
    assert "s-0.tar/3.png has the label 7, beyond the 2 classes" in batch.unreadable[3]


def test_shards_without_labels_are_for_training_without(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", [(f"{n}.png", png(n)) for n in range(4)])
    batch = Batches(ShardSamples(open_shards(str(tmp_path / "s-{0..0}.tar"))), 4, 0, Seen())[0]
    assert batch.labels is None
    assert len(batch.images) == 4
    assert not batch.unreadable


@pytest.mark.parametrize("kept", [2600, 5 * 1024, 5 * 1024 + 100, 0], ids=["content", "boundary", "header", "nothing"])
def test_a_shard_that_was_cut_off_is_refused_before_training(folder: Path, kept: int) -> None:
    path = folder / "s-004.tar"
    path.write_bytes(path.read_bytes()[:kept])
    (folder / "s-006.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(BadInput, match="2 of 10 shards cannot be used") as error:
        shards_of(folder)
    assert "s-004.tar: it" in str(error.value)
    assert "s-006.tar: it" in str(error.value)


def test_a_header_that_was_overwritten_is_no_end(folder: Path) -> None:
    path = folder / "s-004.tar"
    content = bytearray(path.read_bytes())
    content[4 * 1024 : 4 * 1024 + 512] = b"\xff" * 512
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"s-004\.tar: it ends in the middle, at byte 4,096"):
        shards_of(folder)


def test_a_shard_of_which_more_was_promised_is_left_out_and_named(folder: Path) -> None:
    (folder / "sizes.json").write_text(json.dumps({f"s-{n:03d}.tar": size for n, size in enumerate(SIZES)}))
    path = folder / "s-004.tar"
    path.write_bytes(path.read_bytes()[:4096])
    batch = batches_of(folder, size=61)[0]
    assert len(batch.images) == 61 - 5
    assert sorted(batch.unreadable) == list(range(27, 32))
    assert "s-004.tar[2] is not there: it" in batch.unreadable[27]
    alone = batches_of(folder, size=1)
    step = next(step for step in range(61) if alone.numbers(step) == [27])
    assert list(alone[step].unreadable) == [27], "another stands in"
    assert len(alone[step].images) == 1


def test_a_shard_that_vanishes_is_named(folder: Path) -> None:
    batches = batches_of(folder, size=61)
    (folder / "s-000.tar").unlink()
    assert "s-000.tar cannot be read: No such file" in batches[0].unreadable[0]


def test_a_shard_of_another_length_than_was_written_is_refused(folder: Path) -> None:
    images = shards_of(folder)
    written = write_shards(images, folder / "out", size=20)
    path = folder / "out" / "shards-002.tar"
    with path.open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(BadInput, match=r"1 shards were cut off or changed.*\n.*shards-002\.tar has"):
        open_shards(written.pattern)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"shardlist": [{"url": "a.tar"}]}', '{"shardlist": [{"url": "a", "nsamples": -1}]}']
)
def test_counts_that_are_none_are_refused(folder: Path, text: str) -> None:
    (folder / "shards.json").write_text(text)
    with pytest.raises(BadInput, match=r"shards\.json does not say how many"):
        shards_of(folder)


# ---------------------------------------------------------------------------------------------------- writing


def photo_file(n: int) -> bytes:
    return png(n) + b"what no encoder would write"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for n in range(23):
        path = tmp_path / "photos" / ("cat", "dog")[n % 2] / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo_file(n))
    return tmp_path / "photos"


def test_files_go_in_as_they_are_in_an_order_of_chance_and_the_same_bytes_again(photos: Path, tmp_path: Path) -> None:
    written = [write_shards(open_images(photos), tmp_path / name, size=10, seed=3) for name in ("a", "b")]
    assert written[0].pattern.endswith("a/shards-{000..002}.tar")
    names = ["classes.txt", "shards-000.tar", "shards-001.tar", "shards-002.tar", "shards.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() or name == "shards.json"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    shards = open_shards(written[0].pattern)
    assert shards.classes == ("cat", "dog")
    read = [(np.asarray(image.pixels)[0, 0, 0], image.label) for image in shards]
    assert sorted(read) == [(n, n % 2) for n in range(23)]
    labels = [label for _, label in read]
    assert labels != sorted(labels)
    with tarfile.open(tmp_path / "a" / "shards-000.tar") as tar:
        assert tar.extractfile("00000000.png").read() == photo_file(read[0][0])  # type: ignore[union-attr]


def test_unreadable_photos_are_left_out_and_nothing_is_overwritten(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "00.png").write_bytes(b"no image")
    out = tmp_path / "out"
    written = write_shards(open_images(photos), out, size=11)
    assert (written.samples, len(open_shards(written.pattern))) == (22, 22)
    assert "00.png is not an image" in written.unreadable[0]
    with pytest.raises(BadInput, match="is there already"):
        write_shards(open_images(photos), out)
    assert len(open_shards(written.pattern)) == 22


def test_a_turned_photo_of_a_tar_is_written_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 4)).save(buffer, "JPEG", exif=exif)
    images = open_images(write_tar(tmp_path / "in.tar", [("cat/1.jpg", buffer.getvalue())]))
    image = open_shards(write_shards(images, tmp_path / "out").pattern)[0]
    assert (image.pixels.size, image.pixels.mode) == ((4, 8), "RGB")
    assert image.pixels.getexif().get(0x0112, 1) == 1


def test_where_nothing_can_be_read_nothing_is_left(photos: Path, tmp_path: Path) -> None:
    for path in photos.glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(BadInput, match="not one of 23 images can be read"):
        write_shards(open_images(photos), tmp_path / "deep" / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


def test_the_command_writes_shards_that_the_check_reads(photos: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("data", "shard", photos, "-o", tmp_path / "out", "--size", "8", "--json")
    assert done.code == 0, done.err
    pattern = json.loads(done.out)["pattern"]
    checked = cli("data", "check", pattern)
    assert (checked.code, checked.err.count("note:")) == (0, 1), checked.err  # they are tiny
    again = cli("data", "shard", photos, "-o", tmp_path / "out")
    assert again.code == 2
    assert "is there already" in again.err
