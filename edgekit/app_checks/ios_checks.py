"""The checks of an iOS app."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from edgekit.app_checks.coreml import HEAD, ios_of
from edgekit.app_checks.files import Unreadable
from edgekit.app_checks.findings import unknown, wrong
from edgekit.app_checks.ios import EXTENSIONS, IosApp, linker_flags
from edgekit.app_checks.models import changed_models
from edgekit.app_checks.runtimes import EXECUTORCH, RUNTIMES, Runtime, older
from edgekit.types import Finding

# docs.pytorch.org, "Using ExecuTorch on iOS", Swift Package Manager and Linkage.
_ADD = {
    "executorch": '.package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-1.5.1")',
    "onnx": "the package onnxruntime-swift-package-manager of microsoft, product onnxruntime",
    "tflite": '.package(url: "https://github.com/google-ai-edge/LiteRT.git", branch: "release/2.3.0")',
}
_SAY = {"Package.swift": 'platforms: [.iOS("{}")]', "Podfile": "platform :ios, '{}'"}
_FORCE = "OTHER_LDFLAGS = -force_load $(BUILT_PRODUCTS_DIR)/lib{name}_ios.a, or -all_load"


def deployment_target(app: IosApp) -> Iterator[Finding]:
    """Versions of iOS that the app may be installed on, and that a model does not run on."""
    needs: list[tuple[str, str, str]] = []
    for path in app.models():
        try:
            needs += _of_model(app, path)
        except Unreadable as error:
            yield unknown(f"which iOS {path} needs: it {error}", "", path)
    needs += [(r.min_ios, r.title, "") for r in app.runtimes() if r.min_ios]
    if not needs:
        return
    version, what, file = max(needs, key=lambda n: [int(p) for p in n[0].split(".")])
    if not app.targets:
        yield unknown(f"the deployment target is not in these files; {what} needs iOS {version}", "", file)
    for target in app.targets:
        if older(target.version, version):
            yield wrong(
                f"built for iOS {target.version}, but {what} needs {version}: it does not load on what is between",
                _SAY.get(PurePosixPath(target.file).name, "IPHONEOS_DEPLOYMENT_TARGET = {}").format(version),
                target.file,
                target.line,
            )


def _of_model(app: IosApp, path: str) -> Iterator[tuple[str, str, str]]:
    if path.endswith(".mlmodelc"):
        raise Unreadable("is compiled already; check the .mlpackage that it was made from")
    if path.endswith((".mlmodel", ".mlpackage")):
        inside = [e.path for e in app.files if e.path.startswith(f"{path}/") and e.suffix == ".mlmodel"]
        if path.endswith(".mlpackage") and not inside:
            raise Unreadable("holds no .mlmodel file")
        for file in inside or [path]:
            specification, version = ios_of(app.files.start(file, HEAD))
            yield version, f"{PurePosixPath(path).name} (Core ML specification {specification})", path
    elif runtime := _runtime(path):
        yield runtime.min_ios, f"{runtime.title}, which runs {PurePosixPath(path).name},", path


def _runtime(path: str) -> Runtime | None:
    name = EXTENSIONS.get(PurePosixPath(path).suffix)
    return next((r for r in RUNTIMES if r.name == name), None)


def linkage(app: IosApp) -> Iterator[Finding]:
    """Backends and kernels of ExecuTorch that no linker keeps: nothing calls them by name."""
    if EXECUTORCH not in app.runtimes():
        return
    flags = linker_flags(app)
    if "-all_load" in flags:
        return
    wanted = sorted(
        {n for t in app.texts.values() for n in re.findall(r"\b((?:backend|kernels)_[a-z]\w*?)(?:_debug)?\b", t)}
    )
    if not wanted:
        yield wrong(
            "ExecuTorch without any backend or kernels: no operator of a model is found",
            'Add the products "backend_xnnpack" and "kernels_optimized" to the target.',
            next(iter(app.texts)),
        )
    forced = flags if "-force_load" in flags else ""
    for name in (n for n in wanted if n not in forced):
        detail = f"{name} registers itself when it is loaded, and the linker drops it: no backend or kernel is found"
        if app.linked:
            yield wrong(detail, _FORCE.format(name=name), _file_with(app, name))
        else:
            yield unknown(f"the app that links this package has to load all of {name}", _FORCE.format(name=name))


def _file_with(app: IosApp, name: str) -> str:
    return next((path for path, text in app.texts.items() if name in text), "")


def resources(app: IosApp) -> Iterator[Finding]:
    """Models that lie in the folder and are in no target: the app does not have them."""
    projects = {p: t for p, t in app.texts.items() if p.endswith(".pbxproj")}
    declared = {r for p in app.packages for r in p.resources}
    for path in app.models():
        if any(path == r or path.startswith(f"{r}/") for r in declared):
            continue
        if any(_in_project(text, path, file) for file, text in projects.items()):
            continue
        if projects:
            yield wrong(
                "in no target's resources: the app does not have it",
                "Xcode: select it, and tick the app under Target Membership.",
                path,
            )
        elif any(path.startswith(p.folder) for p in app.packages):
            yield wrong(
                "in no target's resources in Package.swift: the app does not have it",
                f'resources: [.copy("{PurePosixPath(path).name}")] in the target of its folder',
                path,
            )
        else:
            yield unknown("which target has the model: there is no Package.swift and no project.pbxproj", "", path)


def _in_project(text: str, path: str, file: str) -> bool:
    """A file or a folder above it is in a build phase, or lies in a folder that Xcode takes whole."""
    for part in PurePosixPath(path).parts:
        if re.search(rf"/\* {re.escape(part)} in (?:Resources|Sources) \*/", text):
            return True
    home = PurePosixPath(file).parent.parent.as_posix()
    prefix = "" if home == "." else f"{home}/"
    whole = re.findall(r"isa = PBXFileSystemSynchronizedRootGroup;[^}]*?\bpath = \"?([^\";]+)\"?;", text)
    return any(path.startswith(f"{prefix}{folder}/") for folder in whole)


def runtimes(app: IosApp) -> Iterator[Finding]:
    """Models that nothing in the app can run, and files that could not be read."""
    for file, why in app.unread:
        yield unknown(f"{file} {why}", "", file)
    has = {r.name for r in app.runtimes()}
    for path in app.models():
        runtime = _runtime(path)
        if runtime and runtime.name not in has:
            yield wrong(
                f"{runtime.title}, which runs {PurePosixPath(path).suffix} files, is not among the dependencies",
                f"Add {_ADD[runtime.name]}",
                path,
            )


def models(app: IosApp) -> Iterator[Finding]:
    """Models of edgekit that are not the ones they were generated with."""
    yield from changed_models(app.files, "ios")
