"""Model files among other files, and the manifests that say which bytes they should have."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from edgekit.app_checks.files import LARGE_TEXT, SCAN_LIMIT, Entry, Files, Unreadable
from edgekit.app_checks.findings import unknown, wrong
from edgekit.artifacts import MANIFEST
from edgekit.types import Finding

_AGAIN = "Generate the module again: edgekit embed ARTIFACT --platform {platform} -o DIR --force"


def sha256(files: Files, path: str) -> str:
    """Raises `Unreadable`."""
    digest = hashlib.sha256()
    for piece in files.chunks(path, SCAN_LIMIT):
        digest.update(piece)
    return digest.hexdigest()


def changed_models(files: Files, platform: str) -> Iterator[Finding]:
    """Model files that are not those of the edgekit.json above them, and those that it lists and are not there."""
    manifests = [e.path for e in files if e.name == MANIFEST]
    for path in manifests:
        records = _records(files, path)
        if isinstance(records, str):
            yield unknown(f"{files.shown(path)} {records}", _AGAIN.format(platform=platform), files.shown(path))
        elif records:
            yield from _compare(files, path, records, manifests, _AGAIN.format(platform=platform))


def _records(files: Files, path: str) -> Mapping[str, str] | str:
    """SHA-256 by name of the model's files, or why the manifest does not say it."""
    try:
        listed = json.loads(files.text(path, LARGE_TEXT))["files"]
        return {name: str(r["sha256"]) for name, r in listed.items() if name.startswith("model.")}
    except Unreadable as error:
        return str(error)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "is no manifest of edgekit"


def _compare(
    files: Files, manifest: str, records: Mapping[str, str], manifests: list[str], remedy: str
) -> Iterator[Finding]:
    """A model may have another name in an app, so files of its kind are compared; a package, file by file."""
    folder = manifest.removesuffix(MANIFEST)
    model = PurePosixPath(next(iter(records))).parts[0]
    below = [e for e in files if e.path.startswith(folder) and e.path != manifest]
    seen = False
    for name, expected in sorted(records.items()):
        inner = PurePosixPath(name).relative_to(model).as_posix()
        candidates = [e for e in below if _is_part(e, PurePosixPath(model).suffix, inner)]
        for entry in candidates:
            seen = True
            try:
                same = sha256(files, entry.path) == expected
            except Unreadable as error:
                yield wrong(f"{error}", remedy, files.shown(entry.path))
                continue
            nearest = max((m for m in manifests if entry.path.startswith(m.removesuffix(MANIFEST))), key=len)
            if not same and nearest == manifest:
                yield wrong(
                    f"is not the model of {files.shown(manifest)}: its labels and preprocessing are another's",
                    remedy,
                    files.shown(entry.path),
                )
    if not seen:
        yield wrong(f"{model}, which {files.shown(manifest)} lists, is not there", remedy, files.shown(manifest))


def _is_part(entry: Entry, suffix: str, inner: str) -> bool:
    """Whether it is a model of that kind, or the same file inside of a package of that kind."""
    if inner == ".":
        return entry.suffix == suffix
    return f"{suffix}/{inner}" in entry.path and entry.path.endswith(f"{suffix}/{inner}")
