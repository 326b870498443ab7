"""Core ML: weights that lie on a grid, stored as its integers in `constexpr` ops."""

from typing import Any

import numpy as np
import torch

from edgekit.quantization.weight_only import Grid, on_grid

PRECISIONS = ("int8", "int8-weight", "int4-weight")
"""What `compress` is for."""
HALF = ("int8-weight", "int4-weight")
"""All that stays float is float16, as the Neural Engine computes."""


def compress(model: Any) -> Any:
    """The MLModel with each weight on a 4 or 8 bit grid as integers and scales; it computes what it did before."""
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.models.utils import _apply_graph_pass

    # The quantizer of coremltools looks for scales of its own; a pass of ours hands over those that there are.
    class StoreGrids(AbstractGraphPass):
        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                _store_grids(function, model.get_spec().specificationVersion)

    return _apply_graph_pass(model, StoreGrids())


def _store_grids(block: Any, version: int) -> None:
    from coremltools.converters.mil.mil import Builder

    with block:
        for op in block.find_ops(op_type="const"):
            old, users = op.outputs[0], op.outputs[0].child_ops
            if not users or not all(u.op_type in ("conv", "linear") and u.weight is old for u in users):
                continue
            weight = torch.from_numpy(np.array(old.val))
            grid = on_grid(weight, 4) or on_grid(weight, 8)
            if grid is None:
                continue
            new = (_blocks if version >= 9 else _channels)(Builder, grid, old.val, op)
            block.replace_uses_of_var_after_op(anchor_op=op, old_var=old, new_var=new)
            block.remove_ops([op])


def _channels(builder: Any, grid: Grid, weight: Any, op: Any) -> Any:
    """One scale an output channel: what iOS 16 has."""
    return builder.constexpr_affine_dequantize(
        quantized_data=grid.ints.numpy().reshape(weight.shape),
        zero_point=np.int8(0),
        scale=grid.scale.numpy().reshape(-1).astype(weight.dtype),
        axis=0,
        before_op=op,
        name=f"{op.name}_quantized",
    )


def _blocks(builder: Any, grid: Grid, weight: Any, op: Any) -> Any:
    """One scale a block of input channels, or an output channel: what iOS 18 has, in 4 and 8 bits."""
    from coremltools.converters.mil.mil import types

    kind = types.nptype_from_builtin(types.int4 if grid.bits == 4 else types.int8)
    scales = (*grid.scale.shape[:2], *[1] * (weight.ndim - 2))
    return builder.constexpr_blockwise_shift_scale(
        data=grid.ints.numpy().reshape(weight.shape).astype(kind),
        scale=grid.scale.numpy().reshape(scales).astype(weight.dtype),
        before_op=op,
        name=f"{op.name}_quantized",
    )
