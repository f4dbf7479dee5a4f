import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import sample
from p2p_jax.data import LAYOUTS, degrade
from p2p_jax.data.images import read_image
from p2p_jax.data.records import load
from p2p_jax.metrics import psnr


def test_srgb_curve_and_its_inverse():
    x = jnp.linspace(0, 1, 1001)
    np.testing.assert_allclose(degrade.linear_to_srgb(degrade.srgb_to_linear(x)), x, atol=1e-6)
    np.testing.assert_allclose(degrade.srgb_to_linear(jnp.array(0.5)), 0.214041, atol=1e-6)  # the standard's value


def test_variance_in_linear_light_is_shot_times_signal_plus_read_squared():
    shot, read = 0.004, 0.01
    for level in (0.1, 0.4, 0.7):
        image = jnp.full((400, 400, 3), degrade.linear_to_srgb(jnp.float32(level)))
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
    for records in load(LAYOUTS['sample'], None, (0.7, 0.15, 0.15), 0).values():
        for record in records:
            image = jnp.asarray(read_image(record.target), jnp.float32) / 255
            for seed in range(2):
                value = float(psnr(noise(image, jax.random.key(seed))[None], image[None], 1.0)[0])
                assert 22 <= value <= 28, (record.name, value)


def test_result_stays_in_range():
    image = jnp.asarray(np.random.default_rng(0).random((32, 32, 3)), jnp.float32).at[0].set(0).at[1].set(1)
    result = degrade.poisson_gaussian((0.5, 0.5), (0.5, 0.5))(image, jax.random.key(0))
    assert result.shape == image.shape
    assert float(result.min()) == pytest.approx(0, abs=1e-6) and float(result.max()) == pytest.approx(1, abs=1e-6)
