"""Room around ranges that are guessed: what is cut off costs more than coarser steps do."""

import math
from collections.abc import Mapping

from torch.export import ExportedProgram

from edgekit.graph.quantized import clamp_ends
from edgekit.quantization import Range, prepare
from edgekit.quantization._ops import CLAMPS

MARGIN = 1.25
"""Costs 2 dB where the guess is right. Measured on five families of random weights: gains 5 dB where it is not."""


def with_margin(program: ExportedProgram, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """`ranges` by node of the prepared `program`, wider, but for inputs and as far as clamps let values through."""
    prepared = prepare(program)
    inputs = set(prepared.graph_signature.user_inputs)
    nodes = {n.name: n for n in prepared.graph.nodes}
    found = {}
    for name, r in ranges.items():
        low, high = (-math.inf, math.inf)
        if nodes[name].target in CLAMPS:
            low, high = clamp_ends(nodes[name]) or (low, high)
        margin = 1.0 if name in inputs else MARGIN
        found[name] = r | Range(max(low, r.low * margin), min(high, r.high * margin))
    return found
