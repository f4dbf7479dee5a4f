import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from configs import default, sample
from p2p_jax.data import LAYOUTS, basics, blur, camera, degrade
from p2p_jax.data.jpeg import jpeg_round_trip
from p2p_jax.data.records import find
from p2p_jax.datasets import selection
from p2p_jax.metrics import psnr

KEY = jax.random.key(0)
NOISES = ('awgn', 'poisson', 'poisson_gaussian', 'salt_and_pepper', 'speckle')
# Strengths at which nothing happens.
IDLE = {
    'awgn': {'mean': 0.3, 'std': (1.0, 2.0), 'percentage': (0.0, 0.0)},
    'gaussian_blur': {'sigma': (0.0, 0.0)},
    'lens_blur': {'radius': (0.0, 0.0), 'linear_light': True},
    'motion_blur': {'length': (0.0, 0.0), 'angle': (0.0, 180.0)},
    'resample': {'factor': (1.0, 1.0)},
    'salt_and_pepper': {'amount': (0.0, 0.0)},
    'speckle': {'std': (0.0, 0.0)},
}


def texture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Waves, an edge and a little noise, as 8 bits would hold them; float32 in [0, 1]."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width, :channels][:2] / 9
    tones = np.arange(channels)
    image = 0.45 + 0.2 * np.sin(x + tones) * np.cos(y - tones) + 0.2 * (x + 2 * y > height / 9)
    return (np.rint((image + random.normal(0, 0.02, image.shape)) * 255) / 255).astype(np.float32)


def flat(level: float, size: int = 256) -> jnp.ndarray:
    return jnp.full((size, size, 3), level, jnp.float32)


def impulse(size: int = 41) -> jnp.ndarray:
    return jnp.zeros((size, size, 1)).at[size // 2, size // 2].set(1)


def run(degradation: degrade.Degradation, image: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(degradation)(jnp.asarray(image), KEY))


def plain(degradation: degrade.Degradation, image: np.ndarray) -> np.ndarray:
    """As `run`, but compiles only the draws: quicker where all tests share them."""
    return np.asarray(degradation(jnp.asarray(image), KEY))


def over_keys(degradation: degrade.Degradation, image: jnp.ndarray, count: int = 200) -> np.ndarray:
    """The results of `count` keys."""
    return np.asarray(jax.jit(jax.vmap(degradation, (None, 0)))(image, jax.random.split(KEY, count)))


def pillow_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Float image in [0, 1], (height, width, 1 or 3), by way of Pillow's encoder and decoder."""
    file = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8).squeeze()).save(file, 'JPEG', quality=quality)
    return (np.asarray(Image.open(file), np.float32) / 255).reshape(image.shape)


def mean_square(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(np.asarray(a, np.float64) - b).mean())


@pytest.mark.parametrize('name', degrade.DEGRADATIONS)
def test_results_keep_shape_and_range_and_do_not_depend_on_the_batch(name):
    degradation = degrade.DEGRADATIONS[name](**default.get_config().degrade[name].to_dict())
    image = jnp.asarray(texture(21, 35)).at[:4].set(0).at[4:8].set(1)
    images, keys = jnp.stack([image, image[::-1], image]), jax.random.split(KEY, 3)
    results = np.asarray(jax.jit(jax.vmap(degradation))(images, keys))
    assert results.shape == images.shape and results.dtype == np.float32
    assert np.isfinite(results).all() and results.min() >= 0 and results.max() <= 1
    assert not np.array_equal(results[0], results[2])  # one image, two keys
    # Without compiling the whole, noise is quicker: its draws are compiled already.
    alone = degradation if name in NOISES else jax.jit(degradation)
    for i in range(2):
        np.testing.assert_allclose(results[i], alone(images[i], keys[i]), atol=1e-6)
    if name != 'camera':
        grey = jax.eval_shape(degradation, image[..., :1], KEY)
        assert grey.shape == (21, 35, 1) and grey.dtype == np.float32


@pytest.mark.parametrize('name', IDLE)
def test_at_zero_strength_nothing_happens(name):
    image = texture(21, 35)
    degradation = degrade.DEGRADATIONS[name](**IDLE[name])
    np.testing.assert_allclose((plain if name in NOISES else run)(degradation, image), image, atol=1e-6)


def test_draws_keep_to_their_bounds_and_their_law():
    draws = ((basics.uniform, (2.0, 6.0)), (basics.log_uniform, (0.01, 1.0)), (basics.integer, (3, 6)))
    together = jax.jit(jax.vmap(lambda key: [draw(key, bounds) for draw, bounds in draws]))
    even, log_even, whole = (np.asarray(drawn) for drawn in together(jax.random.split(KEY, 2000)))
    assert 2 <= even.min() < 2.1 and 5.9 < even.max() <= 6 and abs(even.mean() - 4) < 0.1
    assert (
        0.00999 < log_even.min() < 0.011 and 0.9 < log_even.max() < 1.0001 and abs(np.log10(log_even).mean() + 1) < 0.05
    )
    assert set(whole) == {3, 4, 5, 6} and (np.bincount(whole)[3:] > 430).all()
    for draw, _ in draws:
        np.testing.assert_allclose(draw(KEY, (7.0, 7.0)), 7, rtol=1e-6)


def test_srgb_curve_and_its_inverse():
    x = jnp.linspace(0, 1, 1001)
    np.testing.assert_allclose(degrade.linear_to_srgb(degrade.srgb_to_linear(x)), x, atol=1e-6)
    np.testing.assert_allclose(degrade.srgb_to_linear(jnp.array(0.5)), 0.214041, atol=1e-6)  # the standard's value


def test_variance_in_linear_light_is_shot_times_signal_plus_read_squared():
    shot, read = 0.004, 0.01
    for level in (0.1, 0.4, 0.7):
        image = jnp.full((256, 256, 3), degrade.linear_to_srgb(jnp.float32(level)))
        result = degrade.poisson_gaussian((shot, shot), (read, read))(image, jax.random.key(0))
        light = np.asarray(degrade.srgb_to_linear(result), np.float64)
        assert abs(light.mean() - level) < 5e-4
        np.testing.assert_allclose(light.var(), shot * level + read**2, rtol=0.02)


def test_strength_is_drawn_log_uniformly_within_its_bounds():
    low, high = 0.005, 0.02
    noise = jax.jit(degrade.poisson_gaussian((1e-9, 1e-9), (low, high)))
    image = jnp.full((64, 64, 3), degrade.linear_to_srgb(jnp.float32(0.5)))
    sigmas = np.array([float(degrade.srgb_to_linear(noise(image, jax.random.key(i))).std()) for i in range(200)])
    assert sigmas.min() > low * 0.95 and sigmas.max() < high * 1.05
    assert abs(np.log(sigmas).mean() - np.log([low, high]).mean()) < 0.1


def test_sample_noise_leaves_every_photograph_at_22_to_28_db():
    options = sample.get_config().degrade.poisson_gaussian.to_dict()
    noise = jax.jit(degrade.poisson_gaussian(**options))
    _, found = find(LAYOUTS, 'sample', None, selection(sample.get_config()))
    assert found.records
    for record in found.records:
        image = jnp.asarray(record.target.read()[:300, :427], jnp.float32) / 255  # one size: compiled once
        for seed in range(2):
            value = float(psnr(noise(image, jax.random.key(seed))[None], image[None], 1.0)[0])
            assert 22 <= value <= 28, (record.name, value)


def test_result_stays_in_range():
    image = jnp.asarray(texture(21, 35)).at[0].set(0).at[1].set(1)
    result = degrade.poisson_gaussian((0.5, 0.5), (0.5, 0.5))(image, jax.random.key(0))
    assert result.shape == image.shape
    assert float(result.min()) == pytest.approx(0, abs=1e-6) and float(result.max()) == pytest.approx(1, abs=1e-6)


def test_awgn_adds_a_share_of_independent_normal_noise():
    noise = plain(degrade.awgn(0.05, (0.1, 0.1), (0.5, 0.5)), flat(0.5)) - np.float64(0.5)
    assert abs(noise.mean() - 0.5 * 0.05) < 5e-4
    np.testing.assert_allclose(noise.std(), 0.5 * 0.1, rtol=0.01)
    assert abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.02
    assert 2.9 < ((noise - noise.mean()) ** 4).mean() / noise.var() ** 2 < 3.1  # a normal's kurtosis


def test_awgn_draws_its_strength_for_each_image():
    deviations = over_keys(degrade.awgn(0.0, (0.02, 0.1), (1.0, 1.0)), flat(0.5, 32)).std(axis=(1, 2, 3))
    assert 0.019 < deviations.min() < 0.025 and 0.095 < deviations.max() < 0.105
    assert abs(deviations.mean() - 0.06) < 0.005


def test_poisson_counts_photons():
    peak = 40.0
    noise = jax.jit(degrade.poisson((peak, peak)))
    for level in (0.05, 0.5):
        result = np.asarray(noise(flat(level), KEY), np.float64)
        np.testing.assert_allclose(result.mean(), level, rtol=0.01)
        np.testing.assert_allclose(result.var(), level / peak, rtol=0.02)
        np.testing.assert_allclose(result * peak, np.rint(result * peak), atol=1e-4)
        if level == 0.05:
            np.testing.assert_allclose((result == 0).mean(), np.exp(-level * peak), rtol=0.03)


def test_salt_is_as_likely_as_pepper():
    result = plain(degrade.salt_and_pepper((0.1, 0.1)), flat(0.5))
    np.testing.assert_allclose([(result == 0).mean(), (result == 1).mean()], 0.05, rtol=0.03)
    assert set(np.unique(result)) == {0, 0.5, 1}


def test_speckle_is_proportional_to_the_signal():
    for level in (0.2, 0.6):
        result = plain(degrade.speckle((0.1, 0.1)), flat(level)).astype(np.float64)
        np.testing.assert_allclose([result.mean(), result.std()], [level, 0.1 * level], rtol=0.01)


def test_quantisation_rounds_to_evenly_spaced_levels():
    ramp = jnp.linspace(0, 1, 3000).reshape(50, 60, 1)
    for levels in (2, 7):
        result = run(degrade.quantisation((levels, levels)), ramp)
        np.testing.assert_allclose(np.unique(result), np.linspace(0, 1, levels), atol=1e-6)
        assert abs(result - ramp).max() <= 0.5 / (levels - 1) + 1e-6
    counts = {len(np.unique(result)) for result in over_keys(degrade.quantisation((2, 5)), ramp, 60)}
    assert counts == {2, 3, 4, 5}


def lag_one(image: np.ndarray) -> np.ndarray:
    """Correlation of neighbours in a row, for each channel."""
    planes = np.moveaxis(image, -1, 0)
    return np.array([np.corrcoef(plane[:, :-1].ravel(), plane[:, 1:].ravel())[0, 1] for plane in planes])


def test_camera_noise_is_correlated_and_plain_noise_is_not():
    strengths = {'shot': (0.005, 0.005), 'read': (0.01, 0.01)}
    noise = degrade.camera(**strengths, quality=(90, 90), red_gain=(2.0, 2.0), blue_gain=(1.6, 1.6))
    through_camera = run(noise, flat(0.5))
    assert (lag_one(through_camera) > 0.2).all()
    assert abs(lag_one(plain(degrade.poisson_gaussian(**strengths), flat(0.5)))).max() < 0.02
    assert abs(through_camera.mean() - 0.5) < 0.01 and 0.02 < through_camera.std() < 0.1


def test_camera_without_noise_loses_little():
    image = texture(61, 75)
    still = degrade.camera((1e-9, 1e-9), (1e-9, 1e-9), (100, 100), (1.9, 2.4), (1.5, 1.9))
    assert mean_square(run(still, image), image) < 0.03**2


def test_camera_needs_three_channels():
    options = default.get_config().degrade.camera.to_dict()
    with pytest.raises(ValueError, match='three channels, not 1'):
        degrade.camera(**options)(jnp.zeros((8, 8, 1)), KEY)


def test_demosaicing_is_exact_where_colours_are_constant_and_where_greys_are_linear():
    colour = jnp.broadcast_to(jnp.array([0.2, 0.5, 0.8]), (7, 9, 3))
    there_and_back = jax.jit(lambda image: camera.demosaic(camera.mosaic(image)))
    np.testing.assert_allclose(there_and_back(colour), colour, atol=1e-6)
    ramp = jnp.broadcast_to((jnp.arange(9) * 0.02 + jnp.arange(7)[:, None] * 0.05)[..., None], (7, 9, 3))
    np.testing.assert_allclose(there_and_back(ramp)[2:-2, 2:-2], ramp[2:-2, 2:-2], atol=1e-6)


def test_mosaic_is_rggb():
    image = np.broadcast_to(np.arange(1, 4), (3, 3, 3))
    np.testing.assert_array_equal(camera.mosaic(image), [[1, 2, 1], [2, 3, 2], [1, 2, 1]])


def disc(radius: float, reach: int, samples: int = 200) -> np.ndarray:
    """The shares of a disc's area, from samples² points a pixel."""
    offsets = (np.arange((2 * reach + 1) * samples) + 0.5) / samples - reach - 0.5
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).reshape(2 * reach + 1, samples, 2 * reach + 1, samples)
    return inside.mean(axis=(1, 3)) / inside.mean(axis=(1, 3)).sum()


@pytest.mark.parametrize('radius', [0.8, 4.0])
def test_lens_blur_is_the_convolution_with_a_disc(radius):
    image = texture(40, 33)
    kernel = np.asarray(jax.jit(blur.disc_kernel, static_argnums=1)(radius, 5))
    np.testing.assert_allclose(kernel, disc(radius, 5), atol=2e-4 / radius**2)  # what so many samples resolve
    result = run(degrade.lens_blur((radius, radius), False), image)
    for reference, tolerance in ((kernel, 1e-5), (disc(radius, 5), 2e-4)):
        expected = ndimage.convolve(image, reference[..., None], mode='reflect')
        np.testing.assert_allclose(result, expected, atol=tolerance)


def test_disc_of_any_radius_is_a_kernel():
    kernels = jax.jit(jax.vmap(lambda radius: blur.disc_kernel(radius, 6)))(jnp.linspace(0, 6, 500))
    assert float(kernels.min()) >= 0
    np.testing.assert_allclose(kernels.sum(axis=(1, 2)), 1, atol=1e-6)


def test_lens_blur_in_linear_light_lets_highlights_grow():
    image = texture(40, 33)
    expected = degrade.linear_to_srgb(
        ndimage.convolve(np.asarray(degrade.srgb_to_linear(image)), disc(3, 3)[..., None], mode='reflect')
    )
    result = run(degrade.lens_blur((3.0, 3.0), True), image)
    np.testing.assert_allclose(result, expected, atol=1e-4)
    assert result.mean() > run(degrade.lens_blur((3.0, 3.0), False), image).mean()


def test_lens_blur_draws_its_radius_for_each_image():
    peaks = over_keys(degrade.lens_blur((2.0, 6.0), False), impulse())[:, 20, 20, 0]
    radii = 1 / np.sqrt(np.pi * peaks)
    assert 2 <= radii.min() + 1e-3 < 2.1 and 5.9 < radii.max() < 6.001 and abs(radii.mean() - 4) < 0.2


def test_gaussian_blur_agrees_with_scipy():
    image = texture(40, 33)
    for sigma in (0.6, 2.0):
        expected = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode='reflect')
        result = run(degrade.gaussian_blur((sigma, sigma)), image)
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(('length', 'angle'), [(9.0, 0.0), (12.0, 30.0), (7.5, 90.0), (14.0, 120.0)])
def test_motion_blur_is_a_line_of_the_given_length_and_direction(length, angle):
    spread = run(degrade.motion_blur((length, length), (angle, angle)), impulse())[..., 0].astype(np.float64)
    y, x = -(np.mgrid[:41, :41] - 20)[0], (np.mgrid[:41, :41] - 20)[1]
    np.testing.assert_allclose([spread.sum(), (x * spread).sum(), (y * spread).sum()], [1, 0, 0], atol=1e-4)
    radians = np.deg2rad(angle)
    along, across = x * np.cos(radians) + y * np.sin(radians), y * np.cos(radians) - x * np.sin(radians)
    # A line's variance; bilinear interpolation adds at most 1/4 in each direction.
    assert -0.1 <= (along**2 * spread).sum() - length**2 / 12 <= 0.25
    assert (across**2 * spread).sum() <= 0.25 and abs((along * across * spread).sum()) < 0.05


def test_blurs_leave_constants_alone_also_in_images_smaller_than_the_kernel():
    image = jnp.full((5, 3, 1), 0.7)
    for degradation in (
        degrade.lens_blur((10.0, 10.0), True),
        degrade.gaussian_blur((4.0, 4.0)),
        degrade.motion_blur((20.0, 20.0), (45.0, 45.0)),
        degrade.resample((8.0, 8.0)),
    ):
        np.testing.assert_allclose(run(degradation, image), image, atol=1e-5)


@pytest.mark.parametrize('factor', [2.0, 2.7])
def test_resampling_agrees_with_pillow(factor):
    image = texture(33, 46)
    small = (round(46 / factor), round(33 / factor))
    expected = []
    for plane in np.moveaxis(image, -1, 0):
        reduced = np.clip(np.asarray(Image.fromarray(plane).resize(small, Image.Resampling.BICUBIC)), 0, 1)
        expected.append(np.asarray(Image.fromarray(reduced).resize((46, 33), Image.Resampling.BICUBIC)))
    result = run(degrade.resample((factor, factor)), image)
    np.testing.assert_allclose(result, np.clip(np.stack(expected, -1), 0, 1), atol=1e-5)


def test_resampling_does_not_depend_on_the_room_for_stronger_and_weaker():
    image = texture(33, 46)
    drawn = float(basics.uniform(KEY, (1.0, 4.0)))
    result = run(degrade.resample((1.0, 4.0)), image)
    np.testing.assert_allclose(result, run(degrade.resample((drawn, drawn)), image), atol=1e-5)
    assert drawn > 1.1 and mean_square(result, image) > 1e-5


@pytest.mark.parametrize('channels', [1, 3])
def test_jpeg_agrees_with_pillow(channels):
    image = texture(77, 91, channels)
    code = jax.jit(jpeg_round_trip)
    for quality in (1, 10, 35, 50, 75, 92, 100):
        expected, result = pillow_jpeg(image, quality), np.asarray(code(jnp.asarray(image), quality))
        assert -10 * np.log10(mean_square(result, expected) + 1e-12) > 48, quality
        # At 100, a grey image loses little more than what libjpeg's integer transform rounds.
        tolerance = 0.1 if quality == 100 else 0.01
        assert abs(mean_square(result, image) / mean_square(expected, image) - 1) < tolerance, quality
        np.testing.assert_allclose(result * 255, np.rint(result * 255), atol=1e-4)


def test_jpeg_draws_whole_qualities_and_needs_one_or_three_channels():
    image = jnp.asarray(texture(24, 24))
    code = jax.jit(jpeg_round_trip)
    possible = [np.asarray(code(image, quality)) for quality in (20, 21, 22)]
    for result in over_keys(degrade.jpeg((20, 22)), image, 20):
        assert any(np.allclose(result, one, atol=1e-5) for one in possible)
    with pytest.raises(ValueError, match='one or three channels, not 2'):
        degrade.jpeg((50, 50))(jnp.zeros((8, 8, 2)), KEY)


def test_chain_keeps_the_order_and_gives_each_a_key_of_its_own():
    image = texture(21, 35)
    soft, coarse = degrade.gaussian_blur((2.0, 2.0)), degrade.quantisation((3, 3))
    expected = run(coarse, run(soft, image))
    # Where rounding moves a value from one level to another, all of a level lies between.
    assert (abs(run(degrade.chain(soft, coarse), image) - expected) > 1e-5).mean() < 0.01
    assert (abs(run(soft, run(coarse, image)) - expected) > 0.05).mean() > 0.1
    noise = degrade.awgn(0.0, (0.05, 0.05), (1.0, 1.0))
    twice = plain(degrade.chain(noise, noise), flat(0.5))
    np.testing.assert_allclose(twice.std(), 0.05 * np.sqrt(2), rtol=0.02)  # twice the same noise would double it
    assert degrade.chain(noise) is noise


def test_cut_blur_exchanges_a_rectangle_or_all_but_one():
    condition, target = jnp.zeros((30, 50, 3)), jnp.ones((30, 50, 3))
    cut = jax.jit(jax.vmap(lambda key, probability: degrade.cut_blur(condition, target, key, probability), (0, None)))
    keys = jax.random.split(KEY, 400)
    assert not cut(keys, 0.0).any() and cut(keys, 1.0).any(axis=(1, 2, 3)).all()
    results = np.asarray(cut(keys, 0.5))
    assert (results == results[..., :1]).all()
    changed = [result[..., 0] for result in results if result.any()]
    assert 0.4 < len(changed) / 400 < 0.6
    swapped, places = 0, set()
    for mask in changed:
        outside = mask[[0, 0, -1, -1], [0, -1, 0, -1]].sum() > 1  # the rectangle covers one corner at most
        swapped += outside
        rows, columns = (np.flatnonzero((mask != outside).any(axis)) for axis in (1, 0))
        assert (mask != outside).sum() == len(rows) * len(columns)  # a full rectangle
        assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()
        assert 0.6 < len(rows) / 30 < 0.75 and 0.63 < len(columns) / 50 < 0.75
        places.add((rows[0], columns[0]))
    assert 0.4 < swapped / len(changed) < 0.6
    assert {0, 9} <= {row for row, _ in places} and {0, 14} <= {column for _, column in places}
