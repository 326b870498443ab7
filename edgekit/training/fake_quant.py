"""A Q/DQ program as a module that trains: the same graph, with float weights that are rounded as the program's are.

    w' = s clamp(round(w / s), -127, 127)           s: the largest |w| of the output channel / 127, at every step
    x' = s (clamp(round(x / s) + z, -128, 127) - z)
    b' = s_x s_w round(b / (s_x s_w))

Rounding passes gradients on unchanged (Bengio et al. 2013, straight through); what is clamped gets none. A scale that
is learned has the gradient of Esser et al. 2020 (LSQ, equation 3), scaled by 1 / sqrt(values x 127) (section 2.2), and
is stored as the logarithm of its ratio to where it started, so that a step is relative (Jain et al. 2020, appendix B).

Batch norm is folded before quantization and stays folded: what is trained is what the phone computes.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

from edgekit.graph._edit import Editor, argument
from edgekit.quantization._execution import constants
from edgekit.quantization._ops import (
    COMPUTE,
    DEQUANTIZE,
    DEQUANTIZE_WEIGHT,
    QMAX,
    QMIN,
    QUANTIZE,
    WEIGHT_QMAX,
)
from edgekit.quantization.biases import correct_biases, is_quantized, whole_steps
from edgekit.quantization.placement import fused_clamp
from edgekit.quantization.qdq import safe_scales

_ActivationScale = tuple[float, int]
# How far training may move a scale: 16-fold; beyond that it has diverged.
_FURTHEST = math.log(16)


class FakeQuantized(nn.Module):
    """`program`, the Q/DQ form of `prepared`, for batches of any size; `folded` is the program again, as trained.

    Weights start from the float program, biases (corrected, perhaps) and scales from the Q/DQ program. What the program
    leaves in float is trained too. It must take one image batch and its first output is what `forward` returns.
    """

    def __init__(self, program: ExportedProgram, prepared: ExportedProgram, learn_ranges: bool = False) -> None:
        super().__init__()
        self._program = program
        self._nodes = list(program.graph.nodes)
        self._layers = [n for n in self._nodes if is_quantized(n)]
        stored, floats = constants(program), constants(prepared)
        sources = {n.name: n for n in prepared.graph.nodes}
        self.weights, self.biases, self.floats = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for layer in self._layers:
            self.weights[layer.name] = _trained(floats[sources[layer.name].args[1].name])
            bias = argument(layer, 2, "bias")
            if bias is not None:
                self.biases[layer.name] = _trained(stored[bias.name])
        for name in _float_parameters(program, stored):
            self.floats[name] = _trained(stored[name])
        self._constants = nn.Module()
        replaced = {n.name for layer in self._layers for n in _stored_in(layer)} | set(self.floats)
        for name, tensor in stored.items():
            if name not in replaced:
                self._constants.register_buffer(name, tensor, persistent=False)
        self._scale_of = {n: (n.args[1], n.args[2]) for n in self._nodes if n.target in (QUANTIZE, DEQUANTIZE)}
        # A scale that a stored constant was rounded with cannot move. Tensors that must share one, or happen to, have
        # the same numbers: one parameter keeps them together.
        fixed = {s for n, s in self._scale_of.items() if n.target is DEQUANTIZE and n.args[0].target is not QUANTIZE}
        learned = sorted(set(self._scale_of.values()) - fixed) if learn_ranges else []
        self._place = {scale: i for i, scale in enumerate(learned)}
        self.ranges = nn.Parameter(torch.zeros(len(learned)))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to the program's first output for each image, (N, ...)."""
        scales = {scale: self._scale(scale) for scale in set(self._scale_of.values())}
        known = {**dict(self._constants.named_buffers()), **self.floats}
        values: dict[Node, Any] = {n: known[n.name] for n in self._nodes if n.name in known}
        for layer in self._layers:
            weight, bias, steps = self._parameters_of(layer, scales)
            along = _along(steps, weight)
            values[layer.args[1]] = _through(weight, _integers(weight, along) * along)
            if bias is not None:
                step = steps * scales[self._scale_of[layer.args[0]]].detach()
                values[layer.args[2]] = _through(bias, whole_steps(bias.detach(), step))
        # The program has a batch of one in its shapes: mapped over images, it stays as it is.
        run = partial(self._run, values, scales)
        return torch.func.vmap(run)(images[:, None])[:, 0]

    def _run(self, known: Mapping[Node, Any], scales: Mapping[_ActivationScale, Tensor], image: Tensor) -> Tensor:
        values = dict(known)
        for node in self._nodes:
            if node in values or (node.op == "placeholder" and not node.users):
                continue
            if node.op == "output":
                return values[node.args[0][0]]
            if node.op == "placeholder":
                if node.name in self._program.graph_signature.user_inputs:
                    values[node] = image
            elif node.target is QUANTIZE:
                scale = scales[self._scale_of[node]]
                values[node] = _fake_quantized(values[node.args[0]], scale, node.args[2])
            elif node.target is DEQUANTIZE and node.args[0].target is QUANTIZE:
                values[node] = values[node.args[0]]
            else:
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
        raise AssertionError("a graph ends in its output")

    def _scale(self, scale: _ActivationScale) -> Tensor:
        start = self.ranges.new_tensor(scale[0])
        if scale not in self._place:
            return start
        return start * self.ranges[self._place[scale]].clamp(-_FURTHEST, _FURTHEST).exp()

    def _parameters_of(
        self, layer: Node, scales: Mapping[_ActivationScale, Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Weight, bias and the weight's scales, which are those that post-training quantization would take."""
        weight = self.weights[layer.name]
        bias = self.biases.get(layer.name)
        source = scales[self._scale_of[layer.args[0]]].item()
        result = scales[self._scale_of[_quantized_result(layer)]].item()
        return weight, bias, safe_scales(weight, bias, source, result)

    @torch.no_grad()
    def folded(self) -> ExportedProgram:
        """The Q/DQ program with the integers and scales of now: the same graph as before training."""
        scales = {scale: self._scale(scale) for scale in set(self._scale_of.values())}
        editor = Editor(self._program)
        nodes = {n.name: n for n in editor.graph.nodes}
        for old, scale in self._scale_of.items():
            node = nodes[old.name]
            node.args = (node.args[0], float(scales[scale]), *node.args[2:])
        for layer in self._layers:
            node, (weight, bias, steps) = nodes[layer.name], self._parameters_of(layer, scales)
            integers = _integers(weight, _along(steps, weight)).to(torch.int8)
            dequantize = node.args[1]
            dequantize.args = (editor.constant(integers), editor.constant(steps), *dequantize.args[2:])
            if bias is not None:
                node.args = (*node.args[:2], editor.constant(bias.detach().clone()), *node.args[3:])
        for name, tensor in self.floats.items():
            nodes[name].replace_all_uses_with(editor.constant(tensor.detach().clone()))
        editor.fired += 1
        editor.drop_unused()
        return correct_biases(self._program, editor.finish(), (), "none")


def _trained(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone())


def _float_parameters(program: ExportedProgram, stored: Mapping[str, Tensor]) -> list[str]:
    """Constants of float operations that training changes: parameters, and the weights of layers that stay in float."""
    kinds = {s.arg.name: s.kind for s in program.graph_signature.input_specs}
    computing = {o for n in program.graph.nodes if n.target in COMPUTE for o in n.args[1:3]}
    return [
        n.name
        for n in program.graph.nodes
        if n.name in stored
        and stored[n.name].is_floating_point()
        and (kinds[n.name] is InputKind.PARAMETER or n in computing)
        and not any(is_quantized(user) or user.target is DEQUANTIZE_WEIGHT for user in n.users)
    ]


def _stored_in(layer: Node) -> list[Node]:
    bias = argument(layer, 2, "bias")
    return [*layer.args[1].all_input_nodes, *([] if bias is None else [bias])]  # type: ignore[union-attr]


def _quantized_result(layer: Node) -> Node:
    result = fused_clamp(layer) or layer
    return next(user for user in result.users if user.target is QUANTIZE)


def _along(scales: Tensor, weight: Tensor) -> Tensor:
    return scales.reshape(-1, *[1] * (weight.dim() - 1))


def _integers(weight: Tensor, steps: Tensor) -> Tensor:
    return (weight.detach() * (1 / steps)).round().clamp(-WEIGHT_QMAX, WEIGHT_QMAX)


def _through(value: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, to the last bit, with the gradient of `value`."""
    return rounded + (value - value.detach())


def _fake_quantized(x: Tensor, scale: Tensor, zero_point: int) -> Tensor:
    """One image's tensor in steps of `scale`, with gradients to both (Esser et al. 2020, equations 1 to 3)."""
    if scale.requires_grad:
        scale = _through(scale / math.sqrt(x.numel() * QMAX), scale.detach())
    steps = (x * (1 / scale)).clamp(QMIN - zero_point, QMAX - zero_point)
    return _through(steps, steps.detach().round()) * scale
