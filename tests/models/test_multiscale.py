"""The multi-scale discriminator against the PatchGANs that it is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.lookup import UserError
from p2p_jax.models.layers import Style
from p2p_jax.models.multiscale import MultiScale, halve
from p2p_jax.models.patchgan import PatchGAN


def build(scales=2, width=4, strided=1, norm='none'):
    return MultiScale(scales, strided, 1, width, 'leaky_relu', 'none', Style(norm, 0.3))


def pair(size=24, channels=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, size, size, channels)), jnp.float32)


def test_the_reference_s_parameters():
    """pix2pixHD's three discriminators with instance norm, on labels and image of three channels each."""
    x = jnp.zeros((1, 256, 256, 3))
    shapes = jax.eval_shape(functools.partial(build(3, 64, 3, 'instance').init, train=False), jax.random.key(0), x, x)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
    layers = [(6, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    assert count == 3 * sum(16 * a * b + b for a, b in layers) == 8_303_427


def test_halving_averages_what_lies_in_the_image():
    x = np.arange(20.0, dtype=np.float32).reshape(1, 4, 5, 1)
    expected = [[x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean() for j in (0, 2, 4)] for i in (0, 2)]
    np.testing.assert_allclose(halve(jnp.asarray(x))[0, ..., 0], expected, rtol=1e-6)


def test_halving_against_pytorch():
    torch = pytest.importorskip('torch')
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    pool = torch.nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
    expected = pool(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(halve(jnp.asarray(x)), expected, atol=1e-6)


def test_each_scale_is_a_patchgan_of_its_own_on_halved_images():
    network = build()
    condition, image = pair()
    variables = jax.jit(functools.partial(network.init, train=False))(jax.random.key(0), condition, image)
    apply = jax.jit(functools.partial(network.apply, train=False))
    scores = apply(variables, condition, image)
    single = PatchGAN(1, 1, 4, 'leaky_relu', 'none', Style('none', 0.3))
    for i, score in enumerate(scores):
        params = variables['params'][f'scale_{i}']
        expected = single.apply({'params': params}, condition, image, train=False)
        np.testing.assert_allclose(score, expected, atol=1e-5)
        condition, image = halve(condition), halve(image)
    kernels = [variables['params'][f'scale_{i}']['head']['kernel'] for i in range(2)]
    assert not np.allclose(*kernels)


def test_spectral_norm_is_on_every_layer_of_every_scale():
    network = build(norm='spectral')
    condition, image = pair()
    variables = jax.jit(functools.partial(network.init, train=False))(jax.random.key(0), condition, image)
    step = jax.jit(functools.partial(network.apply, train=True, update_spectral=True, mutable=['batch_stats']))
    scores, changed = step(variables, condition, image)
    for scale in ('scale_0', 'scale_1'):
        assert set(changed['batch_stats'][scale]) == {'conv_0_spectral', 'conv_1_spectral', 'head_spectral'}
    tenfold = jax.tree.map(lambda x: 10 * x if x.ndim == 4 else x, variables['params'])
    for _ in range(5):  # the norms are known well after a few steps, and a kernel's size plays no part
        _, moved = step(variables, condition, image)
        variables = variables | moved
    scores = step(variables, condition, image)[0]
    scaled = step(variables | {'params': tenfold}, condition, image)[0]
    for a, b in zip(scores, scaled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_too_small_an_image_names_the_section():
    network = build(scales=3, strided=3)
    x = jnp.zeros((1, 32, 32, 3))
    with pytest.raises(
        UserError, match='discriminator.multiscale: 3 strided and 1 unstrided layers leave nothing of a'
    ):
        jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), x, x)
