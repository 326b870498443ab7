"""Operations that change no value at inference: alias, detach, contiguous, clone, dropout, expand to the same shape.

Each is the identity, f(x) = x. coremltools stops at `alias`; XNNPACK's partitions end at `expand`.
"""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape, value

_aten = torch.ops.aten
_IDENTITIES = (
    _aten.alias.default, _aten.detach.default, _aten.contiguous.default, _aten.clone.default,
    _aten.lift_fresh_copy.default, _aten.alias_copy.default,
)  # fmt: skip
_STRIDES = (
    _aten.contiguous.default, _aten.clone.default, _aten.lift_fresh_copy.default, _aten.alias_copy.default,
    _aten.expand.default,
)  # fmt: skip
# An expanded constant is stored: never more than the first, and more than the second only where it grows little.
_MOST, _LITTLE, _GROWTH = 1 << 20, 1 << 16, 4
_DROPOUTS = (_aten.dropout.default, _aten.feature_dropout.default)


def drop_noops(program: ExportedProgram) -> ExportedProgram:
    """Let users read the operand itself; a constant expanded to another shape becomes that constant."""
    editor = Editor(program)
    # `view` refuses the strides that contiguous and clone were put there to change, `as_strided` reads them;
    # `reshape` does not mind.
    strided = editor.reads_strides
    for node in editor.nodes(*_IDENTITIES, *_DROPOUTS, _aten.expand.default):
        source = node.args[0]
        if not isinstance(source, Node) or (strided and node.target in _STRIDES):
            continue
        if node.target is _aten.expand.default:
            _drop_expand(editor, node, source)
        elif node.target not in _DROPOUTS or not argument(node, 2, "train", True):
            editor.replace(node, source)
    return editor.finish()


def _drop_expand(editor: Editor, node: Node, source: Node) -> None:
    """Expand to the same shape is nothing; expand of a constant is another constant."""
    size = shape(node)
    if size is None:
        return
    constant = editor.constant_value(source)
    if shape(source) == size:
        editor.replace(node, source)
    elif constant is not None and value(source) is not None:
        expanded = constant.detach().expand(size)
        stored = expanded.numel() * expanded.element_size()
        if stored > _MOST or (stored > _LITTLE and expanded.numel() > _GROWTH * constant.numel()):
            return
        expanded = expanded.contiguous()
        editor.replace(node, editor.constant(expanded, ("expand", source.name, size)))
