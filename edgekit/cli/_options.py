"""Options that several commands take, and their parsing."""

import math

import typer

from edgekit.errors import BadInput
from edgekit.types import Shape

MODEL = typer.Option(
    None, "-m", "--model", help="The model an artifact was exported from. Needed where that is Python code, which runs."
)
WEIGHTS = typer.Option(None, "-w", "--weights", help="A .safetensors or .pth file with the model's weights.")
NUM_CLASSES = typer.Option(None, "--num-classes", min=1, help="Size of the classifier.")
LABELS = typer.Option(None, "--labels", help="A text file with one label a line.")
IMAGE_SIZE = typer.Option(None, "--image-size", "--imgsz", min=1, help="Height and width of the input.")
INPUT_SHAPE = typer.Option([], "--input-shape", help="Such as 1,3,224,224; once for each input.")
BATCH_SIZE = typer.Option(1, "--batch-size", min=1, help="Images in a batch; shapes are static.")
MEAN = typer.Option(None, "--mean", help="Of pixels / 255, by channel: 0.485,0.456,0.406.")
STD = typer.Option(None, "--std", help="Of pixels / 255, by channel: 0.229,0.224,0.225.")
FEATURES_ONLY = typer.Option(
    False, "--features-only", help="Stage outputs in place of logits, of a model of the zoo: a backbone."
)
CALIBRATION = typer.Option(
    None,
    "--calibration",
    help="Photos for int8, like those the model will see: a folder, .npz or .tar; or the word synthetic, for none.",
)
DATA_FREE = typer.Option(
    None,
    "--data-free",
    metavar="[=METHOD]",
    help="Quantize with nothing but the weights: images (made to fit them; the same as alone) or analytic (faster). "
    "For wXaY: images, clusterq or gdfq.",
)
EXPLAIN = typer.Option(
    False,
    "--explain",
    help="Of --data-free: the worst layers and why; with a plot and a sheet of the images beside the file.",
)
DEVICE = typer.Option("cpu", "--device", help="Where --data-free makes images, and wXaY is learned: cpu or cuda.")
NUM_CALIBRATION_SAMPLES = typer.Option(128, "--num-calibration-samples", min=1, help="How many of them are used.")
RANGE_ESTIMATOR = typer.Option(
    "mse", "--range-estimator", help="Of activations: mse (least squared error), minmax or percentile (99.99)."
)
BIAS_CORRECTION = typer.Option(
    "full", "--bias-correction", help="full (each layer behind the corrected ones before it), fast (by itself) or none."
)
SMOOTH_QUANT = typer.Option(
    False, "--smooth-quant", help="Move the scale of outlying channels from activations into the weights behind them."
)
EQUALIZE = typer.Option(False, "--equalize", help="Equalize the ranges of channels across convolutions that follow.")
KEEP_FLOAT = typer.Option(
    [], "--keep-float", help="Modules that stay in float: a pattern of their paths, as 'blocks.3.*'; may be repeated."
)
ACCURACY_DATA = typer.Option(
    None, "--accuracy-data", help="Labelled photos, to keep the fewest layers in float that --max-drop needs."
)
MAX_DROP = typer.Option(None, "--max-drop", help="Points of top-1 on --accuracy-data that int8 may lose, such as 1.")
NUM_ACCURACY_SAMPLES = typer.Option(
    None, "--num-accuracy-samples", help="Use N of these photos, drawn from all classes: the same each time."
)
PYTHON = typer.Option(None, "--python", help="Over ssh: the board's interpreter, such as /home/pi/venv/bin/python.")
JSON = typer.Option(False, "--json", help="Print one JSON document on stdout and nothing else.")


def with_values(arguments: list[str]) -> list[str]:
    """The command line with a value for each option that may go without one."""
    return ["--data-free=images" if a == "--data-free" else a for a in arguments]


def parse_shape(text: str) -> Shape:
    """`1,3,224,224` or `1x3x224x224` as a shape; raises `BadInput`."""
    try:
        shape = tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise BadInput(
            f"--input-shape {text!r} is not a shape", "Type positive numbers, e.g. --input-shape 1,3,224,224"
        )
    return shape


def parse_numbers(option: str, text: str | None) -> tuple[float, ...]:
    """`0.5,0.5,0.5` as numbers; raises `BadInput`."""
    if text is None:
        return ()
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise BadInput(f"{option} {text!r} is not a list of numbers", f"Type e.g. {option} 0.5,0.5,0.5")
    return numbers
