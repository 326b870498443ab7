"""The runtimes that a board may have, each as a call from arrays to arrays."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Callable, List, Sequence

import numpy as np

Array = Any  # a numpy array; boards have versions of numpy of all ages
Call = Callable[[Sequence[Array]], List[Array]]

LITERT = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")
# The first of these that is installed; they read the same files.
LITERT_TITLES = {"ai_edge_litert": "LiteRT", "tflite_runtime": "TFLite", "tensorflow": "TensorFlow Lite"}


class Failure(Exception):
    """What a user can understand: `code` is the exit code of the command line."""

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


class Runtime:
    """A model file and what runs it: `name` with its version, `load(threads)` to get a call."""

    def __init__(self, name: str, load: Callable[[int], Call]) -> None:
        self.name, self.load = name, load


def runtime_of(folder: Path, facts: dict[str, Any]) -> Runtime:
    """The runtime of `facts["target"]`; raises `Failure` with the pip line where the board has none."""
    return RUNTIMES[facts["target"]](folder / facts["model"], facts)


def _tflite(model: Path, facts: dict[str, Any]) -> Runtime:
    module = _litert()
    package = module.__name__.partition(".")[0]
    name = f"{LITERT_TITLES[package]} {_version(package)}"
    return Runtime(name, lambda threads: _tflite_call(module, model, threads))


def _litert() -> Any:
    for name in LITERT:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise Failure(
        "there is no runtime for .tflite here",
        "Type there: python3 -m pip install ai-edge-litert (or tflite-runtime, for Python 3.11 and older).",
        3,
    )


def _tflite_call(module: Any, model: Path, threads: int) -> Call:
    interpreter = module.Interpreter(model_path=str(model), num_threads=threads or None)
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()
    # args_0 … args_10: the converter's names, in the order of their numbers.
    taken = sorted(signature.get_input_details(), key=_number)
    given = sorted(signature.get_output_details(), key=_number)

    def run(arrays: Sequence[Array]) -> list[Array]:
        results = signature(**dict(zip(taken, arrays)))
        return [np.array(results[name]) for name in given]

    return run


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"(\d+)$", name)
    return (int(digits.group(1)) if digits else 0, name)


def _onnx(model: Path, facts: dict[str, Any]) -> Runtime:
    try:
        import onnxruntime
    except ImportError:
        raise Failure("there is no ONNX Runtime here", "Type there: python3 -m pip install onnxruntime", 3) from None

    def load(threads: int) -> Call:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        return lambda arrays: session.run(None, dict(zip(names, arrays)))

    return Runtime("ONNX Runtime " + onnxruntime.__version__, load)


def _executorch(model: Path, facts: dict[str, Any]) -> Runtime:
    try:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime as Executorch
    except ImportError:
        raise Failure("there is no ExecuTorch here", "Type there: python3 -m pip install executorch", 3) from None

    def load(threads: int) -> Call:
        if threads and portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        method = Executorch.get().load_program(model).load_method("forward")
        assert method is not None, "the program has no method `forward`"

        def run(arrays: Sequence[Array]) -> list[Array]:
            results = method.execute([torch.from_numpy(np.ascontiguousarray(a)) for a in arrays])
            # The runtime reuses its output buffers at the next call.
            return [y.numpy().copy() for y in results]

        return run

    return Runtime("ExecuTorch " + _version("executorch"), load)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "of unknown version"


RUNTIMES: dict[str, Callable[[Path, dict[str, Any]], Runtime]] = {
    "tflite": _tflite,
    "onnx": _onnx,
    "executorch": _executorch,
}
