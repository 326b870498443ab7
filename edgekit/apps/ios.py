"""`embed --platform ios`: a Swift package."""

import re
from collections.abc import Mapping
from pathlib import Path

from edgekit.apps.ios_package import MODULES, RUNTIMES, package_manifest
from edgekit.apps.ios_readme import readme
from edgekit.apps.ios_sources import check, classifier_source, golden_source, library_sources, test_sources
from edgekit.apps.model import AppModel, Platform
from edgekit.apps.naming import KEYWORDS, type_name
from edgekit.artifacts import GOLDEN
from edgekit.errors import BadInput


def _files(model: AppModel, package: str) -> Mapping[str, str | bytes | Path]:
    check(model)
    library, tests = library_sources(model.target), test_sources(package)
    taken = set(re.findall(r"\b(?:actor|class|enum|protocol|struct) (\w+)", "\n".join(library.values())))
    if package in taken | {model.classifier}:
        raise BadInput(
            f"a module cannot be called {package}, as a type in it is", f"Give another name: --package {package}Model."
        )
    sources, resources = f"Sources/{package}", f"Sources/{package}/Resources"
    artifact = model.artifact
    return {
        "Package.swift": package_manifest(model, package),
        "README.md": readme(model, package),
        f"{sources}/{model.classifier}.swift": classifier_source(model),
        **{f"{sources}/{name}": text for name, text in library.items()},
        f"{resources}/{model.resource}{artifact.model_path.suffix}": artifact.model_path,
        # As few labels as there are classes: each ends with a line feed, the last one too.
        f"{resources}/labels.txt": "".join(f"{label}\n" for label in model.labels).encode(),
        f"Tests/{package}Tests/Golden.swift": golden_source(model, package),
        **{f"Tests/{package}Tests/{name}": text for name, text in tests.items()},
        f"Tests/{package}Tests/Resources/{GOLDEN}": artifact.path / GOLDEN,
    }


def _package(model: AppModel) -> str:
    return f"{type_name(model.artifact.manifest.name)}Model"


def _checked_package(package: str) -> str:
    why = ""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", package):
        why = "it is not a word of ASCII letters, digits and _ that begins with a letter"
    elif package in KEYWORDS:
        why = "it is a word of the language"
    elif package in MODULES:
        why = "a module of the platform or of a runtime has that name"
    if why:
        raise BadInput(f"{package!r} is no name of a Swift module: {why}", "Give one such as --package Flowers.")
    return package


def _steps(model: AppModel, package: str, folder: Path) -> tuple[str, ...]:
    return (
        f"In Xcode: File > Add Package Dependencies > Add Local, choose {folder}, add {package} to the app's target.",
        f"import {package}; let classifier = try await {model.classifier}();"
        " let classes = try await classifier.classify(image)",
        f"Prove it on a phone: open {folder} in Xcode, choose the phone, Product > Test.",
    )


def _notes(model: AppModel) -> tuple[str, ...]:
    return RUNTIMES[model.target].notes


IOS = Platform(
    name="ios",
    title="iOS",
    targets=tuple(RUNTIMES),
    files=_files,
    package=_package,
    checked_package=_checked_package,
    steps=_steps,
    notes=_notes,
)
