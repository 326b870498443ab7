"""Operations that change no value at inference: alias, detach, contiguous, clone, dropout, expand to the same shape.

Each is the identity, f(x) = x. coremltools stops at `alias`; XNNPACK's partitions end at `expand`.
"""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape

_aten = torch.ops.aten
_IDENTITIES = (
    _aten.alias.default, _aten.detach.default, _aten.contiguous.default, _aten.clone.default,
    _aten.lift_fresh_copy.default, _aten.alias_copy.default,
)  # fmt: skip
_STRIDES = (
    _aten.contiguous.default, _aten.clone.default, _aten.lift_fresh_copy.default, _aten.alias_copy.default,
    _aten.expand.default,
)  # fmt: skip
_DROPOUTS = (_aten.dropout.default, _aten.feature_dropout.default)


def drop_noops(program: ExportedProgram) -> ExportedProgram:
    """Let users read the operand itself."""
    editor = Editor(program)
    # `view` refuses the strides that contiguous and clone were put there to change, `as_strided` reads them;
    # `reshape` does not mind.
    strided = editor.reads_strides
    for node in editor.nodes(*_IDENTITIES, *_DROPOUTS, _aten.expand.default):
        source = node.args[0]
        if not isinstance(source, Node) or (strided and node.target in _STRIDES):
            continue
        if node.target is _aten.expand.default:
            if shape(source) is not None and shape(source) == shape(node):
                editor.replace(node, source)
        elif node.target not in _DROPOUTS or not argument(node, 2, "train", True):
            editor.replace(node, source)
    return editor.finish()
