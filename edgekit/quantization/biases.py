"""Bias correction: what quantization adds to a channel's mean is taken off again, and biases become int32.

    b_c ← b_c + E[y_c] − E[ŷ_c]            y of the float layer, ŷ of the quantized one (Nagel et al. 2019, section 4.2)

`fast` takes the error of each layer's own weights on float inputs, in one pass over the float program. `full` takes the
error of what really arrives there, layer after layer, each behind the corrections of those before it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument
from edgekit.quantization._execution import Samples, Values, Walk, constants
from edgekit.quantization._ops import COMPUTE, DEQUANTIZE, DEQUANTIZE_WEIGHT

METHODS = ("none", "fast", "full")
Step = Callable[[int, int], None]


def correct_biases(
    program: ExportedProgram,
    quantized: ExportedProgram,
    samples: Samples,
    method: str,
    on_step: Callable[[str, int, int], None] | None = None,
    stand_in: ExportedProgram | None = None,
) -> ExportedProgram:
    """`quantized` with biases in int32 steps, corrected towards `program`, the float program it was made from.

    Where a `stand_in` has the activations and `program` only the weights, `full` is as `fast`: each layer by itself.
    """
    step = None if on_step is None else partial(on_step, "correcting biases")
    shifts: dict[str, Tensor] = {}
    if method == "fast" or (method == "full" and stand_in is not None):
        shifts = _local_shifts(program, quantized, samples, step, stand_in or program)
    elif method == "full":
        shifts = _sequential_shifts(program, quantized, samples, step)
    return _with_biases(quantized, shifts)


def _channel_means(node: Node, values: Values) -> Tensor:
    """The mean of each output channel over all samples: dimension 1 of a convolution, the last of a linear."""
    channel = 1 if node.target is torch.ops.aten.conv2d.default else -1
    means = [v.movedim(channel, 0).reshape(v.shape[channel], -1).mean(1, dtype=torch.float64) for v in values]
    return torch.stack(means).mean(0).float()


def _compute_nodes(quantized: ExportedProgram) -> dict[str, Node]:
    return {n.name: n for n in quantized.graph.nodes if is_quantized(n)}


def is_quantized(node: Node) -> bool:
    """Whether a node is a convolution or linear with an int8 weight and input."""
    if node.op != "call_function" or node.target not in COMPUTE:
        return False
    source, weight = node.args[:2]
    return isinstance(source, Node) and source.target is DEQUANTIZE and weight.target is DEQUANTIZE_WEIGHT  # type: ignore[union-attr]


def _sequential_shifts(
    program: ExportedProgram, quantized: ExportedProgram, samples: Samples, on_step: Step | None
) -> dict[str, Tensor]:
    nodes = _compute_nodes(quantized)
    expected: dict[str, Tensor] = {}

    def see(node: Node, values: Values) -> None:
        if node.name in nodes:
            expected[node.name] = _channel_means(node, values)

    Walk(program, samples).run(see)
    shifts: dict[str, Tensor] = {}

    def correct(node: Node, values: Values) -> None:
        if node.name in nodes:
            shift = expected[node.name] - _channel_means(node, values)
            shifts[node.name] = shift
            along = shift[:, None, None] if node.target is torch.ops.aten.conv2d.default else shift
            for v in values:
                v += along

    Walk(quantized, samples).run(correct, on_step)
    return shifts


def _local_shifts(
    program: ExportedProgram,
    quantized: ExportedProgram,
    samples: Samples,
    on_step: Step | None,
    activations: ExportedProgram,
) -> dict[str, Tensor]:
    exact = constants(program)
    rounded = {name: _dequantized_weight(quantized, node) for name, node in _compute_nodes(quantized).items()}
    shifts: dict[str, Tensor] = {}
    walk = Walk(activations, samples)

    def see(node: Node, values: Values) -> None:
        if node.name not in rounded:
            return
        operands: tuple[Any, ...] = node.args
        layer: Any = node.target
        error = exact[operands[1].name] - rounded[node.name]
        results = [layer(x, error, None, *operands[3:]) for x in walk.values(operands[0])]
        shifts[node.name] = _channel_means(node, results)

    walk.run(see, on_step)
    return shifts


def _dequantized_weight(quantized: ExportedProgram, node: Node) -> Tensor:
    walk = Walk(quantized, [()])
    dequantize: Any = node.args[1]
    values = [walk.compute(n)[0] for n in dequantize.all_input_nodes]
    return dequantize.target(*values, *dequantize.args[3:])


def _with_biases(quantized: ExportedProgram, shifts: dict[str, Tensor]) -> ExportedProgram:
    """Every quantized layer with a bias that is a whole number of steps of input scale x weight scale."""
    editor = Editor(quantized)
    for node in [n for n in editor.graph.nodes if is_quantized(n)]:
        bias = editor.constant_value(argument(node, 2, "bias"))
        scales = editor.constant_value(node.args[1].args[1])
        assert scales is not None
        shift = shifts.get(node.name)
        if bias is None and shift is None:
            continue
        total = torch.stack([t.detach() for t in (bias, shift) if t is not None]).sum(0)
        step = scales * node.args[0].args[1]
        node.args = (*node.args[:2], editor.constant(whole_steps(total, step)), *node.args[3:])
        editor.fired += 1
    editor.drop_unused()
    return editor.finish()


def whole_steps(bias: Tensor, step: Tensor) -> Tensor:
    """The nearest bias that is a whole number of steps, an int32."""
    steps = (bias / step).double().round().clamp(-(2**31), 2**31 - 1)
    return (steps * step).float()
