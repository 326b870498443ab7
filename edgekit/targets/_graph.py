"""Small readings of a program that several targets need."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph.capture import source_line
from edgekit.programs import user_inputs


def sample_inputs(program: ExportedProgram) -> tuple[Tensor, ...]:
    """Zeros of the shapes and dtypes of the program's inputs."""
    return tuple(torch.zeros(tuple(v.shape), dtype=v.dtype) for v in user_inputs(program))


def op_name(node: Node) -> str:
    """`aten.mean.dim` for a call of that op."""
    return str(getattr(node.target, "_name", node.target)).replace("::", ".")


def sources(nodes: Iterable[Node], most: int = 3) -> str:
    """The distinct source lines that nodes came from, most frequent first."""
    lines = Counter(line for n in nodes if (line := source_line(n)))
    shown = [f"{line} (x{count})" if count > 1 else line for line, count in lines.most_common(most)]
    return "; ".join(shown) + (f"; and {len(lines) - most} more" if len(lines) > most else "")
