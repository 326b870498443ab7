"""Which operations run in int8: the cheapest cut between what gains from it and what no runtime can do in it.

Convolutions and linears gain; softmax, normalization and products of two activations have no int8 kernel that all
runtimes share. What is between them (additions, concatenations, moves) could be either. Each tensor that crosses
between int8 and float costs a pass over it, once for all its readers, so the choice is a minimum cut of the graph with
the sizes of the tensors as capacities (Ford and Fulkerson 1956): float operations gather in as few and as small islands
as there can be.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import networkx
import torch
from torch.fx import Node

from edgekit.errors import BadInput
from edgekit.graph._edit import Editor, argument, dims, shape, value
from edgekit.quantization._ops import (
    ARITHMETIC,
    CAT,
    CLAMPS,
    COMPUTE,
    MEANS,
    MOVES,
    matches,
    module_path,
    tensor_operands,
    weight_of,
)

_aten = torch.ops.aten
# What int8 saves and costs, in elements whose type is changed, as timed on x86 with VNNI in three runtimes:
# an addition or a move reads and writes fewer bytes; a product of integers is made int8 again,
_GAIN, _RESCALE = 0.25, 1
# and takes so many times less than its multiplications in float, after a window of more than one place is gathered;
_MACS, _GATHER = 8, 0.5
# a weight that is read once for each product, in a linear of one token, costs its bytes, which are a file's size too;
_WEIGHT = 4
# and one more kernel has to be started: in ONNX Runtime, or where nothing would pay there in XNNPACK.
_START = (16384, 2048, 0)
# Who asks for int8 gets it even where nothing is gained at all: `export` measures and says so.
_ALWAYS = 1e15
_INT8, _FLOAT = "int8", "float"


@dataclass(frozen=True)
class Unit:
    """An operation in int8 with the clamp that its kernel applies; both are the same node where there is none."""

    node: Node
    result: Node


def place(editor: Editor, keep_float: tuple[str, ...] = (), also: Collection[Node] = ()) -> tuple[Unit, ...]:
    """The operations that run in int8, in graph order.

    `keep_float` are shell patterns of module paths whose operations stay in float, as do those of `also`; raises
    `BadInput` for a pattern that names nothing.
    """
    _check(editor, keep_float)
    # Found for the whole model, so that what is kept in float does not change where the rest runs.
    pays = next((start for start in _START if _cheapest(editor, (), (), start)), 0)
    left = [start for start in _START if start <= pays]
    return next((units for start in left if (units := _cheapest(editor, keep_float, also, start))), ())


def _cheapest(editor: Editor, keep_float: tuple[str, ...], also: Collection[Node], start: int) -> tuple[Unit, ...]:
    """The operations that run in int8 where starting a kernel costs `start`."""
    calls = [n for n in editor.graph.nodes if n.op == "call_function" and value(n) is not None]
    graph = networkx.DiGraph()
    graph.add_nodes_from((_INT8, _FLOAT))
    for node in calls:
        _anchor(graph, editor, node, start, node in also or matches(node, keep_float))
        for operand in tensor_operands(node):
            if editor.constant_value(operand) is None:
                _connect(graph, operand, node, start)
    for node in editor.graph.nodes:
        if node.op == "placeholder" and editor.constant_value(node) is None:
            graph.add_edge(node, _FLOAT)  # no capacity: it cannot be cut
        if node.op == "output":
            for result in node.all_input_nodes:
                graph.add_edge(result, f"{result.name} in float", capacity=_size(result) + start)
                graph.add_edge(f"{result.name} in float", _FLOAT)
    if not any(_INT8 in graph.predecessors(n) for n in graph):
        return ()
    _, (int8, _) = networkx.minimum_cut(graph, _INT8, _FLOAT)
    chosen = [n for n in calls if n in int8]
    units = [Unit(n, fused_clamp(n) or n) for n in chosen if not _is_fused(n)]
    return tuple(units)


def fused_clamp(node: Node) -> Node | None:
    """The clamp that a kernel applies to the result of `node` itself: its only user."""
    if node.target not in (*COMPUTE, *ARITHMETIC) or len(node.users) != 1:
        return None
    (user,) = node.users
    return user if user.target in CLAMPS and user.args[0] is node and _has_numbers(user) else None


def _is_fused(node: Node) -> bool:
    source = node.args[0] if node.args else None
    return isinstance(source, Node) and fused_clamp(source) is node


def _has_numbers(clamp: Node) -> bool:
    return all(not isinstance(a, Node) for a in clamp.args[1:])


def _anchor(graph: networkx.DiGraph, editor: Editor, node: Node, start: int, in_float: bool) -> None:
    """Tie a node to int8 or float for good, or let it gain something in int8."""
    if in_float or not _has_kernel(editor, node):
        graph.add_edge(node, _FLOAT)
    elif (gain := _gain(editor, node, start)) > 0:
        graph.add_edge(_INT8, node, capacity=gain)
    else:
        graph.add_edge(node, _FLOAT, capacity=-gain)


def _gain(editor: Editor, node: Node, start: int) -> float:
    """What an operation saves in int8, in changes of an element's type: less than nothing for a small one."""
    weight = weight_of(editor, node)
    if weight is None:
        return _GAIN * _size(node) - start
    if not start:
        return _ALWAYS
    products, depthwise = weight[0].numel() * _size(node), weight.dim() > 2 and weight.shape[1] == 1
    gain = products / _MACS + _WEIGHT * weight.numel() - _RESCALE * _size(node) - start
    window = weight[0].numel() > weight.shape[1] and not depthwise
    return gain - _GATHER * products / len(weight) if window else gain


def _connect(graph: networkx.DiGraph, operand: Node, node: Node, start: int) -> None:
    """What a change of type between two nodes costs: a pass over the tensor, however many read it so."""
    if fused_clamp(operand) is node:
        graph.add_edge(operand, node)  # no capacity: it cannot be cut
        graph.add_edge(node, operand)
        return
    to_float, to_int8 = f"{operand.name} in float", f"{operand.name} in int8"
    graph.add_edge(operand, to_float, capacity=_size(operand) + start)
    graph.add_edge(to_float, node)
    graph.add_edge(node, to_int8)
    graph.add_edge(to_int8, operand, capacity=_size(operand) + start)


def _size(node: Node) -> int:
    v = value(node)
    return 0 if v is None else v.numel()


def _has_kernel(editor: Editor, node: Node) -> bool:
    """Whether all runtimes that compute in int8 have a kernel for this call."""
    val = value(node)
    if val is None or val.dtype != torch.float32:
        return False
    source = shape(node.args[0]) if node.args else None
    if node.target in COMPUTE:
        return weight_of(editor, node) is not None
    if node.target in ARITHMETIC:
        scalars = [a for a in node.args[:2] if not isinstance(a, Node)]
        return not node.kwargs and not scalars and _broadcasts(node)
    if node.target in MEANS:
        return source is not None and len(source) == 4 and dims(argument(node, 1, "dim"), 4) == (2, 3)
    if node.target in (_aten.pad.default, _aten.constant_pad_nd.default):
        constant = node.target is _aten.constant_pad_nd.default or argument(node, 2, "mode", "constant") == "constant"
        fill = argument(node, 3 if node.target is _aten.pad.default else 2, "value", 0)
        return constant and not fill and all(n >= 0 for n in node.args[1])  # type: ignore[union-attr, operator]
    if node.target in CLAMPS:
        return _has_numbers(node)
    if node.target in (_aten.maximum.default, _aten.minimum.default):
        return len({shape(n) for n in (*node.args, node)}) == 1
    return node.target in (*MOVES, CAT)


def _broadcasts(node: Node) -> bool:
    """Both operands are activations or constants of rank at most 4 that no runtime has to expand in two ways."""
    shapes = [shape(n) for n in node.args[:2]]
    return all(s is not None and len(s) <= 4 for s in shapes) and shape(node) in shapes


def _check(editor: Editor, patterns: Iterable[str]) -> None:
    nodes = [n for n in editor.graph.nodes if n.op == "call_function"]
    for pattern in patterns:
        if not any(matches(n, (pattern,)) for n in nodes):
            paths = sorted({module_path(n) for n in nodes if n.target in COMPUTE and module_path(n)})
            raise BadInput(
                f"--keep-float {pattern} names no module of the model",
                f"Its convolutions and linears are {', '.join(paths[:12])}{' …' if len(paths) > 12 else ''}. "
                "A pattern matches whole paths: --keep-float 'blocks.3.*'",
            )
