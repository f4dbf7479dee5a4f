"""How near a set of generated images is to a set of real ones, from what networks say of them.

Pure functions of features, (n, d), of class probabilities, (n, classes), and of labels, (n,); all in float64.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from p2p_jax.lookup import UserError


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, gathered part by part.

    Attributes:
      count: how many rows were seen.
      mean: float64 (d,).
      scatter: float64 (d, d), the sum over the rows of the outer products of their distances from the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> 'Moments':
        """Returns the moments of features (n, d), at least one row."""
        rows = np.asarray(features, np.float64)
        mean = rows.mean(axis=0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    def __add__(self, other: 'Moments') -> 'Moments':
        """Returns the moments of both parts together (Chan et al. 1979)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        between = np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """(d, d), the scatter over n - 1, as numpy.cov and pytorch-fid; of one row 0."""
        return self.scatter / max(self.count - 1, 1)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns L of C = L Lᵀ with a column for each eigenvalue above rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(a: Moments, b: Moments) -> float:
    """Fréchet distance of two Gaussians: |m₁ - m₂|² + Tr(C₁ + C₂ - 2 √(C₁ C₂)) (Heusel et al. 2017, equation 6).

    On the features of `inception` it is the FID. With C = L Lᵀ the trace of the root is the sum of the singular values
    of L₁ᵀ L₂: no root of a matrix that has none in real numbers, and no loss of digits where covariances lack rank,
    as those of fewer images than features do. The distance of few images is too large: compare equal numbers only.

    Args:
      a: of one set.
      b: of the other.

    Returns:
      At least 0 but for rounding.
    """
    shared = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False)
    apart = a.mean - b.mean
    return float(apart @ apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared.sum())


class Spread(NamedTuple):
    """Mean and standard deviation over parts of the images."""

    mean: float
    std: float


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, equation 3).

    The kernel is (xᵀy / d + 1)³ (Bińkowski et al. 2018, section 4). Sets of one distribution give 0 on average: the
    estimate may be below 0.

    Args:
      a: features (n, d), at least two rows.
      b: features (m, d), likewise.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def within(x: np.ndarray) -> float:
        values = _kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * _kernel(a, b).mean())


def kernel_distance(a: np.ndarray, b: np.ndarray, *, seed: int, subsets: int = 100, subset_size: int = 1000) -> Spread:
    """Kernel distance, on the features of `inception` the KID (Bińkowski et al. 2018, section 4).

    Args:
      a: features (n, d).
      b: features (m, d).
      seed: of the subsets.
      subsets: pairs of subsets that are drawn, in each none twice; the default is the paper's code's.
      subset_size: images of a subset; likewise.

    Returns:
      Of `squared_mmd` over the subsets. Many print it times 1000.

    Raises:
      UserError: fewer images than a subset has.
    """
    if min(len(a), len(b)) < subset_size:
        raise UserError(
            f'the kernel distance takes subsets of {subset_size} images, and there are {len(a)} and {len(b)}; make '
            'more images, or take smaller subsets'
        )
    random = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        first, second = (x[random.choice(len(x), subset_size, replace=False)] for x in (a, b))
        values.append(squared_mmd(first, second))
    return Spread(float(np.mean(values)), float(np.std(values)))


def inception_score(probabilities: np.ndarray, *, seed: int, splits: int = 10) -> Spread:
    """Inception score: exp of the mean of KL(p(y|x) || p(y)) (Salimans et al. 2016, section 4), over splits.

    Args:
      probabilities: of the classes for each image, (n, classes), each row sums to 1; the published numbers are from the
        1008 of `inception`.
      seed: of the order in which images are dealt to the splits. Of images in the order of their classes each split
        would otherwise hold few classes, and the score be far too low.
      splits: parts of nearly equal size; the default is the paper's.

    Returns:
      Each value between 1 and the number of classes.

    Raises:
      UserError: fewer images than splits.
    """
    if len(probabilities) < splits:
        raise UserError(f'the inception score is the mean over {splits} splits, and there are {len(probabilities)}')
    rows = np.asarray(probabilities, np.float64)[np.random.default_rng(seed).permutation(len(probabilities))]
    scores = []
    for part in np.array_split(rows, splits):
        # 0 log 0 is 0.
        ratios = np.where(part > 0, part / np.maximum(part.mean(axis=0), np.finfo(np.float64).tiny), 1)
        scores.append(np.exp(np.mean(np.sum(part * np.log(ratios), axis=1))))
    return Spread(float(np.mean(scores)), float(np.std(scores)))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How often a classifier sees in an image what was asked for.

    Attributes:
      overall: share of all images.
      per_class: class to share of its images; only classes that were asked for.
      confusion: int (classes, classes): row asked for, column recognised.
    """

    overall: float
    per_class: dict[str, float]
    confusion: np.ndarray


def class_agreement(asked: np.ndarray, recognised: np.ndarray, classes: Sequence[str]) -> Agreement:
    """Compares the labels that were asked for with those that a classifier recognised.

    Args:
      asked: int (n,), places in `classes`, at least one.
      recognised: int (n,), likewise.
      classes: their names.
    """
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (asked, recognised), 1)
    right, counts = np.diag(confusion), confusion.sum(axis=1)
    per_class = {name: float(right[i] / counts[i]) for i, name in enumerate(classes) if counts[i]}
    return Agreement(float(right.sum() / counts.sum()), per_class, confusion)
