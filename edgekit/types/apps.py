"""What was generated for an app, and what was found in one."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A module of code around one artifact: a Gradle library or a Swift package at `path`.

    `classifier` is the class that an app uses, in `package`; `steps` are what to do with the folder.
    """

    path: Path
    platform: str
    package: str
    classifier: str
    files: tuple[str, ...]
    steps: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check of an app found: `status` is "ok", "wrong" or "unknown" (it could not be checked).

    `file` is where, below the folder that was checked or as "app.apk!lib/arm64-v8a/lib.so"; `line` counts from 1, 0 is
    none. `detail` says what it means, `remedy` what to type.
    """

    check: str
    status: str
    detail: str
    remedy: str = ""
    file: str = ""
    line: int = 0
