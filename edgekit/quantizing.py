"""A float model and photos, or none, become an int8 model, in memory or as a `.pt2` file that exports start from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from edgekit.accuracy_control import AccuracyControl, AccuracyTarget, control_accuracy, plot
from edgekit.artifacts import write_file
from edgekit.calibration import calibration_set
from edgekit.data_free import DataFreeCalibration, calibrate_without_data
from edgekit.data_free.explain import contact_sheet, require_plots
from edgekit.data_free.explain import plot as plot_risk
from edgekit.data_free.risk import assess
from edgekit.errors import BadInput, UnknownName, Unsupported
from edgekit.few_bits import FewBits, check, in_few_bits
from edgekit.golden import golden_of
from edgekit.loading import Loaded, load
from edgekit.low_bit import is_low_bit
from edgekit.programs import quantized_bytes
from edgekit.quantization import Simulation
from edgekit.quantization import quantize as quantize_program
from edgekit.types import Calibration, ModelRequest, QuantizationOptions, Quantized, Shape, Step

SCHEMES = {"int8": "int8", "w8a8": "int8"}
SYNTHETIC = "synthetic"
"""What `calibration` names in place of photos: the same as `data_free="images"`."""
_PHOTOS = 64


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A `.pt2` file with an int8 program, how it was made, and why layers of it are in float.

    `accuracy` is also in the files `ranking_file(path)` and, drawn, `plot_file(path)`; None without a target.
    `explained` are the files that say what `quantized.risk` rests on, where they were asked for.
    """

    path: Path
    quantized: Quantized
    accuracy: AccuracyControl | None = None
    explained: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Source:
    """Photos at `path`, or none and how to do without."""

    path: Path | None = None
    method: str = ""
    device: str = "cpu"


@dataclass(frozen=True)
class _Basis:
    """What a model is calibrated with, photos or none, and how that is recorded."""

    samples: tuple[tuple[Tensor, ...], ...]
    record: Calibration
    notes: tuple[str, ...]
    data_free: DataFreeCalibration | None = None


def ranking_file(path: Path) -> Path:
    """The JSON beside a `.pt2` file that says what accuracy control measured."""
    return path.with_suffix(".sensitivity.json")


def plot_file(path: Path) -> Path:
    """The same as a picture."""
    return path.with_suffix(".sensitivity.png")


def risk_files(path: Path) -> tuple[Path, Path, Path]:
    """The files beside a `.pt2` that explain the risk of one without data: JSON, a plot, and the images it saw."""
    return path.with_suffix(".data-free.json"), path.with_suffix(".data-free.png"), path.with_suffix(".images.png")


def learning_file(path: Path) -> Path:
    """How the files begin in which the learning of few bits is kept until it is done."""
    return path.with_suffix(".learning")


def work_file(path: Path) -> Path:
    """Where accuracy control keeps its measurements until it is done."""
    return path.with_suffix(".sensitivity.partial")


def quantize(
    model: str | nn.Module,
    out: str | Path,
    *,
    scheme: str = "int8",
    protocol: str = "h",
    calibration: str | Path | None = None,
    num_calibration_samples: int = 128,
    data_free: str | None = None,
    device: str = "cpu",
    explain: bool = False,
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

    A scheme wXaY of 2 to 8 bits is learned and simulated in torch (`edgekit.few_bits`), its bits placed by `protocol`.
    With `data_free`, "images" or "analytic", nothing but the weights is used (see `edgekit.data_free`); `device` is
    where images are made; `explain` writes `risk_files(out)`. The file holds the program with its integers, the
    preprocessing, the labels, and the float model's answers to the golden inputs. With `accuracy`, the fewest layers
    stay in float with which that target is met (see `edgekit.accuracy_control`), and the ranking is written beside it;
    the same call goes on where one was interrupted.
    Raises an `EdgekitError`: `GateFailed` for a target out of reach. Existing files are only replaced with `force`.
    """
    few = is_low_bit(scheme) and scheme not in SCHEMES
    if not few and scheme not in SCHEMES:
        raise UnknownName("scheme", scheme, [*SCHEMES, "w4a4", "w4a8"])
    if not few and protocol != "h":
        raise BadInput(f"--protocol {protocol} is for wXaY; {scheme} is int8 in every tensor", "Leave it out.")
    if few:
        check(scheme, protocol, options, accuracy is not None)
    path = Path(out)
    source = _source(calibration, data_free, "cpu" if few and calibration is not None else device)
    _check_explain(source, explain)
    others = (*((ranking_file(path), plot_file(path)) if accuracy else ()), *(risk_files(path) if explain else ()))
    _check_destination(path, others, force)
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
        return _controlled(loaded, path, source, num_calibration_samples, options, accuracy, explain, on_step)
    if loaded.quantized is not None:
        raise BadInput(
            f"{request.model} is quantized already",
            f"Export it: edgekit export -m {request.model}. "
            f"Or quantize the float model: -m {loaded.quantized.request.model}",
        )
    if few:
        wanted = FewBits(scheme=scheme, protocol=protocol, seed=seed, device=device)
        return _in_few_bits(loaded, path, source, num_calibration_samples, wanted, explain, on_step)
    basis = _basis(loaded, source, num_calibration_samples, on_step)
    made = _with_risk(loaded, _in_int8(loaded, basis, options, on_step), basis, on_step)
    assert made.quantized is not None
    explained = _explain(path, made, basis.data_free.images) if explain and basis.data_free else ()
    write_file(path, quantized_bytes(made.program, made.quantized, made.float_outputs))
    return QuantizedModel(path=path, quantized=made.quantized, explained=explained)


def _in_few_bits(
    loaded: Loaded,
    path: Path,
    source: _Source | None,
    num_samples: int,
    wanted: FewBits,
    explain: bool,
    on_step: Step | None,
) -> QuantizedModel:
    if source is None:
        raise BadInput(f"{wanted.scheme} is learned from images", "Type --data-free, or --calibration PATH for photos.")
    photos = None
    if source.path is not None:
        photos = calibration_set(loaded, source.path, samples=num_samples, seed=wanted.seed, on_step=on_step)
    made, images = in_few_bits(loaded, photos or source.method, wanted, learning_file(path), on_step)
    assert made.quantized is not None
    explained = _explain(path, made, images) if explain else ()
    write_file(path, quantized_bytes(made.program, made.quantized, made.float_outputs))
    return QuantizedModel(path=path, quantized=made.quantized, explained=explained)


def _check_explain(source: _Source | None, explain: bool) -> None:
    if not explain:
        return
    if source is None or source.path is not None:
        raise BadInput(
            "--explain is about the risk of quantizing without data", "Add --data-free, or leave --explain out."
        )
    require_plots()


def _check_destination(path: Path, others: Sequence[Path], force: bool) -> None:
    if path.suffix != ".pt2":
        raise BadInput(f"-o {path} is not a .pt2 file", f"Type -o {path.with_suffix('.pt2')}")
    for file in (path, *others):
        if file.exists() and not force:
            raise BadInput(f"{file} exists already", "Replace it with --force, or give another file with -o.")


def _controlled(
    loaded: Loaded,
    path: Path,
    source: _Source | None,
    num_calibration_samples: int,
    options: QuantizationOptions,
    target: AccuracyTarget,
    explain: bool,
    on_step: Step | None,
) -> QuantizedModel:
    if loaded.quantized is not None:
        raise BadInput(
            f"{loaded.request.model} is {loaded.quantized.scheme} already",
            f"Quantize the float model again: -m {loaded.quantized.request.model}",
        )
    basis = _basis(loaded, source, num_calibration_samples, on_step)

    def in_int8(with_options: QuantizationOptions) -> Loaded:
        return _in_int8(loaded, basis, with_options, on_step)

    work = work_file(path)
    accuracy = control_accuracy(loaded, in_int8, basis.samples, options, target, work, on_step)
    made = in_int8(replace(options, keep_float=(*options.keep_float, *accuracy.chosen.keep_float)))
    drop = f"{accuracy.chosen.top1:.2f} % top-1, {accuracy.chosen.drop:.2f} points below float, on {accuracy.n} images"
    made = _with_risk(loaded, made, basis, on_step, measured=drop)
    assert made.quantized is not None
    explained = _explain(path, made, basis.data_free.images) if explain and basis.data_free else ()
    write_file(ranking_file(path), (json.dumps(asdict(accuracy), indent=2) + "\n").encode())
    write_file(plot_file(path), plot(accuracy, f"{loaded.name} in int8"))
    # Last: where it is, the others are.
    write_file(path, quantized_bytes(made.program, made.quantized, made.float_outputs))
    work.unlink()
    return QuantizedModel(path=path, quantized=made.quantized, accuracy=accuracy, explained=explained)


def _with_risk(
    loaded: Loaded, made: Loaded, basis: _Basis, on_step: Step | None, measured: str = "not measured"
) -> Loaded:
    """`made` with what can be said of its risk, where it was made without data."""
    if basis.data_free is None or made.quantized is None:
        return made
    risk = assess(loaded, made, basis.data_free, seed=loaded.request.seed, on_step=on_step)
    risk = replace(risk, accuracy=measured)
    notes = (*made.notes, f"without data: {risk.verdict}. accuracy on real data: {risk.accuracy}")
    return replace(made, notes=notes, quantized=replace(made.quantized, risk=risk, notes=notes))


def _explain(path: Path, made: Loaded, images: Tensor) -> tuple[Path, ...]:
    """Write what the risk rests on beside the `.pt2` file at `path`; the plot is of tensors, where these are known."""
    assert made.quantized is not None
    risk = made.quantized.risk
    assert risk is not None
    text, picture, sheet = risk_files(path)
    files = {text: (json.dumps(asdict(risk), indent=2) + "\n").encode()}
    if risk.tensors:
        files[picture] = plot_risk(risk, f"{made.name} in int8, without data")
    if made.preprocess is not None and images.dim() == 4:
        files[sheet] = contact_sheet(images, made.preprocess)
    for file, content in files.items():
        write_file(file, content)
    return tuple(files)


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
    basis = _basis(loaded, _source(calibration), num_calibration_samples, on_step)
    return _with_risk(loaded, _in_int8(loaded, basis, options, on_step), basis, on_step)


def _source(calibration: str | Path | None, data_free: str | None = None, device: str = "cpu") -> _Source | None:
    """Where the ranges come from; None where nothing says so. Raises `BadInput` for two answers."""
    if data_free is not None and calibration is not None:
        raise BadInput(
            f"--data-free={data_free} and --calibration {calibration} both say what to calibrate with",
            "Leave one of them out.",
        )
    if device != "cpu" and data_free is None and str(calibration) != SYNTHETIC:
        raise BadInput(f"--device {device} is for making images without data", "Add --data-free, or leave it out.")
    if str(calibration) == SYNTHETIC:
        return _Source(method="images", device=device)
    if data_free is not None:
        return _Source(method=data_free, device=device)
    return None if calibration is None else _Source(path=Path(calibration))


def _basis(loaded: Loaded, source: _Source | None, num_samples: int, on_step: Step | None) -> _Basis:
    seed = loaded.request.seed
    if source is None:
        raise BadInput(
            "int8 needs photos to calibrate the ranges of its activations with",
            "Give 32 or more like those the model will see: --calibration PATH (a folder, .npz or .tar). "
            "Without any: --calibration synthetic",
        )
    if source.path is None:
        made = calibrate_without_data(loaded, source.method, seed=seed, device=source.device, on_step=on_step)
        return _Basis(made.samples, made.record, made.notes, made)
    photos = calibration_set(loaded, source.path, samples=num_samples, seed=seed, on_step=on_step)
    return _Basis(photos.samples, photos.record, tuple(f"calibration: {text}" for text in photos.warnings))


def _in_int8(loaded: Loaded, basis: _Basis, options: QuantizationOptions, on_step: Step | None) -> Loaded:
    found: list[str] = []
    free, stand_in, at_least = basis.data_free, None, {}
    if free is not None:
        # Without photos, what rounding adds to a mean is not measured as well: it cancels by itself.
        options = replace(options, rounding="balanced")
        # Scaled channels have other ranges than the estimates are of.
        scaled = options.equalize or options.smooth_quant
        stand_in, at_least = free.stand_in, {} if scaled else dict(free.at_least)
    program = quantize_program(
        loaded.program, basis.samples, options, on_step, found.append, stand_in=stand_in, at_least=at_least
    )
    quantized = Quantized(
        scheme="int8",
        name=loaded.name,
        request=loaded.request,
        weights=loaded.weights,
        calibration=basis.record,
        options=options,
        preprocess=loaded.preprocess,
        labels=loaded.labels,
        notes=(*loaded.notes, *basis.notes, *found),
        edgekit=version("edgekit"),
    )
    return replace(
        loaded,
        program=program,
        module=Simulation(program),
        notes=quantized.notes,
        quantized=quantized,
        float_outputs=tuple(map(tuple, golden_of(loaded)[1])),
        photos=basis.samples[:_PHOTOS],
    )


def _as_quantized(
    loaded: Loaded,
    precision: str | None,
    calibration: str | Path | None,
    num_calibration_samples: int,
    options: QuantizationOptions,
) -> Loaded:
    assert loaded.quantized is not None
    if loaded.quantized.is_simulated:
        raise Unsupported(
            f"{loaded.request.model} is {loaded.quantized.scheme}, a simulation in torch: no runtime computes in it",
            f"Measure it: edgekit evaluate {loaded.request.model} --data PATH. For a phone, 4-bit weights: "
            f"edgekit export -m {loaded.quantized.request.model} -p int4-weight",
        )
    if precision not in (None, loaded.quantized.scheme):
        raise BadInput(
            f"{loaded.request.model} is {loaded.quantized.scheme} already and cannot become {precision}",
            f"Leave --precision out, or export the float model: -m {loaded.quantized.request.model}",
        )
    if options != QuantizationOptions():
        raise BadInput(
            f"{loaded.request.model} is quantized already: its options are fixed", "Quantize the float model again."
        )
    if calibration is None or str(calibration) == SYNTHETIC:
        return loaded
    photos = calibration_set(loaded, Path(calibration), samples=num_calibration_samples, seed=loaded.request.seed)
    return replace(loaded, photos=photos.samples[:_PHOTOS])
