"""ExecuTorch with the XNNPACK delegate, run by executorch.runtime."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.errors import LoweringFailed
from edgekit.graph import rewrite
from edgekit.graph._edit import REFUSAL
from edgekit.graph.half import to_half
from edgekit.quantization.weight_only import DEPTHWISE, EVERY, LINEAR, WeightScheme
from edgekit.targets import executorch_compression, executorch_int8, executorch_sources
from edgekit.targets._base import Arrays, Runner, Target, need
from edgekit.targets._diagnosis import cannot_lower, explain
from edgekit.targets._graph import op_name, sample_inputs, sources
from edgekit.types import Delegation, FallbackOp, OpCount, TensorSpec

_INTEGER = EVERY - {DEPTHWISE}
_FLOAT_DEPTHWISE = "XNNPACK has no depthwise convolution that quantizes its input as it runs"


@final
class Executorch(Target):
    name = "executorch"
    title = "ExecuTorch"
    suffix = ".pte"
    extra = "executorch"
    packages = ("executorch", "torchao")
    modules = ("executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner")
    runtime_modules = ("executorch.runtime",)
    precisions: Mapping[str, str] = {
        "fp32": "float32 weights and compute",
        "fp16": "float16 compute, float32 input and output; its XNNPACK backend stores convolution weights in float32",
        "int8": "8-bit weights and activations, computed in integers; float32 input and output",
        "int8-dynamic": "8-bit weights; linears and convolutions but depthwise ones quantize their input as they run",
        "int4-weight": "as int8-dynamic, with 4-bit weights of linears",
    }

    half_sums = True
    schemes: Mapping[str, WeightScheme] = {
        "int8-dynamic": WeightScheme(int8=_INTEGER, why_float=_FLOAT_DEPTHWISE),
        "int4-weight": WeightScheme(int8=_INTEGER, int4=frozenset({LINEAR}), why_float=_FLOAT_DEPTHWISE),
    }

    @property
    def runtime(self) -> str:
        return f"ExecuTorch {version('executorch')}"

    def lower(
        self,
        program: ExportedProgram,
        precision: str,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Delegation:
        if precision == "fp16":
            program = to_half(program, sample_inputs(program))
        program = rewrite(program, self.name)
        if precision not in executorch_compression.PRECISIONS:
            return self._write(program, path)
        try:
            delegation = self._write(executorch_compression.integer_products(program), path)
            self.runner(path, inputs, outputs)([x.numpy() for x in sample_inputs(program)])
            return delegation
        except (LoweringFailed, RuntimeError):
            # XNNPACK does not take each convolution behind a change of rank, and says so only when it runs.
            delegation = self._write(executorch_compression.integer_products(program, convolutions=False), path)
            note = "the convolutions' weights are stored in float: XNNPACK does not run all of them in integers"
            return replace(delegation, notes=(note,))

    def _write(self, program: ExportedProgram, path: Path) -> Delegation:
        exir = need("executorch.exir", self)
        with _refusals() as reasons:
            try:
                edge = exir.to_edge_transform_and_lower(program, partitioner=[executorch_int8.partitioner(self)])
                delegation, fallback = _delegation(edge.exported_program(), reasons)
                self._check_kernels(fallback)
                known = executorch_sources.handles(edge.exported_program())
                lowered = edge.to_executorch()
            except LoweringFailed:
                raise
            except Exception as error:  # exir raises from a dozen passes, each with its own type
                raise explain(self, program, error) from error
        path.write_bytes(lowered.buffer)
        return replace(delegation, ops=executorch_sources.file_ops(self, edge.exported_program(), lowered, known))

    def _check_kernels(self, fallback: Sequence[Node]) -> None:
        """Every op outside the delegate needs a portable kernel: without one the file loads nowhere."""
        known = need("executorch.runtime", self).Runtime.get().operator_registry.operator_names
        for node in fallback:
            name = _out_variant(node, self)
            if name is not None and name not in known:
                raise cannot_lower(self.name, op_name(node), sources([node]), "its runtime has no kernel")

    def runner(
        self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], threads: int = 0
    ) -> Runner:
        runtime = need("executorch.runtime", self)
        if threads:
            # The pool is the process's: what was loaded with another number of threads must not run after this.
            pool = need("executorch.extension.pybindings.portable_lib", self)
            if pool._threadpool_get_thread_count() != threads:
                pool._unsafe_reset_threadpool(threads)
        method = (
            runtime.Runtime.get().load_program(path, verification=runtime.Verification.Minimal).load_method("forward")
        )
        if method is None:
            raise RuntimeError("the program has no method `forward`")

        def run(arrays: Sequence[NDArray[Any]]) -> Arrays:
            results = method.execute([torch.from_numpy(np.ascontiguousarray(a)) for a in arrays])
            # The runtime reuses its output buffers at the next call.
            return [y.numpy().copy() for y in results]

        return run

    def inspect(self, path: Path) -> tuple[OpCount, ...]:
        program = need("executorch.exir._serialize._program", self).deserialize_pte_binary(path.read_bytes()).program
        plan = program.execution_plan[0]
        counts: Counter[str] = Counter()
        for chain in plan.chains:
            for instruction in chain.instructions:
                args = instruction.instr_args
                if (index := getattr(args, "op_index", None)) is not None:
                    operator = plan.operators[index]
                    counts[f"{operator.name}.{operator.overload}" if operator.overload else operator.name] += 1
                elif (index := getattr(args, "delegate_index", None)) is not None:
                    counts[plan.delegates[index].id] += 1
        backends = {delegate.id for delegate in plan.delegates}
        return tuple(OpCount(op=op, count=n, delegated=op in backends) for op, n in counts.most_common())


@contextmanager
def _refusals() -> Iterator[dict[str, str]]:
    """Collects, by node name, the reasons that the partitioner logs for what it leaves out."""
    reasons: dict[str, str] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            node, reason = getattr(record.msg, "node", None), getattr(record.msg, "reason", "")
            if node is not None:
                reasons.setdefault(node.name, reason)

    logger = logging.getLogger("executorch.backends.xnnpack.partition")
    handler, level, propagate = Collector(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _delegation(program: ExportedProgram, reasons: Mapping[str, str]) -> tuple[Delegation, list[Node]]:
    partitions, delegated = 0, 0
    outside: list[Node] = []
    for node in program.graph.nodes:
        if node.op == "get_attr":
            lowered = getattr(program.graph_module, node.target)
            partitions += 1
            delegated += sum(n.op == "call_function" for n in lowered.original_module.graph.nodes)
        elif node.op == "call_function" and _is_op(node):
            outside.append(node)
    groups: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in outside:
        name = op_name(node)
        reason = reasons.get(node.name) or f"the XNNPACK delegate does not take {name} here"
        refusal = node.meta.get("custom", {}).get(REFUSAL)
        groups[name, f"{reason}; {refusal}" if refusal else reason].append(node)
    fallback = tuple(
        FallbackOp(op=name, count=len(nodes), reason=reason, source=sources(nodes))
        for (name, reason), nodes in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    )
    return Delegation(backend="XNNPACK", delegated=delegated, partitions=partitions, fallback=fallback), outside


def _is_op(node: Node) -> bool:
    return "getitem" not in str(node.target) and "executorch_call_delegate" not in str(node.target)


def _out_variant(node: Node, target: Target) -> str | None:
    """The name under which the runtime registers the kernel of an edge op, or None where it needs none."""
    # An edge op wraps the torch op; a few stay as torch has them.
    op = node.target if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "_op", None)
    if op is None:
        return None
    try:
        return str(need("executorch.exir.operator.convert", target).to_out_variant(op)[0].name())
    except (RuntimeError, AttributeError, IndexError, KeyError):  # an op without one has no kernel either
        return f"{op._schema.name}.out"
