"""The artifact's folder: written whole or not at all, read back only if it is what its manifest says."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import cattrs
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ArtifactDamaged, BadInput, EnvironmentProblem
from edgekit.types import Artifact, FileOp, FileRecord, Manifest

MANIFEST = "edgekit.json"
LABELS = "labels.txt"
GOLDEN = "golden.safetensors"
SOURCES = "sources.json"
_OTHERS = ("float", "nudged")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

Golden = tuple[list[list[NDArray[np.generic]]], list[list[NDArray[np.generic]]]]
"""Inputs and outputs: for each sample, one array for each input (output) of the model."""
Outputs = Sequence[Sequence[NDArray[np.generic]]]


@contextmanager
def atomic_folder(destination: Path) -> Iterator[Path]:
    """A temporary sibling of `destination` that takes its name when the block ends well, and vanishes otherwise.

    An existing `destination` is replaced; whether it may be is the caller's decision.
    """
    made = [p for p in (destination.parent, *destination.parent.parents) if not p.exists()]
    temporary = destination.parent / f".{destination.name}.{secrets.token_hex(4)}"
    try:
        with disk_errors(destination.parent):
            try:
                destination.parent.mkdir(parents=True, exist_ok=True)
                temporary.mkdir()
            except OSError as error:
                if error.errno in NO_SPACE:
                    raise
                raise BadInput(
                    f"cannot write to {destination.parent}: {error.strerror}", "Give another folder with -o."
                ) from error
            yield temporary
            _replace(temporary, destination)
    finally:
        _remove(temporary)
        _remove_empty(made)


def model_sha256(files: Mapping[str, FileRecord]) -> str:
    """Of an artifact's model file; of a model that is a folder, of its files' names and hashes."""
    hashes = {name: r.sha256 for name, r in files.items() if name.startswith("model.")}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{h}  {name}\n" for name, h in sorted(hashes.items())).encode()).hexdigest()


def _replace(temporary: Path, destination: Path) -> None:
    """Give `temporary` the name of `destination`; what had it before is removed, or put back if that fails."""
    if not destination.exists():
        os.rename(temporary, destination)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old.", dir=destination.parent))
    try:
        os.rename(destination, old / "artifact")
        os.rename(temporary, destination)
    finally:
        if not destination.exists():
            os.rename(old / "artifact", destination)
        _remove(old)


def _remove(folder: Path) -> None:
    """Remove `folder` whatever happens: a second Ctrl-C, pressed while this runs, waits until it is gone."""
    interrupt: KeyboardInterrupt | None = None
    while folder.exists():
        try:
            shutil.rmtree(folder, ignore_errors=True)
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt:
        raise interrupt


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders that were made for a destination that was never written, innermost first."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns "no space left", however deep in a library it was met, into an `EnvironmentProblem`."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            full = isinstance(cause, OSError) and cause.errno in NO_SPACE
            if full or "No space left on device" in str(cause):
                raise EnvironmentProblem(
                    f"no space left on the disk of {folder.resolve()}; nothing was written",
                    "Free some space, or give a folder on another disk with -o.",
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise


def write_file(destination: Path, content: bytes) -> None:
    """All of `content` under the name `destination`, or nothing. Raises `BadInput` or `EnvironmentProblem`."""
    folder = destination.parent
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    temporary = folder / f".{destination.name}.{secrets.token_hex(4)}"
    try:
        with disk_errors(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(content)
                os.replace(temporary, destination)
            except OSError as error:
                if error.errno in NO_SPACE:
                    raise
                raise BadInput(
                    f"cannot write {destination}: {error.strerror}", "Give another place with -o."
                ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _remove_empty(made)  # those that hold something stay


def hash_files(folder: Path) -> dict[str, FileRecord]:
    """Size and SHA-256 of every file below `folder` except the manifest, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): _record(p) for p in files}


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `edgekit.json`."""
    text = json.dumps(manifest_json(manifest), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def manifest_json(manifest: Manifest) -> dict[str, object]:
    """The manifest as JSON values, `schema` first."""
    values = cattrs.unstructure(manifest)
    return {"schema": values.pop("schema"), **values}


def load_artifact(path: str | Path) -> Artifact:
    """The artifact at a folder (or at its manifest), every file hashed and compared with the manifest.

    Raises `BadInput` where there is none, `ArtifactDamaged` where a file is missing, changed or unreadable.
    """
    folder = Path(path)
    if folder.name == MANIFEST:
        folder = folder.parent
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        what = (
            "has no edgekit.json" if folder.is_dir() else "does not exist" if not folder.exists() else "is not a folder"
        )
        raise BadInput(
            f"{path} is not an artifact: it {what}", "Make one with `edgekit export`, or give the artifact's folder."
        )
    try:
        values = json.loads(manifest_path.read_text(encoding="utf-8"))
        if values.get("schema") != 1:
            raise ArtifactDamaged(
                f"{manifest_path} has schema {values.get('schema')!r}; this edgekit reads 1", "Export it again."
            )
        manifest = cattrs.Converter().structure(values, Manifest)
    except (ValueError, AttributeError, OSError, cattrs.BaseValidationError) as error:
        raise ArtifactDamaged(f"{manifest_path} cannot be read as a manifest", "Export the artifact again.") from error
    _check_files(folder, manifest)
    return Artifact(path=folder, manifest=manifest)


def _check_files(folder: Path, manifest: Manifest) -> None:
    files = manifest.files
    if not manifest.inputs or not manifest.outputs:
        raise ArtifactDamaged(f"the manifest of {folder} names no inputs or no outputs", "Export the artifact again.")
    for name in filter(None, (GOLDEN, manifest.labels)):
        if name not in files:
            raise ArtifactDamaged(f"the manifest of {folder} lists no file {name}", "Export the artifact again.")
    if not any(name.startswith("model.") for name in files):
        raise ArtifactDamaged(f"the manifest of {folder} names no model file", "Export the artifact again.")
    for name, record in files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtifactDamaged(
                f"the manifest of {folder} names a file outside it: {name}", "Do not use this artifact."
            )
        path = folder / name
        if not path.is_file():
            raise ArtifactDamaged(f"{folder} lacks its file {name}", "Copy the whole folder again, or export it again.")
        size = path.stat().st_size
        if size != record.bytes:
            raise ArtifactDamaged(
                f"{path} has {size} bytes, not the {record.bytes} it was exported with (truncated or changed)",
                "Copy the whole folder again, or export it again.",
            )
        if _record(path).sha256 != record.sha256:
            raise ArtifactDamaged(
                f"{path} is not the file that was exported: its SHA-256 differs from the manifest's",
                "Copy the whole folder again, or export it again.",
            )


def write_golden(folder: Path, golden: Golden, floats: Outputs = (), nudged: Outputs = ()) -> None:
    """Write `golden.safetensors`: `input.N` and `output.N` for sample N (`input.N.M` where there are several).

    What an artifact of integers should compute is not what the float model computes: that is `float.N`. What it would
    compute of inputs that differ in their last places is `nudged.N`.
    """
    from safetensors.numpy import save

    arrays: dict[str, NDArray[np.generic]] = {}
    for kind, samples in zip(("input", "output", *_OTHERS), (*golden, floats, nudged), strict=True):
        for n, sample in enumerate(samples):
            for m, array in enumerate(sample):
                arrays[_golden_key(kind, n, m, len(sample))] = np.ascontiguousarray(array)
    (folder / GOLDEN).write_bytes(save(arrays))  # `save_file` would make it private


def read_golden(artifact: Artifact, reference: str = "output") -> Golden:
    """The golden vectors of an artifact, in the layout that its model takes; raises `ArtifactDamaged`.

    With "float" or "nudged" as `reference` the outputs are those, which only an artifact of integers has.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(artifact.path / GOLDEN)
    except (SafetensorError, OSError) as error:
        raise ArtifactDamaged(
            f"{artifact.path / GOLDEN} cannot be read: {error}", "Export the artifact again."
        ) from error
    inputs, outputs = artifact.manifest.inputs, artifact.manifest.outputs
    kinds = ["input", "output", *(k for k in _OTHERS if f"{k}.0" in arrays or f"{k}.0.0" in arrays)]
    samples = len(arrays) // (len(inputs) + (len(kinds) - 1) * len(outputs))
    expected = {
        _golden_key(kind, n, m, len(specs)): spec
        for kind, specs in ((k, inputs if k == "input" else outputs) for k in kinds)
        for n in range(samples)
        for m, spec in enumerate(specs)
    }
    found = {key: (array.shape, str(array.dtype)) for key, array in arrays.items()}
    if (
        not samples
        or reference not in kinds
        or found != {key: (spec.shape, spec.dtype) for key, spec in expected.items()}
    ):
        raise ArtifactDamaged(
            f"{artifact.path / GOLDEN} does not hold inputs and outputs of the shapes in the manifest",
            "Export the artifact again.",
        )
    return (
        [[arrays[_golden_key("input", n, m, len(inputs))] for m in range(len(inputs))] for n in range(samples)],
        [[arrays[_golden_key(reference, n, m, len(outputs))] for m in range(len(outputs))] for n in range(samples)],
    )


def _golden_key(kind: str, sample: int, number: int, of: int) -> str:
    return f"{kind}.{sample}" if of == 1 else f"{kind}.{sample}.{number}"


def write_sources(folder: Path, ops: Sequence[FileOp]) -> None:
    """Write `sources.json`: which line of the model each op of the file came from; nothing where no op is known.

    Each source stands once, and an op is [name, kind, number of its source, ops inside].
    """
    if not ops:
        return
    numbers: dict[str, int] = {}

    def rows(of: Sequence[FileOp]) -> list[list[object]]:
        return [[o.name, o.op, numbers.setdefault(o.source, len(numbers)), rows(o.inside)] for o in of]

    values = {"schema": 1, "ops": rows(ops), "sources": list(numbers)}
    (folder / SOURCES).write_text(json.dumps(values, separators=(",", ":")) + "\n", encoding="utf-8")


def read_sources(artifact: Artifact) -> tuple[FileOp, ...]:
    """The ops of the model file in order of running, or () without `sources.json`; raises `ArtifactDamaged`."""
    if SOURCES not in artifact.manifest.files:
        return ()
    try:
        values = json.loads((artifact.path / SOURCES).read_text(encoding="utf-8"))
        sources = values["sources"]

        def ops(rows: list[tuple[str, str, int, list[Any]]]) -> tuple[FileOp, ...]:
            return tuple(FileOp(name=a, op=b, source=sources[n], inside=ops(inside)) for a, b, n, inside in rows)

        return ops(values["ops"])
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise ArtifactDamaged(f"{artifact.path / SOURCES} cannot be read", "Export the artifact again.") from error


def read_labels(artifact: Artifact) -> tuple[str, ...]:
    """The class names of an artifact, or ()."""
    if not artifact.manifest.labels:
        return ()
    text = (artifact.path / artifact.manifest.labels).read_bytes().decode()
    return tuple(text.removesuffix("\n").split("\n"))  # a label may hold what else Python or Unicode calls a line break


def same_files(a: Path, b: Path) -> bool:
    """Whether two artifact folders hold the same bytes under the same names."""
    records = [{**hash_files(f), MANIFEST: _record(f / MANIFEST)} for f in (a, b)]
    return records[0] == records[1]
