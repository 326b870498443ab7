"""The student as a program: quantize and dequantize nodes with the steps it has learned, for a batch of its own."""

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgekit.graph._edit import Editor
from edgekit.low_bit.quantizers import ends
from edgekit.low_bit.student import Student
from edgekit.quantization._ops import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE
from edgekit.quantization.qdq import behind


@torch.no_grad()
def written(student: Student, program: ExportedProgram) -> ExportedProgram:
    """`program`, the float program of the student's nodes for any batch, with the student's integers, steps and biases.

    Integers of fewer than 8 bits are stored as int8 between the ends of their bits.
    """
    editor = Editor(program)
    nodes = {n.name: n for n in editor.graph.nodes}
    for name, quantizer in student.rounded_tensors.items():
        step, zero = quantizer.steps()
        arguments = (float(step), int(zero), *ends(quantizer.bits), torch.int8)
        tensor = nodes[name]
        readers = list(tensor.users)
        quantized = editor.call(behind(tensor), QUANTIZE, tensor, *arguments)
        fresh = editor.call(quantized.next, DEQUANTIZE, quantized, *arguments)
        for reader in readers:
            reader.replace_input_with(tensor, fresh)
            if reader.op == "output":
                editor.rename_output(tensor, fresh)
    for name, weight in student.rounded_weights.items():
        q, scale, zero_point = weight.steps()
        stored = (q.to(torch.int8), scale.float(), zero_point.to(torch.int64))
        low, high = ends(weight.bits)
        layer = nodes[name]
        fresh = editor.call(
            layer, DEQUANTIZE_WEIGHT, *(editor.constant(_own(t)) for t in stored), 0, low, high, torch.int8
        )
        layer.args = (layer.args[0], fresh, *layer.args[2:])
    for name, bias in student.floats.items():
        nodes[name].replace_all_uses_with(editor.constant(_own(bias)))
    editor.fired += 1
    editor.drop_unused()
    return editor.finish()


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
