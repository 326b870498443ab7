"""`embed --platform ios`: what is written for each runtime, whatever the model and its classes are called.

Swift is parsed here; tests/test_embed_ios_swift.py compiles and runs it where there is a compiler.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

from edgekit.apps import embed
from edgekit.apps.ios_package import EXECUTORCH, LITERT, RUNTIMES
from edgekit.apps.naming import swift_string
from edgekit.errors import BadInput
from edgekit.types import Artifact, Embedded, Preprocess, TensorSpec
from tests.apps.made_artifacts import made_artifact
from tests.apps.swift_compiler import HOSTILE, ROOT, SOURCES
from tests.conftest import TARGETS, Cli

LABELS = ("tulip", 'say "rose"', "a\\(b)", "dai$y", "tab\there", "雏菊 🌼")
PARSER = Parser(Language(tree_sitter_swift.language()))


def faults(source: str) -> list[str]:
    """Where the parser stumbled."""

    def walk(node: Node) -> Iterator[Node]:
        if node.is_error or node.is_missing:
            yield node
        for child in node.children:
            yield from walk(child)

    lines = source.splitlines()
    return [lines[n.start_point[0]].strip() for n in walk(PARSER.parse(source.encode()).root_node)]


def literals(source: str) -> Iterator[str]:
    """What the string literals of a Swift source mean."""
    for body in re.findall(r'"((?:[^"\\\n]|\\.)*)"', source):
        assert "\\(" not in body
        yield re.sub(r"\\u\{([0-9a-f]+)\}", lambda m: chr(int(m[1], 16)), body)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A user's own module with own labels, for each target."""
    import torch
    from torch import nn

    import edgekit

    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(*body, nn.Linear(8, len(LABELS))).eval()
    folder = tmp_path_factory.mktemp("own")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    made = edgekit.export(
        net, TARGETS, input_shape=[(1, 3, 32, 32)], labels=folder / "labels.txt", out=folder, verify=False
    )
    return {a.manifest.target: a for a in made}


@pytest.mark.parametrize("target", TARGETS)
def test_a_users_own_module_becomes_a_package(target: str, exported: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = exported[target]
    done = embed(artifact.path, "ios", tmp_path / "package", package="Flowers")
    assert (done.platform, done.package) == ("ios", "Flowers")
    resources = done.path / "Sources" / "Flowers" / "Resources"
    (model,) = [p for p in resources.iterdir() if p.name != "labels.txt"]
    assert model.suffix == artifact.model_path.suffix
    whole = [p for p in artifact.model_path.rglob("*") if p.is_file()] or [artifact.model_path]
    for path in whole:
        assert (model / path.relative_to(artifact.model_path)).read_bytes() == path.read_bytes()
    assert (resources / "labels.txt").read_bytes().decode().split("\n") == [*LABELS, ""]
    golden = done.path / "Tests" / "FlowersTests" / "Resources" / "golden.safetensors"
    assert golden.read_bytes() == (artifact.path / "golden.safetensors").read_bytes()
    assert_whole(done, target)


def assert_whole(done: Embedded, target: str) -> None:
    """Every file parses; the package names its resources, the tests its module, and one runtime alone is in it."""
    sources = {name: (done.path / name).read_text() for name in done.files if name.endswith(".swift")}
    assert not {name: found for name, text in sources.items() if (found := faults(text))}
    package = sources["Package.swift"]
    for resource in re.findall(r'(?:copy|process)\("(Resources/[^"]+)"\)', package):
        assert any(name.split("/", 2)[2].startswith(resource) for name in done.files if name.count("/") > 1), resource
    tests = [text for name, text in sources.items() if name.startswith("Tests/")]
    assert any(f"@testable import {done.package}\n" in text for text in tests)
    assert not any("EdgekitModule" in text for text in tests)
    assert sum("ModelRuntime {" in t and "protocol" not in t for t in sources.values()) == 1
    assert all(product in package for product in RUNTIMES[target].products)
    assert (
        f"final class {done.classifier}: ImageClassifying" in sources[f"Sources/{done.package}/{done.classifier}.swift"]
    )
    assert f"= try await {done.classifier}()" in (done.path / "README.md").read_text()


def test_a_model_of_the_zoo_becomes_a_package(tmp_path: Path, cli: Cli) -> None:
    assert cli("export", "-m", "resnet20-cifar", "-t", "coreml", "--no-verify", "-o", tmp_path).code == 0
    (artifact,) = tmp_path.glob("resnet20-cifar-coreml-*")
    result = cli("embed", artifact, "--platform", "ios", "-o", tmp_path / "app", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert (told["package"], told["classifier"]) == ("Resnet20CifarModel", "Resnet20CifarClassifier")
    assert len(told["steps"]) == 3
    assert_whole(Embedded(**{**told, "path": Path(told["path"]), "files": tuple(told["files"])}), "coreml")
    spec = (tmp_path / "app/Sources/Resnet20CifarModel/Resnet20CifarClassifier.swift").read_text()
    manifest = json.loads((artifact / "edgekit.json").read_text())
    preprocess = manifest["preprocess"]
    assert f"mean: {preprocess['mean']}, std: {preprocess['std']}, scale: {preprocess['scale']}" in spec
    assert f"shape: {manifest['inputs'][0]['shape']}" in spec


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_or_enters_the_code(name: str, tmp_path: Path) -> None:
    """Of a thousand classes, too; the literal that Swift reads is the name again."""
    whole = name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    line = re.sub(r"[\n\r]", "", whole)  # which would end a line of the artifact's labels.txt
    labels = [f"{line} {n}" for n in range(1000)]
    done = embed(made_artifact(tmp_path / "a", name=name, labels=labels), "ios", tmp_path / "p")
    assert_whole(done, "onnx")
    generated = (done.path / "Sources" / done.package / f"{done.classifier}.swift").read_text()
    assert whole in literals(generated)
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9]*Classifier", done.classifier)
    stored = done.path / "Sources" / done.package / "Resources" / "labels.txt"
    assert stored.read_bytes().decode().split("\n")[:-1] == labels
    for line in generated.splitlines():
        assert "evil" not in re.sub(r'"(?:[^"\\]|\\.)*"', "", line.split("//")[0]) or "Evil" in done.classifier


def test_a_literal_reads_as_what_it_was() -> None:
    for text in (*HOSTILE, *LABELS, "".join(map(chr, range(0x250)))):
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert list(literals(f"let a = {swift_string(text)}")) == [whole]
        assert not faults(f"let a = {swift_string(text)}\n")


def test_coordinates_are_those_of_the_exporters() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"executorch=={EXECUTORCH}" in extras["executorch"]
    assert f"ai-edge-litert=={LITERT}" in extras["tflite"]


@pytest.mark.parametrize(
    ("target", "precision", "ios"),
    [("coreml", "fp16", "17.0"), ("coreml", "int4-weight", "18.0"), ("executorch", "fp32", "17.0")],
)
def test_the_package_asks_for_what_the_model_needs(target: str, precision: str, ios: str, tmp_path: Path) -> None:
    done = embed(made_artifact(tmp_path / "a", target, precision=precision), "ios", tmp_path / "p")
    manifest = (done.path / "Package.swift").read_text()
    assert f'.iOS("{ios}")' in manifest
    assert ("-all_load" in manifest) == (target == "executorch")
    assert (".process(" in manifest) == (target == "coreml")


@pytest.mark.parametrize(
    ("package", "why"),
    [
        ("class", "a word of the language"), ("UIKit", "a module of the platform"), ("com.example", "not a word"),
        ("é", "not a word"), ("Pixels", "a type in it"), ("MadeClassifier", "a type in it"), ("../up", "not a word"),
    ],
)  # fmt: skip
def test_a_package_that_is_no_module_is_refused(package: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=why):
        embed(made_artifact(tmp_path / "a"), "ios", tmp_path / "p", package=package)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("target", "image", "preprocess", "why"),
    [
        ("onnx", TensorSpec(name="x", shape=(1, 3, 9, 8), layout="NCHW"), None, "not the 3 x 8 x 8 of a crop"),
        ("onnx", TensorSpec(name="x", shape=(1, 3, 8, 8), layout="NCHW", dtype="int32"), None, "x is int32"),
        ("coreml", TensorSpec(name="x", shape=(1, 3, 8, 8), layout="NCHW", dtype="uint8"), None, "Core ML: float32"),
        ("onnx", None, Preprocess(resize=9, crop=(8, 8), interpolation="box"), "box is none of nearest"),
    ],
)
def test_what_no_app_can_prepare_is_refused(
    target: str, image: TensorSpec | None, preprocess: Preprocess | None, why: str, tmp_path: Path
) -> None:
    settings = {} if preprocess is None else {"preprocess": preprocess}
    with pytest.raises(BadInput, match=why):
        embed(made_artifact(tmp_path / "a", target, image=image, **settings), "ios", tmp_path / "p")


def test_the_command_line_says_what_is_wrong(exported: dict[str, Artifact], tmp_path: Path, cli: Cli) -> None:
    artifact, out = exported["onnx"].path, tmp_path / "app"
    wrong = cli("embed", artifact, "--platform", "ios", "--package", "func", "-o", out)
    assert wrong.code == 2
    assert "--package Flowers" in wrong.err
    assert cli("embed", artifact, "--platform", "ios", "-o", out).code == 0
    again = cli("embed", artifact, "--platform", "ios", "-o", out)
    assert again.code == 2
    assert "--force" in again.err
    assert cli("embed", artifact, "--platform", "ios", "-o", out, "--force").code == 0


def test_the_librarys_own_sources_parse() -> None:
    paths = [*SOURCES.rglob("*.swift"), *(ROOT / "tests" / "apps" / "swift").rglob("*.swift")]
    assert len(paths) > 20
    assert not {path.name: found for path in paths if (found := faults(path.read_text(encoding="utf-8")))}


def test_the_sample_app_parses_and_calls_what_there_is() -> None:
    text = (ROOT / "edgekit" / "apps" / "ios-sample.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```swift\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    assert not [found for block in blocks if (found := faults(block))]
    offered = "\n".join(p.read_text(encoding="utf-8") for p in SOURCES.rglob("*.swift"))
    for called in re.findall(r"classifier\.(\w+)\(", "\n".join(blocks)):
        assert f"public func {called}(" in offered
