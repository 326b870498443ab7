"""What is inside an artifact, and what works on this machine."""

import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from edgekit.artifacts import load_artifact
from edgekit.devices import DEVICES, Kind
from edgekit.errors import EdgekitError
from edgekit.graph.capture import capture
from edgekit.targets import TARGETS, Target
from edgekit.types import Artifact, Health, Inspection, Step, TensorSpec


def inspect(artifact: str | Path | Artifact) -> Inspection:
    """The ops of an artifact's model file, read from disk, with its manifest (delegation, sizes)."""
    loaded = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    target = TARGETS[loaded.manifest.target]
    target.require_runtime()
    return Inspection(artifact=loaded, ops=target.inspect(loaded.model_path))


def doctor(on_step: Step | None = None) -> tuple[Health, ...]:
    """Export a two-layer model to each target and run it: what works here, and the remedy for what does not.

    Then the kinds of device that can be measured from here.
    """
    report = on_step or (lambda what, done, total: None)
    results = []
    for n, target in enumerate(TARGETS.values()):
        report(f"trying {target.name}", n, len(TARGETS))
        results.append(_try(target))
    results += [_reachable(kind) for kind in DEVICES.values() if kind.programs]
    host = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return (*results, Health(name="host", works=True, detail=host))


def _reachable(kind: Kind) -> Health:
    """Whether the programs that a kind of device needs are here; whether a device answers is `profile`'s to see."""
    missing = kind.missing()
    if not missing:
        detail = f"{', '.join(kind.programs)} found: --device {kind.form}"
        return Health(name=kind.name, works=True, detail=detail, optional=True)
    return Health(
        name=kind.name,
        works=False,
        detail=f"--device {kind.form} needs {' and '.join(missing)}",
        remedy=f"Debian, Ubuntu: sudo apt-get install {' '.join(missing.values())}",
        optional=True,
    )


def _try(target: Target) -> Health:
    try:
        target.require()
        error = _round_trip(target)
    except EdgekitError as error_:
        return Health(name=target.name, works=False, detail=error_.message, remedy=error_.hint)
    except Exception as error_:  # whatever a broken installation raises is the finding
        return Health(
            name=target.name,
            works=False,
            detail=f"a test export failed: {type(error_).__name__}: {error_}",
            remedy=f"Reinstall it: pip install --force-reinstall 'edgekit[{target.extra}]'",
        )
    versions = ", ".join(f"{k} {v}" for k, v in target.versions().items())
    return Health(name=target.name, works=error < 1e-4, detail=f"{versions}; runs in {target.runtime}")


def _round_trip(target: Target) -> float:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    program = capture(module, [x])
    outputs = (TensorSpec(name="output_0", shape=(1, 4, 6, 6)),)
    inputs = (TensorSpec(name="input_0", shape=(1, 3, 8, 8)),)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"model{target.suffix}"
        target.lower(program, "fp32", path, inputs, outputs)
        actual = target.runner(path, inputs, outputs)([x.numpy()])[0]
    return float(np.abs(actual - module(x).detach().numpy()).max())
