"""android_demo/, compiled without Gradle, and what of it needs no phone, run on a JVM."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.apps.kotlin_compiler import LIBRARY, ROOT, STUBS, TOOLS, compile_kotlin, require_kotlin

DEMO = ROOT / "android_demo"
MAIN = DEMO / "app" / "src" / "main"
RESOURCES = MAIN / "res"
# The checks that run, and the few classes of Android that the app asks for what is newer than the android.jar here.
HERE = Path(__file__).parent / "android_demo"


@dataclass(frozen=True)
class Checks:
    """The compiled app and tests/apps/android_demo/Checks.kt."""

    classes: Path

    def __call__(self, check: str, **asked: Any) -> dict[str, Any]:
        """The answer of one check, in a JVM without Android: what touches it fails."""
        path = (self.classes, TOOLS / "json.jar", TOOLS / "kotlin" / "lib" / "kotlin-stdlib.jar")
        command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Duser.language=de", "-Dfile.encoding=UTF-8"]
        command += ["-cp", ":".join(map(str, path)), "edgekit.demo.checks.ChecksKt", check]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            command,
            input=json.dumps(asked),
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def compiled(folder: Path) -> Checks:
    """The app, the shared sources and the checks in one call of the compiler, whose warnings are errors."""
    require_kotlin()
    generated = folder / "generated"
    compile_resources(folder, generated)
    write_build_config(generated)
    sources = [*MAIN.rglob("*.kt"), *LIBRARY.glob("*.kt"), *STUBS, HERE / "Checks.kt", HERE / "newer", generated]
    said = compile_kotlin(sources, folder / "classes")
    assert not said, said
    return Checks(folder / "classes")


def compile_resources(folder: Path, generated: Path) -> None:
    """R.java by Android's own tool, which takes no layout, string or attribute that API 23 does not know."""
    if not shutil.which("aapt"):
        reason = "no aapt here: apt-get install aapt"
        if os.environ.get("EDGEKIT_REQUIRE_DEVICES"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Gradle gives the package; aapt wants it in the manifest.
    manifest = folder / "AndroidManifest.xml"
    text = (MAIN / "AndroidManifest.xml").read_text(encoding="utf-8")
    manifest.write_text(text.replace("<manifest ", '<manifest package="edgekit.demo" ', 1), encoding="utf-8")
    generated.mkdir()
    command = [
        "aapt",
        "package",
        "-f",
        "-m",
        "-J",
        generated,
        "-M",
        manifest,
        "-S",
        RESOURCES,
        "-I",
        TOOLS / "android.jar",
    ]
    versions = ["--min-sdk-version", "24", "--target-sdk-version", "36"]
    done = subprocess.run([*map(str, command), *versions], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr


def write_build_config(generated: Path) -> None:
    """BuildConfig.java with the fields that app/build.gradle.kts asks for."""
    script = (DEMO / "app" / "build.gradle.kts").read_text(encoding="utf-8")
    fields = re.findall(r'buildConfigField\("(\w+)", "(\w+)"', script)
    body = "".join(f'    public static final {kind} {name} = "";\n' for kind, name in fields)
    path = generated / "edgekit" / "demo" / "BuildConfig.java"
    path.write_text(f"package edgekit.demo;\n\npublic final class BuildConfig {{\n{body}}}\n", encoding="utf-8")
