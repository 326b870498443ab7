"""Code for an app, generated from an artifact: `embed`."""

import shutil
from pathlib import Path

from edgekit.apps import android, ios
from edgekit.apps.model import AppModel, Platform, app_model
from edgekit.artifacts import MANIFEST, atomic_folder, load_artifact
from edgekit.errors import BadInput, Unsupported
from edgekit.registry import Registry
from edgekit.types import Artifact, Embedded

PLATFORMS = Registry("platform", (android.ANDROID, ios.IOS))


def embed(
    artifact: str | Path | Artifact,
    platform: str,
    out: str | Path,
    *,
    package: str | None = None,
    force: bool = False,
) -> Embedded:
    """A Gradle library module or a Swift package that classifies photos with `artifact`, written whole or not at all.

    It holds the model, its labels, code that prepares a photo as the manifest says, and a test that compares the
    device's outputs with the golden vectors. `package` names it (Android: a package such as "com.example.flowers";
    iOS: a module such as "Flowers"). Raises `BadInput` for an artifact that does not classify one photo at a time or a
    package that is no name, `Unsupported` for a target that the platform does not run, `UnknownName`.
    """
    chosen = PLATFORMS[platform]
    loaded = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    model = app_model(loaded)
    if loaded.manifest.target not in chosen.targets:
        raise Unsupported(
            f"{chosen.title} does not run {loaded.manifest.target}",
            f"Export for one that it runs: edgekit export -t {','.join(chosen.targets)}",
        )
    name = chosen.package(model) if package is None else chosen.checked_package(package)
    destination = Path(out)
    _check_free(destination, force)
    with atomic_folder(destination) as folder:
        _write(folder, chosen, model, name)
        files = tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))
    return Embedded(
        path=destination,
        platform=chosen.name,
        package=name,
        classifier=model.classifier,
        files=files,
        steps=chosen.steps(model, name, destination),
        notes=chosen.notes(model),
    )


def _check_free(destination: Path, force: bool) -> None:
    """Only a module that was generated may be replaced: a whole folder goes with it."""
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not (destination / MANIFEST).is_file():
        raise BadInput(
            f"{destination} holds files that `embed` did not write", "Give a folder of its own with -o, such as app/lvt"
        )
    if not force:
        raise BadInput(f"{destination} exists already", "Replace it with --force, or give another folder with -o.")


def _write(folder: Path, platform: Platform, model: AppModel, package: str) -> None:
    """The manifest, and what the platform generates: text and bytes as they are, paths copied."""
    shutil.copyfile(model.artifact.path / MANIFEST, folder / MANIFEST)
    for name, content in platform.files(model, package).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            (shutil.copytree if content.is_dir() else shutil.copyfile)(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
