"""LiteRT: every op keeps the number of the node it came from, in the names that its converter gives to tensors.

The converter names a tensor by the modules that the op was called in: "Net/Conv2d_stem;", and what it fuses by all of
them. So each node says that it was called in a module "stem#12", and the names become "stem#12;".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.fx.traceback import preserve_node_meta

from edgekit.quantization._ops import module_path
from edgekit.targets._sources import of_the_next, source
from edgekit.types import FileOp

_NUMBER = re.compile(r"#(\d+);")
_PRODUCTS = ("conv", "linear", "mm", "matmul", "einsum")
_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")


@dataclass(frozen=True)
class Numbered:
    """A node of the graph that the converter was given: where it came from, and whether it multiplies by weights."""

    source: str
    product: bool


def number(module: GraphModule) -> tuple[Numbered, ...]:
    """Let the nodes of `module` tell their numbers to the converter."""
    known = []
    for n, node in enumerate(module.graph.nodes):
        name = str(node.target)
        known.append(Numbered(source(node), any(word in name for word in _PRODUCTS)))
        node.meta["nn_module_stack"] = {"": ("", f"{module_path(node)}#{n}")}
    return tuple(known)


def call(module: GraphModule, inputs: Sequence[Tensor]) -> Any:
    """`module` of `inputs`, with what its nodes know of themselves handed on to a graph that is captured meanwhile."""
    with preserve_node_meta():
        return Interpreter(module).run(*inputs)


def file_ops(interpreter: Any, known: Sequence[Numbered]) -> tuple[FileOp, ...]:
    """Each op of the file that `interpreter` has loaded."""
    names = {int(d["index"]): str(d["name"]) for d in interpreter.get_tensor_details()}
    ops = []
    for op in interpreter._get_ops_details():
        if op["op_name"] == "DELEGATE":
            continue
        made = [n for t in op["outputs"] for n in _numbers(names.get(int(t), ""))]
        taken = [n for t in op["inputs"] for n in _numbers(names.get(int(t), ""))]
        # An output of the model has a name of its own: it is of the last op that it was made of.
        own = [n for n in made or sorted(taken, reverse=True) if n < len(known) and known[n].source]
        # Of what was fused it is the op that has the weights; an activation is the smaller part.
        product = [n for n in own if known[n].product] if op["op_name"] in _WITH_WEIGHTS else []
        chosen = next((n for n in product if n in taken), None) or next(iter(product or own), None)
        found = "" if chosen is None else known[chosen].source
        ops.append(FileOp(name=str(op["index"]), op=op["op_name"], source=found))
    return of_the_next(ops)


def _numbers(name: str) -> list[int]:
    return [int(n) for n in _NUMBER.findall(name)]
