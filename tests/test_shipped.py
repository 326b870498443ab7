"""The weights that come along: small, with a card that says how they were made, and as good as it says."""

import re
from pathlib import Path

import pytest

import edgekit
from edgekit.models import list_models, shipped_card, shipped_tags
from edgekit.models._card import SHIPPED
from tests.conftest import ROOT, Cli

FILES = sorted(SHIPPED.glob("*.safetensors"))
NAMES = [(spec.name, tag) for spec in list_models() for tag in shipped_tags(spec.name)]


def test_they_are_few_and_small() -> None:
    assert len(FILES) >= 2
    assert {f"{name}-{tag}" for name, tag in NAMES} == {path.stem for path in FILES}
    assert sum(path.stat().st_size for path in FILES) <= 12e6


@pytest.mark.parametrize(("name", "tag"), NAMES)
def test_the_card_says_how_they_were_made(name: str, tag: str, cli: Cli) -> None:
    card = shipped_card(name, tag)
    assert (card.model, len(card.labels)) == (name, card.num_classes)
    assert card.preprocess is not None
    found = re.fullmatch(r"(recipes/\S+) on \S+, seed \d+: top-1 ([\d.]+) % on the \d+ images of \S+", card.trained)
    assert found, card.trained
    assert (ROOT / found[1]).exists()
    assert card.trained in " ".join(cli("models", name).out.split())


@pytest.mark.parametrize(("name", "tag"), NAMES)
def test_they_are_as_good_as_the_card_says(name: str, tag: str, shared: Path) -> None:
    """On 800 of the test images: within three standard errors."""
    told = float(re.findall(r"top-1 ([\d.]+) %", shipped_card(name, tag).trained)[0])
    images = shared / "data" / "cifar10_test.npz"
    found = edgekit.evaluate(name, images, weights=tag, limit=800)
    assert found.top1 == pytest.approx(told, abs=3 * 100 * (told / 100 * (1 - told / 100) / 800) ** 0.5)


def test_the_demo_sees_a_cat(cli: Cli, tmp_path: Path) -> None:
    words = ["-m", "mobile-former-52m", "--weights", "cifar10", "-t", "onnx", "-o", tmp_path]
    assert cli("export", *words).code == 0
    photo = ROOT / "tests" / "photos" / "cat.jpg"
    result = cli("predict", tmp_path / "mobile-former-52m-onnx-fp32", photo, "--top", "1")
    assert "cat" in result.out.splitlines()[1]
