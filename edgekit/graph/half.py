"""A float16 program whose inputs and outputs keep their types, for runtimes that compute in float16."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.fx import GraphModule, Interpreter
from torch.fx import traceback as fx_traceback
from torch.utils._pytree import tree_leaves, tree_map

from edgekit.graph._edit import without_writes
from edgekit.graph.batch_norm import fold_batch_norms
from edgekit.graph.capture import capture
from edgekit.graph.constants import fold_constants

_aten = torch.ops.aten
_HIGHEST = torch.finfo(torch.float16).max
# Operators whose scalars stand for "as low as can be": -1e9 would become -inf, and 0 * -inf is no number.
_FILLS = (
    _aten.masked_fill, _aten.where, _aten.full, _aten.full_like, _aten.new_full, _aten.fill, _aten.scalar_tensor,
    _aten.constant_pad_nd, _aten.pad, _aten.mul, _aten.add, _aten.sub, _aten.rsub,
)  # fmt: skip


def to_half(program: ExportedProgram, inputs: Sequence[Tensor]) -> ExportedProgram:
    """y = float32(f16(float16(x))): every float32 weight, constant and op of `program` in float16.

    Numbers that float16 does not have, of weights and of fills, become the largest it has; infinity stays.
    """
    # Before rounding: a variance may be smaller than any float16, and standardized weights lose their digits.
    program = fold_batch_norms(fold_constants(without_writes(program)))
    values = {n.name: n.meta["val"] for n in program.graph.nodes if "val" in n.meta}
    specs = [s for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    dtypes = [values[s.arg.name].dtype for s in specs if isinstance(s.arg, TensorArgument)]
    # A program's module shares its tensors with the module it came from: half a copy.
    module = copy.deepcopy(program.module())
    assert isinstance(module, GraphModule)
    with fx_traceback.preserve_node_meta():
        return capture(_HalfIO(module, dtypes), inputs)


class _HalfIO(nn.Module):
    def __init__(self, graph: GraphModule, dtypes: Sequence[torch.dtype]) -> None:
        super().__init__()
        with torch.no_grad():
            self.model = graph._apply(_rounded)
            for node in graph.graph.nodes:  # tensors that are neither parameter nor buffer
                if node.op == "get_attr":
                    owner, _, name = str(node.target).rpartition(".")
                    held = vars(graph.get_submodule(owner)).get(name)
                    if isinstance(held, Tensor):
                        setattr(graph.get_submodule(owner), name, _rounded(held))
        self.dtypes = list(dtypes)

    def train(self, mode: bool = True) -> "_HalfIO":
        return self  # a graph module refuses train() and eval(), which every capture calls

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = _HalfInterpreter(self.model).run(*[_to_half(x) for x in inputs])
        tensors = [y for y in tree_leaves(outputs) if isinstance(y, Tensor)]
        return tuple(y.to(dtype) for y, dtype in zip(tensors, self.dtypes, strict=True))


class _HalfInterpreter(Interpreter):
    """Runs a graph as if its source had said float16 wherever it says float32, source lines kept."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is _aten._assert_tensor_metadata.default:
            return None  # it asserts float32
        args, kwargs = tree_map(_half_dtype, (args, kwargs))
        if getattr(target, "overloadpacket", None) in _FILLS and _gives_half(args, kwargs):
            args, kwargs = tuple(map(_limited, args)), {k: _limited(v) for k, v in kwargs.items()}
        return tree_map(_to_half, super().call_function(target, args, kwargs))

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _to_half(super().get_attr(target, args, kwargs))


def _gives_half(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a fill's result is float16: by the dtype it names, else by its operands that are no masks."""
    if kwargs.get("dtype") is not None:
        return bool(kwargs["dtype"] is torch.float16)
    values = (*args, *kwargs.values())
    dtypes = {x.dtype for x in values if isinstance(x, Tensor)} - {torch.bool}
    return dtypes == {torch.float16} if dtypes else any(isinstance(x, float) for x in values)


def _limited(given: Any) -> Any:
    """A finite number moved into float16's range; what is in it, and what is no number, as it is."""
    if type(given) not in (int, float) or not math.isfinite(given) or abs(given) <= _HIGHEST:
        return given
    return math.copysign(_HIGHEST, given)


def _rounded(tensor: Tensor) -> Tensor:
    """A float32 tensor in float16, its finite values limited."""
    if tensor.dtype is not torch.float32:
        return tensor
    return torch.where(tensor.isinf(), tensor, tensor.clamp(-_HIGHEST, _HIGHEST)).half()


def _half_dtype(value: Any) -> Any:
    return torch.float16 if value is torch.float32 else value


def _to_half(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
