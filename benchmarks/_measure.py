"""Interleaved timing: machines are noisy, so what is compared runs in turns, in one process or shell."""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "executorch", "coremltools", "litert-torch", "ai-edge-litert", "onnx", "onnxruntime")


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1, unmeasured: int = 0
) -> dict[str, list[float]]:
    """Milliseconds of every call; each round calls every function `unmeasured` times and then `calls` times."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            for _ in range(unmeasured):
                function()
            for _ in range(calls):
                start = time.perf_counter()
                function()
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median, minimum and quartiles in milliseconds."""
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    values = {"median_ms": quartiles[1], "min_ms": min(times), "p25_ms": quartiles[0], "p75_ms": quartiles[2]}
    return {key: round(value, 3) for key, value in values.items()} | {"runs": len(times)}


def saved(name: str) -> dict[str, Any]:
    """What `results/NAME.json` holds, or {} where it is not there yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _processor() -> str:
    """The processor's own name where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else []
    return names[0] if names else platform.processor()


def save(name: str, content: dict[str, Any]) -> None:
    """Write `results/NAME.json` with the machine and the versions, and print where."""
    RESULTS.mkdir(exist_ok=True)
    environment = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    environment |= {"processor": _processor(), "cores": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            environment[package] = version(package)
        except PackageNotFoundError:
            environment[package] = "absent"
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment, **content}, indent=1) + "\n", encoding="utf-8")
    print(f"saved {path.relative_to(Path(__file__).parent.parent)}")
