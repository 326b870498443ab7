"""What the build files of an Android project say: dependencies, versions, and the settings that models depend on."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgekit.app_checks.files import TEXT_LIMIT, Files, Unreadable
from edgekit.app_checks.gradle_text import line_of, statement, strings, without_comments
from edgekit.app_checks.runtimes import ABIS

_BUILD = ("build.gradle", "build.gradle.kts")
_CATALOG = "gradle/libs.versions.toml"
_COORDINATES = re.compile(r"([\w.-]+):([\w.-]+)(?::([^:@]+))?(?:@\w+)?")
# Configurations that end in the app; tests and annotation processors do not.
_CONFIGURATION = re.compile(
    r"(?<![\w.])(\w*[iI]mplementation|\w*[aA]pi|runtimeOnly|\w*RuntimeOnly|compile)\b(?=\s*[(\"'\w])"
)
_VARIABLE = re.compile(
    r"(?:\b(?:val|var|def|String)\s+|\bext(?:ra)?\.|\bset\(\s*[\"'])?\b(\w+)\b[\"']?\s*[=,]\s*[\"']([\w.+-]+)[\"']"
)


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """A library of the app by Maven coordinates; `version` is "" where the text does not say it."""

    name: str
    version: str
    file: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value as written, and where; `value` is "" where it is computed."""

    value: str
    file: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Module:
    """One build file. `app` packs an APK; a library leaves that to the app that uses it."""

    file: str
    app: bool
    android: bool
    dependencies: tuple[Dependency, ...] = ()
    min_sdk: Setting | None = None
    minify: tuple[Setting, ...] = ()
    rule_files: tuple[Setting, ...] = ()
    abis: tuple[Setting, ...] = ()
    uncompressed: frozenset[str] = frozenset()
    legacy_packaging: bool = False

    @property
    def folder(self) -> str:
        parent = PurePosixPath(self.file).parent.as_posix()
        return "" if parent == "." else f"{parent}/"


@dataclass(frozen=True, kw_only=True)
class Project:
    """All build files below a folder, with the version catalog and the variables that they share."""

    modules: tuple[Module, ...] = ()
    plugin: str = ""
    """The version of the Android Gradle plugin, "" where it is not said."""
    unread: tuple[tuple[str, str], ...] = ()
    """(file, why) of those that could not be read."""

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return tuple(d for m in self.modules for d in m.dependencies)


@dataclass(frozen=True)
class _Shared:
    """What a build file may refer to: variables, and the catalog's libraries, bundles, versions and plugins."""

    variables: Mapping[str, str] = field(default_factory=dict)
    catalog: Mapping[str, Any] = field(default_factory=dict)

    def version(self, value: Any) -> str:
        """A version of the catalog: text, a reference, or the strictest of its bounds."""
        if isinstance(value, str):
            return value
        if not isinstance(value, dict):
            return ""
        if "ref" in value:
            return self.version(self._table("versions").get(str(value["ref"])))
        return next((str(value[k]) for k in ("strictly", "require", "prefer") if isinstance(value.get(k), str)), "")

    def _table(self, name: str) -> Mapping[str, Any]:
        table = self.catalog.get(name)
        return table if isinstance(table, dict) else {}

    def named_version(self, accessor: str) -> str:
        return self.version(_by_accessor(self._table("versions"), accessor))

    def libraries(self, accessor: str) -> Iterator[tuple[str, str]]:
        """(group:artifact, version) of `libs.ACCESSOR`, or of all in `libs.bundles.ACCESSOR`."""
        if accessor.startswith("bundles."):
            names = _by_accessor(self._table("bundles"), accessor.removeprefix("bundles."))
            for name in names if isinstance(names, list) else ():
                yield from self.libraries(_accessor(str(name)))
            return
        value = _by_accessor(self._table("libraries"), accessor)
        if isinstance(value, str) and (found := _COORDINATES.fullmatch(value)):
            yield f"{found[1]}:{found[2]}", found[3] or ""
        elif isinstance(value, dict):
            name = value.get("module") or f"{value.get('group')}:{value.get('name')}"
            yield str(name), self.version(value.get("version"))

    def plugin(self) -> str:
        for value in self._table("plugins").values():
            if isinstance(value, dict) and str(value.get("id", "")).startswith("com.android."):
                return self.version(value.get("version"))
        return ""

    def resolve(self, text: str) -> str:
        """A version or number as written, with `$name` and `${name}` replaced; "" where a name is not known."""
        for name in re.findall(r"\$\{?(\w+(?:\.\w+)*)\}?", text):
            value = self.variables.get(name.rsplit(".", 1)[-1])
            if value is None:
                return ""
            text = re.sub(rf"\$\{{?{re.escape(name)}\}}?", lambda _, v=value: v, text)  # type: ignore[misc]
        return text


def read_project(files: Files) -> Project:
    """The build files of a folder; nothing in them is run. Raises nothing: what cannot be read is in `unread`."""
    texts: dict[str, str] = {}
    unread: list[tuple[str, str]] = []
    for entry in files:
        if entry.name in _BUILD:
            try:
                texts[entry.path] = without_comments(files.text(entry.path))
            except Unreadable as error:
                unread.append((entry.path, str(error)))
    root = _root(files.root)
    variables = _variables(root, texts.values())
    catalog: dict[str, Any] = {}
    if text := _outside(root / _CATALOG):
        try:
            catalog = tomllib.loads(text)
        except ValueError as error:
            unread.append((_CATALOG, f"is no TOML: {error}"))
    shared = _Shared(variables, catalog)
    modules = tuple(_module(path, text, shared) for path, text in texts.items())
    plugin = _plugin([*texts.values(), *filter(None, (_stripped(root / name) for name in _BUILD))], shared)
    return Project(modules=modules, plugin=plugin, unread=tuple(unread))


def _root(folder: Path) -> Path:
    """The project that a module belongs to: the nearest folder above with settings, as Gradle itself looks for it."""
    for candidate in (folder.resolve(), *folder.resolve().parents[:3]):
        if any((candidate / f"settings.gradle{end}").is_file() for end in ("", ".kts")):
            return candidate
    return folder


def _outside(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig") if path.stat().st_size <= TEXT_LIMIT else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _stripped(path: Path) -> str:
    return without_comments(_outside(path))


def _variables(root: Path, texts: Any) -> dict[str, str]:
    found = {}
    for text in (*texts, *(_stripped(root / name) for name in _BUILD)):
        found.update(dict(_VARIABLE.findall(text)))
    for line in _outside(root / "gradle.properties").splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.lstrip().startswith(("#", "!")):
            found[name.strip()] = value.strip()
    return found


def _module(path: str, text: str, shared: _Shared) -> Module:
    app = re.search(r"com\.android\.application|\bandroid[.-]?application\b", text, re.IGNORECASE)
    return Module(
        file=path,
        app=app is not None and not _only_declared(text, app.end()),
        android=re.search(r"(?m)^\s*android\s*\{", text) is not None,
        dependencies=tuple(_dependencies(path, text, shared)),
        min_sdk=_first(_numbers(path, text, shared)),
        minify=tuple(_minify(path, text)),
        rule_files=tuple(_listed(path, text, r"\b(?:consumerP|p)roguardFiles?\b", "")),
        abis=tuple(s for s in _listed(path, text, r"\babiFilters\b|\binclude\b", "") if s.value in ABIS),
        uncompressed=frozenset(s.value.lstrip(".") for s in _listed(path, text, r"\bnoCompress\b", "*")),
        legacy_packaging=re.search(r"\buseLegacyPackaging\s*=?\s*\(?\s*true", text) is not None,
    )


def _only_declared(text: str, end: int) -> bool:
    """`apply false`: a root build file names the plugin for its modules."""
    return re.search(r"apply\s*\(?\s*false", text[end : text.find("\n", end) % (len(text) + 1)]) is not None


def _dependencies(path: str, text: str, shared: _Shared) -> Iterator[Dependency]:
    for found in _CONFIGURATION.finditer(text):
        if found[1].lower().startswith(("test", "androidtest", "kapt", "ksp")):
            continue
        said, line = statement(text, found.end()), line_of(text, found.start())
        parts = dict(re.findall(r"\b(group|name|version)\s*[:=]\s*[\"']([^\"']*)[\"']", said))
        pairs = (
            [(f"{parts['group']}:{parts['name']}", parts.get("version", ""))] if {"group", "name"} <= set(parts) else []
        )
        for literal in strings(said):
            if coordinates := _COORDINATES.fullmatch(literal):
                pairs.append((f"{coordinates[1]}:{coordinates[2]}", coordinates[3] or ""))
        for accessor in re.findall(r"\blibs\.([\w.]+)", said):
            pairs += shared.libraries(accessor.removesuffix(".get"))
        for name, version in pairs:
            yield Dependency(name=name, version=shared.resolve(version), file=path, line=line)


def _numbers(path: str, text: str, shared: _Shared) -> Iterator[Setting]:
    for found in re.finditer(r"\bminSdk(?:Version)?\b(?=\s*[=( \d])", text):
        said = statement(text, found.end())
        value = ""
        if number := re.search(r"^\s*[=(]*\s*(\d+)", said):
            value = number[1]
        elif accessor := re.search(r"\blibs\.versions\.([\w.]+?)\.get\b", said):
            value = shared.named_version(accessor[1])
        elif name := re.search(r"(\w+)\W*(?:\.toInt\(\))?\W*$", said):
            value = shared.variables.get(name[1], "")
        yield Setting(value=value if value.isdigit() else "", file=path, line=line_of(text, found.start()))


def _minify(path: str, text: str) -> Iterator[Setting]:
    switches = (
        r"\b(?:isMinifyEnabled|minifyEnabled)\b\s*=?\s*\(?\s*(\w+)|\boptimization\s*\{[^{}]*?\benable\s*=\s*(\w+)"
    )
    for found in re.finditer(switches, text):
        value = found[1] or found[2]
        if value != "false":
            yield Setting(value="true" if value == "true" else "", file=path, line=line_of(text, found.start()))


def _listed(path: str, text: str, names: str, computed: str) -> Iterator[Setting]:
    """The strings of every statement that begins with one of `names`; one `computed` where it has none."""
    for found in re.finditer(names, text):
        said, line = statement(text, found.end()), line_of(text, found.start())
        values = strings(said) or ((computed,) if computed else ())
        yield from (Setting(value=value, file=path, line=line) for value in values)


def _plugin(texts: list[str], shared: _Shared) -> str:
    applied = r"com\.android\.(?:application|library)[\"')\s]+version\s*\(?\s*[\"']([\w.$-]+)"
    for text in texts:
        if found := re.search(rf"{applied}|com\.android\.tools\.build:gradle:([\w.$-]+)", text):
            return shared.resolve(found[1] or found[2])
    return shared.plugin()


def _first(settings: Iterator[Setting]) -> Setting | None:
    return next(settings, None)


def _accessor(alias: str) -> str:
    return re.sub(r"[-_]", ".", alias)


def _by_accessor(table: Mapping[str, Any], accessor: str) -> Any:
    return next((value for alias, value in table.items() if _accessor(alias) == accessor), None)
