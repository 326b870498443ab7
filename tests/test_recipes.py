"""The recipes that come along: each one is valid, the papers' are the papers', and the small ones run."""

import json
import re
import tarfile
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit.recipes
from edgekit.data import apply, open_images
from edgekit.errors import BadInput, EnvironmentProblem
from edgekit.models import ZOO, create_model
from edgekit.models.slab.prepbn import PRepBN
from edgekit.recipes import copy_recipe, recipes
from edgekit.training import train
from edgekit.training.data import parted
from edgekit.training.reading import read_recipe
from edgekit.training.recipe import Recipe
from tests.conftest import ROOT, Cli

FILES = sorted((ROOT / "recipes").glob("*.yaml"))
PATHS = re.compile(r"^ +(?:train|evaluation|weights|labels|calibration): (.*/.*)$", re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where every path of every recipe leads somewhere."""
    work = tmp_path / "project"
    for text in (path.read_text(encoding="utf-8") for path in FILES):
        for place in PATHS.findall(text):
            (work / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(work)
    return work


def paper(name: str, *overrides: str) -> Recipe:
    return read_recipe(ROOT / "recipes" / f"{name}.yaml", overrides)


# ------------------------------------------------------------------------------------------------ what is in them


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_is_valid_and_says_what_it_is_for(path: Path, folder: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.out.startswith(f"build/{path.stem}")
    assert recipe.model.name in ZOO
    for teacher in (recipe.distillation, recipe.token_labelling):
        assert teacher is None or teacher.teacher is None or teacher.teacher.name in ZOO
    lines = path.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 120
    assert recipes()[path.stem].about.endswith(".")


def test_each_family_of_the_papers_has_one(folder: Path) -> None:
    families = {ZOO[card.model].family for name, card in recipes().items() if name.endswith("-imagenet")}
    assert families == {"lvt", "moat", "mobile-former", "micronet", "slab"}


def test_the_table_of_mobile_former_is_valid_and_its_models_have_that_dropout(folder: Path) -> None:
    text = recipes()["mobile-former-imagenet"].text
    rows = re.findall(r"^#   ((?:\d+m(?:, )?)+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", text, re.MULTILINE)
    seen = []
    for variants, lr, decay, mixup, rand_augment, erasing, dropout in rows:
        for variant in variants.split(", "):
            recipe = paper(
                "mobile-former-imagenet", f"model.name=mobile-former-{variant}", f"optimizer.lr={lr}",
                f"optimizer.weight_decay={decay}", f"augmentation.mixup={mixup}",
                f"augmentation.rand_augment={rand_augment}", f"augmentation.random_erasing={erasing}",
            )  # fmt: skip
            layers = create_model(recipe.model.name, num_classes=2).modules()
            assert [m.p for m in layers if isinstance(m, torch.nn.Dropout)] == [float(dropout)]
            seen.append(recipe.model.name)
            if variant == "294m":
                assert recipe == paper("mobile-former-imagenet")
    assert sorted(seen) == sorted(n for n in ZOO if n.startswith("mobile-former"))


def test_what_the_comments_say_to_change_can_be_changed(folder: Path) -> None:
    said = [
        (path.stem, override)
        for path in FILES
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
        for override in re.findall(r"\b[a-z_.]+\.[a-z_]+=[^\s(),:;]+", line)
        if ":callable" not in line or not override.startswith("token_labelling")
    ]
    assert len(said) >= 8
    for name, override in said:
        paper(name, override.rstrip("."))


def test_the_schedule_of_slabs_norms_is_60000_steps(folder: Path) -> None:
    recipe = paper("slab-deit-imagenet")
    assert recipe.schedule is not None
    assert recipe.schedule.epochs is not None
    steps = recipe.schedule.epochs * (1_281_167 // recipe.data.batch_size)
    assert recipe.schedule.prepbn_share * steps == pytest.approx(60_000, rel=0.01)


# ----------------------------------------------------------------------------------------------- edgekit recipes


def test_they_are_listed(cli: Cli) -> None:
    result = cli("recipes")
    assert result.code == 0, result.err
    assert [line.split()[0] for line in result.out.splitlines()[:-2:2]] == [path.stem for path in FILES]
    assert "train → int8 → export tflite, coreml" in result.out
    assert "lvt, imagenet/train: train (token labels)" in result.out
    listed = json.loads(cli("recipes", "--json").out)
    assert [card["name"] for card in listed] == [path.stem for path in FILES]
    assert set(listed[0]) == {"name", "about", "model", "data", "stages"}


def test_one_is_shown_and_copied_as_it_is(cli: Cli, tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "clothing10.yaml").read_text(encoding="utf-8")
    assert cli("recipes", "clothing10").out == text
    out = tmp_path / "new" / "mine.yaml"
    result = cli("recipes", "clothing10", "-o", out)
    assert result.code == 0, result.err
    assert f"edgekit train {out}" in result.out
    assert out.read_text(encoding="utf-8") == text
    assert json.loads(cli("recipes", "clothing10.yaml", "-o", tmp_path, "--json").out)["path"] == str(
        tmp_path / "clothing10.yaml"
    )


def test_a_file_that_is_there_is_only_replaced_with_force(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("mine", encoding="utf-8")
    result = cli("recipes", "clothing10", "-o", out)
    assert result.code == 2
    assert "is there already" in result.err
    assert out.read_text(encoding="utf-8") == "mine"
    assert cli("recipes", "clothing10", "-o", out, "--force").code == 0
    assert out.read_text(encoding="utf-8").startswith("# From photos")


def test_a_name_that_is_none_is_answered_with_those_that_are(cli: Cli, tmp_path: Path) -> None:
    result = cli("recipes", "clothing", "-o", tmp_path / "x.yaml")
    assert result.code == 2
    assert "unknown recipe 'clothing'" in result.err
    assert "Did you mean 'clothing10'?" in result.err
    assert cli("recipes", "-o", tmp_path / "x.yaml").code == 2
    assert not list(tmp_path.iterdir())


def test_an_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"recipes": "edgekit/_recipes"}
    monkeypatch.setattr(edgekit.recipes, "files", lambda package: tmp_path / package)
    monkeypatch.setattr(edgekit.recipes, "__file__", str(tmp_path / "edgekit" / "recipes.py"))
    with pytest.raises(EnvironmentProblem, match="no recipes"):
        recipes()
    inside = tmp_path / "edgekit" / "_recipes"
    inside.mkdir(parents=True)
    (inside / "one.yaml").write_text("# One.\nmodel: {name: lvt}\ndata: {train: photos}\n", encoding="utf-8")
    (inside / "own_model.py").write_text("", encoding="utf-8")
    assert [(card.name, card.about, card.stages) for card in recipes().values()] == [("one", "One.", ())]
    assert copy_recipe("one", tmp_path).read_text(encoding="utf-8").startswith("# One.")
    with pytest.raises(BadInput, match="already"):
        copy_recipe("one", tmp_path)


# --------------------------------------------------------------------------------------------------- what is run


def test_the_tiny_one_goes_through_all_stages(shared: Path, tmp_path: Path, cli: Cli) -> None:
    data = shared / "data"
    result = cli(
        "train", ROOT / "recipes" / "cifar10-tiny.yaml", f"data.train={data}/cifar10_train_jpeg50k.npz",
        f"data.evaluation={data}/cifar10_test.npz", f"model.weights={data}/resnet20_cifar10.safetensors",
        f"out={tmp_path}/run", "data.train_limit=256", "data.limit=200", "schedule.steps=4", "schedule.warmup_steps=1",
        "quantization.qat.schedule.steps=2", "export.limit=50", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    accuracy = json.loads(result.out)["accuracy"]
    assert list(accuracy) == ["float", "ptq", "qat", "onnx int8"]
    assert all(stage["top1"] > 75 for stage in accuracy.values())
    assert all(stage["agreement"] > 90 for stage in accuracy.values())
    assert (tmp_path / "run" / "artifacts" / "resnet20-cifar-onnx-int8" / "model.onnx").is_file()


@pytest.mark.slow
def test_clothes_go_from_photos_to_two_runtimes_in_int8(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minutes of one core."""
    with tarfile.open(shared / "data" / "clothing10_folder.tar") as archive:
        archive.extractall(tmp_path / "build", filter="data")
    monkeypatch.chdir(tmp_path)
    weights = f"model.weights={shared}/data/mobilenetv1_025_imagenet.safetensors"
    trained = train(ROOT / "recipes" / "clothing10.yaml", [weights])
    assert trained is not None
    assert list(trained.accuracy) == ["float", "ptq", "tflite int8", "coreml int8"]
    top1 = {name: stage.top1 for name, stage in trained.accuracy.items()}
    assert top1["float"] is not None
    assert top1["float"] >= 65
    assert all(value is not None and abs(value - top1["float"]) <= 5 for value in top1.values())


@pytest.fixture(scope="module")
def few(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos of CIFAR-10 with labels."""
    images = open_images(shared / "data" / "cifar10_test.npz")
    path = tmp_path_factory.mktemp("few") / "few.npz"
    pixels = np.stack([np.asarray(images[i].pixels) for i in range(60)])
    labels = np.array([images.labels[i] for i in range(60)])
    np.savez(path, images=pixels, labels=labels, classes=np.array(images.classes))
    return path


def test_a_slab_that_was_trained_is_exported(few: Path, tmp_path: Path) -> None:
    """Its norms are at the end of their schedule, their statistics are those of eval mode, and ONNX Runtime agrees."""
    path = tmp_path / "slab.yaml"
    path.write_text(
        f"""
model: {{name: slab-deit-tiny, image_size: 32}}
data: {{train: {few}, holdout: 0.2, batch_size: 8}}
optimizer: {{name: adamw, lr: 1e-3, clip_norm: 5}}
schedule: {{steps: 5, prepbn_share: 0.6}}
export: {{targets: [onnx]}}
out: {tmp_path}/run
""",
        encoding="utf-8",
    )
    trained = train(path)
    assert trained is not None
    model = create_model("slab-deit-tiny", weights=trained.path)
    norms = [m for m in model.modules() if isinstance(m, PRepBN)]
    assert len(norms) == 25
    assert all((int(n.total_step), int(n.iter)) == (3, 0) for n in norms)
    # The first norm's statistics are of all photos that were trained on, as they are: 6 batches of 8.
    recipe, images = read_recipe(path), open_images(few)
    preprocess = ZOO["slab-deit-tiny"].preprocess
    assert preprocess is not None
    preprocess = replace(preprocess, resize=round(preprocess.resize * 32 / 224), crop=(32, 32))
    places, _ = parted(images, recipe)
    photos = torch.stack([torch.from_numpy(apply(preprocess, images[i].pixels)) for i in places])
    with torch.no_grad():
        tokens = (model.patch_embed(photos) + model.pos_embed).flatten(0, 1)
    torch.testing.assert_close(norms[0].norm2.bn.running_mean, tokens.mean(0), atol=1e-4, rtol=1e-4)
    assert trained.accuracy["onnx fp32"].agreement == 100
    assert trained.artifacts[0].manifest.verification[0].sqnr_db > 60
