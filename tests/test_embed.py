"""`embed` for every platform and target of the registries: a whole module, or a refusal that says what is possible."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.apps import PLATFORMS, embed
from edgekit.artifacts import MANIFEST, hash_files
from edgekit.errors import BadInput, UnknownName, Unsupported
from edgekit.targets import TARGETS
from edgekit.types import Artifact, Preprocess, TensorSpec
from tests.apps.made_artifacts import SUFFIXES, made_artifact

LABELS = ("red fox", "Kit fox")


def made(folder: Path, target: str) -> Artifact:
    return made_artifact(folder, target, name="Fox finder", labels=LABELS)


def test_there_is_a_suffix_for_every_target() -> None:
    assert set(TARGETS) == set(SUFFIXES)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_target_embeds_or_is_refused_with_what_is_possible(platform: str, target: str, tmp_path: Path) -> None:
    artifact, out = made(tmp_path / "artifact", target), tmp_path / "module"
    chosen = PLATFORMS[platform]
    if target not in chosen.targets:
        with pytest.raises(Unsupported) as refused:
            embed(artifact, platform, out)
        assert chosen.title in str(refused.value)
        assert f"edgekit export -t {','.join(chosen.targets)}" in refused.value.hint
        assert [p.name for p in tmp_path.iterdir()] == ["artifact"]
        return
    done = embed(artifact, platform, out)
    files = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    assert tuple(sorted(files)) == done.files
    assert {MANIFEST, "README.md"} <= set(files)
    assert done.classifier == "FoxFinderClassifier"
    # The model and the golden vectors are there once, the labels as they were, and the class that the steps name.
    for source in artifact.path.rglob("*"):
        if source.is_file() and source.name != MANIFEST:
            assert sum(p.read_bytes() == source.read_bytes() for p in files.values()) == 1, source
    assert sum(bool(re.search(r"class FoxFinderClassifier\b", p.read_text())) for p in sources(files)) == 1
    assert done.classifier in " ".join(done.steps)
    text = files["README.md"].read_text(encoding="utf-8")
    assert done.package in text
    assert done.classifier in text
    assert str(tmp_path) not in "".join(p.read_text() for p in sources(files))


def sources(files: dict[str, Path]) -> list[Path]:
    """Code and words, not what is copied."""
    return [p for p in files.values() if p.suffix in (".kt", ".kts", ".swift", ".md", ".xml", ".pro")]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_same_artifact_gives_the_same_files(platform: str, tmp_path: Path) -> None:
    artifact = made(tmp_path / "artifact", PLATFORMS[platform].targets[0])
    first, second = (embed(artifact, platform, tmp_path / name).path for name in ("a", "b"))
    assert hash_files(first) == hash_files(second)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_failure_leaves_nothing(platform: str, tmp_path: Path) -> None:
    artifact = made(tmp_path / "artifact", PLATFORMS[platform].targets[0])
    (artifact.path / "golden.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        embed(artifact, platform, tmp_path / "deep" / "module")
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nothing_that_a_manifest_says_becomes_code(platform: str, tmp_path: Path) -> None:
    artifact = made(tmp_path / "artifact", PLATFORMS[platform].targets[0])
    evil = dict.fromkeys(("edgekit", "precision", "name", "model"), "1\nevil()\n*/ evil()")
    done = embed(replace(artifact, manifest=replace(artifact.manifest, **evil)), platform, tmp_path / "module")
    for path in (p for p in done.path.rglob("*") if p.suffix in (".kt", ".kts", ".swift", ".md", ".pro")):
        assert not re.search(r"^\s*evil", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_an_unknown_platform_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="windows"):
        embed(made(tmp_path / "artifact", "onnx"), "windows", tmp_path / "module")


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"preprocess": None}, "does not say how a photo becomes its input"),
        ({"outputs": (TensorSpec(name="a", shape=(1, 2)),) * 2}, "1 inputs and 2 outputs"),
        ({"outputs": (TensorSpec(name="map", shape=(1, 2, 8, 8)),)}, "row of scores"),
        ({"inputs": (TensorSpec(name="image", shape=(4, 3, 8, 8), layout="NCHW"),)}, "4 photos at a time"),
        ({"outputs": (TensorSpec(name="logits", shape=(1, 3)),)}, "2 labels for 3 classes"),
        ({"preprocess": Preprocess(resize=8, crop=(8, 8), scale=float("inf"))}, "numbers that are none"),
    ],
)
def test_what_is_no_classifier_of_photos_is_refused(
    platform: str, changes: dict[str, object], what: str, tmp_path: Path
) -> None:
    artifact = made(tmp_path / "artifact", PLATFORMS[platform].targets[0])
    other = replace(artifact, manifest=replace(artifact.manifest, **changes))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=what):
        embed(other, platform, tmp_path / "module")
    assert not (tmp_path / "module").exists()
