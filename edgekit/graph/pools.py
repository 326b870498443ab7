"""Means and maxima over a map in the one form XNNPACK and the others share.

mean(x, (-2, -1))                      = reshape(mean(x, (-2, -1), keepdim))        x of (B, C, H, W)
mean(x, (1, 2))                        = mean(permute(x, 0 3 1 2), (-2, -1))        x of (B, H, W, C)
adaptive_avg_pool2d(x, 1)              = mean(x, (-2, -1), keepdim)
amax(x, (-2, -1))                      = max_pool2d(x, (H, W))
avg_pool2d(x, ceil_mode)               = avg_pool2d(x) where the windows tile the map exactly
avg_pool2d(x, padding)                 = avg_pool2d(pad(x, padding)) where the padding counts
adaptive_avg_pool2d(x, (H/a, W/b))     = avg_pool2d(x, (a, b)), x itself where both are 1
pool2d(x, k)                           = pool2d(x, k, stride k): coremltools counts the arguments
"""

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgekit.graph._edit import Editor, argument, dims, shape, value

_aten = torch.ops.aten
_MAP = (2, 3)


def spatial_means(program: ExportedProgram) -> ExportedProgram:
    """Mean over a map, and adaptive average pooling to one pixel, as mean over the last two dimensions with keepdim."""
    editor = Editor(program)
    for node in editor.nodes(_aten.adaptive_avg_pool2d.default):
        if list(node.args[1]) == [1, 1] and len(shape(node.args[0]) or ()) == 4:  # type: ignore[arg-type]
            editor.replace(node, editor.call(node, _aten.mean.dim, node.args[0], [-1, -2], True))
    for node in editor.nodes(_aten.mean.dim):
        source, result = shape(node.args[0]), shape(node)
        if source is None or result is None or len(source) != 4 or argument(node, 3, "dtype") is not None:
            continue
        over, keep = dims(argument(node, 1, "dim"), 4), bool(argument(node, 2, "keepdim", False))
        if over not in (_MAP, (1, 2)) or (over == _MAP and keep):
            continue
        x = node.args[0] if over == _MAP else editor.call(node, _aten.permute.default, node.args[0], [0, 3, 1, 2])
        mean = editor.call(node, _aten.mean.dim, x, [-1, -2], True)
        editor.replace(node, editor.call(node, _aten.reshape.default, mean, list(result)))
    return editor.finish()


def spatial_maxima(program: ExportedProgram) -> ExportedProgram:
    """Maximum over a map, also as adaptive max pooling to one pixel, as one max pooling."""
    editor = Editor(program)
    for node in editor.nodes(_aten.adaptive_max_pool2d.default):
        source, users = shape(node.args[0]), [user for user in node.users if user.users]
        plain = all(user.target is operator.getitem and user.args[1] == 0 for user in users)
        if source is None or list(node.args[1]) != [1, 1] or not plain or 1 in source[-2:]:  # type: ignore[arg-type]
            continue
        pooled = editor.call(node, _aten.max_pool2d.default, node.args[0], list(source[-2:]))
        for user in users:
            editor.replace(user, pooled)
    for node in editor.nodes(_aten.amax.default):
        source, result, val = shape(node.args[0]), shape(node), value(node.args[0])
        if source is None or result is None or val is None or len(source) != 4 or not val.dtype.is_floating_point:
            continue
        if dims(argument(node, 1, "dim", ()), 4) != _MAP or 1 in source[2:]:
            continue
        pooled = editor.call(node, _aten.max_pool2d.default, node.args[0], list(source[2:]))
        if tuple(pooled.meta["val"].shape) != result:
            pooled = editor.call(node, _aten.reshape.default, pooled, list(result))
        editor.replace(node, pooled)
    return editor.finish()


def floor_pools(program: ExportedProgram) -> ExportedProgram:
    """Clear `ceil_mode` of pools whose windows tile the map, and make their counting of padding plain."""
    editor = Editor(program)
    for node in editor.nodes(_aten.avg_pool2d.default):
        source = shape(node.args[0])
        if source is None or not argument(node, 4, "ceil_mode", False) or not _tiles(node, source):
            continue
        kernel, stride, padding = node.args[1], argument(node, 2, "stride", ()), argument(node, 3, "padding", [0, 0])
        count = bool(argument(node, 5, "count_include_pad", True))
        divisor = argument(node, 6, "divisor_override")
        new = editor.call(node, _aten.avg_pool2d.default, node.args[0], kernel, stride, padding, False, count, divisor)
        editor.replace(node, new)
    return editor.finish()


def padded_pools(program: ExportedProgram) -> ExportedProgram:
    """Average pools that count their padding as a pad and a pool; adaptive ones whose windows are equal as plain."""
    editor = Editor(program)
    for node in editor.nodes(_aten.adaptive_avg_pool2d.default):
        source, result = shape(node.args[0]), shape(node)
        if source is None or result is None or any(n % k for n, k in zip(source[-2:], result[-2:], strict=True)):
            continue
        kernel = [n // k for n, k in zip(source[-2:], result[-2:], strict=True)]
        x: Any = node.args[0]
        editor.replace(node, x if kernel == [1, 1] else editor.call(node, _aten.avg_pool2d.default, x, kernel, kernel))
    for node in editor.nodes(_aten.avg_pool2d.default):
        window, stride, padding = node.args[1], argument(node, 2, "stride", ()), _pair(argument(node, 3, "padding", 0))
        ceil, count = argument(node, 4, "ceil_mode", False), argument(node, 5, "count_include_pad", True)
        if padding == (0, 0) or ceil or not count or shape(node.args[0]) is None:
            continue
        borders = [padding[1], padding[1], padding[0], padding[0]]
        padded = editor.call(node, _aten.constant_pad_nd.default, node.args[0], borders)
        divisor = argument(node, 6, "divisor_override")
        new = editor.call(node, _aten.avg_pool2d.default, padded, window, stride, [0, 0], False, True, divisor)
        editor.replace(node, new)
    return editor.finish()


def _tiles(node: Node, source: tuple[int, ...]) -> bool:
    """Whether the last window ends on the last (padded) pixel, so that rounding up adds none."""
    kernel = _pair(node.args[1])
    stride, padding = _pair(argument(node, 2, "stride", ()) or node.args[1]), _pair(argument(node, 3, "padding", 0))
    return all(
        (size + 2 * pad - k) % step == 0
        for size, k, step, pad in zip(source[-2:], kernel, stride, padding, strict=True)
    )


def _pair(given: Any) -> tuple[int, int]:
    values = [given] if isinstance(given, int) else list(given)
    return (values[0], values[-1])


def explicit_strides(program: ExportedProgram) -> ExportedProgram:
    """Pools that leave their stride out get the kernel's, which is what it means."""
    editor = Editor(program)
    for node in editor.nodes(_aten.max_pool2d.default, _aten.avg_pool2d.default):
        if argument(node, 2, "stride", ()):
            continue
        kernel = list(_pair(node.args[1]))
        kept = {k: v for k, v in node.kwargs.items() if k not in ("kernel_size", "stride")}
        new = editor.call(node, node.target, node.args[0], kernel, kernel, *node.args[3:], **kept)
        editor.replace(node, new)
    return editor.finish()
