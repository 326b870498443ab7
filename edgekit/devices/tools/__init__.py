"""The measuring programs of other projects that users bring: how they are started, and what their output means."""

from edgekit.devices.tools._base import Place as Place
from edgekit.devices.tools._base import Said as Said
from edgekit.devices.tools._base import Tool as Tool
from edgekit.devices.tools._base import check_artifact as check_artifact
from edgekit.devices.tools._base import tool_of as tool_of
from edgekit.devices.tools.benchmark_model import BenchmarkModel
from edgekit.devices.tools.executor_runner import ExecutorRunner
from edgekit.devices.tools.onnxruntime_perf_test import OnnxruntimePerfTest
from edgekit.devices.tools.session import ToolSession as ToolSession

TOOLS: tuple[Tool, ...] = (BenchmarkModel(), ExecutorRunner(), OnnxruntimePerfTest())
