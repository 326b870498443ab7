"""Checks of a developer's own app: what breaks models on phones, found before a phone does: `doctor --platform`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.app_checks import android_build, android_native, ios_checks
from edgekit.app_checks.android import android_app
from edgekit.app_checks.findings import Check, run
from edgekit.app_checks.ios import ios_app
from edgekit.registry import Registry
from edgekit.types import Finding


@dataclass(frozen=True)
class AppKind:
    """A platform: `read` makes of a path what its checks take."""

    name: str
    read: Callable[[Path], Any]
    checks: tuple[Check[Any], ...]


ANDROID = AppKind(
    "android",
    android_app,
    (
        Check("keep-rules", "R8 keeps what the runtimes look up", android_build.rules),
        Check("library-pages", "every native library fits pages of 16 KB", android_native.library_pages),
        Check("archive-pages", "native libraries lie where they can be mapped", android_native.archive_pages),
        Check("runtime-pages", "every runtime's release fits pages of 16 KB", android_native.runtime_pages),
        Check("abis", "every ABI has all libraries", android_native.abis),
        Check("compression", "no model is compressed", android_build.compression),
        Check("min-sdk", "minSdk is what the runtimes need", android_build.min_sdk),
        Check("runtimes", "every model has its runtime", android_build.runtimes),
        Check("models", "models are those of their manifests", android_build.models),
    ),
)
IOS = AppKind(
    "ios",
    ios_app,
    (
        Check("deployment-target", "the app is for no iOS that a model does not run on", ios_checks.deployment_target),
        Check("linkage", "what registers itself is linked whole", ios_checks.linkage),
        Check("resources", "every model is in a target", ios_checks.resources),
        Check("runtimes", "every model has its runtime", ios_checks.runtimes),
        Check("models", "models are those of their manifests", ios_checks.models),
    ),
)
PLATFORMS = Registry("platform", (ANDROID, IOS))


def check_app(platform: str, path: str | Path) -> tuple[Finding, ...]:
    """What is wrong, what is right and what could not be checked in the app, module or archive at `path`.

    Nothing is changed, run or unpacked. Raises `UnknownName` for a platform, `BadInput` for what is no such app.
    """
    kind = PLATFORMS[platform]
    app = kind.read(Path(path))
    return tuple(finding for check in kind.checks for finding in run(check, app))
