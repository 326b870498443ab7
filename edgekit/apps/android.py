"""`embed --platform android`: a Gradle library module in Kotlin."""

import re
from collections.abc import Mapping
from pathlib import Path

from edgekit.apps.android_gradle import ANDROID_MANIFEST, build_script, consumer_rules
from edgekit.apps.android_readme import readme, steps
from edgekit.apps.android_runtimes import RUNTIMES
from edgekit.apps.android_sources import main_sources, test_sources
from edgekit.apps.model import AppModel, Platform
from edgekit.artifacts import GOLDEN
from edgekit.errors import BadInput

# What no part of a package may be called in Java (whose R class lies in it) or Kotlin. Words that are only sometimes
# keywords ("data", "open") are fine names.
_WORDS = """
abstract as assert boolean break byte case catch char class const continue default do double else enum extends false
final finally float for fun goto if implements import in instanceof int interface is long native new null object package
private protected public return short static strictfp super switch synchronized this throw throws transient true try
typealias typeof val var void volatile when while _
"""
_RESERVED = frozenset(_WORDS.split())
_PLATFORM_PACKAGES = ("java", "kotlin", "android")


def _files(model: AppModel, package: str) -> Mapping[str, str | bytes | Path]:
    source = f"kotlin/{package.replace('.', '/')}"
    artifact, assets = model.artifact, f"src/main/assets/{model.resource}"
    labels = artifact.manifest.labels
    return {
        "README.md": readme(model, package),
        "build.gradle.kts": build_script(model, package),
        "consumer-rules.pro": consumer_rules(model),
        "src/main/AndroidManifest.xml": ANDROID_MANIFEST,
        f"{assets}/{artifact.model_path.name}": artifact.model_path,
        **({f"{assets}/labels.txt": artifact.path / labels} if labels else {}),
        **{f"src/main/{source}/{name}": text for name, text in main_sources(model, package).items()},
        **{f"src/androidTest/{source}/{name}": text for name, text in test_sources(model, package).items()},
        f"src/androidTest/assets/{model.resource}/{GOLDEN}": artifact.path / GOLDEN,
    }


def _checked_package(package: str) -> str:
    parts = package.split(".")
    why = ""
    if len(parts) < 2 or not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", part) for part in parts):
        why = "it is not two or more words of ASCII letters, digits and _ with dots between"
    elif reserved := sorted(_RESERVED.intersection(parts)):
        why = f"{reserved[0]!r} is a word of the language"
    elif parts[0] in _PLATFORM_PACKAGES:
        why = f"{parts[0]} is the platform's own"
    if why:
        raise BadInput(f"{package!r} is no package of an app: {why}", "Give one such as --package com.example.flowers.")
    return package


def _notes(model: AppModel) -> tuple[str, ...]:
    runtime = RUNTIMES[model.target]
    return (
        f"{runtime.library}, minSdk {runtime.min_sdk}",
        f"16 KB pages: {runtime.pages}",
    )


ANDROID = Platform(
    name="android",
    title="Android",
    targets=tuple(RUNTIMES),
    files=_files,
    package=lambda model: f"edgekit.{model.resource}",
    checked_package=_checked_package,
    steps=steps,
    notes=_notes,
)
