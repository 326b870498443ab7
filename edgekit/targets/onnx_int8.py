"""ONNX: a Q/DQ graph in the form that ONNX Runtime fuses into integer kernels, where ATen has no words for it.

Conv(DQ(Pad(q, z)))            = Conv(DQ(q)) with the pads its own: a kernel pads each side by another number
ReduceMean over a map          = GlobalAveragePool, the mean that has an integer kernel
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAP = {2, 3}


def fuse(onnx: Any, model: Any) -> None:
    """Shape the Q/DQ graph of `model`, in place; `onnx` is the package of that name."""
    graph = _Graph(onnx, model)
    for node in list(model.graph.node):
        if node.op_type == "Conv":
            graph.take_pads(node)
        elif node.op_type == "ReduceMean":
            graph.pool(node)
    graph.share_weights()
    graph.sweep()


class _Graph:
    """Who makes and who reads each value of a graph."""

    def __init__(self, onnx: Any, model: Any) -> None:
        self.onnx, self.graph = onnx, model.graph
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.rank = {known.name: len(known.type.tensor_type.shape.dim) for known in model.graph.value_info}

    def value(self, name: str) -> Any:
        """The array of an initializer, or None."""
        return self.onnx.numpy_helper.to_array(self.stored[name]) if name in self.stored else None

    def _made_by(self, name: str, kind: str) -> Any | None:
        """The node of that kind that makes a value."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == kind else None

    def take_pads(self, conv: Any) -> None:
        """Let a convolution pad by itself where its input was padded with the integer that means zero."""
        dequantize = self._made_by(conv.input[0], "DequantizeLinear")
        pad = self._made_by(dequantize.input[0], "Pad") if dequantize else None
        if dequantize is None or pad is None:
            return
        pads, fill = self.value(pad.input[1]), self.value(pad.input[2]) if len(pad.input) > 2 else None
        zero = self.value(dequantize.input[2])
        attribute = next((a for a in conv.attribute if a.name == "pads"), None)
        if pads is None or fill is None or attribute is None or len(pad.input) > 3 or not np.array_equal(fill, zero):
            return
        sides = np.reshape(pads, (2, -1)).copy()
        if sides.min() < 0 or not sides[:, 2:].any():
            return
        attribute.ints[:] = [int(a + b) for a, b in zip(attribute.ints, sides[:, 2:].flat, strict=True)]
        conv.input[0] = self._unpadded(pad, dequantize, sides)

    def _unpadded(self, pad: Any, dequantize: Any, sides: NDArray[Any]) -> str:
        """What a convolution reads whose height and width are no longer padded: its channels still are."""
        result = f"{dequantize.output[0]}_unpadded"
        if result in self.maker:
            return result
        source = pad.input[0]
        if sides[:, :2].any():
            sides[:, 2:] = 0
            amounts = self.onnx.numpy_helper.from_array(sides.flatten(), f"{result}_channels")
            self.graph.initializer.append(amounts)
            source = self._insert(pad, "Pad", [source, amounts.name, pad.input[2]], f"{result}_wide")
        return self._insert(dequantize, "DequantizeLinear", [source, *dequantize.input[1:3]], result)

    def _insert(self, before: Any, kind: str, inputs: list[str], output: str) -> str:
        node = self.onnx.helper.make_node(kind, inputs, [output])
        self.graph.node.insert(list(self.graph.node).index(before), node)
        self.maker[output] = node
        return output

    def pool(self, mean: Any) -> None:
        """The mean over height and width of a quantized map as a pool."""
        axes = self.value(mean.input[1]) if len(mean.input) > 1 else None
        keeps = next((a.i for a in mean.attribute if a.name == "keepdims"), 1)
        if self._made_by(mean.input[0], "DequantizeLinear") is None or axes is None or not keeps:
            return
        if self.rank.get(mean.input[0]) == 4 and {int(a) % 4 for a in axes} == _MAP:
            mean.op_type = "GlobalAveragePool"
            del mean.input[1:], mean.attribute[:]

    def share_weights(self) -> None:
        """One copy of what is stored several times: a layer that is called twice was quantized twice."""
        first: dict[tuple[Any, ...], str] = {}
        names = {t.name: first.setdefault((t.data_type, *t.dims, t.raw_data), t.name) for t in self.graph.initializer}
        for node in self.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]

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
