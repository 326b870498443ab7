"""The Kotlin compiler and a JVM that runs what it compiled, both installed by tests/apps/install.sh."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
TOOLS = ROOT / ".venv" / "apps"
HERE = Path(__file__).parent / "kotlin"
LIBRARY = ROOT / "edgekit" / "apps" / "kotlin"
_LIB = TOOLS / "kotlin" / "lib"
_COMPILER = ("kotlin-compiler", "kotlin-stdlib", "kotlin-script-runtime", "kotlin-reflect", "annotations-13.0")
# android.jar is that of API 23 without a JDK behind it: what a phone of that version lacks is an error. The classes of
# ExecuTorch, ONNX Runtime and JUnit are the real ones; those of LiteRT and AndroidX are our own stubs.
CLASSES = (
    _LIB / "kotlin-stdlib.jar", _LIB / "kotlinx-coroutines-core-jvm.jar", TOOLS / "android.jar",
    TOOLS / "executorch.jar", TOOLS / "onnxruntime.jar", TOOLS / "junit.jar",
)  # fmt: skip
STUBS = sorted((HERE / "stubs").glob("*.kt"))


def require_kotlin() -> None:
    """Skips where there is none; EDGEKIT_REQUIRE_DEVICES says that there must be."""
    if shutil.which("java") and (TOOLS / "done").exists():
        return
    reason = "no Kotlin compiler: tests/apps/install.sh .venv/apps installs it"
    if os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
        pytest.fail(reason)
    pytest.skip(reason)


def compile_kotlin(sources: Iterable[Path], classes: Path) -> str:
    """Compile for Android, warnings being errors; what the compiler says, "" where all is well."""
    compiler = ":".join(str(_LIB / f"{name}.jar") for name in (*_COMPILER, "kotlinx-coroutines-core-jvm"))
    command = ["java", "-Xmx1500m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", compiler]
    command += ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib", "-no-reflect", "-no-jdk", "-Werror"]
    command += ["-jvm-target", "17", "-cp", ":".join(map(str, CLASSES)), "-d", str(classes), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr or f"exit code {done.returncode}"


class Jvm:
    """`tests/apps/kotlin/Harness.kt` at work: a line of JSON for each request, and for each answer."""

    def __init__(self, classes: Path, log: Path) -> None:
        # A real org.json before android.jar, whose classes are empty.
        path = ":".join(map(str, (classes, TOOLS / "json.jar", TOOLS / "hamcrest.jar", *CLASSES)))
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                ["java", "-Xmx1g", "-XX:+UseSerialGC", "-cp", path, "edgekit.harness.HarnessKt"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )  # fmt: skip

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._log.read_text(encoding="utf-8")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()
