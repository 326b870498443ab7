"""A program cut where all that is computed so far passes through one tensor: residual blocks, or layers in a chain."""

from dataclasses import dataclass

from torch.fx import Node

_LAYERS = 2


@dataclass(frozen=True)
class Block:
    """The nodes behind `source` up to `result`, with the names of the layers among them."""

    source: Node
    nodes: tuple[Node, ...]
    layers: tuple[str, ...]

    @property
    def result(self) -> Node:
        return self.nodes[-1]


def blocks(nodes: list[Node], image: Node, output: Node, layers: set[str]) -> list[Block]:
    """Blocks of at least two of `layers` each, as small as the graph allows; together they hold every layer."""
    last = {operand: place for place, node in enumerate(nodes) for operand in node.all_input_nodes}
    moving = {image}
    found: list[Block] = []
    source, inside, held = image, [], {image}
    for place, node in enumerate(nodes):
        if node.op != "call_function":
            continue
        inside.append(node)
        if any(operand in moving for operand in node.all_input_nodes):
            moving.add(node)
            held.add(node)
        held = {n for n in held if last.get(n, -1) > place}
        names = tuple(n.name for n in inside if n.name in layers)
        if names and (node is output or (held == {node} and len(names) >= _LAYERS)):
            found.append(Block(source, tuple(inside), names))
            source, inside = node, []
        if node is output:
            break
    if inside and found:
        # What follows the last layer has nothing to learn.
        found[-1] = Block(found[-1].source, (*found[-1].nodes, *inside), found[-1].layers)
    return found
