"""ExecuTorch: the instructions of a program, the ops in each of its delegates, and where they came from."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from torch.export import ExportedProgram

from edgekit.targets._base import Target, need
from edgekit.targets._flatbuffer import root
from edgekit.targets._sources import of_the_next, source
from edgekit.types import FileOp

# Fields of the tables XNNGraph and XNode of XNNPACK's schema.
_XNODES = 1
_UNION, _HANDLE = 0, 2


def handles(program: ExportedProgram) -> dict[int, str]:
    """The source of each call of an edge program and of its delegates, by the number that the file will know it by.

    To be read before the program is turned into a file: then its calls get other numbers.
    """
    graphs = [program.graph, *(module.original_module.graph for module in _delegates(program))]
    numbered = ((node, node.meta.get("debug_handle")) for graph in graphs for node in graph.nodes)
    return {n: source(node) for node, n in numbered if node.op == "call_function" and isinstance(n, int)}


def file_ops(target: Target, program: ExportedProgram, lowered: Any, sources: Mapping[int, str]) -> tuple[FileOp, ...]:
    """Each instruction of `lowered`, which was made of the edge program `program`; with the XNNPACK ops inside."""
    plan = lowered.executorch_program.execution_plan[0]
    numbers = lowered.debug_handle_map.get(plan.name, {})
    modules = iter(_delegates(program))
    ops = []
    for number, instruction in enumerate(i for chain in plan.chains for i in chain.instructions):
        args = instruction.instr_args
        if (index := getattr(args, "delegate_index", None)) is not None:
            inside = _inside(target, next(modules), sources)
            ops.append(FileOp(name=str(number), op=plan.delegates[index].id, inside=inside))
        elif (index := getattr(args, "op_index", None)) is not None:
            operator = plan.operators[index]
            name = f"{operator.name}.{operator.overload}" if operator.overload else operator.name
            ops.append(FileOp(name=str(number), op=name, source=_first(numbers.get(number), sources)))
        else:
            ops.append(FileOp(name=str(number), op=type(args).__name__))
    return tuple(ops)


def _delegates(program: ExportedProgram) -> list[Any]:
    """The lowered modules in the order in which they are called."""
    calls = [n for n in program.graph.nodes if "executorch_call_delegate" in str(n.target)]
    return [getattr(program.graph_module, call.args[0].target) for call in calls]


def _first(number: Any, sources: Mapping[int, str]) -> str:
    numbers = number if isinstance(number, list | tuple) else [number]
    return next((sources[n] for n in numbers if sources.get(n)), "")


def _inside(target: Target, module: Any, sources: Mapping[int, str]) -> tuple[FileOp, ...]:
    """The ops of a delegate's graph, in the order in which it holds them."""
    if module.backend_id != "XnnpackBackend":
        return ()
    serialization = need("executorch.backends.xnnpack.serialization", target)
    schema = files(serialization).joinpath("schema.fbs").read_text(encoding="utf-8")
    union = re.search(r"union XNodeUnion \{([^}]*)\}", schema)
    kinds = [line.split(":")[0].strip() for line in (union[1] if union else "").split(",") if line.strip()]
    header = need("executorch.backends.xnnpack.serialization.xnnpack_graph_serialize", target).XNNHeader
    blob = bytes(module.processed_bytes)
    start = header.from_bytes(blob[: header.EXPECTED_LENGTH]).flatbuffer_offset
    ops = []
    for number, node in enumerate(root(blob, start).tables(_XNODES)):
        kind = node.scalar(_UNION, "B")
        name = kinds[kind - 1] if 0 < kind <= len(kinds) else ""
        ops.append(FileOp(name=str(number), op=name, source=sources.get(node.scalar(_HANDLE, "I"), "")))
    return of_the_next(ops)
