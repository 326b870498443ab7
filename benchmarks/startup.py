"""How long `edgekit --help` takes, beside a Python that does nothing. The contract is 0.3 s."""

import subprocess
import sys
from pathlib import Path

from _measure import interleaved, save, summary

EDGEKIT = Path(sys.executable).parent / "edgekit"


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    times = interleaved(
        {"edgekit --help": lambda: run(EDGEKIT, "--help"), "python -c pass": lambda: run(sys.executable, "-c", "pass")},
        rounds=15,
    )
    results = {name: summary(t) for name, t in times.items()}
    for name, r in results.items():
        print(f"{name:<16} median {r['median_ms']:6.0f} ms  min {r['min_ms']:6.0f} ms")
    save("startup", {"results": results})
    if results["edgekit --help"]["median_ms"] > 300:
        sys.exit("edgekit --help is slower than 0.3 s")
