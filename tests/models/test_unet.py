import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.lookup import UserError
from p2p_jax.models import GENERATORS
from p2p_jax.models.layers import ACTIVATIONS, NORMS, Style
from p2p_jax.models.unet import UNet, pad_to_multiple


def unet(norm='instance', dtype=jnp.float32, **options):
    options = dict(out_channels=3, depth=3, width=8, dropout=0.0, last_activation='none', residual=False) | options
    return UNet(style=Style(norm, 0.02, 'auto', None, dtype), **options)


def image(height, width, n=1):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, height, width, 3)), jnp.float32)


def init(network, x):
    return jax.jit(lambda: network.init(jax.random.key(0), x, train=False))()


def test_parameter_count_of_unet_256():
    network = unet('batch', depth=8, width=64, dropout=0.5, last_activation='tanh')
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 256, 256, 3)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == 54_413_955


@pytest.mark.parametrize('size', [(1, 1), (3, 17), (16, 24), (31, 33)])
@pytest.mark.parametrize('norm', NORMS)
def test_any_size_comes_back(size, norm):
    network, x = unet(norm), image(*size)
    y = network.apply(init(network, x), x, train=False)
    assert y.shape == x.shape
    assert y.dtype == jnp.float32
    assert bool(jnp.isfinite(y).all())


def test_padding_reflects_and_leaves_multiples_alone():
    x = image(5, 6)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(padded[:, :5, :6], x)
    np.testing.assert_array_equal(padded[:, 5:, :6], x[:, [3, 2, 1]])
    assert pad_to_multiple(padded, 4).shape == padded.shape


def test_residual_gives_the_input_minus_the_network():
    x = image(16, 16)
    plain = unet(residual=False)
    variables = init(plain, x)
    np.testing.assert_allclose(
        unet(residual=True).apply(variables, x, train=False), x - plain.apply(variables, x, train=False), atol=1e-6
    )


def test_last_activation_bounds_the_output():
    x = image(16, 16)
    network = unet(last_activation='none')
    variables = init(network, x)
    raw = network.apply(variables, x, train=False)
    for name in ('tanh', 'sigmoid'):
        np.testing.assert_allclose(
            unet(last_activation=name).apply(variables, x, train=False), ACTIVATIONS[name](raw), atol=1e-6
        )


def test_kernels_start_normal_with_the_given_deviation():
    kernels = [leaf for leaf in jax.tree.leaves(init(unet(width=32), image(16, 16))['params']) if leaf.ndim == 4]
    values = np.concatenate([np.ravel(k) for k in kernels])
    assert abs(values.std() - 0.02) < 2e-4 and abs(values.mean()) < 2e-4


def test_dropout_acts_in_training_only():
    network, x = unet(depth=6, width=4, dropout=0.5), image(64, 64)
    variables = init(network, x)

    def apply(train, seed):
        return network.apply(
            variables, x, train=train, rngs={'dropout': jax.random.key(seed)}, mutable=['batch_stats']
        )[0]

    assert not np.array_equal(apply(True, 0), apply(True, 1))
    np.testing.assert_array_equal(apply(False, 0), apply(False, 1))


def test_bfloat16_computes_near_float32_with_float32_parameters():
    x = image(32, 32)
    variables = init(unet(), x)
    half = unet(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(init(half, x))} == {np.dtype('float32')}
    full = unet().apply(variables, x, train=False)
    difference = half.apply(variables, x, train=False) - full
    assert 0 < float(jnp.abs(difference).max()) < 0.05 * float(jnp.abs(full).max())


def test_spectral_norm_bounds_every_convolution():
    network, x = unet('spectral'), image(16, 16)
    variables = jax.jit(lambda: network.init(jax.random.key(0), x, train=False))()
    for _ in range(30):
        _, changed = network.apply(variables, x, train=True, mutable=['batch_stats'])
        variables = variables | changed
    statistics = {key: value for sub in variables['batch_stats'].values() for key, value in sub.items()}
    kernels = variables['params']
    assert len(kernels) == 6
    for name, layer in kernels.items():
        top = np.linalg.svd(np.asarray(layer['kernel']).reshape(-1, layer['kernel'].shape[-1]), compute_uv=False)[0]
        assert statistics[f'{name}/kernel/sigma'] == pytest.approx(top, rel=0.02)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(depth=0), 'depth=0'),
        (dict(dropout=0.5), 'has no effect at depth=3'),
        (dict(dropout=1.0), 'expected a rate'),
        (dict(residual=True, out_channels=1), '3 channels cannot be added to 1'),
        (dict(last_activation='tan'), "'tan' is unknown. Available: .*Did you mean 'tanh'"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: unet(**options).init(jax.random.key(0), image(16, 16), train=False))


def test_registered():
    assert GENERATORS['unet'] is UNet
