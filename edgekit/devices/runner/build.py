"""The C++ runner, built against ExecuTorch's wheel: a folder with all that a device needs to run a `.pte`.

The folder brings its own loader and C library and is started through them, so that it runs on any Linux kernel of its
architecture: a board of any distribution, or an Android phone, without its SDK. It was tried under an emulator, and not
on a phone.
"""

import hashlib
import json
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePath

from edgekit.artifacts import atomic_folder
from edgekit.devices._tools import cache_folder, need_tool, pip, run_tool
from edgekit.errors import BadInput, EnvironmentProblem, UnknownName
from edgekit.types import Step

EXECUTORCH = "1.5.1"
"""Its wheel has a C++ runtime that needs no torch; 1.4 had none, and another may name things differently."""
LIBRARIES = (
    "executorch",
    "executorch_kernels_optimized",
    "executorch_kernels_quantized",
    "executorch_backend_xnnpack",
    "executorch_threadpool",
    "executorch_etdump",
)
RUNNER, LOADER, STAMP = "runner", "ld.so", "runner.json"
SOURCE = Path(__file__).with_name("runner.cpp")


@dataclass(frozen=True)
class Arch:
    """How an architecture is called by whom: machines, wheels, GNU tools and their package, Android."""

    machine: str
    tools: str
    package: str
    loader: str
    abi: str


ARCHS = {
    "arm64": Arch("aarch64", "aarch64-linux-gnu-", "g++-aarch64-linux-gnu", "ld-linux-aarch64.so.1", "arm64-v8a"),
    "x86_64": Arch("x86_64", "x86_64-linux-gnu-", "g++-x86-64-linux-gnu", "ld-linux-x86-64.so.2", "x86_64"),
}


def runner_folder(arch: str, on_step: Step = lambda what, done, total: None) -> Path:
    """The runner for "arm64" or "x86_64", built now where there is none of this version; raises `EnvironmentProblem`.

    The folder is self-contained: copy it anywhere, see `runner_command`.
    """
    destination = cache_folder() / "runner" / f"{_arch(arch)[0]}-{EXECUTORCH}"
    build_runner(arch, destination, force=True, on_step=on_step)
    return destination


def runner_command(folder: PurePath | str, model: PurePath | str, threads: int, cpus: Sequence[int] = ()) -> list[str]:
    """The command that serves `model` from a runner's folder, wherever both lie; see `devices._base` for what it says.

    Its working directory has to be the one with the inputs.
    """
    loader, runner = (f"{folder}/{name}" for name in (LOADER, RUNNER))
    return [loader, "--library-path", str(folder), runner, str(model), str(threads), ",".join(map(str, cpus))]


def build_runner(
    arch: str,
    destination: Path,
    *,
    force: bool = False,
    on_step: Step = lambda what, done, total: None,
) -> bool:
    """Build the runner and all it needs into `destination`, whole or not at all; whether there was anything to do.

    Raises `UnknownName` for the architecture, `EnvironmentProblem` where a compiler or ExecuTorch is missing, and
    `BadInput` where `destination` holds anything else than a runner of this version and not `force`.
    """
    name, spec = _arch(arch)
    stamp = {"arch": name, "executorch": EXECUTORCH, "source": _digest(), "abi": spec.abi}
    if _is_built(destination, stamp):
        return False
    if destination.exists() and not force:
        raise BadInput(f"{destination} exists already", "Replace it with --force, or give another folder with -o.")
    prefix = _tools(spec)
    with _package(spec, on_step) as package, atomic_folder(destination) as folder:
        on_step("compiling the runner", 1, 3)
        _compile(prefix, package, folder / RUNNER)
        on_step("gathering its libraries", 2, 3)
        _gather(prefix, spec, package, folder)
        (folder / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    return True


def _arch(name: str) -> tuple[str, Arch]:
    names = {a: key for key, spec in ARCHS.items() for a in (key, spec.machine, spec.abi)}
    if name not in names:
        raise UnknownName("architecture", name, ARCHS)
    return names[name], ARCHS[names[name]]


def _digest() -> str:
    content = SOURCE.read_bytes() + Path(__file__).read_bytes()
    return hashlib.sha256(content).hexdigest()


def _is_built(folder: Path, stamp: dict[str, str]) -> bool:
    try:
        return bool(json.loads((folder / STAMP).read_text(encoding="utf-8")) == stamp)
    except (OSError, ValueError):
        return False


def _tools(spec: Arch) -> str:
    """The prefix of the GNU tools that make programs for `spec` here."""
    if sys.platform != "linux":
        raise EnvironmentProblem(
            "the runner is built on Linux only",
            "Build it there with `edgekit runner build`, and copy its folder.",
        )
    native = platform.machine() == spec.machine
    prefix = "" if native else spec.tools
    need_tool(f"{prefix}g++", "g++" if native else spec.package, "building the runner")
    need_tool(f"{prefix}readelf", "binutils" if native else spec.package, "building the runner")
    return prefix


@contextmanager
def _package(spec: Arch, on_step: Step) -> Iterator[Path]:
    """The folder `executorch` of the package for `spec`: the one installed here, or its wheel's."""
    try:
        installed = distribution("executorch")
    except PackageNotFoundError:
        installed = None
    if installed is not None and installed.version != EXECUTORCH:
        raise EnvironmentProblem(
            f"ExecuTorch {installed.version} is installed here; the runner is built against {EXECUTORCH}, "
            "and one has to run what the other makes",
            f"Type: pip install executorch=={EXECUTORCH}",
        )
    if installed is not None and platform.machine() == spec.machine:
        yield Path(str(installed.locate_file("executorch")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        on_step(f"fetching ExecuTorch {EXECUTORCH} for {spec.machine}", 0, 3)
        wanted = ("--only-binary=:all:", "--no-deps", "--platform", f"manylinux_2_28_{spec.machine}")
        pip(
            ["download", "-q", *wanted, "-d", temporary, f"executorch=={EXECUTORCH}"],
            f"fetching ExecuTorch {EXECUTORCH} for {spec.machine}",
        )
        wheel = next(Path(temporary).glob("executorch-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.namelist() if m.startswith(("executorch/lib/", "executorch/include/"))]
            archive.extractall(temporary, members)
        yield Path(temporary) / "executorch"


def _compile(prefix: str, package: Path, runner: Path) -> None:
    include = package / "include"
    missing = [name for name in LIBRARIES if not (package / "lib" / f"lib{name}.so").is_file()]
    if missing:
        raise EnvironmentProblem(
            f"the package executorch at {package} has no library {missing[0]}",
            f"Type: pip install --force-reinstall executorch=={EXECUTORCH}",
        )
    command: list[str | Path] = [f"{prefix}g++", "-std=c++17", "-O2", "-s"]
    command += ["-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_USE_THREADPOOL", f'-DEXECUTORCH_VERSION="{EXECUTORCH}"']
    command += ["-isystem", include, "-isystem", include / "executorch/runtime/core/portable_type/c10"]
    command += [SOURCE, "-o", runner, "-L", package / "lib"]
    # Kernels and backends register themselves when they are loaded: nothing refers to them.
    command += ["-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", *(f"-l{name}" for name in LIBRARIES)]
    run_tool(command, "compiling the runner", "Is the compiler older than C++17 (GCC 8)?")


def _gather(prefix: str, spec: Arch, package: Path, folder: Path) -> None:
    """Copy into `folder` every library that is needed by what is in it, and the loader, stripped."""
    pending = [folder / RUNNER]
    copied: set[str] = {spec.loader}
    while pending:
        needed = run_tool([f"{prefix}readelf", "-d", pending.pop()], "reading which libraries the runner needs")
        for name in re.findall(r"\(NEEDED\).*\[(.+)\]", needed):
            if name not in copied:
                copied.add(name)
                pending.append(Path(shutil.copy(_library(prefix, package, name), folder / name)))
    shutil.copy(_library(prefix, package, spec.loader), folder / LOADER)
    if shutil.which(f"{prefix}strip"):  # of symbols that nothing is linked to
        run_tool([f"{prefix}strip", "--strip-unneeded", *folder.glob("*.so*")], "stripping the runner's libraries")
    (folder / LOADER).chmod(0o755)


def _library(prefix: str, package: Path, name: str) -> Path:
    own = package / "lib" / name
    # The compiler answers with the bare name where it has no such file.
    answer = str(own) if own.is_file() else run_tool([f"{prefix}g++", f"-print-file-name={name}"], f"finding {name}")
    path = Path(answer.strip())
    if not path.is_absolute():
        raise EnvironmentProblem(f"{prefix}g++ has no {name}", "Install the C++ compiler again, with its libraries.")
    return path
