"""Latency and memory of artifacts on a device, compared in one interleaved run; and why int8 is not faster."""

from edgekit.profiling.causes import not_faster as not_faster
from edgekit.profiling.causes import slow_causes as slow_causes
from edgekit.profiling.profile import compare as compare
from edgekit.profiling.profile import profile as profile
