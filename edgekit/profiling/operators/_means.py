"""What the readers share: one row for each step of a run, averaged over runs that took the same steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OVERHEAD = "overhead"
"""The kind of the row that holds what a delegate or an executor took beyond its operators."""


@dataclass(frozen=True)
class Step:
    """One operator in one run; `index` is the op of the model file that it is, where the runtime tells."""

    name: str
    us: float
    delegated: bool
    index: int | None = None
    op: str = ""


def mean_steps(runs: Sequence[Sequence[Step]]) -> list[Step]:
    """The steps of a run with their mean times; raises `ValueError` where the runs took different ones."""
    if not runs or any([s.name for s in run] != [s.name for s in runs[0]] for run in runs):
        raise ValueError("its runs do not hold the same operators")
    means = np.array([[s.us for s in run] for run in runs]).mean(0)
    return [Step(s.name, float(us), s.delegated, s.index, s.op) for s, us in zip(runs[0], means, strict=True)]


def last(runs: Sequence[Sequence[Step]], count: int) -> Sequence[Sequence[Step]]:
    """The last `count` of `runs`; raises `ValueError` where there are fewer."""
    if len(runs) < count:
        raise ValueError(f"it holds {len(runs)} runs")
    return runs[-count:]
