"""A search by doubling and halving."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool], start: int, limit: int, step: int = 1) -> int:
    """The largest multiple of `step` up to `limit` that fits, or 0: doubled until it does not, then halved between.

    Args:
      fits: whether a number does; where one does, so do smaller ones.
      start: a multiple of `step`, tried first.
      limit: likewise; larger ones are not tried.
      step: of the numbers.
    """
    low, high = 0, start
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + step)
    while high - low > step:
        middle = (low + high) // 2 // step * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
