"""Distances of sets of images: closed forms, definitions written out, and SciPy's root of a matrix."""

import numpy as np
import pytest
from scipy import linalg

from p2p_jax import fidelity
from p2p_jax.fidelity import Moments, frechet_distance
from p2p_jax.lookup import UserError


def draw(n, d, seed, scale=1.0, shift=0.0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) @ random.normal(size=(d, d)) * scale / d**0.5 + shift


def exact(mean, covariance):
    """Moments with just this mean and covariance."""
    return Moments(3, np.array(mean, float), 2 * np.array(covariance, float))


def test_moments_are_numpys_in_whatever_parts():
    rows = draw(50, 6, 0, shift=100.0).astype(np.float32)
    whole = Moments.of(rows)
    assert whole.mean.dtype == whole.covariance.dtype == np.float64
    np.testing.assert_allclose(whole.mean, rows.mean(0, dtype=float))
    np.testing.assert_allclose(whole.covariance, np.cov(rows.astype(float), rowvar=False), rtol=1e-10)
    parts = Moments.of(rows[:1]) + Moments.of(rows[1:20]) + Moments.of(rows[20:])
    assert parts.count == 50
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-10)


def test_frechet_distance_of_gaussians_with_a_closed_form():
    # Commuting covariances: |m1 - m2|² + Σ (σ1 - σ2)².
    turn = linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    first, second = np.array([1.0, 2.0, 0.0, 3.0]), np.array([2.0, 0.5, 1.0, 0.0])
    a = exact([1, 0, 2, 0], turn @ np.diag(first**2) @ turn.T)
    b = exact([0, 0, 0, 1], turn @ np.diag(second**2) @ turn.T)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + np.sum((first - second) ** 2), rel=1e-12)
    one, other = exact([3], [[4]]), exact([1], [[9]])
    assert frechet_distance(one, other) == pytest.approx(4 + 1)
    assert frechet_distance(one, exact([3], [[0]])) == pytest.approx(4)
    assert frechet_distance(exact([3], [[0]]), exact([1], [[0]])) == 4


@pytest.mark.parametrize(('n', 'm'), [(300, 200), (20, 25)])  # the latter without full rank
def test_frechet_distance_is_that_with_scipys_root(n, m):
    a, b = Moments.of(draw(n, 30, 1)), Moments.of(draw(m, 30, 2, 1.5, 0.3))
    # Where the product lacks rank, its root is well defined only with something added, as pytorch-fid does.
    offset = 1e-10 * np.eye(30) if n < 30 else 0
    root = linalg.sqrtm((a.covariance + offset) @ (b.covariance + offset))
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10 if n > 30 else 1e-3)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert abs(frechet_distance(a, a)) < 1e-10


def test_frechet_distance_without_rank_where_it_is_known():
    # Rotated apart in unused directions: the spaces of the two do not meet, so nothing is shared.
    a, b = np.zeros((10, 40)), np.zeros((10, 40))
    a[:, :5], b[:, 20:25] = draw(10, 5, 3), draw(10, 5, 4)
    one, other = Moments.of(a), Moments.of(b)
    expected = np.sum((one.mean - other.mean) ** 2) + np.trace(one.covariance) + np.trace(other.covariance)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)


def test_squared_mmd_is_its_definition():
    a, b = draw(5, 3, 5), draw(4, 3, 6)

    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    def mean(values):
        return sum(values) / len(values)

    expected = mean([kernel(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    expected += mean([kernel(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
    expected -= 2 * mean([kernel(x, y) for x in a for y in b])
    assert fidelity.squared_mmd(a, b) == pytest.approx(expected)


def test_kernel_distance_is_zero_on_average_for_one_distribution_and_large_for_two():
    rows = draw(800, 8, 7)
    real, same, other = rows[:400], rows[400:], rows[400:] + 0.5
    near = fidelity.kernel_distance(real, same, seed=0, subsets=200, subset_size=50)
    assert abs(near.mean) < near.std / 2 and near.std > 0
    assert near == fidelity.kernel_distance(real, same, seed=0, subsets=200, subset_size=50)
    assert near != fidelity.kernel_distance(real, same, seed=1, subsets=200, subset_size=50)
    assert fidelity.kernel_distance(real, other, seed=0, subsets=50, subset_size=50).mean > 5 * near.std
    # A subset of all has each image once.
    whole = fidelity.kernel_distance(real, other, seed=0, subsets=2, subset_size=400)
    assert whole.mean == pytest.approx(fidelity.squared_mmd(real, other)) and whole.std == pytest.approx(0, abs=1e-12)
    with pytest.raises(UserError, match='subsets of 1000 images, and there are 400 and 400'):
        fidelity.kernel_distance(real, other, seed=0)


def test_inception_score_of_known_probabilities():
    sure = np.eye(10)[np.arange(1000) // 100]  # in the order of the classes
    assert fidelity.inception_score(sure, seed=0, splits=1) == pytest.approx((10, 0))
    dealt = fidelity.inception_score(sure, seed=0)
    assert 9 < dealt.mean <= 10 and dealt.std > 0
    assert fidelity.inception_score(np.full((20, 4), 0.25), seed=0) == pytest.approx((1, 0))
    # Two classes, each image 3 : 1 for one of them: KL of (3/4, 1/4) from (1/2, 1/2).
    mixed = np.tile([[0.75, 0.25], [0.25, 0.75]], (50, 1))
    expected = 2 * 0.75**0.75 * 0.25**0.25
    assert fidelity.inception_score(mixed, seed=0, splits=1).mean == pytest.approx(expected)
    with pytest.raises(UserError, match='the mean over 10 splits, and there are 4'):
        fidelity.inception_score(sure[:4], seed=0)


def test_class_agreement():
    asked, recognised = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 2, 1, 0, 3])
    found = fidelity.class_agreement(asked, recognised, ('cat', 'dog', 'frog', 'ship'))
    assert found.overall == pytest.approx(4 / 6)
    assert found.per_class == pytest.approx({'cat': 2 / 3, 'dog': 0.5, 'ship': 1.0})
    assert found.confusion.tolist() == [[2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
