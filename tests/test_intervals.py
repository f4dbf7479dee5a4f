import math

import numpy as np
import pytest

from p2p_jax.intervals import bootstrap


def clustered(scenes, images, sets):
    """Values of `sets` independent data sets as columns: half of the variance is the scene's, mean 0; and scenes."""
    random = np.random.default_rng(1)
    scene = random.normal(size=(scenes, sets))
    names = np.repeat(np.arange(scenes), images)
    return scene[names] + random.normal(size=(scenes * images, sets)), names


def coverage(intervals):
    return np.mean([interval.low <= 0 <= interval.high for interval in intervals])


def test_intervals_cover_the_truth_as_often_as_they_say():
    values, names = clustered(40, 8, 500)
    assert 0.91 < coverage(bootstrap(values, names)) < 0.98


def test_crops_of_one_scene_are_not_independent():
    values, names = clustered(40, 8, 500)
    assert coverage(bootstrap(values, range(len(names)))) < 0.75


def test_with_few_scenes_they_are_too_narrow():
    values, names = clustered(4, 8, 500)
    assert coverage(bootstrap(values, names)) < 0.88


def test_the_same_data_give_the_same_interval_and_order_is_no_matter():
    values, names = clustered(7, 3, 4)
    first = bootstrap(values, names)
    assert bootstrap(values, [f'scene {name}' for name in names]) == first
    order = np.concatenate([np.arange(21)[np.repeat(np.arange(7), 3) == i][::-1] for i in range(7)])
    np.testing.assert_allclose(bootstrap(values[order], names[order]), first)


def test_unequal_scenes_keep_the_mean_over_images():
    values = np.array([[1.0], [1.0], [1.0], [5.0]])
    (interval,) = bootstrap(values, ['a', 'a', 'a', 'b'])
    assert interval.mean == 2
    assert (interval.low, interval.high) == (1, 5)


def test_against_single_draws_in_a_loop():
    values, names = clustered(6, 2, 1)
    random = np.random.default_rng(5)
    means = []
    for _ in range(20_000):
        means.append(np.mean([values[names == scene] for scene in random.integers(6, size=6)]))
    (interval,) = bootstrap(values, names)
    np.testing.assert_allclose(interval[1:], np.percentile(means, [2.5, 97.5]), atol=0.05)


def test_one_scene_says_nothing_about_others():
    (interval,) = bootstrap(np.array([[1.0], [2.0]]), ['a', 'a'])
    assert interval.mean == pytest.approx(1.5) and math.isnan(interval.low) and math.isnan(interval.high)
