"""A runtime's own profile as one table: every operator's time, whether a delegate ran it, and its line of the model."""

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgekit.artifacts import read_sources
from edgekit.errors import ArtifactDamaged, BadInput, Unsupported
from edgekit.profiling.operators import executorch, onnx, tflite
from edgekit.types import Artifact, FileOp
from edgekit.types.profile import Operators, OperatorTime

Reader = Callable[[Path, int, Sequence[FileOp]], tuple[OperatorTime, ...]]

_READERS: Mapping[str, Reader] = {"executorch": executorch.read, "onnx": onnx.read, "tflite": tflite.read}
"""The file, the number of runs whose profile it ends with, and the ops of the model file."""


def check_operators(artifact: Artifact) -> None:
    """Raises `Unsupported` where its runtime has no times of operators."""
    target = artifact.manifest.target
    if target not in _READERS:
        raise Unsupported(
            f"there are no times of operators for {target}", f"Profile one of {', '.join(_READERS)} with --per-op."
        )


def read_operators(artifact: Artifact, trace: Path, whole_us: float, runs: int) -> Operators:
    """Mean microseconds of each operator in the last `runs` runs of `trace`, in the order that they ran.

    `trace` is an ETDump (ExecuTorch), a Chrome trace (ONNX Runtime) or what `devices.board.tracing` writes (LiteRT);
    `whole_us` is the mean of the same runs. Raises `BadInput` where the file is not that or holds fewer runs.
    """
    check_operators(artifact)
    target = artifact.manifest.target
    try:
        operators = _READERS[target](trace, runs, read_sources(artifact))
    except ArtifactDamaged:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise BadInput(
            f"{trace} cannot be read as the profile of {runs} runs on {target}: {error}",
            "Profile again; the process that wrote it may have been ended.",
        ) from error
    return Operators(whole_us=whole_us, operators=operators)
