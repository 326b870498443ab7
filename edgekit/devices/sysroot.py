"""An ARM64 Linux for the emulator: Python and the runtimes, unpacked from this machine's own package sources.

Nothing is installed: Debian's packages for arm64 are fetched by a configuration of apt of its own, which reads the
machine's sources, and unpacked; wheels for ARM come by pip. The folder is kept between commands.
"""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekit.artifacts import atomic_folder
from edgekit.devices._tools import cache_folder, need_tool, pip, run_tool
from edgekit.errors import EnvironmentProblem
from edgekit.types import Step

RUNTIMES = {"ai-edge-litert": "2.3.0", "onnxruntime": "1.31.1"}
"""Where this machine has one of them, its version is taken: the two are compared."""
PACKAGES = ("python3", "libstdc++6", "libgomp1")
PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1))
"""By the C library they need, newest first: pip does not think of the older ones itself."""
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
"""A Cortex-A76, as Linux describes it. QEMU 7 shows a program this machine's own instead, at which runtimes stumble."""


def emulated(program: Path | str, root: Path, qemu: str) -> list[str]:
    """The command that starts an ARM64 program; what it opens is looked for in `root` first.

    A Cortex-A76 is what many phones and the Raspberry Pi 5 have; QEMU's "max" would pick kernels that no phone runs.
    """
    return [qemu, "-cpu", "cortex-a76", "-L", str(root), str(program)]


def write_cpuinfo(root: Path) -> None:
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(CPUINFO, encoding="ascii")


def python_of(root: Path) -> Path:
    """The interpreter of a sysroot."""
    return next(p for p in sorted((root / "usr" / "bin").iterdir()) if re.fullmatch(r"python3\.\d+", p.name))


def sysroot(qemu: str, on_step: Step = lambda what, done, total: None) -> Path:
    """The sysroot, made now where there is none with these versions: 250 MB, half a minute.

    Raises `EnvironmentProblem` where apt, dpkg, ARM packages or wheels are missing.
    """
    versions = {name: _here(name) or default for name, default in RUNTIMES.items()}
    destination = cache_folder() / "sysroot" / "-".join(["arm64", *versions.values()])
    if destination.is_dir():  # it was made whole
        return destination
    for tool, package in (("apt-get", "apt"), ("dpkg", "dpkg")):
        need_tool(tool, package, "running ONNX or TFLite models on an emulated ARM64 (on Debian or Ubuntu only)")
    with atomic_folder(destination) as root:
        with TemporaryDirectory() as temporary:
            on_step("fetching ARM64 packages", 0, 4)
            archives = _packages(Path(temporary))
            on_step("unpacking them", 1, 4)
            for archive in archives:
                run_tool(["dpkg", "-x", archive, root], f"unpacking {archive.name}")
        write_cpuinfo(root)
        on_step("fetching ARM64 wheels", 2, 4)
        _wheels(root, [f"{name}=={number}" for name, number in versions.items()])
        on_step("trying them", 3, 4)
        modules = "import numpy, onnxruntime, ai_edge_litert.interpreter"
        # Its bytecode is written by the way, which every later start needs.
        run_tool([*emulated(python_of(root), root, qemu), "-c", modules], "starting the emulated Python")
    return destination


def _here(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _packages(folder: Path) -> list[Path]:
    """Debian's packages for arm64, by the machine's own sources, as files; nothing of the machine's is changed."""
    state, cache = folder / "state", folder / "cache"
    for made in (state / "lists" / "partial", cache / "archives" / "partial"):
        made.mkdir(parents=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",  # its own user could not enter a temporary folder
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
        # What the machine wants done behind every update is not for these. How it reaches the sources is.
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::main": "/dev/null",
    }
    reach = [
        line
        for line in run_tool(["apt-config", "dump"], "reading apt's settings").splitlines()
        if line[:7] == "Acquire"
    ]
    configuration = folder / "apt.conf"
    configuration.write_text("\n".join([*reach, *(f'{k} "{v}";' for k, v in options.items())]) + "\n", encoding="utf-8")
    what, environment = "fetching ARM64 packages", {"APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}
    hint = (
        "The machine's apt sources must have packages for arm64, as Debian's do; Ubuntu has them at another address, "
        "which has to be added to the sources. ExecuTorch artifacts need none of this."
    )
    # A source that has nothing for arm64 is passed over; whether anything is missing, the next step tells.
    run_tool(["apt-get", "-q", "update"], what, hint, environment)
    install = ["apt-get", "-q", "-y", "install", "--download-only", "--no-install-recommends"]
    run_tool([*install, *PACKAGES], what, hint, environment)
    return sorted((cache / "archives").glob("*.deb"))


def _wheels(root: Path, runtimes: Sequence[str]) -> None:
    number = python_of(root).name.removeprefix("python")
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    wanted = ("--only-binary=:all:", *platforms, "--implementation", "cp", "--python-version", number)
    target = root / "usr" / "lib" / "python3" / "dist-packages"
    quiet = ("install", "-q", "--no-compile", "--no-warn-conflicts")
    # Of what they depend on, to run a model takes numpy alone.
    pip([*quiet, *wanted, "--no-deps", "--target", target, "numpy", *runtimes], "fetching ARM64 wheels")
    if not (target / "numpy").is_dir():
        raise EnvironmentProblem("pip made no ARM64 numpy", "Type: python -m pip install --upgrade pip")
