import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage import metrics as reference

from p2p_jax import metrics
from tests.conftest import noisy, picture


def images():
    targets = np.stack([picture(i) for i in range(3)])
    return np.stack([noisy(t, i) for i, t in enumerate(targets)]), targets


@pytest.mark.parametrize('max_value', [1.0, 2.0, 255.0])
def test_against_scikit_image(max_value):
    a, b = (x / np.float32(255) * np.float32(max_value) for x in images())
    expected = [reference.peak_signal_noise_ratio(t, i, data_range=max_value) for i, t in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.psnr(jnp.asarray(a), jnp.asarray(b), max_value), expected, atol=1e-4)
    expected = [
        reference.structural_similarity(
            i, t, data_range=max_value, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1
        )
        for i, t in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(jnp.asarray(a), jnp.asarray(b), max_value), expected, atol=1e-5)


def test_equal_images_have_a_finite_score():
    x = jnp.asarray(images()[1] / np.float32(255))
    np.testing.assert_allclose(metrics.psnr(x, x, 1.0), metrics.PSNR_CEILING)
    np.testing.assert_allclose(metrics.ssim(x, x, 1.0), 1, atol=1e-6)


def test_nan_stays_nan():
    assert np.isnan(metrics.psnr(jnp.full((1, 16, 16, 3), jnp.nan), jnp.zeros((1, 16, 16, 3)), 1.0))[0]


def test_masked_examples_do_not_count_and_devices_are_gathered():
    a, b = (jnp.asarray(x / np.float32(255)) for x in images())
    a, b = (jnp.stack([x[:2], x[jnp.array([2, 0])]]) for x in (a, b))
    mask = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    collect = jax.pmap(
        functools.partial(metrics.evaluation_metrics, axis_name='batch'), axis_name='batch', out_axes=None
    )
    collected = collect(b, a, b, mask)
    values = collected.compute()
    single = metrics.psnr(a.reshape(-1, *a.shape[2:])[:3], b.reshape(-1, *b.shape[2:])[:3], 1.0)
    assert float(values['output_psnr']) == pytest.approx(float(single.mean()), abs=1e-4)
    assert float(values['input_psnr']) == pytest.approx(metrics.PSNR_CEILING)
    assert float(values['input_ssim']) == pytest.approx(1, abs=1e-5)
    assert int(collected.output_psnr.count) == 3
    merged = collected.merge(collected)
    assert int(merged.output_psnr.count) == 6
    assert float(merged.compute()['output_psnr']) == pytest.approx(float(values['output_psnr']))


def ssim_of_volumes(a, b, peak):
    """The formula of Wang et al. over whole volumes in float64, with the full window of 11×11×11."""
    line = np.exp(-(np.arange(-5, 6.0) ** 2) / (2 * 1.5**2))
    cube = np.einsum('i,j,k', line, line, line)
    cube /= cube.sum()
    a, b = np.float64(a), np.float64(b)

    def blur(volume):
        return ndimage.correlate(volume, cube, mode='nearest')

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    upper = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return np.mean(upper / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))


@pytest.mark.parametrize('channels', [1, 3])
def test_protocols_against_other_implementations(channels):
    a, b = (x[..., :channels] / np.float32(255) for x in images())
    a = np.clip(a + np.float32(0.003), 0, 1)  # so that rounding matters, and how
    whole = np.rint(a * 255), np.rint(b * 255)
    expected = {'psnr': [], 'ssim': [], 'ssim_3d': [], 'psnr_uint8': [], 'ssim_uint8': []}
    options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'channel_axis': -1}
    for i in range(len(a)):
        expected['psnr'].append(reference.peak_signal_noise_ratio(b[i], a[i], data_range=1))
        expected['ssim'].append(reference.structural_similarity(a[i], b[i], data_range=1, **options))
        expected['ssim_3d'].append(ssim_of_volumes(a[i], b[i], 1))
        pair = [np.uint8(x[i]) for x in whole]
        expected['psnr_uint8'].append(reference.peak_signal_noise_ratio(pair[1], pair[0], data_range=255))
        expected['ssim_uint8'].append(reference.structural_similarity(*pair, data_range=255, **options))
    found: dict = {}
    for protocol in metrics.PROTOCOLS.values():
        found |= protocol(jnp.asarray(a), jnp.asarray(b))
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4 if name.startswith('psnr') else 1e-5, err_msg=name)
    assert np.abs(found['psnr'] - found['psnr_uint8']).max() > 1e-3
    if channels == 3:
        assert (np.array(expected['ssim_3d']) - expected['ssim'] > 0.01).all(), 'the conventions would be the same'


def test_volumes_in_bright_flat_parts():
    """Where variances are small differences of large squares."""
    random = np.random.default_rng(0)
    a = np.float32(0.9 + 0.003 * random.normal(size=(1, 24, 20, 3)))
    b = np.float32(a + 0.003 * random.normal(size=a.shape))
    assert float(metrics.ssim_3d(a, b, 1.0)[0]) == pytest.approx(ssim_of_volumes(a[0], b[0], 1), abs=2e-5)


def test_luma_is_that_of_matlab():
    colours = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    # What rgb2ycbcr gives for uint8.
    np.testing.assert_array_equal(np.rint(metrics.luma(colours[None, None])[0, 0, :, 0] * 255), [16, 235, 81, 145, 41])


def test_y_channel_is_taken_after_rounding():
    a, b = (jnp.asarray(x / np.float32(255)) for x in images())
    shifted = a + 0.3 / 255
    found = metrics.PROTOCOLS['uint8'](shifted, b, y_channel=True)
    assert set(found) == {'psnr_uint8_y', 'ssim_uint8_y'}
    np.testing.assert_allclose(found['psnr_uint8_y'], metrics.psnr(metrics.luma(a), metrics.luma(b), 1.0), atol=1e-4)
