"""What is checked of an Android app: a Gradle project or module, an APK, an AAB or an AAR."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit.app_checks.axml import manifest_values
from edgekit.app_checks.files import TEXT_LIMIT, Entry, Files, Unreadable, files_of
from edgekit.app_checks.gradle import Dependency, Project, read_project
from edgekit.app_checks.runtimes import ABIS, RUNTIMES, Runtime
from edgekit.errors import BadInput

EXTENSIONS = {r.extension: r.name for r in RUNTIMES[::-1]} | {".ort": "onnx"}
"""Model files, and the runtime that is suggested for them."""


@dataclass(frozen=True, kw_only=True)
class AndroidApp:
    """`kind` is "project", "apk", "aab" or "aar"; `inner` are the AARs that lie in a project."""

    files: Files
    kind: str
    project: Project
    inner: tuple[Files, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    min_sdk: int | None = None
    extracts: bool | None = None

    def libraries(self) -> Iterator[tuple[Files, Entry, str]]:
        """(where, native library, ABI) of all."""
        for files in (self.files, *self.inner):
            for entry in files:
                abi = entry.path.rsplit("/", 2)[-2] if entry.path.count("/") else ""
                if entry.suffix == ".so" and abi in ABIS:
                    yield files, entry, abi

    def models(self) -> Iterator[Entry]:
        """Model files that are packed as assets."""
        for entry in self.files:
            packed = re.search(r"(?:^|/)(?:assets|res/raw|ml)/", entry.path)
            if packed and entry.suffix in EXTENSIONS and not re.search(r"(?:^|/)src/(?:test|androidTest)/", entry.path):
                yield entry

    def runs(self) -> frozenset[str]:
        """Kinds of model files that a library of the app runs, through Java, from C++ or as part of another SDK."""
        names = {entry.name for _, entry, _ in self.libraries()}
        groups = [d.name for d in self.project.dependencies]
        return frozenset(
            r.extension
            for r in RUNTIMES
            if names & {*r.libraries, *r.native} or any(g.startswith((*r.maven, *r.within)) for g in groups)
        )

    def own_code(self) -> str:
        """What might hold a runtime that cannot be seen from outside: the first such file, or ""."""
        known = {n for r in RUNTIMES for n in (*r.libraries, *r.native)} | {"libfbjni.so", "libc++_shared.so"}
        if self.kind == "project":
            return next((e.path for e in self.files if e.name in ("CMakeLists.txt", "Android.mk")), "")
        return next((entry.name for _, entry, _ in self.libraries() if entry.name not in known), "")

    def runtimes(self) -> Iterator[tuple[Runtime, Dependency | None]]:
        """Each runtime that the app has, with the dependency that brings it; None where its library lies there."""
        names = {entry.name for _, entry, _ in self.libraries()}
        for runtime in RUNTIMES:
            found = [d for d in self.project.dependencies if is_of(d, runtime)]
            yield from ((runtime, d) for d in found)
            if not found and names & set(runtime.libraries):
                yield runtime, None


def is_of(dependency: Dependency, runtime: Runtime) -> bool:
    """The runtime itself, or a flavour of it: "executorch-android-qnn"."""
    own = next((m for m in runtime.maven if dependency.name == m), None)
    return own is not None or any(dependency.name.startswith(f"{m}-") and m.endswith("-android") for m in runtime.maven)


def android_app(path: Path) -> AndroidApp:
    """Raises `BadInput` for what is no Android app."""
    files = files_of(path)
    if not files.archive:
        return _project(files)
    if "BundleConfig.pb" in files:
        return AndroidApp(files=files, kind="aab", project=Project())
    if "AndroidManifest.xml" not in files:
        raise BadInput(f"{path} is no APK, AAB or AAR: it has no AndroidManifest.xml", "Give what Gradle built.")
    try:
        content = files.start("AndroidManifest.xml", TEXT_LIMIT)
        if content.lstrip()[:1] == b"<":
            return AndroidApp(
                files=files, kind="aar", project=Project(), min_sdk=_text_min_sdk(content.decode("utf-8", "replace"))
            )
        minimum, extracts = manifest_values(content)
    except Unreadable as error:
        return AndroidApp(files=files, kind="apk", project=Project(), unread=(("AndroidManifest.xml", str(error)),))
    return AndroidApp(files=files, kind="apk", project=Project(), min_sdk=minimum, extracts=extracts)


def _project(files: Files) -> AndroidApp:
    project = read_project(files)
    if not project.modules and not project.unread:
        raise BadInput(
            f"{files.root} is no Android project: there is no build.gradle or build.gradle.kts in it",
            "Give the folder of the project or of one module, or an APK, AAB or AAR. Swift: --platform ios.",
        )
    inner, unread = [], list(project.unread)
    for entry in files:
        if entry.suffix == ".aar":
            try:
                inner.append(files_of(files.root / entry.path))
            except BadInput as error:
                unread.append((entry.path, error.message))
    return AndroidApp(files=files, kind="project", project=project, inner=tuple(inner), unread=tuple(unread))


def _text_min_sdk(manifest: str) -> int | None:
    found = re.search(r"minSdkVersion\s*=\s*[\"'](\d{1,3})[\"']", manifest)
    return int(found[1]) if found else None
