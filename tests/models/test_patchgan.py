import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.lookup import UserError
from p2p_jax.models.layers import Style
from p2p_jax.models.patchgan import PatchGAN


def patchgan(strided, unstrided, norm='none', width=2, **options):
    options = dict(activation='leaky_relu', last_activation='none') | options
    return PatchGAN(strided, unstrided, width, style=Style(norm, 0.5, 'auto', None, jnp.float32), **options)


def init(network, size):
    x = jnp.zeros((1, *size, 3))
    return network.init(jax.random.key(0), x, x, train=False)


def test_reference_70_by_70():
    network = patchgan(3, 1, 'batch', width=64)
    shapes = jax.eval_shape(lambda: init(network, (256, 256)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == 2_768_705
    assert network.receptive_field() == 70
    assert network.patch_grid((256, 256)) == (30, 30)


def test_pixel_gan_sees_one_pixel():
    network = patchgan(0, 2)  # the reference's
    assert network.receptive_field() == 1
    assert network.patch_grid((17, 9)) == (17, 9)
    assert [(layer.size, layer.features) for layer in network.layers()] == [(1, 2), (1, 4), (1, 1)]


@pytest.mark.parametrize(('layers', 'grid'), [((4, 0), 15), ((4, 1), 14), ((7, 0), 1)])
def test_grids_of_the_denoising_study(layers, grid):
    assert patchgan(*layers).patch_grid((256, 256)) == (grid, grid)


@pytest.mark.parametrize('layers', [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 1)])
def test_receptive_field_and_grid_against_input_gradients(layers):
    network = patchgan(*layers)
    field = network.receptive_field()
    size = (2 * field + 15, 2 * field + 22)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, *size, 3)), jnp.float32)
    variables = init(network, size)
    scores = network.apply(variables, image, image, train=False)
    assert scores.shape == (1, *network.patch_grid(size), 1)
    middle = (scores.shape[1] // 2, scores.shape[2] // 2)

    slope = jax.grad(lambda x: network.apply(variables, image, x, train=False)[0, *middle, 0])(image)
    touched = np.argwhere(np.abs(slope[0]).sum(-1) > 0)
    extent = touched.max(0) - touched.min(0) + 1
    assert extent.tolist() == [field, field]


def test_both_images_count():
    network = patchgan(1, 0)
    random = np.random.default_rng(0)
    a, b, c = (jnp.asarray(random.normal(size=(1, 16, 16, 3)), jnp.float32) for _ in range(3))
    variables = init(network, (16, 16))
    score = network.apply(variables, a, b, train=False)
    assert not np.allclose(score, network.apply(variables, c, b, train=False))
    assert not np.allclose(score, network.apply(variables, a, c, train=False))


def test_last_activation():
    variables = init(patchgan(1, 0), (16, 16))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 3)), jnp.float32)
    raw = patchgan(1, 0).apply(variables, x, x, train=False)
    squashed = patchgan(1, 0, last_activation='sigmoid').apply(variables, x, x, train=False)
    np.testing.assert_allclose(squashed, jax.nn.sigmoid(raw), atol=1e-6)


def test_power_iteration_moves_only_when_told():
    network = patchgan(2, 1, 'spectral')
    variables = init(network, (32, 32))
    x = jnp.ones((1, 32, 32, 3))

    def changed(**options):
        """Names of the statistics that a pass in training changes."""
        after = network.apply(variables, x, x, train=True, mutable=['batch_stats'], **options)[1]['batch_stats']
        before = variables['batch_stats']
        return {name for layer in after for name in after[layer] if np.any(after[layer][name] != before[layer][name])}

    assert changed() == changed(update_spectral=False) == set()
    assert {f'{layer}/kernel/u' for layer in ('conv_0', 'conv_1', 'conv_2', 'head')} <= changed(update_spectral=True)


def test_too_small_an_image_is_an_error():
    with pytest.raises(UserError, match='7 strided and 0 unstrided layers leave nothing of a 64×64 image'):
        patchgan(7, 0).patch_grid((64, 64))
