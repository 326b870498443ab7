"""The fewest members of a ranking that reach a target, in few measurements."""

from collections.abc import Callable, Sequence

Names = tuple[str, ...]


def fewest(number: int, rank: Callable[[Names], Sequence[str]], reaches: Callable[[Names], bool]) -> Names | None:
    """The members that `reaches`, of `number` in all; None where even all but one do not.

    `rank` gives the members that are left, the best first, beside those that are taken. The shortest prefix of the
    ranking that reaches the target is found by doubling, with a new ranking of the rest each time, and bisection; then
    each member is given back that is not needed, the last ones first. If more members never reach less, none of the
    result can be left out (an exchange might still save some: the smallest set of all would take trials of all sets).
    """
    if reaches(()):
        return ()
    most, low, order = number - 1, 0, tuple(rank(()))
    high = min(1, most)
    while not (high and reaches(order[:high])):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
        order = (*order[:low], *rank(order[:low]))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(order[:middle]) else (middle, high)
    chosen = order[:high]
    # The last one is needed: without it, the prefix did not reach the target.
    for member in chosen[-2::-1]:
        others = tuple(m for m in chosen if m != member)
        if reaches(others):
            chosen = others
    return chosen
