"""Rewrites of a captured graph: identities, and the ones each runtime needs, in order.

A rule takes an `ExportedProgram` and returns one that computes the same, or the same object where it does not apply.
Rules read nothing but the graph, so a user's own module gains as much as the zoo's.
"""

from collections.abc import Callable

from torch.export import ExportedProgram

from edgekit.errors import UnknownName
from edgekit.graph._edit import without_writes
from edgekit.graph.activations import half_gelu, plain_silu
from edgekit.graph.batch_norm import fold_batch_norms
from edgekit.graph.layer_norm import layer_norm
from edgekit.graph.matmul import attention, batched_matmul, transposed_products
from edgekit.graph.noops import drop_noops
from edgekit.graph.permutes import merge_layouts, merge_permutes
from edgekit.graph.pools import explicit_strides, floor_pools, line_means, spatial_maxima, spatial_means
from edgekit.graph.softmaxes import short_softmaxes
from edgekit.graph.views import cropping_pads, reshape_views, slice_selects

Rewrite = Callable[[ExportedProgram], ExportedProgram]

REWRITES: dict[str, tuple[Rewrite, ...]] = {
    # XNNPACK's partitioner: no layer_norm, select, split, squeeze, expand; mean over a map only.
    "executorch": (
        reshape_views, drop_noops, fold_batch_norms, slice_selects, attention, batched_matmul, plain_silu,
        half_gelu, spatial_means, floor_pools, spatial_maxima, line_means, merge_permutes, layer_norm, merge_layouts,
    ),
    "coreml": (reshape_views, drop_noops, fold_batch_norms, explicit_strides, merge_layouts),
    "tflite": (reshape_views, drop_noops, fold_batch_norms, batched_matmul, merge_layouts),
    "onnx": (
        reshape_views, drop_noops, fold_batch_norms, cropping_pads, short_softmaxes, merge_permutes,
        transposed_products, merge_layouts,
    ),
}  # fmt: skip


def rewrite(program: ExportedProgram, target: str) -> ExportedProgram:
    """`program` as `target`'s runtime takes it best; equal up to rounding."""
    if target not in REWRITES:
        raise UnknownName("target", target, REWRITES)
    program = without_writes(program)
    for rule in REWRITES[target]:
        program = rule(program)
    return program
