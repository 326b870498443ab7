"""The fewest members of a ranking that reach a target, in few measurements."""

from collections.abc import Callable, Sequence

Reaches = Callable[[tuple[str, ...]], bool]


def fewest(ranking: Sequence[str], reaches: Reaches) -> tuple[str, ...] | None:
    """The members, in their order, that `reaches`; None where even all but the last do not.

    The shortest prefix that does is found by doubling and bisection; then each member is given back that is not needed,
    the lowest first. If more members never reach less, no member of the result can be left out (one more exchange might
    still save some: the smallest set of all would take as many measurements as there are sets).
    """
    if reaches(()):
        return ()
    most = len(ranking) - 1
    low, high = 0, min(1, most)
    while not (high and reaches(tuple(ranking[:high]))):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(tuple(ranking[:middle])) else (middle, high)
    chosen = list(ranking[:high])
    # The last one is needed: without it, the prefix did not reach the target.
    for member in chosen[-2::-1]:
        others = tuple(m for m in chosen if m != member)
        if reaches(others):
            chosen = list(others)
    return tuple(chosen)
