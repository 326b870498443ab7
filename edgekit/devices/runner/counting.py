"""The plugin that makes QEMU count instructions, compiled here the first time that it is needed."""

import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from edgekit.devices._tools import cache_folder, need_tool, run_tool
from edgekit.errors import EnvironmentProblem

SOURCE = Path(__file__).with_name("count.c")
_INTERFACES = (((10, 1), 5), ((10, 0), 4), ((9, 1), 3), ((9, 0), 2))
"""From which version on QEMU wants which version of its plugin interface; 1 before."""
_HINT = "Type: sudo apt-get install qemu-user   (version 7 or 8 of Debian has plugins; the static one has none)"


def version_of(qemu: str) -> str:
    """Such as "7.2.22"."""
    found = re.search(r"version (\d+\.\d+[.\d]*)", run_tool([qemu, "--version"], "asking QEMU its version"))
    return found.group(1) if found else "of unknown version"


def counter(qemu: str, trial: Sequence[str]) -> Path:
    """The compiled plugin; raises `EnvironmentProblem` without a C compiler, or where this QEMU takes no plugins.

    `trial` is a program's command line, without QEMU, that it can be tried with.
    """
    if "-plugin" not in run_tool([qemu, "-h"], "asking QEMU its options"):
        raise EnvironmentProblem(f"{qemu} takes no plugins, without which it cannot count instructions", _HINT)
    major, minor, *_ = (int(n) for n in (*re.findall(r"\d+", version_of(qemu)), 0, 0))
    interface = next((number for least, number in _INTERFACES if (major, minor) >= least), 1)
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    plugin = cache_folder() / "plugins" / f"count-{interface}-{digest}.so"
    if not plugin.is_file():
        compiler = need_tool("gcc", "gcc", "counting instructions")
        plugin.parent.mkdir(parents=True, exist_ok=True)
        made = plugin.with_name(f".{plugin.name}.{secrets.token_hex(4)}")
        options = ("-O2", "-fPIC", "-shared", "-fvisibility=hidden", f"-DAPI_VERSION={interface}")
        try:
            run_tool([compiler, *options, SOURCE, "-o", made], "compiling the plugin that counts instructions")
            os.replace(made, plugin)
        finally:
            made.unlink(missing_ok=True)
    run_tool([qemu, *plugged(plugin, Path(os.devnull)), *trial], "starting QEMU with a plugin", _HINT)
    return plugin


def plugged(plugin: Path, out: Path) -> list[str]:
    """The options of QEMU that load the plugin; it writes to `out`."""
    return ["-plugin", f"{plugin},out={out}"]
