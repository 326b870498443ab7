"""Results as lines of text."""

from edgekit.types import Artifact, Delegation, Manifest, Verification


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def count(number: int) -> str:
    """1,234,567 as 1.23 M."""
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,}"


def artifact_lines(artifact: Artifact) -> list[str]:
    """One line for the artifact, one for its parity, one for its delegation."""
    manifest = artifact.manifest
    head = f"{manifest.target:<11}{manifest.precision:<6}{artifact.seconds:5.1f} s  {artifact.path}"
    parity = [parity_line(v) for v in manifest.verification] or ["NOT VERIFIED (--no-verify)"]
    return [
        f"{head}  {size(artifact.size_bytes)}",
        *(f"  parity      {line}" for line in parity),
        *(f"  {line}" for line in delegation_lines(manifest.delegation)),
        *speed_lines(artifact),
    ]


def parity_line(v: Verification) -> str:
    """Max error, SQNR and top-1 agreement against the reference."""
    top1 = "" if v.top1_agreement is None else f" · top-1 {v.top1_agreement:.0%}"
    floor = f"floor {v.min_sqnr_db:.3g}"
    distance = f"max error {v.max_abs_error:.2g} · SQNR {v.sqnr_db:.1f} dB ({floor}){top1}"
    return f"against {v.against}: {distance} · {v.samples} inputs · {v.runtime}"


def speed_lines(artifact: Artifact) -> list[str]:
    """How fast it is against fp32 on this machine, where that was measured."""
    if artifact.speed is None:
        return []
    low, high = artifact.speed.ci95
    times = f"{1 / artifact.speed.ratio:.2f}x as fast as fp32 ({1 / high:.2f} to {1 / low:.2f})"
    return [f"  speed       {times}, 1 thread of this machine, by turns"]


def delegation_lines(d: Delegation) -> list[str]:
    """How much the backend takes, and each op outside it with its reason and source."""
    parts = "" if d.partitions == 1 else f" in {d.partitions} partitions"
    lines = [f"delegation  {d.backend} runs {d.delegated} of {d.delegated + d.fallback_count} ops{parts}"]
    for f in d.fallback:
        lines.append(f"            {f.count} x {f.op} outside: {f.reason}" + (f", at {f.source}" if f.source else ""))
    return lines


def next_command(artifacts: tuple[Artifact, ...]) -> str:
    """What to try with a fresh artifact."""
    manifest = artifacts[0].manifest
    verb = "predict" if manifest.preprocess and len(manifest.outputs[0].shape) == 2 else "inspect"
    return f"Next: edgekit {verb} {artifacts[0].path}" + (" PHOTO.jpg" if verb == "predict" else "")


def shapes(manifest: Manifest) -> list[str]:
    """The inputs and outputs of an artifact."""
    return [
        f"{kind:<11}{s.name}  {'x'.join(map(str, s.shape))}  {s.dtype}{'  ' + s.layout if s.layout else ''}"
        for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs))
        for s in specs
    ]
