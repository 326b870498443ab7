"""Real weights, real photos, real runtimes: MobileNetV2 keeps its ImageNet accuracy on all four."""

from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.data import open_images
from edgekit.prediction import classifier
from edgekit.targets import TARGETS
from edgekit.types import Artifact


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    return shared / "data"


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def artifacts(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, ...]:
    out = tmp_path_factory.mktemp(request.param)
    weights = data / "mobilenetv2_imagenet.safetensors"
    return edgekit.export("mobilenet-v2", "all", precision=request.param, weights=weights, out=out)


def test_every_runtime_has_the_float_models_accuracy(artifacts: tuple[Artifact, ...], data: Path) -> None:
    """88.0 % of the 800 photos, measured in torch by the data's own README; float16 is tried on every fourth photo."""
    assert [a.manifest.target for a in artifacts] == list(TARGETS)
    whole = artifacts[0].manifest.precision == "fp32"
    images = list(open_images(data / "imagenet_sample800.tar"))[:: 1 if whole else 4]
    labels = np.array([image.label for image in images])
    runs = [classifier(artifact) for artifact in artifacts]
    guesses = np.array([[run(image.pixels).argmax() for run in runs] for image in images])
    accuracy = 100 * (guesses == labels[:, None]).mean(0)
    agreement = (guesses == guesses[:, :1]).mean(0)
    if whole:
        assert accuracy == pytest.approx([88.0] * 4, abs=0.13)  # one photo is 0.125 points
        assert agreement.min() >= 0.998
    else:
        assert accuracy == pytest.approx([accuracy[0]] * 4, abs=1.0)  # two of 200
        for artifact, same in zip(artifacts, agreement, strict=True):
            # Four of 200 where sums are float16, too; else two.
            assert same >= (0.98 if artifact.manifest.target == "executorch" else 0.99)


def test_evaluate_reports_accuracy_and_agreement(artifacts: tuple[Artifact, ...], data: Path) -> None:
    result = edgekit.evaluate(artifacts[-1].path, data / "imagenet_sample800.tar", limit=40)
    assert result.n == 40
    assert result.top1 > 70
    assert result.top5 >= result.top1
    assert result.ci95[0] < result.top1 < result.ci95[1]
    assert result.agreement is not None
    assert result.agreement >= 97


def test_predict_knows_a_photo_it_has_never_seen(artifacts: tuple[Artifact, ...], photo: Path) -> None:
    """scikit-learn's flower is a dahlia, which ImageNet lacks: what counts is that all runtimes say the same."""
    for artifact in artifacts:
        ((best, *_),) = edgekit.predict(artifact, [photo])
        assert best.label == edgekit.predict(artifacts[0], [photo])[0][0].label
        assert 0 < best.probability <= 1
