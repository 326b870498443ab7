"""Other people's programs that a device needs, and the folder that what they make is kept in."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.errors import EnvironmentProblem

_LAST_LINES = 4


def cache_folder() -> Path:
    """Where what was built or fetched is kept between commands: $XDG_CACHE_HOME/edgekit, or ~/.cache/edgekit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


def need_tool(name: str, package: str, purpose: str) -> str:
    """The path of a program; raises `EnvironmentProblem` with the line that installs Debian's `package`."""
    path = shutil.which(name)
    if path is None:
        raise EnvironmentProblem(
            f"{purpose} needs {name}, which is not here",
            f"Type: sudo apt-get install {package}   (Debian, Ubuntu; other systems have it under a similar name)",
        )
    return path


def run_tool(
    command: Sequence[str | Path], what: str, hint: str = "", environment: Mapping[str, str] | None = None
) -> str:
    """What a program prints; raises `EnvironmentProblem` with its last words where it fails `what` it was to do."""
    done = subprocess.run(
        [str(c) for c in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        env=None if environment is None else {**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        text = "\n  ".join(
            [f"{what} failed: {Path(command[0]).name} ended with {done.returncode}", *said[-_LAST_LINES:]]
        )
        raise EnvironmentProblem(text, hint)
    return done.stdout


def pip(arguments: Sequence[str | Path], what: str) -> None:
    """Run this Python's pip, which asks whatever index the user has set up."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    run_tool(command, what, "It needs pip and the package index that you install Python packages from.")
