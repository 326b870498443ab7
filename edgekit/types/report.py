"""What was written as a report."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Report:
    """One HTML file: `artifacts` were measured, `failed` were not, `warnings` are on the page."""

    path: Path
    artifacts: int
    failed: int
    warnings: int
