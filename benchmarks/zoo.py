"""Every model of the zoo, exported to every target in fp32 and verified: the table in edgekit/models/README.md.

    python benchmarks/zoo.py [--models micronet-m0,lvt] [--resume]

`make zoo-table` runs it and writes the table; with --resume models that are saved already are left as they are.
`tests/test_zoo.py` makes the rows of the small models again and compares.
"""

import argparse
import contextlib
import io
import tempfile
import time
import warnings
from typing import Any

from _measure import save, saved

import edgekit
from edgekit.models import list_models


def row(name: str) -> dict[str, Any]:
    """What every target makes of a model, verified."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        artifacts = edgekit.export(name, "all", out=folder)
    return {
        artifact.manifest.target: {
            "sqnr_db": artifact.manifest.verification[0].sqnr_db,
            "bytes": artifact.size_bytes,
            "partitions": artifact.manifest.delegation.partitions,
            "outside": {f"{f.op}: {f.reason}": f.count for f in artifact.manifest.delegation.fallback},
        }
        for artifact in artifacts
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(spec.name for spec in list_models()))
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in asked.models.split(","):
        if asked.resume and name in saved("zoo").get("results", {}):
            continue
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            made = row(name)
        said = ", ".join(
            f"{t} {r['sqnr_db']:.0f} dB {r['partitions']}/{sum(r['outside'].values())}" for t, r in made.items()
        )
        print(f"{name:<24}{time.perf_counter() - start:6.0f} s  {said}", flush=True)
        # Read again: another process may be at other models.
        results = saved("zoo").get("results", {}) | {name: made}
        save("zoo", {"results": {spec.name: results[spec.name] for spec in list_models() if spec.name in results}})
