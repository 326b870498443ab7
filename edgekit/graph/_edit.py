"""Editing a captured graph: what every rewrite needs, once."""

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

# In `node.meta["custom"]`, the one place whose notes every pass of torch hands on.
REFUSAL = "edgekit_refusal"
_KEPT_META = ("stack_trace", "nn_module_stack", "from_node")
# Operations whose result depends on how their operand lies in memory, and those that refuse one that lies otherwise.
STRIDES = (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_copy.default)
_STRIDED = (
    *STRIDES, torch.ops.aten.view.default, torch.ops.aten.view.dtype, torch.ops.aten._unsafe_view.default,
    torch.ops.aten.view_copy.default, torch.ops.aten.view_as_complex.default,
)  # fmt: skip
_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Editor:
    """A private copy of a program's graph with the operations rewrites are made of.

    The program given in is never changed (its weights are shared, not copied). Values of new nodes are computed on
    fake tensors, so shapes and dtypes are right by construction; the source line of the node being replaced is kept.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._module = GraphModule(program.graph_module, copy.deepcopy(program.graph_module.graph))
        self._module.meta.update(program.graph_module.meta)
        self.graph = self._module.graph
        # Copying renames what Python knows too: `input`, the argument of every Sequential. The signature does not.
        for old, new in zip(program.graph_module.graph.nodes, self.graph.nodes, strict=True):
            if new.name != old.name:
                new.name = old.name
        self._originals = {n.name: n for n in program.graph_module.graph.nodes}
        self._signature = copy.deepcopy(program.graph_signature)
        self._state: dict[str, Any] = dict(program.state_dict)
        self._fake = detect_fake_mode([n.meta["val"] for n in self.graph.nodes if "val" in n.meta])
        specs = self._signature.input_specs
        self._specs = {spec.arg.name: spec for spec in specs if isinstance(spec.arg, TensorArgument)}
        self._shared: dict[tuple[Any, ...], Node] = {}
        # Where an operation writes into its operand, values cannot be moved past it: such a graph stays as it is.
        self.writes = any(writes(n) for n in self.graph.nodes)
        self.fired = 0

    @property
    def reads_strides(self) -> bool:
        """Whether an operation's result, or its refusal, depends on how its operand lies in memory."""
        return bool(self.nodes(*_STRIDED))

    @property
    def stored(self) -> int:
        """Bytes of all parameters, buffers and constants."""
        tensors = [*self._state.values(), *self._program.constants.values()]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    def nodes(self, *targets: object) -> list[Node]:
        """Calls of one of the given operators, in graph order; none in a graph that writes in place."""
        if self.writes:
            return []
        return [n for n in self.graph.nodes if n.op == "call_function" and n.target in targets]

    def call(self, like: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A new call in front of `like`, with its source line."""
        with self.graph.inserting_before(like):
            node = self.graph.call_function(target, args, kwargs)
        values = map_arg((args, kwargs), lambda n: n.meta["val"])
        if self._fake is None:
            raise ValueError("the captured graph carries no tensor values to compute shapes with")
        with self._fake, torch.no_grad():
            node.meta["val"] = target(*values[0], **values[1])
        node.meta.update({key: like.meta[key] for key in _KEPT_META if key in like.meta})
        return node

    def constant(self, value: Tensor, key: tuple[Any, ...] | None = None) -> Node:
        """A new buffer of the program; nodes asking with the same `key` share one."""
        if key is not None and key in self._shared:
            return self._shared[key]
        number = len(self._state)
        while (target := f"edgekit_constant_{number}") in self._state:
            number += 1
        first = next(n for n in self.graph.nodes if n.op == "placeholder")
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(f"b_{target}")
        assert self._fake is not None
        node.meta["val"] = self._fake.from_tensor(value, static_shapes=True)
        spec = InputSpec(InputKind.BUFFER, TensorArgument(node.name), target, persistent=True)
        self._signature.input_specs.insert(0, spec)
        self._specs[node.name] = spec
        self._state[target] = value
        if key is not None:
            self._shared[key] = node
        return node

    def constant_value(self, node: object) -> Tensor | None:
        """The tensor of a parameter, buffer or constant that the program does not change; None for anything else."""
        spec = self._specs.get(node.name) if isinstance(node, Node) and node.op == "placeholder" else None
        if spec is None or spec.kind not in _CONSTANTS or spec.target is None:
            return None
        if spec.target in self._signature.buffers_to_mutate.values():
            return None
        value = self._state.get(spec.target, self._program.constants.get(spec.target))
        return value if isinstance(value, Tensor) else None

    def replace(self, old: Node, new: Node) -> None:
        """Let every user of `old` take `new`; count one firing.

        No change where a program would return its own input, or one value twice: outputs are told apart by node.
        """
        returned = any(user.op == "output" for user in old.users)
        if returned and (new.op == "placeholder" or any(user.op == "output" for user in new.users)):
            return
        old.replace_all_uses_with(new)
        self.rename_output(old, new)
        # At once and by hand: dead-code elimination keeps whatever could draw random numbers, as dropout could.
        self.graph.erase_node(old)
        self.fired += 1

    def rename_output(self, old: Node, new: Node) -> None:
        """The names of a program's outputs are part of its signature."""
        for spec in self._signature.output_specs:
            if isinstance(spec.arg, TensorArgument) and spec.arg.name == old.name:
                spec.arg.name = new.name

    def refuse(self, node: Node, reason: str) -> None:
        """Note why a rule cannot fire at the node it is meant for: a target reports it with what it leaves out.

        On the node given in too: a copy in which nothing fires is not handed on.
        """
        for noted in (node, self._originals.get(node.name)):
            if noted is not None:
                noted.meta["custom"] = {**noted.meta.get("custom", {}), REFUSAL: reason}

    def drop_unused(self) -> None:
        """Leave out the constants that nothing reads; a firing if there are any."""
        for node in [n for n in self.graph.nodes if n.op == "placeholder" and not n.users]:
            spec = self._specs.get(node.name)
            if spec is None or self.constant_value(node) is None:
                continue
            self._signature.input_specs.remove(spec)
            self._state.pop(str(spec.target), None)
            self.graph.erase_node(node)
            self.fired += 1

    def finish(self) -> ExportedProgram:
        """The edited program, or the original one where nothing fired."""
        if not self.fired:
            return self._program
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self._module.recompile()
        old = self._program
        return ExportedProgram(
            root=self._module,
            graph=self.graph,
            graph_signature=self._signature,
            state_dict=self._state,
            range_constraints=old.range_constraints,
            module_call_graph=old.module_call_graph,
            example_inputs=old.example_inputs,
            constants=old.constants,
            verifiers=old.verifiers,
        )


def writes(node: Node) -> bool:
    """Whether a call writes into one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def without_writes(program: ExportedProgram) -> ExportedProgram:
    """`program` with plain operations for those that write in place; itself where there are none."""
    if not any(writes(node) for node in program.graph.nodes):
        return program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own pytrees
        return program.run_decompositions({})  # no decompositions, but what every export goes through


def value(node: object) -> Tensor | None:
    """The fake tensor a node computes; None where it is not one tensor of static shape."""
    val = node.meta.get("val") if isinstance(node, Node) else None
    if isinstance(val, Tensor) and all(isinstance(n, int) for n in val.shape):
        return val
    return None


def shape(node: object) -> tuple[int, ...] | None:
    """The static shape of a node's tensor, or None."""
    val = value(node)
    return None if val is None else tuple(val.shape)


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """An argument by position or name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


PERMUTES = (
    torch.ops.aten.permute.default, torch.ops.aten.permute_copy.default, torch.ops.aten.transpose.int,
    torch.ops.aten.transpose_copy.int, torch.ops.aten.t.default,
)  # fmt: skip


def permutation(node: object) -> tuple[int, ...] | None:
    """The order of dimensions that a permute or transpose node gives; None for anything else."""
    if not isinstance(node, Node) or node.op != "call_function" or shape(node) is None:
        return None
    rank = len(shape(node) or ())
    aten = torch.ops.aten
    if node.target in (aten.permute.default, aten.permute_copy.default):
        return tuple(d % rank for d in argument(node, 1, "dims"))
    if node.target in (aten.transpose.int, aten.transpose_copy.int):
        order = list(range(rank))
        a, b = argument(node, 1, "dim0") % rank, argument(node, 2, "dim1") % rank
        order[a], order[b] = order[b], order[a]
        return tuple(order)
    if node.target is aten.t.default and rank == 2:
        return (1, 0)
    return None


def dims(given: int | Iterable[int] | None, rank: int) -> tuple[int, ...]:
    """Dimensions as sorted non-negative numbers; none given means all."""
    if given is None:
        return tuple(range(rank))
    values: Sequence[int] = [given] if isinstance(given, int) else list(given)
    return tuple(sorted(d % rank for d in values)) or tuple(range(rank))
