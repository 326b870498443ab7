"""Everything that only renames dimensions or takes a part, as `reshape` and stride-1 `slice`.

    select(x, d, i)             = reshape(slice(x, d, i, i + 1))
    unbind(x, d)[i]             = select(x, d, i)
    split/chunk(x, sizes, d)[i] = slice(x, d, start_i, end_i)
    squeeze, unsqueeze, flatten, unflatten, view = reshape

XNNPACK has slice and reshape but neither select, split, squeeze nor (except at the end) unsqueeze.
"""

import operator

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, shape

_aten = torch.ops.aten
_RENAMES = (
    _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.unsqueeze.default, _aten.flatten.using_ints,
    _aten.unflatten.int, _aten.view.default, _aten._unsafe_view.default,
)  # fmt: skip
_SPLITS = (
    _aten.unbind.int, _aten.split.Tensor, _aten.split.sizes, _aten.split_with_sizes.default, _aten.chunk.default,
)  # fmt: skip


def reshape_views(program: ExportedProgram) -> ExportedProgram:
    """Squeeze, unsqueeze, flatten, unflatten and view of static shape as reshape."""
    editor = Editor(program)
    for node in editor.nodes(*_RENAMES):
        size = shape(node)
        if size is not None and shape(node.args[0]) is not None:
            editor.replace(node, editor.call(node, _aten.reshape.default, node.args[0], list(size)))
    return editor.finish()


def slice_selects(program: ExportedProgram) -> ExportedProgram:
    """Select, unbind, split and chunk as slices (and a reshape where a dimension goes)."""
    editor = Editor(program)
    for node in editor.nodes(_aten.select.int):
        source, result = shape(node.args[0]), shape(node)
        dim, start = argument(node, 1, "dim"), argument(node, 2, "index")
        if source is None or result is None or not isinstance(start, int):
            continue
        dim, start = dim % len(source), start % source[dim]
        part = editor.call(node, _aten.slice.Tensor, node.args[0], dim, start, start + 1)
        editor.replace(node, editor.call(node, _aten.reshape.default, part, list(result)))
    for node in editor.nodes(*_SPLITS):
        source = shape(node.args[0])
        users = list(node.users)
        if source is None or not users or any(u.target is not operator.getitem for u in users):
            continue
        _slice_parts(editor, node, users, source)
    return editor.finish()


def _slice_parts(editor: Editor, node: Node, users: list[Node], source: tuple[int, ...]) -> None:
    """Replace the parts that are used of one split."""
    unbind = node.target is _aten.unbind.int
    dim = argument(node, 1 if unbind else 2, "dim", 0) % len(source)
    sizes = [1 if unbind else int(part.shape[dim]) for part in node.meta["val"]]
    for user in users:
        index = argument(user, 1, "index") % len(sizes)
        start = sum(sizes[:index])
        part = editor.call(user, _aten.slice.Tensor, node.args[0], dim, start, start + sizes[index])
        if unbind:
            part = editor.call(user, _aten.reshape.default, part, list(user.meta["val"].shape))
        # A part is the program's own node, with its own source line; getitem carries that of the split.
        part.meta.setdefault("stack_trace", node.meta.get("stack_trace", ""))
        editor.replace(user, part)


def merge_reshapes(program: ExportedProgram) -> ExportedProgram:
    """reshape(reshape(x, a), b) = reshape(x, b), and x itself where b is its shape."""
    editor = Editor(program)
    if editor.reads_strides:
        return program
    for node in editor.nodes(_aten.reshape.default):
        root = node.args[0]
        while isinstance(root, Node) and root.target is _aten.reshape.default:
            root = root.args[0]
        size = shape(node)
        if not isinstance(root, Node) or size is None:
            continue
        if shape(root) == size:
            editor.replace(node, root)
        elif root is not node.args[0]:
            editor.replace(node, editor.call(node, _aten.reshape.default, root, list(size)))
    return editor.finish()


def cropping_pads(program: ExportedProgram) -> ExportedProgram:
    """pad(slice(x)) as one pad, negative where the slice cuts; not where it both cuts and pads one side."""
    editor = Editor(program)
    for node in editor.nodes(_aten.pad.default, _aten.constant_pad_nd.default):
        pads = list(argument(node, 1, "pad"))
        mode = argument(node, 2, "mode", "constant") if node.target is _aten.pad.default else "constant"
        root = node.args[0]
        if mode != "constant" or not all(isinstance(n, int) for n in pads):
            continue
        while (cut := _cut(root)) is not None:
            side = 2 * (len(shape(root) or ()) - 1 - cut[0])
            longer = pads + [0] * (side + 2 - len(pads))
            if any(n > 0 and longer[side + i] > 0 for i, n in enumerate(cut[1:])):
                break
            longer[side], longer[side + 1] = longer[side] - cut[1], longer[side + 1] - cut[2]
            assert isinstance(root, Node)
            pads, root = longer, root.args[0]
        if root is not node.args[0]:
            editor.replace(node, editor.call(node, node.target, root, pads, *node.args[2:], **node.kwargs))
    return editor.finish()


def _cut(node: object) -> tuple[int, int, int] | None:
    """Dimension of a stride-1 slice and how many elements it leaves off at its start and end."""
    if not isinstance(node, Node) or node.target is not _aten.slice.Tensor or argument(node, 4, "step", 1) != 1:
        return None
    source, result = shape(node.args[0]), shape(node)
    if source is None or result is None:
        return None
    dim, start = argument(node, 1, "dim", 0) % len(source), argument(node, 2, "start") or 0
    start = min(max(start + source[dim] if start < 0 else start, 0), source[dim])
    return dim, start, source[dim] - start - result[dim]
