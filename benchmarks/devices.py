"""What a measurement is worth: an artifact against itself, operators against the whole, ARM kernels against x86.

    python benchmarks/devices.py [--artifacts DIR] [--parts twice,operators,qemu]

lvt and mobilenet-v2 in fp32 and int8 for three runtimes; DIR keeps the exports for the next time. Weights, photos and
golden vectors lie beside the project (../shared, or EDGEKIT_SHARED). `twice` and `operators` want an idle machine.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import save, saved

import edgekit
from edgekit.devices import open_device
from edgekit.types import Artifact

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.zoo import golden

SHARED = Path(os.environ.get("EDGEKIT_SHARED", Path(__file__).parents[2] / "shared"))
MODELS = ("lvt", "mobilenet-v2")
TARGETS = ("executorch", "tflite", "onnx")
PRECISIONS = ("fp32", "int8")


def exports(folder: Path) -> list[Artifact]:
    """The twelve artifacts, made where they are not there yet."""
    found = []
    for model in MODELS:
        weights = SHARED / "data" / "mobilenetv2_imagenet.safetensors"
        if model == "lvt":
            weights = folder / "lvt.pth"
            torch.save(golden(SHARED, "lvt", "lvt_cls").state, weights)
        for precision in PRECISIONS:
            missing = [t for t in TARGETS if not (folder / f"{model}-{t}-{precision}").exists()]
            if missing:
                print(f"exporting {model} in {precision}", flush=True)
                photos = SHARED / "data" / "imagenet_sample800.tar" if precision == "int8" else None
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    edgekit.export(
                        model, missing, precision=precision, weights=weights, calibration=photos,
                        compare_speed=False, out=folder,
                    )  # fmt: skip
            found += [edgekit.load_artifact(folder / f"{model}-{t}-{precision}") for t in TARGETS]
    return found


def twice(artifacts: list[Artifact]) -> dict[str, Any]:
    """The median of an artifact over that of the same one, in one run by turns."""
    rows = {}
    for artifact in artifacts:
        result = edgekit.profile([artifact, artifact], min_secs=2.0)
        (c,) = result.comparisons
        rows[artifact.path.name] = {"ratio": c.ratio, "ci95": c.ci95, "cv": [r.cv for r in result.results]}
        print(artifact.path.name, f"{c.ratio:.3f} ({c.ci95[0]:.3f}-{c.ci95[1]:.3f})", flush=True)
    return rows


def operators(artifacts: list[Artifact]) -> dict[str, Any]:
    """The sum of operators over the profiled runs as a whole; without what a runtime takes between them, too."""
    rows = {}
    for artifact in artifacts:
        (r,) = edgekit.profile([artifact], per_op=True).results
        assert r.per_op_whole_us is not None
        assert r.p50_ms is not None
        own = sum(o.us for o in r.per_op if o.op != "overhead")
        rows[artifact.path.name] = {
            "operators": sum(o.op != "overhead" for o in r.per_op),
            "share_of_whole": own / r.per_op_whole_us,
            "with_overhead": sum(o.us for o in r.per_op) / r.per_op_whole_us,
            "with_source": sum(o.us for o in r.per_op if o.source) / own,
            "whole_over_unprofiled": r.per_op_whole_us / (r.p50_ms * 1e3),
        }
        print(artifact.path.name, {k: round(v, 3) for k, v in rows[artifact.path.name].items()}, flush=True)
    return rows


def qemu(artifacts: list[Artifact]) -> dict[str, Any]:
    """ARM kernels against this machine's, and the instructions of an inference, counted twice."""
    device, rows = open_device("qemu-arm64"), {}
    for artifact in sorted(artifacts, key=lambda a: (a.manifest.precision, a.path.name), reverse=True):
        start = time.perf_counter()
        v = edgekit.verify(artifact, device=device)
        secs = time.perf_counter() - start
        counts = [edgekit.profile([artifact], device=device).results[0].instructions for _ in range(2)]
        rows[artifact.path.name] = {
            "passed": v.passed,
            "max_difference": max(p.max_difference for p in v.parity),
            "allowed": min(p.allowed for p in v.parity),
            "rule": v.parity[0].rule,
            "within_rule": all(p.within_rule for p in v.parity),
            "sqnr_db": min(p.sqnr_db for p in v.parity),
            "secs": round(secs, 1),
            "instructions": counts,
        }
        print(artifact.path.name, rows[artifact.path.name], flush=True)
        save("devices", {"results": saved("devices").get("results", {}) | {"qemu": rows}})
    return rows


PARTS: dict[str, Callable[[list[Artifact]], dict[str, Any]]] = {"twice": twice, "operators": operators, "qemu": qemu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, help="where the exports are kept")
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.artifacts or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        artifacts = exports(folder)
        results = saved("devices").get("results", {})
        for part in filter(None, options.parts.split(",")):
            results |= {part: PARTS[part](artifacts)}
            save("devices", {"results": results})


if __name__ == "__main__":
    main()
