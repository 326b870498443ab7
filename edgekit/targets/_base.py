"""The contract that every target keeps."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from numpy.typing import NDArray
from torch.export import ExportedProgram

from edgekit.errors import MissingDependency, UnknownName, Unsupported
from edgekit.quantization.weight_only import WeightScheme
from edgekit.types import Delegation, OpCount, TensorSpec

Arrays = list[NDArray[Any]]
Runner = Callable[[Sequence[NDArray[Any]]], Arrays]

PRECISIONS: Mapping[str, str] = {
    "fp32": "fp32",
    "float32": "fp32",
    "float": "fp32",
    "fp16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "int8": "int8",
    "w8a8": "int8",
    "int8-dynamic": "int8-dynamic",
    "int8-weight": "int8-weight",
    "w8": "int8-weight",
    "int4-weight": "int4-weight",
    "w4": "int4-weight",
}


def precision_name(asked: str) -> str:
    """The canonical name of a precision; raises `UnknownName`."""
    if asked not in PRECISIONS:
        raise UnknownName("precision", asked, set(PRECISIONS.values()))
    return PRECISIONS[asked]


class Target(ABC):
    """A file format and the runtime that runs it. Subclasses are final."""

    name: str
    title: str
    suffix: str
    extra: str
    packages: tuple[str, ...]
    """The distributions that lowering and running need, by their names on the package index."""
    modules: tuple[str, ...]
    """What of them is imported to lower."""
    runtime_modules: tuple[str, ...]
    """What is imported to run a model file: a machine that only runs needs no more."""
    dtypes: Mapping[str, str] = MappingProxyType({})
    """Dtypes that inputs and outputs cannot have in this runtime, and what it has instead."""
    precisions: Mapping[str, str]
    """Precision → what it means in this runtime."""
    kernels: str = "float32"
    """How its int8 kernels rescale a sum: one of `quantization.simulation.KERNELS`."""
    half_sums: bool = False
    """Whether its fp16 kernels sum in float16, too, on processors that can: those of phones."""
    schemes: Mapping[str, WeightScheme] = MappingProxyType({})
    """Precision → which weights it rounds, for the precisions that round weights alone."""

    @property
    @abstractmethod
    def runtime(self) -> str:
        """What runs the artifact on this host, for the report of a verification."""

    def check(self, precision: str, targets: Iterable["Target"] = ()) -> None:
        """Raises `Unsupported` with what is possible, here and in which of `targets`, before any slow work."""
        if precision in self.precisions:
            return
        able = [t.name for t in targets if precision in t.precisions]
        have = f"; {', '.join(able)} {'has' if len(able) == 1 else 'have'} it" if able else ""
        elsewhere = f"Type -t {','.join(able)} for {precision}. " if able else ""
        raise Unsupported(
            f"{self.name} has no precision {precision!r}{have}",
            f"{elsewhere}{self.name} has {', '.join(self.precisions)}: --precision {next(iter(self.precisions))}",
        )

    def require(self) -> None:
        """Import what lowering and running need; raises `MissingDependency` with the pip line."""
        for module in (*self.modules, *self.runtime_modules):
            need(module, self)

    def require_runtime(self) -> None:
        """Import what running a model file needs; raises `MissingDependency` with the pip line."""
        for module in self.runtime_modules:
            need(module, self)

    def versions(self) -> dict[str, str]:
        """Installed versions of the packages of this target."""
        return {package: version(package) for package in self.packages if _installed(package)}

    def io(self, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Inputs or outputs as an artifact of this target has them (TFLite takes images as NHWC)."""
        return tuple(replace(s, dtype=self.dtypes.get(s.dtype, s.dtype)) for s in specs)

    @abstractmethod
    def lower(
        self,
        program: ExportedProgram,
        precision: str,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Delegation:
        """Write the model file at `path`; raises `LoweringFailed` with the op and its source line."""

    @abstractmethod
    def runner(
        self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], threads: int = 0
    ) -> Runner:
        """The model file, run by its real runtime on this host. `threads` 0 is the runtime's default."""

    @abstractmethod
    def inspect(self, path: Path) -> tuple[OpCount, ...]:
        """Ops by kind, as read from the file."""


def need(module: str, target: Target) -> ModuleType:
    """Import a package of `target`; raises `MissingDependency` with the pip line."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation fails in many ways, all with the same remedy
        raise MissingDependency(
            module, f"target {target.name}", target.extra, str(error).splitlines()[0] if str(error) else ""
        ) from error


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
