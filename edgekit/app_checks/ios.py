"""What is read of an iOS app: Swift packages, Xcode projects, their settings and Podfiles."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekit.app_checks.files import LARGE_TEXT, TEXT_LIMIT, Files, Unreadable, files_of
from edgekit.app_checks.gradle_text import line_of, strings, without_comments
from edgekit.app_checks.runtimes import RUNTIMES, Runtime
from edgekit.errors import BadInput

EXTENSIONS = {".pte": "executorch", ".onnx": "onnx", ".ort": "onnx", ".tflite": "tflite"}
COREML = (".mlpackage", ".mlmodel", ".mlmodelc")
# SwiftPM, "SupportedPlatform": without `platforms` a package is for the oldest iOS that Xcode 15 and newer build for.
_OLDEST = "12.0"


@dataclass(frozen=True, kw_only=True)
class Target:
    """An iOS version that something is built for, and where it says so."""

    version: str
    file: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Package:
    """One Package.swift: the folders that are resources of its targets, relative to what is checked."""

    file: str
    folder: str
    resources: tuple[str, ...]
    executable: bool


@dataclass(frozen=True, kw_only=True)
class IosApp:
    """`texts` are the files that describe the app, without comments, by path."""

    files: Files
    texts: dict[str, str]
    packages: tuple[Package, ...]
    targets: tuple[Target, ...]
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def linked(self) -> bool:
        """Whether an app is linked here, not only a library for one."""
        return any(p.endswith(".pbxproj") for p in self.texts) or any(p.executable for p in self.packages)

    def models(self) -> Iterator[str]:
        """Paths of model files and of model packages, each once."""
        seen = set()
        for entry in self.files:
            parts = PurePosixPath(entry.path).parts
            whole = next((n for n, p in enumerate(parts) if p.endswith((".mlpackage", ".mlmodelc"))), len(parts) - 1)
            path = "/".join(parts[: whole + 1])
            if path not in seen and path.endswith((*COREML, *EXTENSIONS)):
                seen.add(path)
                yield path

    def runtimes(self) -> frozenset[Runtime]:
        """Those among the packages, pods and frameworks of the app."""
        names: set[str] = set()
        for text in self.texts.values():
            for token in re.findall(r"[^\s\"'=;,()\[\]{}<>]+", text):
                parts = token.removesuffix(".git").removesuffix(".xcframework").split("/")
                names |= {parts[0], parts[-1]}
        return frozenset(r for r in RUNTIMES if names & set(r.apple))


def ios_app(path: Path) -> IosApp:
    """Raises `BadInput` for what is no iOS app or Swift package."""
    files = files_of(path)
    if files.archive:
        raise BadInput(f"{path} is an archive", "Give the folder with Package.swift or the .xcodeproj.")
    texts: dict[str, str] = {}
    unread = []
    for entry in files:
        if entry.name in ("Package.swift", "Podfile", "project.pbxproj") or entry.suffix == ".xcconfig":
            try:
                text = files.text(entry.path, LARGE_TEXT if entry.suffix == ".pbxproj" else TEXT_LIMIT)
                hashes = entry.name == "Podfile"
                texts[entry.path] = re.sub(r"#[^\n{]*", "", text) if hashes else _plain(entry.name, text)
            except Unreadable as error:
                unread.append((entry.path, str(error)))
    if not texts and not unread:
        raise BadInput(
            f"{path} is no iOS app: there is no Package.swift, project.pbxproj or Podfile in it",
            "Give the folder of the app or of the Swift package. Gradle, APK: --platform android.",
        )
    packages = tuple(_package(p, t) for p, t in texts.items() if p.endswith("Package.swift"))
    targets = tuple(t for p, text in texts.items() for t in _targets(p, text))
    return IosApp(files=files, texts=texts, packages=packages, targets=targets, unread=tuple(unread))


def _plain(name: str, text: str) -> str:
    """Comments of a project file are names that Xcode writes, "model.pte in Resources": they are read."""
    return text if name == "project.pbxproj" else without_comments(text)


def _targets(path: str, text: str) -> Iterator[Target]:
    if path.endswith("Package.swift"):
        found = re.search(r"\.iOS\(\s*(?:\.v(\d+(?:_\d+)*)|\"([\d.]+)\")", text)
        version = (found[1] or found[2]).replace("_", ".") if found else _OLDEST
        yield Target(version=version, file=path, line=line_of(text, found.start()) if found else 0)
        return
    pattern = r"IPHONEOS_DEPLOYMENT_TARGET\s*=\s*\"?(\d+(?:\.\d+)*)|\bplatform\s+:ios\s*,\s*['\"](\d+(?:\.\d+)*)"
    for match in re.finditer(pattern, text):
        yield Target(version=match[1] or match[2], file=path, line=line_of(text, match.start()))


def _package(path: str, text: str) -> Package:
    folder = path.removesuffix("Package.swift")
    resources: list[str] = []
    for kind, body in _calls(text):
        name = re.search(r"\bname\s*:\s*\"([^\"]+)\"", body)
        given = re.search(r"\bpath\s*:\s*\"([^\"]*)\"", body)
        if given is None and name is None:
            continue
        own = given[1] if given else f"{'Tests' if kind == 'testTarget' else 'Sources'}/{name[1]}"  # type: ignore[index]
        for resource in re.findall(r"\.(?:copy|process|embedInCode)\(\s*\"([^\"]*)\"", body):
            resources.append(_normal(f"{folder}{own}/{resource}"))
    return Package(file=path, folder=folder, resources=tuple(resources), executable=".executableTarget(" in text)


_LONGEST = 20_000
"""Characters of one target: brackets that are never closed must not take a minute."""


def _calls(text: str) -> Iterator[tuple[str, str]]:
    """(kind, what stands in its brackets) of each target."""
    for start in re.finditer(r"\.(target|executableTarget|testTarget)\(", text):
        depth, at = 1, start.end()
        end = min(len(text), start.end() + _LONGEST)
        while at < end and depth:
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        yield start[1], text[start.end() : at]


def _normal(path: str) -> str:
    parts = [p for p in path.split("/") if p not in ("", ".")]
    return "/".join(parts)


def linker_flags(app: IosApp) -> str:
    """All flags that are passed to a linker, of every configuration, as one text."""
    found = []
    for path, text in app.texts.items():
        if path.endswith("Package.swift"):
            found += [" ".join(strings(m)) for m in re.findall(r"\.unsafeFlags\(\s*\[(.*?)\]", text, re.DOTALL)]
            found += [" ".join(strings(m)) for m in re.findall(r"\blet\s+\w+\s*=\s*\[(.*?)\]", text, re.DOTALL)]
        else:
            # A project file ends a value with a semicolon, and lists flags over many lines; an .xcconfig has lines.
            value = r"[^;]*" if path.endswith(".pbxproj") else r"[^\n]*"
            found += re.findall(rf"OTHER_LDFLAGS({value})", text)
    return " ".join(found)
