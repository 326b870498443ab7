"""Rewrites of a captured graph: identities, and the ones each runtime needs, in order.

A rule takes an `ExportedProgram` and returns one that computes the same, or the same object where it does not apply.
Rules read nothing but the graph, so a user's own module gains as much as the zoo's.
"""

from collections.abc import Callable

from torch.export import ExportedProgram

from edgekit.errors import UnknownName
from edgekit.graph._edit import without_writes
from edgekit.graph.activations import half_gelu, plain_sigmoids
from edgekit.graph.arithmetic import plain_powers, typed_numbers
from edgekit.graph.batch_norm import fold_batch_norms
from edgekit.graph.concats import distinct_cats
from edgekit.graph.constants import drop_unused, fold_constants
from edgekit.graph.hard_activations import hard_activations
from edgekit.graph.layer_norm import layer_norm, rms_norm
from edgekit.graph.map_norms import map_norms
from edgekit.graph.matmul import attention, batched_matmul, transposed_products
from edgekit.graph.movements import drop_expands, explicit_gathers, explicit_movements
from edgekit.graph.noops import drop_noops
from edgekit.graph.paddings import explicit_paddings
from edgekit.graph.permutes import merge_layouts, merge_permutes
from edgekit.graph.pools import explicit_strides, floor_pools, padded_pools, spatial_maxima, spatial_means
from edgekit.graph.quantized import drop_clamps
from edgekit.graph.quantized_integers import (
    flat_linears,
    integer_biases,
    integer_clamps,
    integer_moves,
    unsigned_activations,
)
from edgekit.graph.quantized_kernels import aligned_channels, dense_groups, long_runs, merge_alignments, pools_as_convs
from edgekit.graph.quantized_litert import guard_float_ops
from edgekit.graph.quantized_xnnpack import channels_last_pads, maxima_as_sums
from edgekit.graph.reductions import line_maxima, line_sums, plain_norms
from edgekit.graph.repeats import drop_repeats
from edgekit.graph.softmaxes import last_softmaxes, short_softmaxes
from edgekit.graph.views import cropping_pads, reshape_views, slice_selects

Rewrite = Callable[[ExportedProgram], ExportedProgram]

REWRITES: dict[str, tuple[Rewrite, ...]] = {
    # XNNPACK's partitioner: no layer_norm, select, split, squeeze, expand; mean over a map only.
    "executorch": (
        fold_constants, reshape_views, drop_noops, fold_batch_norms, drop_repeats, drop_clamps, maxima_as_sums,
        slice_selects, drop_expands, explicit_movements, attention, batched_matmul, plain_sigmoids, half_gelu,
        map_norms, plain_norms, plain_powers, last_softmaxes, spatial_means, floor_pools, padded_pools, spatial_maxima,
        line_maxima, line_sums, merge_permutes, layer_norm, rms_norm, typed_numbers, distinct_cats, fold_constants,
        merge_layouts, drop_unused,
    ),
    "coreml": (
        fold_constants, reshape_views, drop_noops, fold_batch_norms, drop_repeats, explicit_strides, merge_layouts,
        drop_unused,
    ),
    # LiteRT's XNNPACK delegate: no gather, no slice with a stride. Its converter spreads scales.
    "tflite": (
        fold_constants, reshape_views, drop_noops, fold_batch_norms, drop_repeats, drop_clamps, maxima_as_sums,
        explicit_gathers, batched_matmul, spatial_means, merge_layouts, channels_last_pads, guard_float_ops,
        drop_unused,
    ),
    # Before quantization, the same for all: what a scale would stand in the way of later.
    "int8": (
        fold_constants, reshape_views, drop_noops, explicit_paddings, fold_batch_norms, drop_repeats, hard_activations,
        slice_selects, drop_expands, explicit_gathers, spatial_means, merge_layouts, drop_unused,
    ),
    # ONNX Runtime fuses Q/DQ pairs: unsigned activations, nothing in float between, channels as its kernels take them.
    "onnx": (
        fold_constants, reshape_views, drop_noops, fold_batch_norms, drop_repeats, drop_clamps, unsigned_activations,
        integer_clamps, flat_linears, integer_moves, pools_as_convs, dense_groups, aligned_channels, merge_alignments,
        long_runs, integer_biases, cropping_pads, short_softmaxes, merge_permutes, transposed_products, merge_layouts,
        drop_unused,
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
