"""ExecuTorch in int8: what XNNPACK runs on int8 that its partitioner leaves in float."""

from typing import Any

from edgekit.targets._base import Target, need


def partitioner(target: Target) -> Any:
    """XNNPACK's partitioner, taking quantized pads too: XNNPACK runs them, and the backend writes them."""
    precision = need("executorch.backends.xnnpack.partition.config.xnnpack_config", target).ConfigPrecisionType
    configs = need("executorch.backends.xnnpack.partition.config", target)
    float_pad = configs.ConstantPadConfig

    class Pad(float_pad):  # type: ignore[misc, valid-type]
        def supported_precision_types(self) -> list[Any]:
            return [precision.FP32, precision.STATIC_QUANT]

    chosen = [Pad if config is float_pad else config for config in configs.ALL_PARTITIONER_CONFIGS]
    return need("executorch.backends.xnnpack.partition.xnnpack_partitioner", target).XnnpackPartitioner(configs=chosen)
