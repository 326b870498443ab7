"""Core ML: convert a captured program to an ML package, byte for byte the same each time, and run the package."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import sys
import tempfile
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgekit.errors import LoweringFailed
from edgekit.graph.capture import source_line
from edgekit.programs import user_inputs
from edgekit.targets import coreml_compression
from edgekit.targets._diagnosis import cannot_lower, cannot_lower_graph
from edgekit.targets._graph import sources

_Decompositions: TypeAlias = dict[Any, Callable[..., Any]]

#: Metadata that coremltools stamps on a model and that would differ from one day to the next.
_DATE = "com.github.apple.coremltools.conversion_date"


def convert(
    program: ExportedProgram,
    precision: str,
    package: Path,
    input_names: list[str],
    output_names: list[str],
) -> None:
    """Write `program` as an ML program at `package`, which must not exist yet and end in .mlpackage.

    It is for iOS 17, with 4-bit weights for iOS 18.

    Inputs and outputs carry the names given, in the program's order. Floating point ones are float32 whatever the
    precision: from iOS 16 on coremltools would make them float16 in an fp16 model, and then no manifest could serve
    all runtimes. The same program gives the same bytes in any process.
    Raises LoweringFailed, naming the ops and the lines they come from, for what coremltools cannot convert.
    """
    if package.exists():
        raise FileExistsError(f"{package} exists already")
    with _quiet(), tempfile.TemporaryDirectory(dir=package.parent, prefix=".edgekit-") as folder:
        decompositions = _corrections()
        while True:
            decomposed = _supported(program, decompositions)
            draft = Path(folder) / f"{len(decompositions)}.mlpackage"
            try:
                with _weights_of_its_own(decomposed):
                    spec = _converted(decomposed, precision, draft, input_names, output_names)
                break
            except Exception as error:  # coremltools raises whatever its op converters happened to raise
                node = _failed_node(error, decomposed)
                explained = _explained(error, node)
                traceback.clear_frames(error.__traceback__)  # they hold coremltools' temporary folder open
                if node is None or not _decompose_also(node.target, decompositions):
                    raise explained from error
        _check_names(spec, input_names, output_names)
        _make_reproducible(draft, spec)
        draft.rename(package)


def package_runner(package: Path) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """A function that runs a package on {input name: array}: Core ML itself (CPU) on a Mac, else the MIL evaluator."""
    if sys.platform != "darwin":
        from edgekit.targets import mil

        return mil.load(package)
    with _quiet():
        import coremltools as ct

        model = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.CPU_ONLY)
    return lambda inputs: dict(model.predict(inputs))


# ------------------------------------------------------------------------------------------ the program's boundary


def _user_outputs(program: ExportedProgram) -> list[Tensor]:
    values = {n.name: n.meta["val"] for n in program.graph.nodes if "val" in n.meta}
    return [values[name] for name in program.graph_signature.user_outputs]


def _boundary_type(value: Tensor) -> Any:
    return np.float32 if value.is_floating_point() else np.int32


def _check_names(spec: Any, input_names: list[str], output_names: list[str]) -> None:
    """coremltools rewrites names that Core ML does not allow; a manifest that says otherwise would be wrong."""
    named = [f.name for f in spec.description.input], [f.name for f in spec.description.output]
    if named != (input_names, output_names):
        raise LoweringFailed(f"Core ML names the inputs and outputs {named}, not {(input_names, output_names)}")


# ------------------------------------------------------------------------------------------ reproducible bytes


def _make_reproducible(package: Path, spec: Any) -> None:
    """Rewrite the parts of a package that change from run to run: map order, the date, random identifiers.

    The layout stays Apple's (Manifest.json, Data/com.apple.CoreML/model.mlmodel and weights/weight.bin); an item's
    identifier becomes a UUID derived from the bytes of the item.
    """
    spec.description.metadata.userDefined.pop(_DATE, None)
    manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    items = manifest["itemInfoEntries"]
    model = package / "Data" / items[manifest["rootModelIdentifier"]]["path"]
    model.unlink()  # coremltools leaves it readable by its owner alone
    model.write_bytes(spec.SerializeToString(deterministic=True))
    renamed = {old: _identifier(package / "Data" / item["path"]) for old, item in items.items()}
    manifest["itemInfoEntries"] = {renamed[old]: item for old, item in items.items()}
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    text = json.dumps(manifest, indent=4, sort_keys=True)
    (package / "Manifest.json").write_text(text + "\n", encoding="utf-8")


def _identifier(item: Path) -> str:
    digest = hashlib.sha256(item.name.encode())
    for path in sorted(p for p in (item, *item.rglob("*")) if p.is_file()):
        digest.update(path.read_bytes())
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"edgekit:{digest.hexdigest()}"))


# ------------------------------------------------------------------------------------------ what cannot be converted


def _converted(
    program: ExportedProgram, precision: str, package: Path, input_names: list[str], output_names: list[str]
) -> Any:
    """Run coremltools, which writes `package`; returns the model's protobuf."""
    import coremltools as ct

    integers = precision in coreml_compression.PRECISIONS
    half = precision in ("fp16", *coreml_compression.HALF)
    model = ct.convert(
        program,
        inputs=[
            ct.TensorType(name=name, shape=tuple(value.shape), dtype=_boundary_type(value))
            for name, value in zip(input_names, user_inputs(program), strict=True)
        ],
        outputs=[
            ct.TensorType(name=name, dtype=_boundary_type(value))
            for name, value in zip(output_names, _user_outputs(program), strict=True)
        ],
        minimum_deployment_target=ct.target.iOS18 if precision == "int4-weight" else ct.target.iOS17,
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
        package_dir=None if integers else str(package),
    )
    if integers:
        model = coreml_compression.compress(model)
        model.save(str(package))
    return model.get_spec()


@contextlib.contextmanager
def _weights_of_its_own(program: ExportedProgram) -> Iterator[None]:
    """Lend the program copies of its weights: coremltools folds some in place (a BatchNorm's running mean)."""
    weights, constants = dict(program.state_dict), dict(program.constants)
    try:
        for owned, lent in ((weights, program.state_dict), (constants, program.constants)):
            lent.update({name: _copy(value) for name, value in owned.items() if isinstance(value, Tensor)})
        yield
    finally:
        program.state_dict.update(weights)
        program.constants.update(constants)


def _copy(value: Tensor) -> Tensor:
    copied = value.detach().clone()
    return torch.nn.Parameter(copied, value.requires_grad) if isinstance(value, torch.nn.Parameter) else copied


def _corrections() -> _Decompositions:
    """Decompositions for ops that coremltools 9 lacks, or converts to something that is not the same function."""
    aten = torch.ops.aten

    def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
        if approximate == "none":
            return NotImplemented  # leaves the op as it is
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
        return 0.5 * x * (1 + torch.tanh(inner))

    def reciprocal(x: Tensor) -> Tensor:
        return torch.full((), 1.0, dtype=x.dtype) / x

    def trunc(x: Tensor) -> Tensor:
        return torch.sign(x) * torch.floor(torch.abs(x))

    def fmod(x: Tensor, other: float) -> Tensor:
        return x - trunc(x / other) * other

    def prod(x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
        y = functools.reduce(torch.mul, x.split(1, dim))
        return y if keepdim else y.squeeze(dim)

    def lerp(x: Tensor, end: Tensor, weight: float) -> Tensor:
        return x + weight * (end - x)

    def where(condition: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
        like = x if isinstance(x, Tensor) else y
        kind = like.dtype if isinstance(like, Tensor) else torch.get_default_dtype()
        x, y = (v if isinstance(v, Tensor) else torch.full((), v, dtype=kind) for v in (x, y))
        return torch.where(condition, x, y)

    def both(x: Tensor, y: Tensor) -> Tensor:
        return torch.logical_and(x, y) if x.dtype == y.dtype == torch.bool else NotImplemented

    def either(x: Tensor, y: Tensor) -> Tensor:
        return torch.logical_or(x, y) if x.dtype == y.dtype == torch.bool else NotImplemented

    def unfold(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
        reach = (x.shape[dimension] - size) // step * step + 1
        return torch.stack([torch.ops.aten.slice.Tensor(x, dimension, i, i + reach, step) for i in range(size)], -1)

    return {
        aten.alias.default: torch.clone,  # no converter; clone has one, that adds no op
        aten.gelu.default: gelu,  # `approximate` is a keyword of the exported op and coremltools drops it
        aten.reciprocal.default: reciprocal,  # becomes `inverse` with its default epsilon: 1 / (x + 0.0001)
        aten.trunc.default: trunc,
        aten.fmod.Scalar: fmod,
        aten.prod.dim_int: prod,
        aten.lerp.Scalar: lerp,
        aten.where.Scalar: where,
        aten.where.ScalarSelf: where,
        aten.where.ScalarOther: where,
        aten.__and__.Tensor: both,
        aten.__or__.Tensor: either,
        aten.bitwise_and.Tensor: both,
        aten.bitwise_or.Tensor: either,
        aten.unfold.default: unfold,
    }


def _supported(program: ExportedProgram, decompositions: _Decompositions) -> ExportedProgram:
    """`program` in ops that coremltools converts. Grows `decompositions` by torch's own for those it does not.

    Raises LoweringFailed for all the ops without a converter at once; coremltools itself stops at the first.
    """
    while True:
        decomposed = program.run_decompositions(dict(decompositions))
        unknown = [n for n in decomposed.graph.nodes if n.op == "call_function" and not _has_converter(n)]
        if not unknown:
            return decomposed
        grown = [_decompose_also(target, decompositions) for target in dict.fromkeys(n.target for n in unknown)]
        if not any(grown):
            names = ", ".join(dict.fromkeys(_origin(n) for n in unknown))
            raise cannot_lower("coreml", names, sources(unknown))


def _has_converter(node: torch.fx.Node) -> bool:
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    # coremltools has a public test, but it judges by another name than its converter looks up
    target = node.target
    name = target.name() if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    return _TORCH_OPS_REGISTRY.get_func(name) is not None


def _decompose_also(target: Any, decompositions: _Decompositions) -> bool:
    """Add torch's decomposition of an op, if it has one that was not tried yet."""
    from torch._decomp import get_decompositions

    if target in decompositions or not isinstance(target, torch._ops.OpOverload):
        return False
    found = get_decompositions([target]) or {
        op: how for op, how in torch.export.default_decompositions().items() if op == target
    }
    decompositions.update(found)
    return target in decompositions


def _failed_node(error: Exception, program: ExportedProgram) -> torch.fx.Node | None:
    """The node whose converter raised `error`: coremltools holds its name in the frame that walks the graph."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "convert_nodes" and "node" in trace.tb_frame.f_locals:
            name = trace.tb_frame.f_locals["node"].name
            return next((n for n in program.graph.nodes if n.name == name), None)
        trace = trace.tb_next
    return None


def _explained(error: Exception, node: torch.fx.Node | None) -> LoweringFailed:
    return (
        cannot_lower_graph("coreml", error)
        if node is None
        else cannot_lower("coreml", _origin(node), source_line(node), str(error))
    )


def _origin(node: torch.fx.Node) -> str:
    """The op as the program had it, where `node` came of decomposing one."""
    return str(node.meta.get("original_aten") or node.target)


# ------------------------------------------------------------------------------------------ quiet


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep coremltools's warnings, log lines and progress bars off the terminal; restores all it touched."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.ExitStack() as undo:
        warnings.simplefilter("ignore")
        logging.disable(max(disabled, logging.ERROR))  # its ERROR lines repeat what the exception says
        undo.callback(logging.disable, disabled)
        from coremltools.converters.mil.frontend.torch import ops
        from coremltools.converters.mil.mil.passes import pass_pipeline

        for module, name in ((ops, "_tqdm"), (pass_pipeline, "tqdm")):
            bar = getattr(module, name)
            setattr(module, name, functools.partial(bar, disable=True))
            undo.callback(setattr, module, name, bar)
        yield
