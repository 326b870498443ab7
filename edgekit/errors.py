"""Everything edgekit raises on purpose. Each error carries the exit code of the command line.

EdgekitError (1: it ran, but a gate failed)
├── GateFailed            verification below its floor
├── PartialFailure        some of several targets failed
├── DeviceError           a device, or the process on it, was lost while it was used
├── UsageError (2: bad input or usage)
│   ├── UnknownName       not in a registry; carries close matches
│   ├── BadInput          a file, image, shape or option that cannot be used
│   │   └── WeightsMismatch   a weights file of another model
│   ├── ArtifactDamaged   hash mismatch, missing file, unreadable manifest
│   ├── Unsupported       a target that has no such precision
│   ├── CaptureFailed     torch.export cannot capture the module
│   └── LoweringFailed    a target cannot lower an op
└── EnvironmentProblem (3: something outside is missing)
    └── MissingDependency a package that a target needs
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class EdgekitError(Exception):
    """An expected failure: `message` says what was asked and what is possible, `hint` what to type."""

    exit_code = 1
    partial: Any = None
    """What was measured (a `Profile`) before it, where that is worth keeping."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> Any:
        """Whole again in another process: a worker's error is told by the one that waits for it."""
        return _again, (type(self), self.__dict__)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


def _again(kind: type[EdgekitError], values: dict[str, Any]) -> EdgekitError:
    error = kind.__new__(kind)
    error.__dict__.update(values)
    return error


class GateFailed(EdgekitError):
    """It ran, but the result is below what was promised."""


class PartialFailure(EdgekitError):
    """Some of several targets failed; the others are in `artifacts`. If all failed alike, the exit code is theirs."""

    def __init__(self, artifacts: tuple[Any, ...], failures: tuple[tuple[str, EdgekitError], ...]) -> None:
        names = ", ".join(name for name, _ in failures)
        super().__init__(
            f"{len(failures)} of {len(artifacts) + len(failures)} targets failed: {names}\n"
            + "\n".join(f"{name}: {error}" for name, error in failures)
        )
        self.artifacts, self.failures = artifacts, failures
        codes = {error.exit_code for _, error in failures}
        if not artifacts and len(codes) == 1:
            self.exit_code = codes.pop()


class DeviceError(EdgekitError):
    """A device, or the process on it, was lost or did not answer while it was used."""


class UsageError(EdgekitError):
    exit_code = 2


class UnknownName(UsageError):
    """A name that is in no registry, with what is close to it."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        # Near misses are typos, and also plain family names ("lvt-tiny" for "lvt").
        close = get_close_matches(name.lower(), names, n=3, cutoff=0.6) or [n for n in names if n in name.lower()]
        hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}", f"{hint}Known: {', '.join(names)}.")
        self.close = close


class BadInput(UsageError):
    """A file, image, shape or option that cannot be used."""


class WeightsMismatch(BadInput):
    """A weights file whose keys or shapes are not those of the model."""

    def __init__(
        self, model: str, source: str, missing: list[str], unexpected: list[str], misshapen: list[str]
    ) -> None:
        parts = [
            f"{len(keys)} {what}: {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of other shape", misshapen))
            if keys
        ]
        super().__init__(
            f"{source} holds the weights of another model than {model!r}\n  " + "\n  ".join(parts),
            f"Give the weights of {model!r}, or name the model these belong to with -m (see `edgekit models`).",
        )
        self.missing, self.unexpected, self.misshapen = missing, unexpected, misshapen


class ArtifactDamaged(UsageError):
    """An artifact whose files are not the ones its manifest was written for."""


class Unsupported(UsageError):
    """A precision or feature that the target does not have."""


class CaptureFailed(UsageError):
    """`torch.export` could not turn the module into a graph."""


class LoweringFailed(UsageError):
    """A target cannot express an op of the captured graph."""


class EnvironmentProblem(EdgekitError):
    exit_code = 3


class MissingDependency(EnvironmentProblem):
    """A package that is needed and is not importable here."""

    def __init__(self, package: str, needed_for: str, extra: str, cause: str = "") -> None:
        reason = f" ({cause})" if cause else ""
        super().__init__(f"{needed_for} needs the package {package!r}{reason}", f"Type: pip install 'edgekit[{extra}]'")
