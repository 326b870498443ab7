"""What `-m` names, turned into a module with its inputs, preprocessing and labels.

A name of the zoo, `path/to/file.py:callable`, `package.module:callable` (each returns an `nn.Module`),
or a `.pt2` file (an ExportedProgram).
"""

import copy
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekit.errors import BadInput, UnknownName
from edgekit.graph.capture import capture
from edgekit.models import (
    ZOO,
    WeightsCard,
    check_input,
    create_model,
    deploy,
    labels_of,
    load_weights,
    read_card,
    read_state,
    weights_file,
)
from edgekit.programs import example_inputs, read_program, read_quantized
from edgekit.quantization import Simulation
from edgekit.types import ModelRequest, ModelSpec, Preprocess, Quantized, Shape, Weights
from edgekit.user_code import call, takes_classes

FORMS = "a zoo name (see `edgekit models`), file.py:callable, package.module:callable, or a .pt2 file"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to be exported: `module` is the reference that every artifact is compared with.

    Of an int8 model (`quantized` says how it was made) that is the Q/DQ program; `float_outputs` are the float model's
    answers to the golden inputs, and `photos` what it was calibrated with, where that is at hand.
    """

    name: str
    request: ModelRequest
    module: nn.Module
    program: ExportedProgram
    inputs: tuple[Tensor, ...]
    weights: Weights
    preprocess: Preprocess | None
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    quantized: Quantized | None = None
    float_outputs: tuple[tuple[NDArray[Any], ...], ...] = ()
    photos: tuple[tuple[Tensor, ...], ...] = ()


def load(request: ModelRequest, module: nn.Module | None = None) -> Loaded:
    """Load and capture the model of `request`, or `module` where the caller holds it already.

    Raises `BadInput`, `UnknownName`, `WeightsMismatch` or `CaptureFailed`.
    """
    _check_statistics(request)
    if request.features_only and (module is not None or request.model not in ZOO):
        raise BadInput(
            f"--features-only is for models of the zoo, and {request.model} is none",
            "Let your own module return its features instead.",
        )
    if request.features_only and request.labels is not None:
        raise BadInput("--labels names classes, and the stage outputs are no classes", "Leave --labels out.")
    if module is None and request.model.endswith(".pt2"):
        return _load_program(request)
    _check_one_shape(request)
    path = weights_file(request.model, request.weights)
    card = None if path is None else read_card(path)
    if card is None:
        return _load_float(replace(request, weights=None if path is None else str(path)), module)
    return _as_card(_load_float(_completed(request, path, card), module), request, card)


def _load_float(request: ModelRequest, module: nn.Module | None) -> Loaded:
    if module is not None:
        if request.num_classes is not None:
            raise BadInput(
                f"num_classes cannot change a module that is there already: {type(module).__name__}",
                "Leave it out, or name what builds the module: file.py:callable.",
            )
        return _load_module(request, type(module).__name__, copy.deepcopy(module), "memory")
    if request.model in ZOO:
        return _load_zoo(request, ZOO[request.model])
    if ":" in request.model:
        return _load_callable(request)
    if request.model.endswith(".py") or Path(request.model).exists():
        raise BadInput(
            f"-m {request.model} names a file but not what to call in it",
            f"Name the function or class that returns the nn.Module: -m {request.model}:NAME. -m takes {FORMS}.",
        )
    raise UnknownName("model", request.model, ZOO)


def _completed(request: ModelRequest, path: Path | None, card: WeightsCard) -> ModelRequest:
    """What is left open, as the weights' card says."""
    height, width = card.image_size
    shape = () if request.image_size is not None or request.input_shape else ((request.batch_size, 3, height, width),)
    return replace(
        request,
        weights=str(path),
        num_classes=card.num_classes if request.num_classes is None and _has_classes(request) else request.num_classes,
        input_shape=request.input_shape or shape,
        batch_size=1 if shape else request.batch_size,
    )


def _has_classes(request: ModelRequest) -> bool:
    """Whether the number of classes can be chosen."""
    return request.model in ZOO or (":" in request.model and takes_classes(request.model))


def _as_card(loaded: Loaded, asked: ModelRequest, card: WeightsCard) -> Loaded:
    """With the preprocessing and the labels that it was trained with, where `asked` says nothing else."""
    preprocess = loaded.preprocess
    same_size = preprocess is not None and preprocess.crop == card.image_size
    if card.preprocess is not None and same_size:
        preprocess = _with_statistics(card.preprocess, asked)
    fits = asked.num_classes in (None, card.num_classes) and not asked.features_only
    notes = tuple(note for note in loaded.notes if not note.startswith("preprocessing is assumed"))
    return replace(
        loaded,
        preprocess=preprocess,
        labels=_read_labels(asked) or (card.labels if fits else ()),
        notes=notes if card.preprocess is not None and same_size else loaded.notes,
    )


def _check_one_shape(request: ModelRequest) -> None:
    for option, given in (("--image-size", request.image_size is not None), ("--batch-size", request.batch_size != 1)):
        if request.input_shape and given:
            raise BadInput(
                f"{option} and --input-shape both say what the shape of the input is",
                f"Leave one of them out: --input-shape 1,3,224,224 needs no {option}.",
            )


def _check_statistics(request: ModelRequest) -> None:
    for option, values in (("--mean", request.mean), ("--std", request.std)):
        if not all(map(math.isfinite, values)):
            raise BadInput(f"{option} has a value that is no number: {values}", f"Type e.g. {option} 0.5,0.5,0.5")


def runs_code(model: str) -> bool:
    """Whether loading what `model` names runs Python that is not edgekit's."""
    return not (model in ZOO or model.endswith(".pt2"))


def _load_zoo(request: ModelRequest, spec: ModelSpec) -> Loaded:
    channels, height, width = spec.input
    shapes = request.input_shape or (
        (request.batch_size, channels, *((height, width) if request.image_size is None else (request.image_size,) * 2)),
    )
    if len(shapes) != 1:
        raise BadInput(f"{spec.name} takes one input N,C,H,W, not {len(shapes)}", "Give --input-shape once.")
    check_input(spec, shapes[0])
    module = create_model(
        spec.name,
        num_classes=request.num_classes,
        in_channels=shapes[0][1],
        image_size=(shapes[0][2], shapes[0][3]),
        features_only=request.features_only,
        weights=request.weights,
        seed=request.seed,
    )
    as_published = request.num_classes in (None, spec.num_classes) and not request.features_only
    random = f"{spec.name} has seeded random weights: its accuracy is meaningless. Give --weights."
    inputs = _seeded(shapes, request.seed)
    preprocess: Preprocess | None = spec.preprocess
    notes: tuple[str, ...] = () if request.weights else (random,)
    if shapes[0][1] != channels:
        preprocess, assumed = _assumed_preprocess(module, shapes[0], request)
        notes = (*notes, *assumed)
    return Loaded(
        name=f"{spec.name}-features" if request.features_only else spec.name,
        request=request,
        module=module,
        program=capture(deploy(module), inputs),
        inputs=inputs,
        weights=_weights_record(request, f"seed:{request.seed}"),
        preprocess=None if preprocess is None else _with_statistics(_scaled(preprocess, shapes[0]), request),
        labels=_read_labels(request) or (labels_of(spec) if as_published else ()),
        notes=notes,
    )


def _load_callable(request: ModelRequest) -> Loaded:
    place, _, attribute = request.model.rpartition(":")
    if place in ("timm", "hf"):
        raise BadInput(
            f"{place}: models cannot be loaded by name in this version", f"-m takes {FORMS}: wrap it in a function."
        )
    return _load_module(request, attribute, call(request.model, request.num_classes, request.seed), "own")


def _load_module(request: ModelRequest, name: str, module: nn.Module, source: str) -> Loaded:
    if request.weights:
        load_weights(module, request.model, read_state(Path(request.weights)), request.weights)
    size = 224 if request.image_size is None else request.image_size
    shapes = request.input_shape or ((request.batch_size, 3, size, size),)
    module.eval()
    preprocess, notes = _assumed_preprocess(module, shapes[0], request)
    inputs = _seeded(shapes, request.seed)
    return Loaded(
        name=name,
        request=request,
        module=module,
        program=capture(deploy(module), inputs),
        inputs=inputs,
        weights=_weights_record(request, source),
        preprocess=preprocess,
        labels=_read_labels(request),
        notes=notes,
    )


def _seeded(shapes: tuple[Shape, ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def _weights_record(request: ModelRequest, otherwise: str) -> Weights:
    if request.weights is None:
        return Weights(source=otherwise)
    return Weights(source=Path(request.weights).name, sha256=sha256(Path(request.weights)))


def _load_program(request: ModelRequest) -> Loaded:
    path = Path(request.model)
    for option, value in (
        ("--weights", request.weights),
        ("--num-classes", request.num_classes),
        ("--image-size", request.image_size),
        ("--input-shape", request.input_shape),
        ("--batch-size", request.batch_size != 1),
    ):
        if value:
            raise BadInput(
                f"{option} cannot change a .pt2 file: its weights and shapes are fixed",
                f"Export it again and leave {option} out.",
            )
    program = read_program(path)
    inputs = example_inputs(program, request.seed)
    module = program.module()
    if (stored := read_quantized(path)) is not None:
        return _load_quantized(request, program, inputs, *stored)
    preprocess, notes = _assumed_preprocess(module, tuple(inputs[0].shape), request)
    return Loaded(
        name=path.stem,
        request=request,
        module=module,
        program=program,
        inputs=inputs,
        weights=Weights(source=path.name, sha256=sha256(path)),
        preprocess=preprocess,
        labels=_read_labels(request),
        notes=notes,
    )


def _load_quantized(
    request: ModelRequest,
    program: ExportedProgram,
    inputs: tuple[Tensor, ...],
    quantized: Quantized,
    float_outputs: tuple[tuple[NDArray[Any], ...], ...],
) -> Loaded:
    for option, value in (("--mean", request.mean), ("--std", request.std)):
        if value:
            raise BadInput(
                f"{option} cannot change {request.model}: it was calibrated with its own preprocessing",
                f"Quantize the model again with {option}.",
            )
    return Loaded(
        name=quantized.name,
        request=request,
        # Integer kernels are simulated as they are; few bits have none, and are what torch computes.
        module=program.module() if quantized.is_simulated else Simulation(program),
        program=program,
        inputs=inputs,
        weights=Weights(source=Path(request.model).name, sha256=sha256(Path(request.model))),
        preprocess=quantized.preprocess,
        labels=_read_labels(request) or quantized.labels,
        notes=quantized.notes,
        quantized=quantized,
        float_outputs=float_outputs,
    )


def _read_labels(request: ModelRequest) -> tuple[str, ...]:
    if request.labels is None:
        return ()
    path = Path(request.labels)
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read as labels ({error})", "Give a text file with one label a line."
        ) from error


def _scaled(preprocess: Preprocess, shape: Shape) -> Preprocess:
    ratio = preprocess.resize / min(preprocess.crop)
    return replace(preprocess, resize=round(min(shape[2:]) * ratio), crop=shape[2:])


def _assumed_preprocess(
    module: nn.Module, shape: Shape, request: ModelRequest
) -> tuple[Preprocess | None, tuple[str, ...]]:
    """timm's own numbers where the module carries them, else ImageNet's, said aloud; None for what is no image."""
    if len(shape) != 4 or shape[1] not in (1, 3):
        return None, ()
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    known = isinstance(config, dict) and {"mean", "std"} <= config.keys()
    channels = shape[1]
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,), (0.5,))
    preprocess = Preprocess(
        resize=int(min(shape[2:]) / (config.get("crop_pct") or 0.875)) if known else round(min(shape[2:]) / 0.875),
        crop=shape[2:],
        interpolation=(config.get("interpolation") or "bicubic") if known else "bicubic",
        mean=tuple(config["mean"]) if known else mean,
        std=tuple(config["std"]) if known else std,
    )
    preprocess = _with_statistics(preprocess, request)
    assumed = {} if known else {"mean": () if request.mean else mean, "std": () if request.std else std}
    assumed = {name: values for name, values in assumed.items() if values}
    if not assumed:
        return preprocess, ()
    text = ", ".join(f"{name} {', '.join(f'{v:g}' for v in values)}" for name, values in assumed.items())
    options = " and ".join(f"--{name}" for name in assumed)
    return preprocess, (
        f"preprocessing is assumed ({text} of pixels / 255). If it was trained otherwise, give {options}.",
    )


def _with_statistics(preprocess: Preprocess, request: ModelRequest) -> Preprocess:
    for option, values in (("--mean", request.mean), ("--std", request.std)):
        if values and len(values) != len(preprocess.mean):
            raise BadInput(
                f"{option} has {len(values)} values for {len(preprocess.mean)} channels",
                f"Type e.g. {option} 0.5,0.5,0.5",
            )
    if 0 in request.std:
        raise BadInput("--std cannot be 0: the image is divided by it", "Type e.g. --std 0.5,0.5,0.5")
    return replace(preprocess, mean=request.mean or preprocess.mean, std=request.std or preprocess.std)


def sha256(path: Path) -> str:
    """The hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
