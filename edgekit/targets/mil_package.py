"""Read the ML program out of a .mlpackage: its operations, constants and weights, as torch tensors.

Reads Apple's published formats (`Model.proto`, `MIL.proto`, the weight file of MIL's blob storage) directly, because
importing coremltools to do it costs seconds. Half precision constants are held in float32, float32 ones share the
memory that the weight file was read into.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edgekit.targets.mil_ops import HOLDERS, UnknownMilOp
from edgekit.targets.mil_quant import unpack_bits

#: The part of Apple's `Model.proto` and `MIL.proto` that a program needs: "name:number:type", "*" for repeated.
#: Maps are read as repeated key/value pairs, which is what they are on
#: the wire.
_SCHEMA: Mapping[str, str] = MappingProxyType({
    "Model": "specificationVersion:1:int32 mlProgram:502:Program",
    "Program": "version:1:int64 functions:2:*FunctionEntry",
    "FunctionEntry": "key:1:string value:2:Function",
    "Function": "inputs:1:*NamedType opset:2:string blocks:3:*BlockEntry",
    "BlockEntry": "key:1:string value:2:Block",
    "Block": "outputs:2:*string operations:3:*Operation",
    "Operation": "type:1:string inputs:2:*ArgumentEntry outputs:3:*NamedType blocks:4:*Block attributes:5:*ValueEntry",
    "ArgumentEntry": "key:1:string value:2:Argument",
    "Argument": "arguments:1:*Binding",
    "Binding": "name:1:string value:2:Value",
    "ValueEntry": "key:1:string value:2:Value",
    "NamedType": "name:1:string type:2:ValueType",
    "ValueType": "tensor:1:TensorType",
    "TensorType": "dataType:1:int32 rank:2:int64 dimensions:3:*Dimension",
    "Dimension": "constant:1:Constant",
    "Constant": "size:1:uint64",
    "Value": "type:2:ValueType immediate:3:Immediate blob:5:Blob",
    "Immediate": "tensor:1:TensorValue",
    "Blob": "fileName:1:string offset:2:uint64",
    "TensorValue": "floats:1:Floats ints:2:Ints bools:3:Bools strings:4:Strings longs:5:Longs doubles:6:Doubles "
                   "bytes:7:Bytes",
    "Floats": "values:1:*float", "Ints": "values:1:*int32", "Bools": "values:1:*bool", "Strings": "values:1:*string",
    "Longs": "values:1:*int64", "Doubles": "values:1:*double", "Bytes": "values:1:bytes",
})  # fmt: skip

#: `DataType` numbers of MIL.proto, by the names that MIL's own string parameters use.
_DTYPES: Mapping[int, str] = MappingProxyType({
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 21: "int8", 22: "int16", 23: "int32", 24: "int64",
    25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1",
    38: "uint6", 39: "uint3",
})  # fmt: skip
NUMPY_TYPES: Mapping[str, str] = MappingProxyType({
    "bool": "?", "fp16": "<f2", "fp32": "<f4", "fp64": "<f8", "int8": "<i1", "int16": "<i2", "int32": "<i4",
    "int64": "<i8", "uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8",
})  # fmt: skip
_SUB_BYTE: Mapping[str, int] = MappingProxyType({
    "int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6,
})  # fmt: skip
_BLOB_MARK = 0xDEADBEEF

Value: TypeAlias = Tensor | str


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape (None for a size not fixed) and MIL type ("fp32", "fp16", "int32" …) of one value."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Constant:
    """A value given in place, where other arguments name the value they read."""

    value: Value


@dataclass(frozen=True)
class Operation:
    """One op as the program writes it. `nested`: it has blocks of its own (control flow)."""

    kind: str
    arguments: Mapping[str, tuple[str | Constant, ...]]
    outputs: tuple[TensorInfo, ...]
    nested: bool


@dataclass(frozen=True)
class Program:
    """What a package holds: operations in their order of execution, and the constants that they read by name."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Value]


def read(package: Path) -> Program:
    """Read a .mlpackage.

    Raises ValueError, saying what is wrong, for a package that is incomplete, damaged or not an ML program, and
    UnknownMilOp for a value of a kind that is not implemented (lists, states).
    """
    try:
        return _Reader(package).program()
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RuntimeError, OSError) as error:
        raise ValueError(f"{package}: damaged Core ML package: {type(error).__name__}: {error}") from error


class _Reader:
    """Reads one package; every check that fails names the file and the value."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self.spec = self._root_model()
        self._files: dict[str, bytearray] = {}

    def program(self) -> Program:
        model = self._parsed()
        functions = {entry.key: entry.value for entry in model.mlProgram.functions}
        function = functions.get("main") or next(iter(functions.values()), None)
        if function is None:
            raise ValueError(f"{self.spec}: holds no function: not an ML program, or damaged")
        block = {entry.key: entry.value for entry in function.blocks}.get(function.opset)
        if block is None:
            raise ValueError(f"{self.spec}: has no block for its opset {function.opset!r}")
        inputs = [self._info(i) for i in function.inputs]
        known = {i.name: i for i in inputs}
        constants: dict[str, Value] = {}
        operations: list[Operation] = []
        for proto in block.operations:
            outputs = tuple(self._info(o) for o in proto.outputs)
            attributes = {a.key: a.value for a in proto.attributes if a.key != "name"}
            if proto.type == "const":
                constants[outputs[0].name] = self._value(attributes["val"], outputs[0].name)
            else:
                arguments: dict[str, tuple[str | Constant, ...]] = {
                    key: (Constant(self._value(value, outputs[0].name)),) for key, value in attributes.items()
                }
                for entry in proto.inputs:
                    arguments[entry.key] = tuple(self._binding(b, known, proto) for b in entry.value.arguments)
                operations.append(Operation(proto.type, MappingProxyType(arguments), outputs, bool(proto.blocks)))
            known.update((o.name, o) for o in outputs)
        missing = [name for name in block.outputs if name not in known]
        if missing or not block.outputs:
            raise ValueError(f"{self.spec}: output {', '.join(missing) or '(none)'} is not computed: damaged")
        return Program(tuple(inputs), tuple(known[name] for name in block.outputs), tuple(operations), constants)

    def _root_model(self) -> Path:
        manifest = self.package / "Manifest.json"
        if not manifest.is_file():
            raise ValueError(f"{self.package}: not a Core ML package (no Manifest.json)")
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
            path = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{manifest}: damaged manifest: {error}") from error
        return self._inside(self.package / "Data" / path)

    def _inside(self, path: Path) -> Path:
        if not path.resolve().is_relative_to(self.package.resolve()):
            raise ValueError(f"{self.package}: refers to {path}, outside the package")
        if not path.is_file():
            raise ValueError(f"{self.package}: has no file {path.name}")
        return path

    def _parsed(self) -> Any:
        from google.protobuf.message import DecodeError

        try:
            model = _model_class()()
            model.ParseFromString(self.spec.read_bytes())
        except DecodeError as error:
            raise ValueError(f"{self.spec}: truncated or damaged (protobuf: {error})") from error
        if not model.HasField("mlProgram"):
            raise ValueError(f"{self.spec}: not an ML program (a neural network, or truncated)")
        return model

    def _info(self, named: Any) -> TensorInfo:
        if not named.type.HasField("tensor"):
            raise UnknownMilOp(f"{self.spec}: value {named.name!r} is not a tensor (a list, tuple or state)")
        kind = _DTYPES.get(named.type.tensor.dataType)
        if kind is None:
            raise UnknownMilOp(f"{self.spec}: value {named.name!r} has data type {named.type.tensor.dataType}")
        sizes = tuple(d.constant.size if d.HasField("constant") else None for d in named.type.tensor.dimensions)
        return TensorInfo(named.name, sizes, kind)

    def _binding(self, binding: Any, known: Mapping[str, TensorInfo], proto: Any) -> str | Constant:
        if binding.HasField("value"):
            return Constant(self._value(binding.value, proto.type))
        if binding.name not in known:
            raise ValueError(f"{self.spec}: {proto.type} reads {binding.name!r}, which nothing computes: damaged")
        return str(binding.name)

    def _value(self, value: Any, name: str) -> Value:
        kind = _DTYPES.get(value.type.tensor.dataType)
        if kind is None or not value.type.HasField("tensor"):
            raise UnknownMilOp(f"{self.spec}: constant {name!r} is of a type that the evaluator does not know")
        shape = [d.constant.size for d in value.type.tensor.dimensions]
        count = math.prod(shape)
        if value.HasField("blob"):
            raw = self._blob(value.blob, kind, count, name)
        else:
            stored = value.immediate.tensor
            which = next((f for f in ("floats", "ints", "bools", "longs", "doubles") if stored.HasField(f)), "")
            if kind == "string":
                texts = list(stored.strings.values)
                if len(texts) != 1:
                    raise UnknownMilOp(f"{self.spec}: constant {name!r} holds {len(texts)} strings")
                return str(texts[0])
            if which:
                raw = np.array(getattr(stored, which).values, dtype=NUMPY_TYPES[kind])
            else:
                raw = self._from_bytes(bytearray(stored.bytes.values), kind, count)
        if raw.size != count:
            raise ValueError(f"{self.spec}: constant {name!r} holds {raw.size} values for shape {shape}: damaged")
        return torch.from_numpy(raw).to(HOLDERS[kind]).reshape(shape)

    def _blob(self, blob: Any, kind: str, count: int, name: str) -> np.ndarray:
        """The bytes of one weight: a 64-byte header at `offset` (mark, type, size, place), then the data."""
        data = self._weights(blob.fileName)
        where = f"{blob.fileName.rsplit('/', 1)[-1]}: weight {name!r}"
        if blob.offset + 64 > len(data):
            raise ValueError(f"{self.package}: {where} starts at {blob.offset}, the file ends at {len(data)}: cut off")
        header = np.frombuffer(data, "<u8", 3, blob.offset)
        size, start = int(header[1]), int(header[2])
        if int(header[0]) & 0xFFFFFFFF != _BLOB_MARK:
            raise ValueError(f"{self.package}: {where} has no header at {blob.offset}: damaged")
        if start + size > len(data):
            raise ValueError(f"{self.package}: {where} ends at {start + size}, the file at {len(data)}: truncated")
        return self._from_bytes(memoryview(data)[start : start + size], kind, count)

    def _from_bytes(self, data: bytearray | memoryview, kind: str, count: int) -> np.ndarray:
        if kind not in _SUB_BYTE:
            return np.frombuffer(data, NUMPY_TYPES[kind])
        bits = _SUB_BYTE[kind]
        if len(data) * 8 < bits * count:
            return np.frombuffer(data, "<u1")[:0]
        values = unpack_bits(torch.frombuffer(data, dtype=torch.uint8), bits, count).numpy()
        return ((values.astype(np.int8) ^ 8) - 8) if kind == "int4" else values

    def _weights(self, name: str) -> bytearray:
        """A weight file, read once into memory that the tensors share: no second copy of float32 weights."""
        if name not in self._files:
            prefix = "@model_path/"
            if not name.startswith(prefix):
                raise ValueError(f"{self.spec}: refers to the file {name!r}, which is not relative to the model")
            self._files[name] = bytearray(self._inside(self.spec.parent / name.removeprefix(prefix)).read_bytes())
        return self._files[name]


@lru_cache(maxsize=1)
def _model_class() -> Callable[..., Any]:
    """The message class of `_SCHEMA`, in a pool of its own so that coremltools' copy is not disturbed."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="edgekit/mil.proto", package="edgekit.mil", syntax="proto3")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            label, number, kind = text.split(":")
            repeated, kind = kind.startswith("*"), kind.removeprefix("*")
            entry = message.field.add(name=label, number=int(number))
            entry.label = types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL
            if kind in _SCHEMA:
                entry.type, entry.type_name = types.TYPE_MESSAGE, f".edgekit.mil.{kind}"
            else:
                entry.type = types.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("edgekit.mil.Model"))
