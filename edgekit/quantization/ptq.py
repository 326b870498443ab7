"""Post-training quantization: a float program and samples become a Q/DQ program."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from glob import escape
from operator import or_
from types import MappingProxyType

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.errors import BadInput, UnknownName, Unsupported
from edgekit.graph import rewrite
from edgekit.graph._edit import Editor
from edgekit.quantization._execution import Samples, Values, Walk, at_once, in_parts
from edgekit.quantization._ops import CAT, module_path, op_name
from edgekit.quantization.biases import METHODS, correct_biases
from edgekit.quantization.equalization import equalize
from edgekit.quantization.placement import Unit, place
from edgekit.quantization.qdq import activations, compatible, groups, insert, store_tables
from edgekit.quantization.ranges import ESTIMATORS, Histogram, QParams, Range, histogram, qparams_of
from edgekit.quantization.rounding import ROUNDINGS
from edgekit.quantization.smoothing import smooth
from edgekit.quantization.weight_only import EVERY, WeightScheme, quantize_weights
from edgekit.types import QuantizationOptions

_CORRECTION_SAMPLES = 32
# An operand whose range is less than this part of what it shares a scale with has no more than eight steps left.
_LEAST_SHARE = 1 / 32
# Operands in 256 steps leave a sum below this part of them less than 32.
_LEAST_REST = 1 / 8
_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor)


def quantize(
    program: ExportedProgram,
    samples: Samples,
    options: QuantizationOptions = QuantizationOptions(),  # noqa: B008 (frozen)
    on_step: Callable[[str, int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    stand_in: ExportedProgram | None = None,
    at_least: Mapping[str, Range] = MappingProxyType({}),
) -> ExportedProgram:
    """`program` in int8: per-channel symmetric weights, per-tensor affine activations, int32 biases.

    The result computes in torch what every runtime computes. `samples` are inputs of the program. `on_note` hears of
    options that found nothing to do. With a `stand_in`, a program of the same nodes, activations are seen in that, and
    only weights come from `program`. `at_least` are ranges by node of the prepared program that are not cut short.
    Raises `UnknownName` for an option's value, `BadInput` for a --keep-float that names nothing, values that are not
    finite or another stand-in, `Unsupported` where nothing is left to quantize.
    """
    choices = (options.range_estimator, ESTIMATORS), (options.bias_correction, METHODS), (options.rounding, ROUNDINGS)
    for value, known in choices:
        if value not in known:
            raise UnknownName("quantization option", value, known)
    if not samples:
        raise BadInput("there are no samples to calibrate with", "Give at least one.")
    prepared = _balanced(prepare(program), samples, options, on_note)
    seen = prepared if stand_in is None else _same_nodes(prepare(stand_in), prepared, options)
    editor = Editor(prepared)
    units = place(editor, options.keep_float)
    tensors = {n for group in groups(editor, units) for n in group}
    ranges = observe(seen, {n.name for n in tensors}, samples, options.range_estimator, on_step)
    ranges = {name: r | at_least.get(name, r) for name, r in ranges.items()}
    keep_float = options.keep_float
    while lossy := _lossy(editor, units, ranges):
        keep_float = (*keep_float, *lossy)
        units = place(editor, keep_float)
    if not units:
        raise Unsupported(
            "nothing in the model gains from int8: no convolution or linear with a constant float32 weight is left",
            "Keep less in float with --keep-float, or export it as it is: --precision fp32.",
        )
    qparams: dict[Node, QParams] = {}
    for group in groups(editor, units):
        qparams.update(dict.fromkeys(sorted(group), qparams_of(_union(group, ranges))))
    insert(editor, units, compatible(editor, units, qparams), options.rounding)
    store_tables(editor, options.keep_float)
    # What stays in float for its speed is as small in a file.
    quantized = quantize_weights(editor.finish(), WeightScheme(int8=EVERY), options.keep_float)
    few = samples[: min(_CORRECTION_SAMPLES, at_once(quantized))]
    other = None if stand_in is None else seen
    return correct_biases(prepared, quantized, few, options.bias_correction, on_step, other)


def ranges_of(
    program: ExportedProgram,
    samples: Samples,
    options: QuantizationOptions,
    on_step: Callable[[str, int, int], None] | None = None,
) -> dict[str, Range]:
    """The range of each tensor that `quantize` would represent in 8 bits, by its node in the prepared program."""
    prepared = prepare(program)
    editor = Editor(prepared)
    tensors = {n.name for group in groups(editor, place(editor, options.keep_float)) for n in group}
    return observe(prepared, tensors, samples, options.range_estimator, on_step)


def _same_nodes(stand_in: ExportedProgram, program: ExportedProgram, options: QuantizationOptions) -> ExportedProgram:
    """`stand_in` where it has the nodes of `program`, else `BadInput`."""
    if options.equalize or options.smooth_quant:
        raise BadInput(
            "--equalize and --smooth-quant scale weights, and the statistics of a stand-in are not scaled with them",
            "Leave them out, or calibrate with images: --data-free=images or --calibration PATH.",
        )
    names, others = ([n.name for n in p.graph.nodes if n.op != "placeholder"] for p in (program, stand_in))
    if names != others:
        first = next((a for a, b in zip(names, others, strict=False) if a != b), "its end")
        raise BadInput(
            f"the stand-in is another program: they differ from {first} on",
            "Calibrate with images: --data-free=images or --calibration PATH.",
        )
    return stand_in


def _balanced(
    program: ExportedProgram,
    samples: Samples,
    options: QuantizationOptions,
    on_note: Callable[[str], None] | None,
) -> ExportedProgram:
    """The same function with channels of more even ranges, as `options` ask for it."""
    if options.equalize:
        before, program = program, equalize(program)
        if program is before and on_note is not None:
            on_note(
                "--equalize found nothing to do: no convolution or linear is followed by another alone, "
                "with nothing but ReLU, pooling and moves between them"
            )
    if options.smooth_quant:
        before, program = program, smooth(program, samples)
        if program is before and on_note is not None:
            on_note(
                "--smooth-quant found nothing to do: no linear or 1x1 convolution is fed by a layer norm, linear or "
                "convolution that nothing else reads"
            )
    return program


def float_form(program: ExportedProgram, samples: Samples, options: QuantizationOptions) -> ExportedProgram:
    """The float program whose nodes `quantize` with these options gives integers."""
    return _balanced(prepare(program), samples, options, None)


def prepare(program: ExportedProgram) -> ExportedProgram:
    """`program` in the form that is quantized: batch norms folded, movements plain, the same for every target."""
    return rewrite(program, "int8")


def observe(
    program: ExportedProgram,
    names: set[str],
    samples: Samples,
    estimator: str,
    on_step: Callable[[str, int, int], None] | None = None,
) -> dict[str, Range]:
    """The range of each named tensor over the samples."""
    parts = in_parts(program, samples)
    found: dict[str, Histogram] = {}

    def see(node: Node, values: Values) -> None:
        if node.name not in names:
            return
        try:
            seen = histogram(values)
        except ValueError as error:
            raise BadInput(
                f"{node.name} in {module_path(node) or 'the model'} is not finite on the calibration samples",
                f"Is the model right in float? If so, keep this in float: --keep-float '{escape(op_name(node))}'",
            ) from error
        found[node.name] = found[node.name] | seen if node.name in found else seen

    for number, part in enumerate(parts):
        walk = Walk(program, part)
        for node in walk.nodes:
            if node.op == "placeholder":
                see(node, walk.compute(node))
        walk.run(see, None if on_step is None else partial(_of_all, on_step, number, len(parts)))
    return {name: ESTIMATORS[estimator](seen) for name, seen in found.items()}


def _of_all(on_step: Callable[[str, int, int], None], part: int, parts: int, done: int, total: int) -> None:
    on_step("calibrating", part * total + done, parts * total)


def _lossy(editor: Editor, units: Sequence[Unit], ranges: Mapping[str, Range]) -> tuple[str, ...]:
    """The operations whose result would keep few of the 256 steps: a concatenation of ones with thousands, which share
    a scale, and a difference of what is nearly equal.
    """
    found = []
    shared = {node: _union(group, ranges).span for group in groups(editor, units) for node in group}
    for unit in units:
        spans = [ranges[n.name].span for n in activations(editor, unit) if ranges[n.name].span]
        result = ranges[unit.result.name].span
        crowded = unit.node.target is CAT and any(span < shared[unit.result] * _LEAST_SHARE for span in spans)
        cancels = unit.node.target in _SUMS and 0 < result < max(spans, default=0.0) * _LEAST_REST
        if crowded or cancels:
            found.append(escape(op_name(unit.node)))
    return tuple(found)


def _union(group: Iterable[Node], ranges: Mapping[str, Range]) -> Range:
    return reduce(or_, (ranges[n.name] for n in group))
