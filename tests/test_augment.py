import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.augment import AUGMENTATIONS, augment
from p2p_jax.lookup import UserError

KEY = jax.random.key(0)
ALL = ('color', 'translation', 'cutout')
SIGNED = (-1.0, 1.0)


def image(height=32, width=24, channels=3, seed=0):
    """A random image in [-1, 1], of which no value is 0."""
    random = np.random.default_rng(seed)
    signs = random.choice([-1, 1], (height, width, channels))
    return jnp.asarray(signs * random.uniform(0.1, 1, (height, width, channels)), jnp.float32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def over_keys(x, count, policy):
    """What `count` keys make of an image, (count, height, width, channels)."""
    return jax.vmap(lambda key: augment(x, key, policy, SIGNED))(jax.random.split(KEY, count))


def regression(before, after):
    """Slope and intercept of `after` over `before`, and what of it they leave open."""
    slope, intercept = np.polyfit(before.ravel(), after.ravel(), 1)
    return slope, intercept, np.abs(after - slope * before - intercept).max()


def test_an_empty_policy_leaves_the_image_as_it_is():
    x = image()
    np.testing.assert_array_equal(augment(x, KEY, (), SIGNED), x)
    np.testing.assert_allclose(augment(x, KEY, (), (0.0, 1.0)), x, atol=1e-6)


def test_an_unknown_augmentation_is_an_error():
    with pytest.raises(UserError, match="'colour' is unknown. Available: color, cutout, translation"):
        augment(image(), KEY, ('colour',), SIGNED)


def test_color_of_grey_images_is_brightness_and_contrast():
    x = np.array(image(channels=1, seed=1), np.float64)
    results = np.asarray(over_keys(jnp.asarray(x, jnp.float32), 2000, ('color',)), np.float64)
    slopes, shifts = [], []
    for result in results[:200]:
        slope, intercept, rest = regression(x, result)
        assert rest < 1e-5  # saturation does nothing to a grey image
        slopes.append(slope)
        shifts.append(intercept - (1 - slope) * x.mean())
    assert 0.5 <= min(slopes) < 0.55 and 1.45 < max(slopes) <= 1.5
    assert -0.5 <= min(shifts) < -0.45 and 0.45 < max(shifts) <= 0.5
    assert abs(np.corrcoef(slopes, shifts)[0, 1]) < 0.2
    # The mean takes on b, which is uniform in ±1/2; the variance is multiplied by c², whose mean is 1 + 1/12.
    means, variances = results.mean((1, 2, 3)), results.var((1, 2, 3))
    np.testing.assert_allclose([means.mean() - x.mean(), means.var()], [0, 1 / 12], atol=0.015)
    np.testing.assert_allclose(variances.mean() / x.var(), 1 + 1 / 12, atol=0.03)


def test_saturation_scales_the_distance_from_grey():
    x = np.array(image(), np.float64)
    results = np.asarray(over_keys(jnp.asarray(x, jnp.float32), 2000, ('color',)), np.float64)
    grey = x.mean(-1, keepdims=True)
    factors = []
    for result in results[:300]:
        contrast, _, rest = regression(grey, result.mean(-1, keepdims=True))
        product, shift, colour_rest = regression(x - grey, result - result.mean(-1, keepdims=True))
        assert max(rest, abs(shift), colour_rest) < 1e-5
        factors.append(product / contrast)
    assert 0 <= min(factors) < 0.05 and 1.95 < max(factors) <= 2.0001
    np.testing.assert_allclose([np.mean(factors), np.var(factors)], [1, 1 / 3], atol=0.1)
    # Of the colours' variance, s² c² is left, whose mean is 4/3 · 13/12.
    colours = (results - results.mean(-1, keepdims=True)).var((1, 2, 3)).mean()
    np.testing.assert_allclose(colours / (x - grey).var(), 4 / 3 * 13 / 12, atol=0.07)


def test_translation_moves_by_whole_pixels_and_fills_with_zeros():
    x = np.asarray(image(33, 24))
    places = set()
    for result in np.asarray(over_keys(jnp.asarray(x), 500, ('translation',))):
        rows, columns = (np.flatnonzero(result.any(axis)) for axis in ((1, 2), (0, 2)))
        down, right = (kept[0] if kept[0] else kept[-1] - side + 1 for kept, side in ((rows, 33), (columns, 24)))
        expected = np.zeros_like(x)
        expected[max(down, 0) : 33 + min(down, 0), max(right, 0) : 24 + min(right, 0)] = x[
            max(-down, 0) : 33 - max(down, 0), max(-right, 0) : 24 - max(right, 0)
        ]
        np.testing.assert_array_equal(result, expected)
        places.add((down, right))
    assert {down for down, _ in places} == set(range(-4, 5)) and {right for _, right in places} == set(range(-3, 4))
    assert len(places) > 50  # of 63: the two are drawn apart


@pytest.mark.parametrize(('height', 'width'), [(32, 24), (14, 9)])
def test_cutout_blanks_a_rectangle_of_half_the_sides_around_any_centre(height, width):
    x = np.asarray(image(height, width))
    results = np.asarray(over_keys(jnp.asarray(x), 4000, ('cutout',)))
    cut = (results == 0).all(-1)
    np.testing.assert_array_equal(results, np.where(cut[..., None], 0, x))
    for axis, side in ((1, height), (2, width)):
        # (keys, side): the part of one side that is cut, whole whatever the other side has.
        part = cut.any(3 - axis)
        np.testing.assert_array_equal(cut.sum((1, 2)), cut.any(1).sum(1) * cut.any(2).sum(1))
        length = side // 2
        spans = [
            np.isin(np.arange(side), np.arange(first, first + length))
            for first in range(-(length // 2), side - length // 2 + (length % 2 == 0))
        ]
        counts = [(part == span).all(1).sum() for span in spans]
        assert sum(counts) == len(part) and min(counts) > 0.5 * len(part) / len(spans)
        assert max(counts) < 1.6 * len(part) / len(spans)
    # At 32, 33 centres are as likely: (8 + … + 15 + 17 · 16 + 15 + … + 8) / 33 = 13.8 pixels, at 24 10.4 of 25 centres.
    if (height, width) == (32, 24):
        expected = (2 * sum(range(8, 16)) + 17 * 16) / 33 * (2 * sum(range(6, 12)) + 13 * 12) / 25 / (32 * 24)
        np.testing.assert_allclose(cut.mean(), expected, atol=0.004)
        assert cut.mean((1, 2)).max() == 0.25 and cut.mean((1, 2)).min() >= 1 / 16


def test_one_key_does_the_same_to_two_images():
    a, b = image(seed=1), image(seed=2)
    for policy in (('translation', 'cutout'), ALL):
        # What is not colour is linear, and colour is so, brightness apart, which cancels.
        run = jax.jit(functools.partial(augment, policy=policy, value_range=SIGNED))
        difference = run(a, KEY) - run(b, KEY)
        np.testing.assert_allclose(difference, run(a - b, KEY) - run(jnp.zeros_like(a), KEY), atol=1e-5)
        assert not np.array_equal(run(a, KEY), run(a, jax.random.key(1)))


def test_examples_of_a_batch_have_their_own_draws_and_do_not_see_each_other():
    x = jnp.stack([image(), image(seed=1), image()])
    keys = jax.random.split(KEY, 3)
    one = functools.partial(augment, policy=ALL, value_range=SIGNED)
    results = jax.jit(jax.vmap(one))(x, keys)
    assert results.shape == x.shape and results.dtype == jnp.float32
    assert not np.array_equal(results[0], results[2])
    np.testing.assert_allclose(results[1], jax.jit(one)(x[1], keys[1]), atol=1e-6)


@pytest.mark.parametrize('policy', [ALL, ('color',)])
def test_ranges_are_treated_alike(policy):
    x = image()
    run = jax.jit(augment, static_argnums=(2, 3))
    expected = run(x, KEY, policy, SIGNED)
    np.testing.assert_allclose(run((x + 1) / 2, KEY, policy, (0.0, 1.0)) * 2 - 1, expected, atol=1e-5)
    np.testing.assert_allclose(run(100 + 50 * x, KEY, policy, (50.0, 150.0)), 100 + 50 * expected, atol=1e-3)


def test_the_policy_is_applied_in_its_order():
    x = image()
    first, second = jax.random.split(KEY, 2)
    expected = AUGMENTATIONS['cutout'](AUGMENTATIONS['color'](x, first), second)
    np.testing.assert_allclose(augment(x, KEY, ('color', 'cutout'), SIGNED), expected, atol=1e-6)
    assert float(jnp.abs(augment(x, KEY, ('cutout', 'color'), SIGNED) - expected).max()) > 0.01


def test_gradients_pass_through_and_agree_with_differences():
    x = image(16, 16)
    weights = image(16, 16, seed=3)

    @jax.jit
    @jax.value_and_grad
    def score(x):
        return jnp.sum(weights * augment(x, KEY, ALL, SIGNED))

    _, slope = score(x)
    assert bool(jnp.isfinite(slope).all()) and 0.3 < float((slope != 0).mean()) <= 1
    # Everything is affine in the image: the gradient tells the change exactly.
    direction = image(16, 16, seed=4)
    change = score(x + direction)[0] - score(x)[0]
    np.testing.assert_allclose(jnp.sum(slope * direction), change, rtol=1e-3, atol=1e-3)
    flat = jnp.full((16, 16, 3), 0.3)
    assert bool(jnp.isfinite(score(flat)[1]).all())
