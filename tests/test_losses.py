import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.losses import GAN_LOSSES, PIXEL_LOSSES

SCORES = np.random.default_rng(0).normal(size=(3, 4, 5, 1)) * 3


def mean(values):
    return values.reshape(len(values), -1).mean(1)


def test_vanilla_is_binary_cross_entropy_on_logits():
    probability = 1 / (1 + np.exp(-SCORES))
    loss = GAN_LOSSES['vanilla']
    np.testing.assert_allclose(loss.real(jnp.asarray(SCORES)), mean(-np.log(probability)), rtol=1e-5)
    np.testing.assert_allclose(loss.generated(jnp.asarray(SCORES)), mean(-np.log(1 - probability)), rtol=1e-5)
    np.testing.assert_allclose(loss.generator(jnp.asarray(SCORES)), mean(-np.log(probability)), rtol=1e-5)
    assert loss.on_logits


def test_vanilla_is_finite_for_huge_logits():
    huge = jnp.array([[1e4], [-1e4]])
    for term in GAN_LOSSES['vanilla'][:3]:
        assert np.isfinite(term(huge)).all()


def test_lsgan_is_the_squared_distance_to_the_label():
    loss = GAN_LOSSES['lsgan']
    np.testing.assert_allclose(loss.real(jnp.asarray(SCORES)), mean((SCORES - 1) ** 2), rtol=1e-5)
    np.testing.assert_allclose(loss.generated(jnp.asarray(SCORES)), mean(SCORES**2), rtol=1e-5)
    np.testing.assert_allclose(loss.generator(jnp.asarray(SCORES)), mean((SCORES - 1) ** 2), rtol=1e-5)


@pytest.mark.parametrize('name', GAN_LOSSES)
def test_the_generator_pays_less_where_it_fools_the_discriminator(name):
    fooled, caught = jnp.full((1, 2, 2, 1), 0.9), jnp.full((1, 2, 2, 1), 0.1)
    loss = GAN_LOSSES[name]
    assert loss.generator(fooled) < loss.generator(caught)
    assert loss.real(fooled) < loss.real(caught)
    assert loss.generated(fooled) > loss.generated(caught)


def test_l1_gives_one_value_an_example():
    output, target = np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))
    output[1] = -0.25
    np.testing.assert_allclose(PIXEL_LOSSES['l1'](jnp.asarray(output), jnp.asarray(target)), [0, 0.25])
