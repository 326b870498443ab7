"""Sweeps over models, targets, precisions and devices: each cell isolated, resumable, on one machine or a farm."""

from edgekit.benchmarking.results import rows as rows
from edgekit.benchmarking.sweep import benchmark as benchmark
