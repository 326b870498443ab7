"""LiteRT's profiler. Its Python package has none, but the C library in it does: called here through ctypes.

The layouts below are those of one version and are tried with no other. Declarations: litert/c/*.h of LiteRT.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_uint64, c_void_p
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, List, Sequence, Tuple

import numpy as np

from edgekit.devices.board.runtimes import Failure

KNOWN = ("2.3.0",)
CPU, WRITE = 1, 1
_RANKED_TENSOR_BYTES = 512  # more than the structure has

Event = Tuple[str, int, int, int, int]
"""(tag, kind, start, microseconds, index); `kind` is OPERATOR for a built-in kernel, INSIDE for an op of a delegate,
which has no start, and DEFAULT for the rest."""
DEFAULT, OPERATOR, INSIDE = 1, 2, 8


class _Event(ctypes.Structure):
    _fields_ = [
        ("tag", c_char_p),
        ("kind", c_int),
        ("start_us", c_uint64),
        ("us", c_uint64),
        ("memory", c_int64 * 6),
        ("index", c_int64),
        ("more", c_int64),
        ("source", c_int),
    ]


class Profiler:
    """A model, compiled for the CPU with its profiler; `run` is one inference of the arrays given.

    Raises `Failure` where another version of the library is installed, or none.
    """

    def __init__(self, model: Path, arrays: Sequence[Any], threads: int) -> None:
        self.name, self._library = _library()
        self._kept: List[Any] = []
        self._environment = self._made("LiteRtCreateEnvironment", c_int(0), None)
        self._model = self._made("LiteRtCreateModelFromFile", self._environment, c_char_p(str(model).encode()))
        options = self._options(threads)
        self._compiled = self._made("LiteRtCreateCompiledModel", self._environment, self._model, options)
        self._library.LiteRtDestroyOptions(options)
        self._profiler = self._made("LiteRtCompiledModelGetProfiler", self._compiled)
        self._signature = self._made("LiteRtGetModelSignature", self._model, c_size_t(0))
        self._inputs, self._outputs = self._buffers("Input"), self._buffers("Output")
        self._fill(arrays)
        self._run = self._library.LiteRtRunCompiledModel

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        for buffer in (*self._inputs, *self._outputs):
            self._library.LiteRtDestroyTensorBuffer(c_void_p(buffer))
        self._library.LiteRtDestroyCompiledModel(self._compiled)
        self._library.LiteRtDestroyModel(self._model)
        self._library.LiteRtDestroyEnvironment(self._environment)

    def run(self) -> None:
        inputs, outputs = self._inputs, self._outputs
        status = self._run(self._compiled, c_size_t(0), c_size_t(len(inputs)), inputs, c_size_t(len(outputs)), outputs)
        _check("LiteRtRunCompiledModel", status)

    def start(self) -> None:
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)

    def stop(self) -> List[Event]:
        """What happened since `start`."""
        self._call("LiteRtStopProfiler", self._profiler)
        count = c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        kinds = (DEFAULT, OPERATOR, INSIDE)  # the others are no times
        return [
            (e.tag.decode("utf-8", "replace"), e.kind, e.start_us, e.us, e.index) for e in events if e.kind in kinds
        ]

    def _options(self, threads: int) -> c_void_p:
        options = self._made("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, c_int(CPU))
        keep = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)
        for name, text in (
            (b"runtime_options_string", b"enable_profiling = true\n"),
            (b"xnnpack", b"num_threads = %d\n" % (threads or 1)),
        ):
            payload = ctypes.create_string_buffer(text)
            opaque = self._made("LiteRtCreateOpaqueOptions", c_char_p(name), payload, keep)
            self._call("LiteRtAddOpaqueOptions", options, opaque)
            self._kept += [payload, keep]  # they are not copied
        return options

    def _buffers(self, kind: str) -> Any:
        """Memory for each input (output) of the first signature, as the compiled model asks for it."""
        count = c_size_t()
        self._call(f"LiteRtGetNumSignature{kind}s", self._signature, byref(count))
        buffers = (c_void_p * count.value)()
        for n in range(count.value):
            tensor = self._made(f"LiteRtGetSignature{kind}TensorByIndex", self._signature, c_size_t(n))
            layout = ctypes.create_string_buffer(_RANKED_TENSOR_BYTES)
            self._call("LiteRtGetRankedTensorType", tensor, layout)
            needs = self._made(
                f"LiteRtGetCompiledModel{kind}BufferRequirements", self._compiled, c_size_t(0), c_size_t(n)
            )
            made = self._made("LiteRtCreateManagedTensorBufferFromRequirements", self._environment, layout, needs)
            buffers[n] = made.value
        return buffers

    def _fill(self, arrays: Sequence[Any]) -> None:
        names = []
        for n in range(len(self._inputs)):
            name = self._made("LiteRtGetSignatureInputName", self._signature, c_size_t(n), kind=c_char_p)
            names.append(name.value.decode())
        # args_0 … args_10: the converter's names, in the order of their numbers.
        order = sorted(range(len(names)), key=lambda n: (len(names[n]), names[n]))
        for n, array in zip(order, arrays):
            data, size = np.ascontiguousarray(array), c_size_t()
            buffer = c_void_p(self._inputs[n])
            self._call("LiteRtGetTensorBufferPackedSize", buffer, byref(size))
            if size.value != data.nbytes:
                raise Failure(f"an input of {data.nbytes} bytes was given where the model takes {size.value}", "", 2)
            address = c_void_p()
            self._call("LiteRtLockTensorBuffer", buffer, byref(address), c_int(WRITE))
            ctypes.memmove(address, data.ctypes.data, data.nbytes)
            self._call("LiteRtUnlockTensorBuffer", buffer)

    def _made(self, function: str, *arguments: Any, kind: Any = c_void_p) -> Any:
        """What a function writes to the pointer that is its last argument."""
        result = kind()
        self._call(function, *arguments, byref(result))
        return result

    def _call(self, function: str, *arguments: Any) -> None:
        _check(function, getattr(self._library, function)(*arguments))


def _check(function: str, status: int) -> None:
    if status:
        raise Failure(f"LiteRT's profiler failed: {function} gave status {status}", "", 2)


def _library() -> Tuple[str, Any]:
    """The name of the runtime, and its C library."""
    try:
        installed = version("ai-edge-litert")
    except PackageNotFoundError:
        installed = ""
    if installed not in KNOWN:
        what = f"ai-edge-litert {installed}" if installed else "what runs .tflite files here"
        raise Failure(
            f"times of operators are read from ai-edge-litert {' or '.join(KNOWN)}, and not from {what}",
            f"Type there: python3 -m pip install ai-edge-litert=={KNOWN[-1]}",
            3,
        )
    import ai_edge_litert

    path = next(p for p in sorted(Path(ai_edge_litert.__file__).parent.glob("libLiteRt.*")))
    return f"LiteRT {installed}", ctypes.CDLL(str(path))
