"""A float16 program with float32 inputs and outputs, for runtimes that compute in float16."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter
from torch.fx import traceback as fx_traceback
from torch.utils._pytree import tree_leaves, tree_map

from edgekit.graph.capture import capture


def to_half(program: ExportedProgram, inputs: Sequence[Tensor]) -> ExportedProgram:
    """y = float32(f16(float16(x))): every float weight, constant and op of `program` in float16."""
    # A program's module shares its tensors with the module it came from: half a copy.
    module = copy.deepcopy(program.module())
    assert isinstance(module, GraphModule)
    with fx_traceback.preserve_node_meta():
        return capture(_HalfIO(module), inputs)


class _HalfIO(nn.Module):
    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.model = graph.half()

    def train(self, mode: bool = True) -> "_HalfIO":
        return self  # a graph module refuses train() and eval(), which every capture calls

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = _HalfInterpreter(self.model).run(*[_cast(x, torch.float16) for x in inputs])
        return tuple(_cast(y, torch.float32) for y in tree_leaves(outputs) if isinstance(y, Tensor))


class _HalfInterpreter(Interpreter):
    """Runs a graph as if its source had said float16 wherever it says float32, source lines kept."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten._assert_tensor_metadata.default:
            return None  # it asserts float32
        args, kwargs = tree_map(_half_dtype, (args, kwargs))
        return tree_map(_to_half, super().call_function(target, args, kwargs))

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _to_half(super().get_attr(target, args, kwargs))


def _half_dtype(value: Any) -> Any:
    return torch.float16 if value is torch.float32 else value


def _to_half(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
