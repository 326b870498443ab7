"""Post-training quantization: a float program and samples become a Q/DQ program."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.errors import UnknownName
from edgekit.graph import rewrite
from edgekit.graph._edit import Editor
from edgekit.quantization._execution import Values, Walk
from edgekit.quantization.biases import METHODS, correct_biases
from edgekit.quantization.placement import place
from edgekit.quantization.qdq import compatible, groups, insert
from edgekit.quantization.ranges import ESTIMATORS, QParams, Range, qparams_of
from edgekit.types import QuantizationOptions

_CORRECTION_SAMPLES = 32


def quantize(
    program: ExportedProgram,
    samples: Sequence[Sequence[Tensor]],
    options: QuantizationOptions = QuantizationOptions(),  # noqa: B008 (frozen)
    on_step: Callable[[str, int, int], None] | None = None,
) -> ExportedProgram:
    """`program` in int8: per-channel symmetric weights, per-tensor affine activations, int32 biases.

    The result computes in torch what every runtime computes. `samples` are inputs of the program.
    Raises `UnknownName` for an option's value, `BadInput` for a --keep-float that names nothing.
    """
    for value, known in ((options.range_estimator, ESTIMATORS), (options.bias_correction, METHODS)):
        if value not in known:
            raise UnknownName("quantization option", value, known)
    prepared = prepare(program)
    editor = Editor(prepared)
    units = place(editor, options.keep_float)
    sets = groups(editor, units)
    ranges = observe(prepared, {n.name for s in sets for n in s}, samples, options.range_estimator, on_step)
    qparams: dict[Node, QParams] = {}
    for group in sets:
        shared = _union([ranges[n.name] for n in group])
        qparams.update(dict.fromkeys(sorted(group), qparams_of(shared)))
    insert(editor, units, compatible(editor, units, qparams))
    quantized = editor.finish()
    return correct_biases(prepared, quantized, samples[:_CORRECTION_SAMPLES], options.bias_correction)


def prepare(program: ExportedProgram) -> ExportedProgram:
    """`program` in the form that is quantized: batch norms folded, movements plain, the same for every target."""
    return rewrite(program, "int8")


def observe(
    program: ExportedProgram,
    names: set[str],
    samples: Sequence[Sequence[Tensor]],
    estimator: str,
    on_step: Callable[[str, int, int], None] | None = None,
) -> dict[str, Range]:
    """The range of each named tensor over the samples."""
    estimate = ESTIMATORS[estimator]
    walk = Walk(program, samples)
    found = {n.name: estimate(walk.compute(n)) for n in walk.nodes if n.op == "placeholder" and n.name in names}

    def see(node: Node, values: Values) -> None:
        if node.name in names:
            found[node.name] = estimate(values)

    walk.run(see, None if on_step is None else lambda done, total: on_step("calibrating", done, total))
    return found


def _union(ranges: Sequence[Range]) -> Range:
    union = ranges[0]
    for r in ranges[1:]:
        union |= r
    return union
