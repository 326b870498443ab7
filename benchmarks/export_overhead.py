"""What `edgekit export -m lvt -t coreml`, verified, adds to the bare calls of torch.export and ct.convert.

Whole processes, in turns, imports included. The ratio of the medians is the figure; the contract is 1.3.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _measure import interleaved, save, summary

EDGEKIT = Path(sys.executable).parent / "edgekit"
BARE = """
import sys, torch, coremltools as ct
from edgekit.models import create_model, deploy
model = deploy(create_model("lvt"))
program = torch.export.export(model, (torch.randn(1, 3, 224, 224),)).run_decompositions({})
ct.convert(program, minimum_deployment_target=ct.target.iOS17, convert_to="mlprogram",
           compute_precision=ct.precision.FLOAT32, skip_model_load=True).save(sys.argv[1])
"""


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        times = interleaved(
            {
                "bare library calls": lambda: run(sys.executable, "-c", BARE, f"{folder}/bare.mlpackage"),
                "edgekit export": lambda: run(EDGEKIT, "export", "-m", "lvt", "-t", "coreml", "-o", folder, "--force"),
                "edgekit export --no-verify": lambda: run(
                    EDGEKIT, "export", "-m", "lvt", "-t", "coreml", "-o", folder, "--force", "--no-verify"
                ),
            },
            rounds=5,
        )
    ratio = statistics.median(times["edgekit export"]) / statistics.median(times["bare library calls"])
    results = {name: summary(t) for name, t in times.items()}
    for name, r in results.items():
        print(f"{name:<28} median {r['median_ms'] / 1e3:6.2f} s  min {r['min_ms'] / 1e3:6.2f} s")
    print(f"ratio of the medians {ratio:.2f}")
    save("export_overhead", {"results": results, "ratio": round(ratio, 3)})
