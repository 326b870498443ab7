"""The four formats; this literal is the registry."""

from edgekit.registry import Registry
from edgekit.targets._base import PRECISIONS as PRECISIONS
from edgekit.targets._base import Runner as Runner
from edgekit.targets._base import Target as Target
from edgekit.targets._base import precision_name as precision_name
from edgekit.targets.coreml import CoreML
from edgekit.targets.executorch import Executorch
from edgekit.targets.onnx import Onnx
from edgekit.targets.tflite import Tflite

TARGETS: Registry[Target] = Registry(
    "target",
    [CoreML(), Executorch(), Tflite(), Onnx()],
    aliases={
        "mlpackage": "coreml",
        "mlprogram": "coreml",
        "ios": "coreml",
        "pte": "executorch",
        "xnnpack": "executorch",
        "litert": "tflite",
    },
)
