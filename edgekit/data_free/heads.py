"""The range of what lies behind the last pooling, where no statistic is stored.

The mean over the places of a map varies less from image to image on pictures of nothing than on photos, whose places
agree on what they show. If they agreed wholly, the mean would be the value of any of them, and of single places the
statistics are stored. So the head is run on single places in place of means: class activation maps (Zhou et al. 2016)
bound the scores.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import argument, dims, shape
from edgekit.quantization import Range, prepare
from edgekit.quantization._execution import Samples, Values, Walk
from edgekit.quantization.ranges import ESTIMATORS, histogram

_MEAN = torch.ops.aten.mean.dim


def head_ranges(program: ExportedProgram, samples: Samples, estimator: str, seed: int = 0) -> Mapping[str, Range]:
    """Ranges by node of the prepared program, of all behind the last means over places; {} where there are none."""
    prepared = prepare(program)
    head, pools = _head(prepared)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Range] = {}
    if not pools:
        return found
    walk = Walk(prepared, samples)

    def see(node: Node, values: Values) -> None:
        if node in pools:
            for value, source in zip(values, walk.values(node.args[0]), strict=True):  # type: ignore[arg-type]
                value.copy_(_place(source, value, node, generator))
        if node in head:
            found[node.name] = ESTIMATORS[estimator](histogram(values))

    walk.run(see)
    return found


def _head(program: ExportedProgram) -> tuple[set[Node], set[Node]]:
    """The nodes behind the last means, and these, where outputs come from nothing else."""
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    head: set[Node] = set()
    pools: set[Node] = set()
    pending = list(output.all_input_nodes)
    while pending:
        node = pending.pop()
        if node.op != "call_function" or node in head or not _has_no_places(node):
            continue
        head.add(node)
        if node.target is _MEAN:
            pools.add(node)
        else:
            pending.extend(node.all_input_nodes)
    return head, pools


def _has_no_places(node: Node) -> bool:
    size = shape(node)
    return size is not None and (
        len(size) == 2 or (len(size) == 4 and size[2:] == (1, 1)) or (len(size) == 3 and size[1] == 1)
    )


def _place(source: Tensor, mean: Tensor, node: Node, generator: torch.Generator) -> Tensor:
    """One of the places that `mean` is the mean of, another for each image."""
    over = dims(argument(node, 1, "dim"), source.dim())
    kept = [d for d in range(source.dim()) if d not in over]
    places = source.permute(*kept, *over).flatten(len(kept))
    chosen = torch.randint(places.shape[-1], (len(places), *[1] * len(kept)), generator=generator)
    return places.gather(-1, chosen.expand(*places.shape[:-1], 1)).reshape(mean.shape)
