"""In which order training sees its examples: an endless sequence, a pure function of the seed and the place in it."""

import functools
from collections.abc import Callable, Sequence

import numpy as np


def shuffled(count: int, seed: int, *, stream: int | None = None) -> Callable[[int], int]:
    """Returns the example at each place of passes over `count` examples, each pass in a random order of its own.

    Args:
      count: of examples.
      seed: of the orders.
      stream: tells sequences of one seed apart.
    """

    @functools.lru_cache(maxsize=4)
    def permutation(epoch: int) -> np.ndarray:
        key = (seed, epoch) if stream is None else (seed, epoch, stream)
        return np.random.default_rng(key).permutation(count)

    def at(place: int) -> int:
        epoch, rest = divmod(place, count)
        return int(permutation(epoch)[rest])

    return at


def balanced(labels: Sequence[int], seed: int) -> Callable[[int], int]:
    """Returns the example at each place of a sequence in which all classes occur equally often.

    With k classes, places 0 … k - 1, k … 2k - 1, … each have an example of every class, in a random order; each class
    passes over its own examples as in `shuffled`, a small one more often.

    Args:
      labels: of the examples.
      seed: of the orders.
    """
    classes = sorted(set(labels))
    members = [[i for i, label in enumerate(labels) if label == kind] for kind in classes]
    within = [shuffled(len(own), seed, stream=1 + place) for place, own in enumerate(members)]
    among = shuffled(len(classes), seed, stream=0)

    def at(place: int) -> int:
        kind = among(place)
        return members[kind][within[kind](place // len(classes))]

    return at
