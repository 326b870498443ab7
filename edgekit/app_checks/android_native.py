"""Checks of an Android app's native libraries: pages of 16 KB, and ABIs."""

from collections.abc import Iterator

from edgekit.app_checks.android import AndroidApp
from edgekit.app_checks.elf import HEAD, PAGE, load_alignments
from edgekit.app_checks.files import Unreadable
from edgekit.app_checks.findings import unknown, wrong
from edgekit.app_checks.runtimes import older, since
from edgekit.types import Finding

# developer.android.com, "Support 16 KB page sizes": 64-bit devices; AGP 8.5.1 is the first that aligns in the zip.
_64_BIT = ("arm64-v8a", "x86_64")
_SMALL_PAGE = 4096
_ALIGNING_PLUGIN = "8.5.1"
_LINK = "Build it with NDK r28, or link with -Wl,-z,max-page-size=16384; of a dependency, take a newer release."
_PACK = "Build with Android Gradle plugin 8.5.1 or newer, or: zipalign -P 16 -f 4 in.apk out.apk"


def library_pages(app: AndroidApp) -> Iterator[Finding]:
    """Segments of 64-bit libraries that a device with pages of 16 KB does not load."""
    for files, entry, abi in app.libraries():
        shown = files.shown(entry.path)
        try:
            wide, alignments = load_alignments(files.start(entry.path, HEAD))
        except Unreadable as error:
            yield wrong(f"{entry.name} {error}: no device loads it", "Build it again, or take it again.", shown)
            continue
        if wide != (abi in _64_BIT):
            yield wrong(
                f"a library of {64 if wide else 32} bits in the folder of {abi}: no device loads it", _LINK, shown
            )
        elif wide and min(alignments) < PAGE:
            yield wrong(
                f"aligned to {min(alignments)} bytes: devices with 16 KB pages do not load it, Google Play refuses it",
                _LINK,
                shown,
            )


def archive_pages(app: AndroidApp) -> Iterator[Finding]:
    """Libraries that lie in an APK where they cannot be mapped, and build files that pack them so."""
    if app.kind == "apk":
        yield from _entries(app)
    elif app.kind != "project":
        if any(app.libraries()):
            yield unknown(f"where libraries lie is decided when an APK is made of this {app.kind.upper()}")
    else:
        plugin = app.project.plugin
        for module in app.project.modules:
            if not module.app or module.legacy_packaging or not any(app.runtimes()):
                continue
            if not plugin:
                yield unknown("the version of the Android Gradle plugin is not in these files", "", module.file)
            elif older(plugin, _ALIGNING_PLUGIN):
                yield wrong(
                    f"Android Gradle plugin {plugin} packs libraries at 4 KB, which devices with 16 KB pages refuse",
                    "Use 8.5.1 or newer, or: packaging { jniLibs { useLegacyPackaging = true } }",
                    module.file,
                )


def _entries(app: AndroidApp) -> Iterator[Finding]:
    for files, entry, abi in app.libraries():
        shown = files.shown(entry.path)
        page = PAGE if abi in _64_BIT else _SMALL_PAGE
        if entry.compressed:
            if app.extracts is False:
                yield wrong(
                    "compressed, but the manifest says extractNativeLibs=false: the app cannot be installed",
                    "Store it: packaging { jniLibs { useLegacyPackaging = false } }, and build again.",
                    shown,
                )
        elif entry.offset is not None and entry.offset % page and app.extracts is not True:
            yield wrong(
                f"begins at byte {entry.offset} of the APK, no multiple of {page}: it cannot be mapped there",
                _PACK,
                shown,
            )


def runtime_pages(app: AndroidApp) -> Iterator[Finding]:
    """Releases of runtimes whose libraries are of 4 KB."""
    for runtime, dependency in app.runtimes():
        if dependency is None:
            continue  # its library lies here, and was read
        where = (dependency.file, dependency.line)
        named = f"{dependency.name} {dependency.version}"
        if not dependency.version or not dependency.version[:1].isdigit():
            yield unknown(f"the version of {dependency.name} is not in these files", runtime.remedy, *where)
        elif older(dependency.version, runtime.unaligned_below):
            yield wrong(
                f"{named} is not aligned for 16 KB pages: such devices do not load it, Google Play refuses the app",
                f"Use {runtime.remedy}",
                *where,
            )
        elif not runtime.aligned_since or older(dependency.version, runtime.aligned_since):
            yield unknown(f"reports differ whether {named} is aligned for 16 KB pages", f"Use {runtime.remedy}", *where)


def abis(app: AndroidApp) -> Iterator[Finding]:
    """Phones without a library that they need: an app starts on any ABI that it has some library for."""
    by_name = _by_name(app)
    every = set[str]().union(*by_name.values())
    filters = [s for m in app.project.modules for s in m.abis]
    file, line = (filters[0].file, filters[0].line) if filters else (_first_file(app), 0)
    chosen = {s.value for s in filters} or every
    if (chosen and "arm64-v8a" not in chosen) or (every and "arm64-v8a" not in every):
        yield wrong(
            f"packed for {', '.join(sorted(chosen))} only: nearly every phone is arm64-v8a",
            'abiFilters += "arm64-v8a", and the libraries of it',
            file,
            line,
        )
    for name, has in sorted(by_name.items()):
        if lacking := sorted((every & chosen) - has):
            both = ", ".join(f'"{abi}"' for abi in sorted(chosen.intersection(*by_name.values())))
            yield wrong(
                f"{name} is missing for {', '.join(lacking)}, where others are: the app starts there and crashes",
                f"Add it, or pack no others: abiFilters += listOf({both})",
                file,
                line,
            )


def _by_name(app: AndroidApp) -> dict[str, set[str]]:
    """ABIs by native library, of those that lie here and of runtimes whose release is known."""
    found: dict[str, set[str]] = {}
    for _, entry, abi in app.libraries():
        found.setdefault(entry.name, set()).add(abi)
    for runtime, dependency in app.runtimes():
        has = since(runtime.abis, dependency.version) if dependency else None
        if isinstance(has, tuple):
            found[runtime.title] = set(has)
    return found


def _first_file(app: AndroidApp) -> str:
    return app.project.modules[0].file if app.project.modules else app.files.shown("")
