"""How sure a mean is: bootstrap intervals."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
FEW = 10  # groups; with fewer, percentile intervals are known to be too narrow
_AT_ONCE = 2**22  # weights held at a time


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval, NaN where one group alone says nothing about others."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray, groups: Sequence[Hashable]) -> list[Interval]:
    """Returns the mean of each column, with the percentile bootstrap interval (Efron 1979) of level LEVEL.

    What is drawn with replacement are whole groups, for members of one are not independent: crops of one photograph
    are good or bad together. The mean is over members, so that it stays that of the table. All columns see the same
    draws, and the same values and groups give the same interval.

    Args:
      values: (n, k), no NaN.
      groups: (n,), of each row; all different where rows are independent.

    Returns:
      One for each of the k columns.
    """
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    member = np.array([names[name] for name in groups])
    count = len(names)
    sizes = np.bincount(member, minlength=count).astype(np.float64)
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, member, values)
    means = values.mean(0)
    if count < 2:
        return [Interval(float(mean), float('nan'), float('nan')) for mean in means]
    random = np.random.default_rng(SEED)
    chunk = max(1, _AT_ONCE // count)
    drawn = []
    for start in range(0, RESAMPLES, chunk):
        rows = min(chunk, RESAMPLES - start)
        places = random.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count)  # how often each was drawn
        drawn.append(weights @ sums / (weights @ sizes)[:, None])
    ends = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    low, high = np.percentile(np.concatenate(drawn), ends, axis=0)
    return [Interval(*map(float, row)) for row in zip(means, low, high, strict=True)]
