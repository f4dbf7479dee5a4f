import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from p2p_jax.lookup import UserError
from p2p_jax.models.layers import FORMS, NORMS, Strided, Style, choose_form, downsample, upsample


def arrays(height, width, channels=3, features=5):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, height, width, channels)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(4, 4, channels, features)), jnp.float32)
    return x, kernel


@pytest.mark.parametrize('size', [(8, 12), (7, 10), (5, 5), (2, 2)])
@pytest.mark.parametrize('function', [downsample, upsample])
def test_all_forms_agree_in_value_and_gradients(function, size):
    x, kernel = arrays(*size)

    def value_and_gradients(form):
        def weighted(x, kernel):
            y = function(x, kernel, form)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))), y

        (_, y), gradients = jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(x, kernel)
        return y, *gradients

    plain = value_and_gradients('native')
    for form in FORMS[1:]:
        for a, b in zip(value_and_gradients(form), plain, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('form', FORMS)
def test_forms_equal_flax(form):
    x, kernel = arrays(6, 8)
    down = nn.Conv(5, (4, 4), (2, 2), padding=1, use_bias=False).apply({'params': {'kernel': kernel}}, x)
    np.testing.assert_allclose(downsample(x, kernel, form), down, atol=1e-4)
    up = nn.ConvTranspose(5, (4, 4), (2, 2), use_bias=False).apply({'params': {'kernel': kernel}}, x)
    np.testing.assert_allclose(upsample(x, kernel, form), up, atol=1e-4)


def test_form_is_chosen_by_backend_and_overridable():
    assert choose_form('auto', 8) == 'gemm'  # the tests run on the CPU
    assert choose_form('auto', 512) == 'phase'
    assert choose_form('native', 8) == 'native'
    with pytest.raises(UserError, match="conv_form='fast' is unknown. Available: gemm, native, phase"):
        choose_form('fast', 8)


@pytest.mark.parametrize('direction', ['down', 'up'])
@pytest.mark.parametrize('form', FORMS)
def test_parameters_do_not_depend_on_the_form(direction, form):
    layer = Strided(5, True, direction, form, 0.02, jnp.float32)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
    assert {name: value.shape for name, value in params.items()} == {'kernel': (4, 4, 3, 5), 'bias': (5,)}


class Normalised(nn.Module):
    style: Style

    @nn.compact
    def __call__(self, x, train):
        return self.style.normalise('norm', x, train=train)


def normalise(norm, x, train=True):
    module = Normalised(Style(norm, 0.0, 'auto', None, jnp.float32))
    return module.apply(module.init(jax.random.key(0), x, False), x, train, mutable=['batch_stats'])


def test_norms_normalise_over_their_axes():
    x = 3 + 2 * jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 64)), jnp.float32)
    axes = {'batch': (0, 1, 2), 'instance': (1, 2)}
    for norm in NORMS:
        y, _ = normalise(norm, x)
        if norm in axes:
            np.testing.assert_allclose(y.mean(axes[norm]), 0, atol=1e-4)
            np.testing.assert_allclose(y.std(axes[norm]), 1, atol=1e-3)
        elif norm == 'group':
            groups = y.reshape(4, 6, 6, 32, 2)
            np.testing.assert_allclose(groups.mean((1, 2, 4)), 0, atol=1e-4)
            np.testing.assert_allclose(groups.std((1, 2, 4)), 1, atol=1e-3)
        else:
            np.testing.assert_array_equal(y, x)


def test_batch_norm_moves_its_statistics_in_training_and_uses_them_otherwise():
    x = 3 + jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 2)), jnp.float32)
    _, changed = normalise('batch', x)
    np.testing.assert_allclose(changed['batch_stats']['norm']['mean'], 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
    y, _ = normalise('batch', x, train=False)  # fresh running statistics: mean 0, variance 1
    np.testing.assert_allclose(y, x, rtol=1e-4)


def test_batch_norm_by_the_images_at_hand_is_that_of_training_and_changes_nothing():
    x = 3 + jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 2)), jnp.float32)
    # With an axis that is not there: it asks no other device.
    module = Normalised(Style('batch', 0.5, norm_axis='devices', statistics='batch'))
    plain = Normalised(Style('batch', 0.5))
    variables = module.init(jax.random.key(0), x, False)
    jax.tree.map(np.testing.assert_array_equal, variables, plain.init(jax.random.key(0), x, False))
    expected, _ = plain.apply(variables, x, True, mutable=['batch_stats'])
    np.testing.assert_allclose(module.apply(variables, x, False), expected, atol=1e-5)
    half = Normalised(Style('batch', 0.5, dtype=jnp.bfloat16, statistics='batch')).apply(variables, x, False)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=3e-2)
    # In training it is plain batch norm, whose running statistics move.
    synced = Normalised(Style('batch', 0.5, statistics='batch')).apply(variables, x, True, mutable=['batch_stats'])
    np.testing.assert_allclose(synced[1]['batch_stats']['norm']['mean'], 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
