import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
