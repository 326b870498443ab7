"""Convolutions that name their padding, with the numbers that it stands for.

conv(x, w, padding="valid") = conv(x, w, padding=0)
conv(x, w, padding="same")  = conv(x, w, padding=d (k - 1) / 2)     where d (k - 1) is even
"""

import torch
from torch.export import ExportedProgram

from edgekit.graph._edit import Editor, argument, shape

_aten = torch.ops.aten


def explicit_paddings(program: ExportedProgram) -> ExportedProgram:
    """`conv2d.padding` as `conv2d`; one that pads its two sides differently stays."""
    editor = Editor(program)
    for node in editor.nodes(_aten.conv2d.padding):
        size = shape(argument(node, 1, "weight"))
        stride, dilation = argument(node, 3, "stride", [1, 1]), argument(node, 5, "dilation", [1, 1])
        if size is None:
            continue
        both = [d * (k - 1) for d, k in zip([*dilation, *dilation], size[2:], strict=False)]
        if argument(node, 4, "padding", "valid") == "valid":
            both = [0, 0]
        if any(n % 2 for n in both):
            editor.refuse(node, "its padding differs on the two sides")
            continue
        new = editor.call(
            node, _aten.conv2d.default, node.args[0], node.args[1], argument(node, 2, "bias"), list(stride),
            [n // 2 for n in both], list(dilation), argument(node, 6, "groups", 1),
        )  # fmt: skip
        editor.replace(node, new)
    return editor.finish()
