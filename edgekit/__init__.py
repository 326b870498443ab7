"""edgekit: from PyTorch to the phone, proven equal at every step.

    import edgekit
    (artifact,) = edgekit.export("lvt", "coreml")
    edgekit.verify(artifact).sqnr_db

Importing this package imports neither torch nor an exporter; each name below is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.accuracy_control import AccuracyTarget as AccuracyTarget
    from edgekit.apps import embed as embed
    from edgekit.artifacts import load_artifact as load_artifact
    from edgekit.benchmarking import benchmark as benchmark
    from edgekit.compressing import compress as compress
    from edgekit.evaluation import evaluate as evaluate
    from edgekit.inspection import doctor as doctor
    from edgekit.inspection import inspect as inspect
    from edgekit.models import create_model as create_model
    from edgekit.models import list_models as list_models
    from edgekit.pipeline import export as export
    from edgekit.prediction import predict as predict
    from edgekit.profiling import profile as profile
    from edgekit.quantizing import quantize as quantize
    from edgekit.reporting import report as report
    from edgekit.training import train as train
    from edgekit.verification import verify as verify
    from edgekit.weights import import_weights as import_weights

_PLACES = {
    "create_model": "models",
    "list_models": "models",
    "export": "pipeline",
    "quantize": "quantizing",
    "train": "training",
    "compress": "compressing",
    "verify": "verification",
    "evaluate": "evaluation",
    "predict": "prediction",
    "profile": "profiling",
    "benchmark": "benchmarking",
    "report": "reporting",
    "embed": "apps",
    "inspect": "inspection",
    "doctor": "inspection",
    "import_weights": "weights",
    "load_artifact": "artifacts",
    "AccuracyTarget": "accuracy_control",
    "Artifact": "types",
    "Embedded": "types",
    "Evaluation": "types",
    "Manifest": "types",
    "ModelSpec": "types",
    "Prediction": "types",
    "Preprocess": "types",
    "Profile": "types",
    "Quantized": "types",
    "QuantizationOptions": "types",
    "Report": "types",
    "Verification": "types",
    "EdgekitError": "errors",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    return getattr(import_module(f"edgekit.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_PLACES)
