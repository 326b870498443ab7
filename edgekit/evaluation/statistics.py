"""What right and wrong answers say: shares, differences, and how sure they are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.evaluation.answers import Answers, Ints
from edgekit.prediction import Classifier
from edgekit.types import ClassAccuracy, Evaluation

Right = NDArray[np.bool_]


def result_of(
    answers: Answers,
    truth: Ints,
    names: Sequence[str],
    judge: Classifier,
    *,
    against: str | None,
    notes: tuple[str, ...],
) -> Evaluation:
    """The evaluation of the first judge, against the second where there is one."""
    best = answers.ranked[0]
    right = best[:, 0] == truth
    other = answers.ranked[1][:, 0] if against is not None else None
    other_right = None if other is None else other == truth
    n = len(truth)
    return Evaluation(
        top1=_percent(right),
        top5=_percent((best == truth[:, None]).any(1)),
        n=n,
        agreement=None if other is None else _percent((other == best[:, 0]) & (other >= 0)),
        images_per_second=answers.images_per_second,
        ci95=wilson(int(right.sum()), n),
        runtime=judge.runtime,
        batch_size=judge.batch_size,
        against=against,
        reference_top1=None if other_right is None else _percent(other_right),
        drop=None if other_right is None else _drop(other_right, right),
        drop_ci95=None
        if other_right is None
        else paired_interval(int((other_right & ~right).sum()), int((right & ~other_right).sum()), n),
        per_class=tuple(_class(c, names, truth == c, right, other_right) for c in np.unique(truth).tolist()),
        unreadable=len(answers.unreadable),
        notes=notes,
    )


def _class(index: int, names: Sequence[str], here: Right, right: Right, other: Right | None) -> ClassAccuracy:
    return ClassAccuracy(
        label=names[index] if index < len(names) else str(index),
        index=index,
        n=int(here.sum()),
        top1=_percent(right[here]),
        reference_top1=None if other is None else _percent(other[here]),
        drop=None if other is None else _drop(other[here], right[here]),
    )


def _percent(hits: Right) -> float:
    return 100 * int(hits.sum()) / len(hits)


def _drop(reference: Right, right: Right) -> float:
    return 100 * (int(reference.sum()) - int(right.sum())) / len(right)


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % Wilson score interval of hits / n, in percent (Wilson 1927)."""
    p, zz = hits / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * (p * (1 - p) / n + zz / (4 * n * n)) ** 0.5
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def paired_interval(lost: int, gained: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of the drop (lost - gained) / n, in points, of two models on the same n images.

    `lost` images only the reference gets right, `gained` ones only the other; the rest says nothing of the difference.
    With one more image of each of these two kinds, p and q their shares: p - q ± z sqrt((p + q - (p - q)²) / (n + 2))
    (Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37, 479-488). It covers the true drop in
    95 % of the cases or more also where the models rarely disagree, as is usual here (`tests/test_evaluation.py` counts
    it); there the plain normal interval and a bootstrap shrink to nothing.
    """
    p, q = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = z * ((p + q - (p - q) ** 2) / (n + 2)) ** 0.5
    return 100 * max(-1.0, p - q - half), 100 * min(1.0, p - q + half)
