import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from p2p_jax.lookup import UserError
from p2p_jax.models.convolutions import FORMS, choose_form, convolve, downsample, upsample
from p2p_jax.models.layers import NORMS, Convolution, Style
from tests.models.generators import check_forms, draw, image

LABELS = jnp.array([0, 2, 1, 2], jnp.int32)


def arrays(height, width, channels=3, features=5):  # more than 8 are features, fewer an image's
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, height, width, channels)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(4, 4, channels, features)), jnp.float32)
    return x, kernel


# Of 2 images: few positions, some, more, many; with odd sides.
SIZES = [(8, 12), (7, 10), (2, 2), (22, 23), (40, 46), (64, 66)]


# Of 10 channels the slopes by the kernel of the largest images are sums too large for one absolute tolerance.
@pytest.mark.parametrize(
    ('channels', 'size'), [((3, 5), size) for size in SIZES] + [(c, s) for c in ((10, 9), (9, 3)) for s in SIZES[:-1]]
)
@pytest.mark.parametrize('function', [downsample, upsample])
def test_all_forms_agree_in_value_and_gradients(function, channels, size):
    x, kernel = arrays(*size, *channels)
    check_forms(function, x, kernel)


@pytest.mark.parametrize(('size', 'padding'), [(1, 0), (4, 1), (3, 1), (7, 0), (2, 0), (3, 2)])
@pytest.mark.parametrize('channels', [(3, 5), (10, 12), (12, 10), (10, 1), (3, 10)])
def test_forms_agree_where_the_size_stays(size, padding, channels):
    x, _ = arrays(11, 9, channels[0])
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(size, size, *channels)), jnp.float32)
    check_forms(lambda x, kernel, form: convolve(x, kernel, padding, form), x, kernel)


# Of many channels with smaller kernels, so that the terms of the sums stay as small.
@pytest.mark.parametrize(('channels', 'scale'), [((3, 5), 1.0), ((10, 12), 0.1)])
@pytest.mark.parametrize(
    'function', [downsample, upsample, lambda x, kernel, form: convolve(x, kernel, 1, form)], ids=['down', 'up', 'same']
)
def test_second_derivatives_agree(function, channels, scale):
    """As the penalties on D's slope need them."""
    x, kernel = arrays(8, 12, *channels)

    def slope(kernel, form):
        return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.tanh(function(x, scale * kernel, form))))(x) ** 2)

    native, cpu = (jax.grad(slope)(kernel, form) for form in ('native', 'cpu'))
    np.testing.assert_allclose(cpu, native, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('form', FORMS)
def test_forms_equal_flax(form):
    x, kernel = arrays(6, 8)
    down = nn.Conv(5, (4, 4), (2, 2), padding=1, use_bias=False).apply({'params': {'kernel': kernel}}, x)
    np.testing.assert_allclose(downsample(x, kernel, form), down, atol=1e-4)
    up = nn.ConvTranspose(5, (4, 4), (2, 2), use_bias=False).apply({'params': {'kernel': kernel}}, x)
    np.testing.assert_allclose(upsample(x, kernel, form), up, atol=1e-4)


def test_form_is_chosen_by_backend_and_overridable():
    assert choose_form('auto') == 'cpu'  # the tests run on the CPU
    assert choose_form('native') == 'native'
    with pytest.raises(UserError, match="conv_form='fast' is unknown. Available: cpu, native, portable"):
        choose_form('fast')


@pytest.mark.parametrize('direction', ['down', 'up'])
@pytest.mark.parametrize('form', FORMS)
def test_parameters_do_not_depend_on_the_form(direction, form):
    layer = Convolution(5, 4, True, direction, form, 0.02, jnp.float32)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
    assert {name: value.shape for name, value in params.items()} == {'kernel': (4, 4, 3, 5), 'bias': (5,)}


class LayerNormalised(nn.Module):
    style: Style

    @nn.compact
    def __call__(self, x):
        return self.style.layer_norm('norm', x, 1e-6)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.05)])
def test_layer_norm_of_the_cpu_is_flaxs(dtype, tolerance):
    """In value, slopes, parameters and type."""
    random = np.random.default_rng(0)
    x, weights = (jnp.asarray(random.normal(size=(2, 5, 6, 12)), jnp.float32) for _ in range(2))
    x = 100 + 3 * x  # far from 0, where a quick variance is wrong
    variables = {'params': {'norm': {'scale': jnp.linspace(-1, 2, 12), 'bias': jnp.linspace(1, 3, 12)}}}

    def score(variables, x, layer):
        y = layer.apply(variables, x)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    layers = [LayerNormalised(Style(conv_form=form, dtype=dtype)) for form in ('native', 'cpu')]
    shapes = [jax.eval_shape(layer.init, jax.random.key(0), x) for layer in layers]
    assert shapes[0] == shapes[1]
    slopes, values = zip(*[jax.grad(score, (0, 1), has_aux=True)(variables, x, layer) for layer in layers], strict=True)
    assert values[0].dtype == values[1].dtype == dtype
    for flax, ours in zip(*map(jax.tree.leaves, ((slopes[0], values[0]), (slopes[1], values[1]))), strict=True):
        np.testing.assert_allclose(*(a.astype(jnp.float32) for a in (ours, flax)), rtol=tolerance, atol=tolerance)


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


class ByClass(nn.Module):
    classes: int
    axis: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        labels, features = x
        style = Style(norm_axis=self.axis)
        return style.conditional_batch_norm('norm', features, labels, self.classes, train=train)


def test_conditional_batch_norm_against_its_formula():
    x = LABELS, image(5, 6, 4)
    features = np.asarray(x[1], np.float64)
    network = ByClass(3)
    fresh = network.init(jax.random.key(0), x, train=False)
    assert set(fresh['params']) == {'norm_scale', 'norm_shift'}
    np.testing.assert_allclose(network.apply(fresh, x, train=False), x[1] / np.sqrt(1 + 1e-5), rtol=1e-5)

    variables = draw(network, x)
    scale, shift = (variables['params'][f'norm_{name}']['embedding'][LABELS] for name in ('scale', 'shift'))
    mean, variance = features.mean((0, 1, 2)), features.var((0, 1, 2))
    y, changed = network.apply(variables, x, train=True, mutable=['batch_stats'])
    expected = (features - mean) / np.sqrt(variance + 1e-5) * scale[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(y, expected, atol=1e-5)
    old, new = variables['batch_stats']['norm'], changed['batch_stats']['norm']
    np.testing.assert_allclose(new['mean'], 0.9 * old['mean'] + 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(new['var'], 0.9 * old['var'] + 0.1 * variance, atol=1e-5)
    expected = (features - old['mean']) / np.sqrt(old['var'] + 1e-5) * scale[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(network.apply(variables, x, train=False), expected, atol=1e-5)

    # Over a mapped axis, two halves are normalised as the whole.
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), x)
    synchronised = ByClass(3, 'batch')
    z, _ = jax.vmap(
        lambda half: synchronised.apply(variables, half, train=True, mutable=['batch_stats']), axis_name='batch'
    )(halves)
    np.testing.assert_allclose(z.reshape(y.shape), y, atol=1e-5)


def test_conditional_batch_norm_of_one_class_is_batch_norm():
    network, x = ByClass(1), (LABELS, image(5, 6, 4))
    variables = draw(network, x)
    plain = nn.BatchNorm(momentum=0.9, use_running_average=True)
    expected = plain.apply({kind: leaves['norm'] for kind, leaves in variables.items()}, x[1])
    np.testing.assert_allclose(network.apply(variables, x, train=False), expected, atol=1e-6)


class Matrices(nn.Module):
    """A dense layer and an embedding."""

    style: Style

    @nn.compact
    def __call__(self, x, *, train):
        labels, features = x
        y = self.style.dense('dense', 40, features, update_spectral=train, use_bias=True)
        return y, self.style.embed('embed', 3, 40, labels, update_spectral=train)


def test_dense_layers_and_embeddings():
    x = LABELS, image(1, 30, 4)[:, 0, :, 0]
    variables = draw(Matrices(Style()), x)
    dense, embed = (variables['params'][name] for name in ('dense', 'embed'))
    y, rows = Matrices(Style()).apply(variables, x, train=False)
    np.testing.assert_allclose(y, x[1] @ dense['kernel'] + dense['bias'], atol=1e-5)
    np.testing.assert_array_equal(rows, embed['embedding'][LABELS])

    for std in (None, 0.02):
        params = Matrices(Style(init_std=std)).init(jax.random.key(0), x, train=False)['params']
        kernel = np.asarray(params['dense']['kernel'])
        np.testing.assert_allclose(kernel.std(), std or (3 * 30) ** -0.5, rtol=0.05)
        if std is None:
            assert 0.98 < np.abs(kernel).max() * 30**0.5 <= 1
        np.testing.assert_allclose(np.linalg.norm(params['embed']['embedding'], axis=1), 1, atol=0.3)


def test_spectral_norm_of_dense_layers_and_embeddings():
    """Power iterations lead to kernels whose largest singular value is 1."""
    x = LABELS, image(1, 30, 4)[:, 0, :, 0]
    network = Matrices(Style('spectral'))
    variables = draw(network, x)
    step = jax.jit(lambda v: {**v, **network.apply(v, x, train=True, mutable=['batch_stats'])[1]})
    for _ in range(100):
        variables = step(variables)
    y, rows = network.apply(variables, x, train=False)
    dense, embed = (variables['params'][name] for name in ('dense', 'embed'))
    sigmas = [np.linalg.norm(matrix, 2) for matrix in (dense['kernel'], embed['embedding'])]
    np.testing.assert_allclose(y, x[1] @ dense['kernel'] / sigmas[0] + dense['bias'], atol=1e-3)
    np.testing.assert_allclose(rows, embed['embedding'][LABELS] / sigmas[1], atol=1e-3)
    for key in variables['batch_stats']:
        name = key.removesuffix('_spectral')
        sigma = variables['batch_stats'][key][f'{name}/{"kernel" if name == "dense" else "embedding"}/sigma']
        np.testing.assert_allclose(sigma, sigmas[name == 'embed'], rtol=1e-3)
