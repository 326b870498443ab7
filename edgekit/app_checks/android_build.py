"""Checks of how an Android app is built: rules of R8, assets, minSdk, runtimes."""

from collections.abc import Iterator

from edgekit.app_checks.android import EXTENSIONS, AndroidApp
from edgekit.app_checks.files import Unreadable
from edgekit.app_checks.findings import unknown, wrong
from edgekit.app_checks.gradle import Dependency, Module
from edgekit.app_checks.keep_rules import Rule, keep_rules
from edgekit.app_checks.models import changed_models
from edgekit.app_checks.runtimes import RUNTIMES, Keep, Runtime, older, since
from edgekit.types import Finding

# The documentation of TensorFlow Lite's Task Library: "starting from version 4.1 of the Android Gradle plugin, .tflite
# will be added to the noCompress list by default".
_KEEPS_TFLITE = "4.1"


def rules(app: AndroidApp) -> Iterator[Finding]:
    """Classes that native code looks up by name, and that R8 renames."""
    if app.kind in ("apk", "aab"):
        yield from _dex(app)
    elif app.kind == "project":
        yield from _project_rules(app)
    elif "proguard.txt" in app.files:
        yield from _missing(app, keep_rules(app.files.text("proguard.txt")), "proguard.txt")
    else:
        yield from _missing(app, (), "AndroidManifest.xml")


def _project_rules(app: AndroidApp) -> Iterator[Finding]:
    switches = [s for m in app.project.modules for s in m.minify]
    for computed in (s for s in switches if not s.value):
        yield unknown("whether code is minified is computed there", "", computed.file, computed.line)
    on = next((s for s in switches if s.value), None)
    if on is None:
        return
    found: list[Rule] = []
    for module in app.project.modules:
        for path, file, line in _rule_files(app, module):
            if path not in app.files:
                yield wrong(f"{path}, which holds the rules, is not there", f"Write {path}", file, line)
                continue
            try:
                found += keep_rules(app.files.text(path))
            except Unreadable as error:
                yield unknown(f"{path} {error}", "", file, line)
    yield from _missing(app, tuple(found), on.file, on.line)


def _rule_files(app: AndroidApp, module: Module) -> Iterator[tuple[str, str, int]]:
    """Those that the build file names; the plugin's own come from its SDK, and keep nothing of a runtime."""
    for setting in module.rule_files:
        if not setting.value.startswith("proguard-android") and "$" not in setting.value:
            yield module.folder + setting.value.removeprefix("./"), setting.file, setting.line


def _missing(app: AndroidApp, found: tuple[Rule, ...], file: str, line: int = 0) -> Iterator[Finding]:
    for runtime, dependency in app.runtimes():
        for keep in runtime.keep:
            if _brought(keep, dependency):
                continue
            if lost := [c for c in keep.classes if not any(r.keeps(c) for r in found)]:
                yield _lost(runtime, keep, lost, file, line)


def _brought(keep: Keep, dependency: Dependency | None) -> bool:
    """An unknown version is taken for one that has nothing: a rule too many costs a few bytes."""
    if dependency is None or not dependency.version:
        return False
    if older(dependency.version, keep.needed_since):
        return True
    return bool(keep.brought_since) and not older(dependency.version, keep.brought_since)


def _lost(runtime: Runtime, keep: Keep, lost: list[str], file: str, line: int) -> Finding:
    own = f"; its own rules came with {keep.brought_since}" if keep.brought_since else "; its AAR does not keep it"
    return wrong(
        f"{runtime.title} looks up {lost[0]} by name and R8 renames it: the release build crashes{own}",
        f"Add to proguard-rules.pro: {keep.rule}",
        file,
        line,
    )


def _dex(app: AndroidApp) -> Iterator[Finding]:
    """In a built app the classes are there under their names, or they are not."""
    dex = [e.path for e in app.files if e.suffix == ".dex"]
    wanted = {c: f"L{c.replace('.', '/')};".encode() for r, _ in app.runtimes() for k in r.keep for c in k.classes}
    if not wanted:
        return
    if not dex:
        yield unknown("there is no .dex file with the app's classes")
        return
    seen: set[str] = set()
    for path in dex:
        rest = b""
        for piece in app.files.chunks(path):
            piece = rest + piece
            seen |= {name for name, descriptor in wanted.items() if descriptor in piece}
            rest = piece[-256:]  # longer than any descriptor that is looked for
    for runtime, _ in app.runtimes():
        own = [c for k in runtime.keep for c in k.classes]
        for keep in runtime.keep:
            # A class that the app cannot do without would be missing under any name only where R8 renamed it.
            if lost := [c for c in keep.classes if c not in seen]:
                if runtime.name == "tflite" and not any(c in seen for c in own):
                    continue  # LiteRT's older API has no such class
                yield _lost(runtime, keep, lost, app.files.shown(dex[0]), 0)


def compression(app: AndroidApp) -> Iterator[Finding]:
    """Models that are compressed, so that no runtime can map them from the APK."""
    for entry in app.models():
        if app.kind == "apk" and entry.compressed:
            yield wrong(
                f"compressed in the APK ({entry.packed} of {entry.size} bytes): it cannot be mapped, openFd fails "
                "on it, and each start unpacks it into a copy",
                f'androidResources {{ noCompress += "{entry.suffix[1:]}" }} in the app module, and build again.',
                app.files.shown(entry.path),
            )
    if app.kind == "project":
        yield from _compressed_by_build(app)
    elif app.kind != "apk" and any(app.models()):
        yield unknown(f"whether models are compressed is decided when an APK is made of this {app.kind.upper()}")


def _compressed_by_build(app: AndroidApp) -> Iterator[Finding]:
    apps = [m for m in app.project.modules if m.app]
    suffixes = {e.suffix: e for e in app.models()}
    plugin = app.project.plugin
    for suffix, entry in sorted(suffixes.items()):
        line = f'androidResources {{ noCompress += "{suffix[1:]}" }}'
        if suffix == ".tflite" and (not plugin or not older(plugin, _KEEPS_TFLITE)):
            continue
        if not apps:
            yield unknown("the app that packs this module decides whether the model is compressed", line, entry.path)
        for module in apps:
            if not {suffix[1:], "*", ""} & module.uncompressed:
                yield wrong(
                    f"{suffix} files are compressed in the APK: they cannot be mapped, and each start unpacks a copy",
                    f"android {{ {line} }}",
                    module.file,
                )


def min_sdk(app: AndroidApp) -> Iterator[Finding]:
    """Devices that may install the app and that a runtime does not run on."""
    for runtime, dependency in app.runtimes():
        if dependency is None:
            continue
        needs = since(runtime.min_sdk, dependency.version)
        if not isinstance(needs, int):
            yield unknown(
                f"no minSdk is known of {dependency.name} {dependency.version}".rstrip(),
                "",
                dependency.file,
                dependency.line,
            )
            continue
        modules = [m for m in app.project.modules if m.android]
        for module in modules:
            if module.min_sdk is None or not module.min_sdk.value:
                yield unknown(
                    f"minSdk is not said in numbers there; {runtime.title} {dependency.version} needs {needs}",
                    f"minSdk = {needs}",
                    module.file,
                    module.min_sdk.line if module.min_sdk else 0,
                )
            elif int(module.min_sdk.value) < needs:
                yield wrong(
                    f"minSdk {module.min_sdk.value}: {runtime.title} {dependency.version} needs {needs}",
                    f"minSdk = {needs}",
                    module.file,
                    module.min_sdk.line,
                )
    if app.kind != "project":
        yield from _built_min_sdk(app)


def _built_min_sdk(app: AndroidApp) -> Iterator[Finding]:
    """An archive does not say which release of a runtime it has: the lowest minimum of any is what is certain."""
    for runtime, _ in app.runtimes():
        if not runtime.min_sdk:
            continue
        lowest = min(level for _, level in runtime.min_sdk)
        if app.min_sdk is None:
            yield unknown(f"minSdk; {runtime.title} needs {lowest} or more")
        elif app.min_sdk < lowest:
            yield wrong(
                f"minSdk {app.min_sdk}: every release of {runtime.title} needs {lowest} or more",
                f"minSdk = {lowest}",
                app.files.shown("AndroidManifest.xml"),
            )


def runtimes(app: AndroidApp) -> Iterator[Finding]:
    """Models that nothing in the app can run, and build files that could not be read."""
    for file, why in app.unread:
        yield unknown(f"{file} {why}", "", file)
    has, strange = app.runs(), app.own_code()
    for entry in app.models():
        if (".onnx" if entry.suffix == ".ort" else entry.suffix) in has:
            continue
        runtime = next(r for r in RUNTIMES if r.name == EXTENSIONS[entry.suffix])
        where, add = app.files.shown(entry.path), f"dependencies {{ {runtime.remedy} }}"
        if strange:
            yield unknown(f"{strange} may hold {runtime.title}, which runs {entry.suffix} files", add, where)
        else:
            yield wrong(f"{runtime.title}, which runs {entry.suffix} files, is not among the libraries", add, where)


def models(app: AndroidApp) -> Iterator[Finding]:
    """Models of edgekit that are not the ones they were generated with."""
    yield from changed_models(app.files, "android")
