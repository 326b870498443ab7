"""Made results for what no test machine measures: a phone that gets hot, a crash, an emulator's count."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from edgekit.types import (
    ArtifactProfile,
    Comparison,
    DelegationShare,
    OperatorTime,
    Profile,
    Protocol,
    SustainedPoint,
)
from edgekit.types.benchmark import Cell, CellResult

PHONE = {"kind": "adb", "model": "Made Phone 1", "soc": "none", "abi": "arm64-v8a", "android": "14"}
BASES = {"lvt": 21.0, "mobilenet-v2": 12.0, "micronet-m0": 1.6}
SPEEDS = {"executorch": 1.0, "tflite": 1.2, "onnx": 1.5}


def profile(model: str, target: str, precision: str = "fp32", seed: int = 0, **changes: Any) -> ArtifactProfile:
    """A phone's latencies: 120 runs, a few of them late."""
    rng = np.random.default_rng(seed)
    p50 = BASES[model] * SPEEDS[target] * (0.55 if precision == "int8" else 1.0)
    us = 1e3 * p50 * rng.lognormal(0, 0.02, 120) * np.where(rng.random(120) < 0.03, 1.6, 1)
    ms = us / 1e3
    q = np.percentile(ms, (50, 90, 95, 99))
    made = ArtifactProfile(
        artifact=f"out/{model}-{target}-{precision}", sha256=f"{seed:064x}", name=model, target=target,
        precision=precision, runtime=f"{target} 1.0", device=PHONE, threads=1,
        protocol=Protocol(warmup_runs=10, num_runs=50, min_secs=1.0, rounds=20, runs_per_round=6,
                          clock="one call of the runtime"),
        load_ms=8 * p50**0.5, first_ms=2.5 * p50, latency_us=tuple(us.tolist()), mean_ms=float(ms.mean()),
        std_ms=float(ms.std()), cv=float(ms.std() / ms.mean()), min_ms=float(ms.min()), p50_ms=float(q[0]),
        p90_ms=float(q[1]), p95_ms=float(q[2]), p99_ms=float(q[3]), max_ms=float(ms.max()),
        peak_memory_mib=60 + 3 * p50, model_memory_mib=2 * p50, size_bytes=int(1.1e6 * p50), runs=120,
        delegation=DelegationShare(backend="XNNPACK", delegated=60, partitions=2, fallback={"aten.cumsum": 1}),
        measured_at="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    return replace(made, **changes)


def hot() -> tuple[SustainedPoint, ...]:
    """Ten minutes: after three the clock falls."""
    return tuple(
        SustainedPoint(secs=10.0 * n, p50_ms=21 * (1 + 0.4 / (1 + math.exp(-(n - 20) / 2.5))), runs=400)
        for n in range(60)
    )


def operators() -> tuple[OperatorTime, ...]:
    """Forty of them, every fifth outside the delegate."""
    return tuple(
        OperatorTime(
            name=f"stage.{n // 8}.block.{n % 8}.convolution_{n}", op="Convolution" if n % 5 else "aten.cumsum",
            us=900 / (1 + n % 17) + n, delegated=bool(n % 5), source=f"models/lvt.py:{100 + n}",
        )
        for n in range(40)
    )  # fmt: skip


def phone() -> Profile:
    """Three models and three targets in two precisions, with everything that a profile may hold."""
    results = [
        profile(m, t, p, seed)
        for seed, (m, t, p) in enumerate((m, t, p) for m in BASES for t in SPEEDS for p in ("fp32", "int8"))
    ]
    first = replace(
        results[0],
        sustained=hot(),
        per_op=operators(),
        state={"before": {"battery": "80 %", "skin": "31 C"}, "after": {"battery": "74 %", "skin": "43 C"}},
        warnings=(
            "unstable: the coefficient of variation is 14%, p99 is 1.7 x p50: it ended +38% from where it began: clock "
            "frequency or heat; let the machine rest, then repeat",
            "degraded: thermal status 3 after the run",
        ),
    )
    slow = replace(results[1], warnings=("int8 is slower than fp32: it takes 1.10 of the time\n  2 x pad is outside",))
    results = [first, slow, *results[2:]]
    pairs = [(a, b) for n, a in enumerate(results[:6]) for b in results[n + 1 : 6]]
    comparisons = []
    for a, b in pairs:
        ratio = (b.p50_ms or 1) / (a.p50_ms or 1)
        comparisons.append(Comparison(a=a.artifact, b=b.artifact, ratio=ratio, ci95=(0.96 * ratio, 1.05 * ratio)))
    return Profile(results=tuple(results), comparisons=tuple(comparisons))


def cells() -> list[CellResult]:
    """A sweep of which two cells failed."""
    accuracies = {"lvt": 73.9, "mobilenet-v2": 71.9, "micronet-m0": 46.4}
    done = [
        CellResult(
            cell=Cell(model=r.name, target=r.target, precision=r.precision, device="adb:MADE"), status="done",
            seconds=12.0, artifact=r.artifact, size_bytes=r.size_bytes, profile=r,
            parity={"sqnr_db": 31.5 if r.precision == "int8" else 118.0, "max_abs_error": 1e-4, "top1_agreement": 1.0},
            accuracy={"top1": accuracies[r.name] - (0.8 if r.precision == "int8" else 0), "top5": 90.0, "n": 5000,
                      "drop": 0.8 if r.precision == "int8" else 0.0},
        )
        for r in phone().results
    ]  # fmt: skip
    failed = [
        CellResult(cell=Cell(model="moat-0", target="coreml", precision="fp16", device="adb:MADE"), status="crashed",
                   seconds=3.0, error="the process was killed by SIGSEGV", hint="See the log of the device."),
        CellResult(cell=Cell(model="moat-0", target="onnx", precision="int8", device="adb:MADE"), status="timeout",
                   seconds=300.0, error="no answer after 300 s"),
    ]  # fmt: skip
    return [*done, *failed]


def counted() -> Profile:
    """What an emulator says: a count and no latency."""
    nothing = dict.fromkeys(("load_ms", "first_ms", "mean_ms", "std_ms", "cv", "min_ms", "p50_ms", "p90_ms", "p95_ms"))
    results = tuple(
        profile("lvt", t, latency_us=(), p99_ms=None, max_ms=None, runs=0, peak_memory_mib=None, model_memory_mib=None,
                instructions=123_456_789 * (n + 1), device={"kind": "qemu-arm64", "cpu": "cortex-a76"}, **nothing)
        for n, t in enumerate(("executorch", "onnx"))
    )  # fmt: skip
    a, b = (r.artifact for r in results)
    return Profile(results=results, comparisons=(Comparison(a=a, b=b, ratio=2.0, ci95=(2.0, 2.0), of="instructions"),))


def sweep(finished: bool = True) -> dict[str, Any]:
    """`benchmark.json` of `cells`, with a warning for one of them."""
    plan = {"models": [*BASES, "moat-0"], "targets": [*SPEEDS, "coreml"], "devices": ["adb:MADE"]}
    warned = next(c.cell.name for c in cells() if c.cell.precision == "int8")
    ended = {"finished": "2026-01-02T04:00:00+00:00", "warnings": [{"cell": warned, "text": "int8 is not faster"}]}
    return {"schema": 1, "created": "2026-01-02T03:00:00+00:00", "plan": plan, **(ended if finished else {})}
