"""Bits and where they go: `wXaY`, and the three protocols under which published figures are taken.

A  all convolutions and linears in X bits, the results of ReLUs in Y bits: GDFQ, ClusterQ, SynQ. Input, residual sums
   without a ReLU, and what enters the classifier stay in float.
B  what every convolution and linear reads in Y bits, but the first layer's weights and the last layer in 8, and the
   image in float: BRECQ, QDrop, Genie.
H  what hardware needs: every tensor that a convolution, linear, sum, product or mean reads or writes, the image too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.errors import BadInput, UnknownName
from edgekit.graph._edit import Editor, value
from edgekit.quantization._ops import (
    ARITHMETIC,
    CAT,
    CLAMPS,
    COMPUTE,
    MEANS,
    MOVES,
    tensor_operands,
    weight_of,
)
from edgekit.quantization.placement import fused_clamp

PROTOCOLS: Mapping[str, str] = {
    "a": "all layers low-bit, activations behind ReLUs only",
    "b": "8-bit first and last layer, every layer's input",
    "h": "every tensor, residual sums and the image too",
}
_FEWEST, _MOST = 2, 8


@dataclass(frozen=True)
class Scheme:
    """Bits of weights and of activations: `w4a8` has 4 and 8."""

    weight_bits: int
    activation_bits: int

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"


@dataclass(frozen=True)
class Placement:
    """The bits of each layer's weight and of each tensor, by the name of its node."""

    weights: Mapping[str, int]
    activations: Mapping[str, int]


def is_low_bit(text: str) -> bool:
    """Whether a scheme's name has the form wXaY."""
    return re.fullmatch(r"w\d+a\d+", text) is not None


def scheme_of(text: str) -> Scheme:
    """`w4a4` as a scheme. Raises `BadInput` for bits outside of 2 to 8."""
    match = re.fullmatch(r"w(\d+)a(\d+)", text)
    bits = tuple(map(int, match.groups())) if match else ()
    if not bits or min(bits) < _FEWEST or max(bits) > _MOST:
        raise BadInput(
            f"{text} is not a scheme of {_FEWEST} to {_MOST} bits",
            "Type weight and activation bits, e.g. --scheme w4a4, w3a3, w4a8 or w5a5.",
        )
    return Scheme(*bits)


def place(program: ExportedProgram, scheme: Scheme, protocol: str) -> Placement:
    """Which weights and tensors of a program are rounded to how many bits.

    Raises `UnknownName` for a protocol, `BadInput` for a program without constant convolutions and linears.
    """
    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, PROTOCOLS)
    editor = Editor(program)
    nodes = [n for n in editor.graph.nodes if n.op == "call_function"]
    layers = [n for n in nodes if n.target in COMPUTE and weight_of(editor, n) is not None]
    if not layers:
        raise BadInput(
            f"{scheme} needs convolutions or linears with constant weights, and the model has none",
            "Export it as fp32.",
        )
    weights = {n.name: scheme.weight_bits for n in layers}
    bits = scheme.activation_bits
    if protocol == "a":
        found = {n.name: bits for n in nodes if n.target in CLAMPS}
        if not found:
            raise BadInput(
                "protocol a rounds what comes out of ReLUs, and the model has none", "Type --protocol h, or b."
            )
        return Placement(weights, found)
    if protocol == "h":
        return Placement(weights, {n.name: bits for n in _hardware_tensors(editor, nodes, layers)})
    weights[layers[0].name] = weights[layers[-1].name] = _MOST
    image = _source(layers[0])
    read = {_source(n).name: bits for n in layers if _source(n) is not image}
    for edge in (layers[1], layers[-1]) if len(layers) > 1 else ():
        if _source(edge) is not image:
            read[_source(edge).name] = _MOST
    return Placement(weights, read)


def _source(layer: Node) -> Node:
    """What a layer reads, before it was moved: a view has the steps of what is viewed."""
    node = layer.args[0]
    while isinstance(node, Node) and node.target in MOVES and isinstance(node.args[0], Node):
        node = node.args[0]
    assert isinstance(node, Node)
    return node


def _hardware_tensors(editor: Editor, nodes: list[Node], layers: list[Node]) -> list[Node]:
    """The operands and results of what integer kernels compute; a clamp is a part of the kernel in front of it."""
    computed = [n for n in nodes if n in layers or n.target in (*ARITHMETIC, *MEANS, *CLAMPS, CAT)]
    found: dict[Node, None] = {}
    for node in computed:
        operands = [node.args[0]] if node in layers else tensor_operands(node)
        for tensor in (*operands, fused_clamp(node) or node):
            assert isinstance(tensor, Node)
            while tensor.target in MOVES and isinstance(tensor.args[0], Node):
                tensor = tensor.args[0]
            inside = fused_clamp(tensor) is not None
            if value(tensor) is not None and editor.constant_value(tensor) is None and not inside:
                found[tensor] = None
    return list(found)
