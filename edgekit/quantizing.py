"""A float model and photos become an int8 model, in memory or as a `.pt2` file that every export starts from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from torch import nn

from edgekit.accuracy_control import AccuracyControl, AccuracyTarget, control_accuracy, plot
from edgekit.artifacts import write_file
from edgekit.calibration import CalibrationSet, calibration_set
from edgekit.errors import BadInput, UnknownName, Unsupported
from edgekit.golden import golden_of
from edgekit.loading import Loaded, load
from edgekit.programs import quantized_bytes
from edgekit.quantization import Simulation
from edgekit.quantization import quantize as quantize_program
from edgekit.types import ModelRequest, QuantizationOptions, Quantized, Shape, Step

SCHEMES = {"int8": "int8", "w8a8": "int8"}
_PHOTOS = 64


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A `.pt2` file with an int8 program, how it was made, and why layers of it are in float.

    `accuracy` is also in the files `ranking_file(path)` and, drawn, `plot_file(path)`; None without a target.
    """

    path: Path
    quantized: Quantized
    accuracy: AccuracyControl | None = None


def ranking_file(path: Path) -> Path:
    """The JSON beside a `.pt2` file that says what accuracy control measured."""
    return path.with_suffix(".sensitivity.json")


def plot_file(path: Path) -> Path:
    """The same as a picture."""
    return path.with_suffix(".sensitivity.png")


def work_file(path: Path) -> Path:
    """Where accuracy control keeps its measurements until it is done."""
    return path.with_suffix(".sensitivity.partial")


def quantize(
    model: str | nn.Module,
    out: str | Path,
    *,
    scheme: str = "int8",
    calibration: str | Path | None = None,
    num_calibration_samples: int = 128,
    options: QuantizationOptions = QuantizationOptions(),  # noqa: B008 (frozen)
    accuracy: AccuracyTarget | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    labels: str | Path | None = None,
    image_size: int | None = None,
    input_shape: Sequence[Shape] = (),
    batch_size: int = 1,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    features_only: bool = False,
    seed: int = 0,
    force: bool = False,
    on_step: Step | None = None,
) -> QuantizedModel:
    """Quantize `model` with the photos at `calibration` and write it to `out`, a `.pt2` file for `export`.

    The file holds the program with its integers, the preprocessing, the labels, and the float model's answers to the
    golden inputs. With `accuracy`, the fewest layers stay in float with which that target is met (see
    `edgekit.accuracy_control`), and the ranking is written beside it; the same call goes on where one was interrupted.
    Raises an `EdgekitError`: `GateFailed` for a target out of reach. Existing files are only replaced with `force`.
    """
    if scheme not in SCHEMES:
        raise UnknownName("scheme", scheme, SCHEMES)
    path = Path(out)
    _check_destination(path, accuracy is not None, force)
    request = ModelRequest(
        model=model if isinstance(model, str) else f"{type(model).__module__}:{type(model).__qualname__}",
        weights=None if weights is None else str(weights),
        num_classes=num_classes,
        image_size=image_size,
        input_shape=tuple(tuple(s) for s in input_shape),
        batch_size=batch_size,
        seed=seed,
        labels=None if labels is None else str(labels),
        mean=tuple(mean),
        std=tuple(std),
        features_only=features_only,
    )
    loaded = load(request, None if isinstance(model, str) else model)
    if accuracy is not None:
        return _controlled(loaded, path, calibration, num_calibration_samples, options, accuracy, on_step)
    if loaded.quantized is not None:
        raise BadInput(
            f"{request.model} is quantized already",
            f"Export it: edgekit export -m {request.model}. "
            f"Or quantize the float model: -m {loaded.quantized.request.model}",
        )
    made = with_precision(loaded, SCHEMES[scheme], calibration, num_calibration_samples, options, on_step)
    assert made.quantized is not None
    write_file(path, quantized_bytes(made.program, made.quantized, made.float_outputs))
    return QuantizedModel(path=path, quantized=made.quantized)


def _check_destination(path: Path, ranked: bool, force: bool) -> None:
    if path.suffix != ".pt2":
        raise BadInput(f"-o {path} is not a .pt2 file", f"Type -o {path.with_suffix('.pt2')}")
    for file in (path, *((ranking_file(path), plot_file(path)) if ranked else ())):
        if file.exists() and not force:
            raise BadInput(f"{file} exists already", "Replace it with --force, or give another file with -o.")


def _controlled(
    loaded: Loaded,
    path: Path,
    calibration: str | Path | None,
    num_calibration_samples: int,
    options: QuantizationOptions,
    target: AccuracyTarget,
    on_step: Step | None,
) -> QuantizedModel:
    if loaded.quantized is not None:
        raise BadInput(
            f"{loaded.request.model} is {loaded.quantized.scheme} already",
            f"Quantize the float model again: -m {loaded.quantized.request.model}",
        )
    photos = _photos(loaded, calibration, num_calibration_samples, on_step)

    def in_int8(with_options: QuantizationOptions) -> Loaded:
        return _in_int8(loaded, photos, with_options, on_step)

    work = work_file(path)
    accuracy = control_accuracy(loaded, in_int8, photos.samples, options, target, work, on_step)
    made = in_int8(replace(options, keep_float=(*options.keep_float, *accuracy.chosen.keep_float)))
    assert made.quantized is not None
    write_file(ranking_file(path), (json.dumps(asdict(accuracy), indent=2) + "\n").encode())
    write_file(plot_file(path), plot(accuracy, f"{loaded.name} in int8"))
    # Last: where it is, the others are.
    write_file(path, quantized_bytes(made.program, made.quantized, made.float_outputs))
    work.unlink()
    return QuantizedModel(path=path, quantized=made.quantized, accuracy=accuracy)


def with_precision(
    loaded: Loaded,
    precision: str | None,
    calibration: str | Path | None,
    num_calibration_samples: int,
    options: QuantizationOptions,
    on_step: Step | None = None,
) -> Loaded:
    """`loaded`, in int8 where that is the precision asked for; what is int8 already stays as it is.

    Raises `BadInput` where int8 has nothing to be calibrated with, a model in int8 is asked to be something else, or
    another precision is given the options of int8.
    """
    if loaded.quantized is not None:
        return _as_quantized(loaded, precision, calibration, num_calibration_samples, options)
    if precision != "int8":
        if calibration is not None:
            raise BadInput(f"--calibration is for int8, not {precision or 'fp32'}", "Add --precision int8.")
        if options != QuantizationOptions():
            raise BadInput(
                f"--range-estimator, --bias-correction, --equalize, --smooth-quant and --keep-float are for int8, "
                f"not {precision or 'fp32'}",
                "Add --precision int8, or leave them out.",
            )
        return loaded
    photos = _photos(loaded, calibration, num_calibration_samples, on_step)
    return _in_int8(loaded, photos, options, on_step)


def _photos(
    loaded: Loaded, calibration: str | Path | None, num_calibration_samples: int, on_step: Step | None
) -> CalibrationSet:
    if calibration is None:
        raise BadInput(
            "int8 needs photos to calibrate the ranges of its activations with",
            "Give 32 or more like those the model will see: --calibration PATH (a folder, .npz or .tar).",
        )
    if str(calibration) == "synthetic":
        raise Unsupported(
            "calibration without photos is not in this version", "Give photos: --calibration PATH, 32 or more."
        )
    return calibration_set(
        loaded, Path(calibration), samples=num_calibration_samples, seed=loaded.request.seed, on_step=on_step
    )


def _in_int8(loaded: Loaded, photos: CalibrationSet, options: QuantizationOptions, on_step: Step | None) -> Loaded:
    found: list[str] = []
    program = quantize_program(loaded.program, photos.samples, options, on_step, found.append)
    quantized = Quantized(
        scheme="int8",
        name=loaded.name,
        request=loaded.request,
        weights=loaded.weights,
        calibration=photos.record,
        options=options,
        preprocess=loaded.preprocess,
        labels=loaded.labels,
        notes=(*loaded.notes, *(f"calibration: {text}" for text in photos.warnings), *found),
        edgekit=version("edgekit"),
    )
    return replace(
        loaded,
        program=program,
        module=Simulation(program),
        notes=quantized.notes,
        quantized=quantized,
        float_outputs=tuple(map(tuple, golden_of(loaded)[1])),
        photos=photos.samples[:_PHOTOS],
    )


def _as_quantized(
    loaded: Loaded,
    precision: str | None,
    calibration: str | Path | None,
    num_calibration_samples: int,
    options: QuantizationOptions,
) -> Loaded:
    assert loaded.quantized is not None
    if precision not in (None, loaded.quantized.scheme):
        raise BadInput(
            f"{loaded.request.model} is {loaded.quantized.scheme} already and cannot become {precision}",
            f"Leave --precision out, or export the float model: -m {loaded.quantized.request.model}",
        )
    if options != QuantizationOptions():
        raise BadInput(
            f"{loaded.request.model} is quantized already: its options are fixed", "Quantize the float model again."
        )
    if calibration is None:
        return loaded
    photos = calibration_set(loaded, Path(calibration), samples=num_calibration_samples, seed=loaded.request.seed)
    return replace(loaded, photos=photos.samples[:_PHOTOS])
