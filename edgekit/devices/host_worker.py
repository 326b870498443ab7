"""The process that runs one artifact on this machine, by its target's own runner: `… FOLDER THREADS CPU,CPU…`."""

import sys
from pathlib import Path
from typing import Any

from edgekit.artifacts import load_artifact
from edgekit.devices.board.runtimes import Call, Failure, Runtime
from edgekit.devices.board.serve import main
from edgekit.errors import EdgekitError
from edgekit.targets import TARGETS

ARTIFACT = "artifact"
"""What `board.json` calls the artifact's path: on this machine nothing is copied."""


def host_runtime(folder: Path, facts: dict[str, Any]) -> Runtime:
    """What `edgekit verify` runs the artifact with."""
    try:
        artifact = load_artifact(facts[ARTIFACT])
        target = TARGETS[artifact.manifest.target]
        target.require_runtime()
    except EdgekitError as error:
        raise Failure(error.message, error.hint, error.exit_code) from error
    manifest = artifact.manifest

    def load(threads: int) -> Call:
        return target.runner(artifact.model_path, manifest.inputs, manifest.outputs, threads=threads)

    return Runtime(target.runtime, load)


if __name__ == "__main__":
    main(sys.argv[1:], host_runtime)
