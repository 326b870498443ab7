"""ONNX: a Q/DQ graph in the form that ONNX Runtime fuses into integer kernels, where ATen has no words for it.

Conv(DQ(Pad(q, z)))            = Conv(DQ(q)) with the pads its own: a kernel pads each side by another number
ReduceMean over a map          = GlobalAveragePool, the mean that has an integer kernel
"""

from typing import Any

import numpy as np

_MAP = {2, 3}


def fuse(onnx: Any, model: Any) -> None:
    """Shape the Q/DQ graph of `model`, in place; `onnx` is the package of that name."""
    graph = _Graph(onnx, model)
    for node in list(model.graph.node):
        if node.op_type == "Conv":
            graph.take_pads(node)
        elif node.op_type == "ReduceMean":
            graph.pool(node)
    graph.sweep()


class _Graph:
    """Who makes and who reads each value of a graph."""

    def __init__(self, onnx: Any, model: Any) -> None:
        self.onnx, self.graph = onnx, model.graph
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker = {name: node for node in model.graph.node for name in node.output}

    def value(self, name: str) -> Any:
        """The array of an initializer, or None."""
        return self.onnx.numpy_helper.to_array(self.stored[name]) if name in self.stored else None

    def take_pads(self, conv: Any) -> None:
        """Let a convolution pad by itself where its input was padded with the integer that means zero."""
        dequantize = self.maker.get(conv.input[0])
        pad = self.maker.get(dequantize.input[0]) if dequantize is not None else None
        if pad is None or dequantize.op_type != "DequantizeLinear" or pad.op_type != "Pad":
            return
        pads, fill = self.value(pad.input[1]), self.value(pad.input[2]) if len(pad.input) > 2 else None
        zero = self.value(dequantize.input[2])
        attribute = next((a for a in conv.attribute if a.name == "pads"), None)
        if pads is None or fill is None or attribute is None or len(pad.input) > 3 or not np.array_equal(fill, zero):
            return
        begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
        if min(pads) < 0 or any((*begin[:2], *end[:2])):
            return
        own = [*begin[2:], *end[2:]]
        attribute.ints[:] = [int(a + b) for a, b in zip(attribute.ints, own, strict=True)]
        scale, zero_point = dequantize.input[1:3]
        unpadded = f"{conv.input[0]}_unpadded"
        if unpadded not in self.maker:
            fresh = self.onnx.helper.make_node(
                "DequantizeLinear", [pad.input[0], scale, zero_point], [unpadded], name=unpadded
            )
            self.maker[unpadded] = fresh
            self.graph.node.insert(list(self.graph.node).index(dequantize), fresh)
        conv.input[0] = unpadded

    def pool(self, mean: Any) -> None:
        """The mean over height and width of a quantized map as a pool."""
        source = self.maker.get(mean.input[0])
        axes = self.value(mean.input[1]) if len(mean.input) > 1 else None
        keeps = next((a.i for a in mean.attribute if a.name == "keepdims"), 1)
        if source is None or source.op_type != "DequantizeLinear" or axes is None or not keeps:
            return
        if {int(a) % 4 for a in axes} == _MAP:
            mean.op_type = "GlobalAveragePool"
            del mean.input[1:], mean.attribute[:]

    def sweep(self) -> None:
        """Leave out what nothing reads any more."""
        while True:
            read = {name for node in self.graph.node for name in node.input} | {o.name for o in self.graph.output}
            kept = [node for node in self.graph.node if read.intersection(node.output)]
            if len(kept) == len(self.graph.node):
                break
            del self.graph.node[:]
            self.graph.node.extend(kept)
        stored = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(stored)
