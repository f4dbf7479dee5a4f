import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from p2p_jax.lookup import UserError
from p2p_jax.modelfile import fold_spectral_norm
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.models.conditional import DCGANDiscriminator, DCGANGenerator, SNGANDiscriminator, SNGANGenerator
from p2p_jax.models.layers import Style
from tests.models.generators import check_bfloat16, check_equals_torch, draw, image, run, shapes_of

CLASSES = 3
LATENT = 5
LABELS = jnp.array([0, 2, 1, 2], jnp.int32)


class Judge(nn.Module):
    """A discriminator as the helpers take a network: (labels, image) is its one input."""

    network: nn.Module

    @nn.compact
    def __call__(self, x, *, train):
        return self.network(*x, train=train, update_spectral=train)


def dcgan_generator(norm='batch', dtype=jnp.float32, **options):
    options = dict(out_channels=3, classes=CLASSES, size=16, latent=LATENT, width=2, label_input='embedding') | options
    return DCGANGenerator(**dict(last_activation='tanh') | options, style=Style(norm, 0.02, dtype=dtype))


def dcgan_discriminator(norm='batch', dtype=jnp.float32, **options):
    options = dict(classes=CLASSES, size=16, width=2, label_input='embedding') | options
    return DCGANDiscriminator(**dict(last_activation='none') | options, style=Style(norm, 0.02, dtype=dtype))


def sngan_generator(norm='none', dtype=jnp.float32, **options):
    options = dict(out_channels=3, classes=CLASSES, size=32, latent=LATENT, width=1, last_activation='tanh') | options
    return SNGANGenerator(**options, style=Style(norm, dtype=dtype))


def sngan_discriminator(norm='none', dtype=jnp.float32, **options):
    options = dict(classes=CLASSES, size=32, width=1, last_activation='none') | options
    return SNGANDiscriminator(**options, style=Style(norm, dtype=dtype))


def make(name, *args, **options):
    """The generator or discriminator of a name, the latter as a `Judge`, and an input of four examples."""
    network = MAKERS[name](*args, **options)
    if isinstance(network, (DCGANGenerator, SNGANGenerator)):
        return network, (LABELS, image(1, LATENT, 4)[:, 0, :, 0])
    return Judge(network), (LABELS, image(network.size, network.size, 4))


MAKERS = {
    'generator.dcgan': dcgan_generator,
    'generator.dcgan one_hot': functools.partial(dcgan_generator, label_input='one_hot'),
    'generator.sngan': sngan_generator,
    'discriminator.dcgan': dcgan_discriminator,
    'discriminator.dcgan one_hot': functools.partial(dcgan_discriminator, label_input='one_hot'),
    'discriminator.sngan': sngan_discriminator,
}
NETWORKS = [name for name in MAKERS if 'one_hot' not in name]


def with_labels(x, labels):
    return jnp.asarray(labels, jnp.int32), x[1]


def count(network, x):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(network, x)['params']))


def names(network, x):
    """Paths of the parameters, joined by slashes."""
    return set(traverse_util.flatten_dict(shapes_of(network, x)['params'], sep='/'))


def test_the_tables_have_them():
    assert (GENERATORS['dcgan'], DISCRIMINATORS['dcgan']) == (DCGANGenerator, DCGANDiscriminator)
    assert (GENERATORS['sngan'], DISCRIMINATORS['sngan']) == (SNGANGenerator, SNGANDiscriminator)


@pytest.mark.parametrize('size', [32, 64, 128])
@pytest.mark.parametrize('name', MAKERS)
def test_shapes(name, size):
    for classes, norm in ((1, 'spectral'), (10, 'none')):
        network, x = make(name, norm, size=size, width=2, classes=classes)
        y, _ = jax.eval_shape(lambda n=network, x=x: n.init_with_output(jax.random.key(0), x, train=False))
        assert y.shape == ((4, size, size, 3) if 'generator' in name else (4, 1, 1, 1)) and y.dtype == jnp.float32


def conv(size, inputs, outputs, bias=True):
    """Parameters of a convolution, counted by hand."""
    return size * size * inputs * outputs + outputs * bias


def test_parameter_counts_of_sngan_by_hand():
    x = jnp.zeros(1, jnp.int32), jnp.zeros((1, 128))
    block = 2 * conv(3, 256, 256) + conv(1, 256, 256) + 2 * 2 * 256
    expected = (128 + 1) * 4 * 4 * 256 + 3 * block + 2 * 256 + conv(3, 256, 3)
    assert expected == 4_276_739
    assert count(sngan_generator(width=64, classes=1), x) == expected
    # Two norms in each block: a scale and a shift for each of ten classes instead of one.
    assert count(sngan_generator(width=64, classes=10), x) == expected + 3 * 2 * 9 * 2 * 256 == 4_304_387

    x = x[0], jnp.zeros((1, 32, 32, 3))
    two = 2 * conv(3, 128, 128)
    halving = conv(3, 3, 128) + conv(3, 128, 128) + conv(1, 3, 128), two + conv(1, 128, 128)
    expected = sum(halving) + 2 * two + 128 + 1
    assert expected == 1_053_825
    assert count(Judge(sngan_discriminator(width=64, classes=1)), x) == expected
    assert count(Judge(sngan_discriminator(width=64, classes=10)), x) == expected + 10 * 128 == 1_055_105


def test_parameter_counts_of_dcgan_by_hand():
    x = jnp.zeros(1, jnp.int32), jnp.zeros((1, 100))
    ways = ((512, 256), (256, 128), (128, 64))
    expected = 100 * 4 * 4 * 512 + sum(conv(4, *way, bias=False) for way in ways) + conv(4, 64, 3)
    expected += 2 * (512 + 256 + 128 + 64)
    assert expected == 3_576_707
    options = {'size': 64, 'width': 64}
    assert count(dcgan_generator(classes=1, **options), x) == expected
    assert count(dcgan_generator(classes=7, **options), x) == expected + 7 * 100 + 100 * 4 * 4 * 512
    one_hot = dcgan_generator(classes=7, label_input='one_hot', **options)
    assert count(one_hot, x) == expected + 7 * 4 * 4 * 512

    x = x[0], jnp.zeros((1, 64, 64, 3))
    expected = conv(4, 3, 64) + sum(conv(4, *way[::-1], bias=False) + 2 * way[0] for way in ways) + conv(4, 512, 1)
    assert expected == 2_765_633
    assert count(Judge(dcgan_discriminator(classes=1, **options)), x) == expected
    assert count(Judge(dcgan_discriminator(classes=7, **options)), x) == expected + 7 * 64 * 64 + 4 * 4 * 64
    one_hot = dcgan_discriminator(classes=7, label_input='one_hot', **options)
    assert count(Judge(one_hot), x) == expected + 7 * 4 * 4 * 64


@pytest.mark.parametrize('name', NETWORKS)
def test_one_class_ignores_labels_and_has_no_parameters_for_them(name):
    network, x = make(name, classes=1)
    assert not any(word in path for path in names(network, x) for word in ('embedding', 'label', 'projection'))
    variables = draw(network, x)
    np.testing.assert_array_equal(
        *(run(network, variables, with_labels(x, labels)) for labels in ([0, 0, 0, 0], [1, 5, 0, 2]))
    )


@pytest.mark.parametrize('name', MAKERS)
def test_labels_count_and_other_examples_do_not(name):
    network, x = make(name)
    variables = draw(network, x)
    a, b = (run(network, variables, with_labels(x, labels)) for labels in ([0, 2, 1, 2], [0, 0, 1, 1]))
    changed = jnp.abs(a - b).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed[::2], 0)
    assert float(changed[1::2].min()) > 1e-5 and float(changed.max()) > 1e-2
    # Without any example of class 2, those of the others stay as they are.
    rest = jax.tree.map(lambda leaf: leaf[jnp.array([0, 0, 2, 2])], x)
    np.testing.assert_array_equal(run(network, variables, rest)[::2], a[::2])


@pytest.mark.parametrize('name', [name for name in MAKERS if name.startswith('generator')])
def test_shares_of_classes_lie_between_labels(name):
    network, x = make(name)
    variables = draw(network, x)
    shares = jax.nn.one_hot(LABELS, CLASSES)
    of_labels, of_shares, mixed = (
        run(network, variables, (c, x[1])) for c in (LABELS, shares, 0.99 * shares + 0.01 / 3)
    )
    np.testing.assert_allclose(of_shares, of_labels, atol=1e-6)
    assert 1e-6 < float(jnp.abs(mixed - of_labels).max()) < 0.1


@pytest.mark.parametrize('name', NETWORKS)
def test_gradients_reach_every_parameter_but_those_of_missing_classes(name):
    network, x = make(name)
    x = with_labels(x, [0, 2, 0, 2])
    variables = draw(network, x)

    @jax.jit
    @jax.grad
    def gradient(params):
        y, _ = network.apply(variables | {'params': params}, x, train=True, mutable=['batch_stats'])
        return jnp.sum((y - 1) ** 2)

    for path, leaf in traverse_util.flatten_dict(gradient(variables['params']), sep='/').items():
        assert bool(jnp.isfinite(leaf).all()), path
        if path.endswith('/embedding'):
            assert float(jnp.abs(leaf[1]).max()) == 0 < float(jnp.abs(leaf[jnp.array([0, 2])]).max(axis=1).min()), path
        elif not (name == 'generator.sngan' and path.endswith('/bias') and 'norm' not in path):
            # The norms of SNGAN's generator take away what the biases of its convolutions add.
            assert float(jnp.abs(leaf).max()) > 1e-6, path


@pytest.mark.parametrize('name', ['generator.dcgan', 'discriminator.sngan'])
def test_bfloat16_computes_near_float32_with_float32_parameters(name):
    network, x = make(name)
    check_bfloat16(network, make(name, dtype=jnp.bfloat16)[0], x)


@pytest.mark.parametrize('label_input', ['embedding', 'one_hot'])
def test_dcgan_joins_labels_to_noise_and_image(label_input):
    """A conditional network is the unconditional one on what its label is joined to."""
    one_hot = label_input == 'one_hot'
    network, (labels, noise) = make('generator.dcgan', label_input=label_input)
    variables = draw(network, (labels, noise))
    params = dict(variables['params'])
    encoded = np.eye(CLASSES, dtype=np.float32)[labels] if one_hot else params.pop('label')['embedding'][labels]
    joined = labels, jnp.concatenate([noise, encoded], axis=-1)
    expected = run(dcgan_generator(classes=1), variables | {'params': params}, joined)
    np.testing.assert_allclose(run(network, variables, (labels, noise)), expected, atol=1e-6)

    network, (labels, images) = make('discriminator.dcgan', label_input=label_input)
    variables = draw(network, (labels, images))
    params = dict(variables['params']['network'])
    if one_hot:
        planes = np.broadcast_to(np.eye(CLASSES, dtype=np.float32)[labels][:, None, None], (4, 16, 16, CLASSES))
    else:
        planes = params.pop('label')['embedding'][labels].reshape(4, 16, 16, 1)
    joined = labels, jnp.concatenate([images, planes], axis=-1)
    expected = run(Judge(dcgan_discriminator(classes=1)), variables | {'params': {'network': params}}, joined)
    np.testing.assert_allclose(run(network, variables, (labels, images)), expected, atol=1e-6)


def test_embedded_labels_start_as_large_as_a_one_hot_or_the_pixels():
    """A generator with larger rows goes by the label alone."""
    for network, inputs, norm in (
        (dcgan_generator(size=8, classes=50), ((LABELS, jnp.zeros((4, 128))),), 1),
        (dcgan_discriminator(size=8, classes=50), (LABELS, image(8, 8, 4)), 8),
    ):
        rows = jax.jit(
            lambda network=network, inputs=inputs: network.init(jax.random.key(0), *inputs, train=False)['params'][
                'label'
            ]
        )()['embedding']
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1).mean(), norm, rtol=0.05)


def test_projection_is_bilinear_in_the_class_and_the_features():
    network, (_, images) = make('discriminator.sngan')
    variables = draw(network, (LABELS, images))
    params = variables['params']['network']

    @jax.jit
    def judge(label, psi):
        replaced = {'params': {'network': params | {'psi': psi}}}
        return network.apply(replaced, (jnp.full(4, label), images), train=False)[:, 0, 0, 0]

    scores = np.stack([judge(label, params['psi']) for label in range(CLASSES)])
    # The score's slope by ψ's kernel is φ itself.
    phi = np.asarray(jax.jacobian(lambda kernel: judge(0, params['psi'] | {'kernel': kernel}))(params['psi']['kernel']))
    phi = phi[..., 0]
    assert phi.shape == (4, 2) and phi.min() >= 0 and phi.max() > 0
    v = params['projection']['embedding']
    for a, b in ((0, 1), (1, 2), (2, 0)):
        np.testing.assert_allclose(scores[a] - scores[b], phi @ (v[a] - v[b]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        scores[1], phi @ (params['psi']['kernel'][:, 0] + v[1]) + params['psi']['bias'], rtol=1e-4, atol=1e-4
    )


def test_sngan_discriminator_with_biases_alone_is_a_sum_over_positions():
    """Kernels of 0 leave what the residual blocks add up, times the 8×8 positions at which it is summed."""
    network, x = make('discriminator.sngan')
    variables = draw(network, x)
    params = {
        name: layer if name in ('psi', 'projection') else {'kernel': 0 * layer['kernel'], 'bias': layer['bias']}
        for name, layer in variables['params']['network'].items()
    }
    added = [params[f'block_{i}_conv_2']['bias'] for i in range(1, 4)] + [params['block_1_shortcut']['bias']]
    phi = 64 * np.maximum(sum(added), 0)
    assert phi.max() > 0
    expected = params['psi']['bias'] + phi @ params['psi']['kernel'] + params['projection']['embedding'][LABELS] @ phi
    scores = run(network, {'params': {'network': params}}, x)[:, 0, 0, 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def converged(variables):
    """The variables with the vectors of the spectral norm where its power iteration ends."""
    params = traverse_util.flatten_dict(variables['params'], sep='/')

    def converge(path, u):
        *parents, _, name = (entry.key for entry in path)
        if not name.endswith('/u'):
            return u
        kernel = params['/'.join((*parents, name.removesuffix('/u')))]
        return np.linalg.svd(np.reshape(kernel, (-1, kernel.shape[-1])))[2][:1]

    return variables | {'batch_stats': jax.tree_util.tree_map_with_path(converge, variables['batch_stats'])}


@pytest.mark.parametrize('name', NETWORKS)
def test_spectral_norm_is_on_every_map_of_features_and_can_be_folded(name):
    network, x = make(name, 'spectral')
    variables = converged(draw(network, x))
    folded = fold_spectral_norm(variables)
    before, after = (traverse_util.flatten_dict(tree['params'], sep='/') for tree in (variables, folded))
    for path, value in after.items():
        if path.endswith(('kernel', 'projection/embedding')):
            largest = np.linalg.svd(np.reshape(value, (-1, value.shape[-1])), compute_uv=False)[0]
            np.testing.assert_allclose(largest, 1, atol=1e-5, err_msg=path)
        else:
            np.testing.assert_array_equal(value, before[path])
    plain, _ = make(name, 'none')
    np.testing.assert_allclose(run(plain, folded, x), run(network, variables, x), atol=1e-5)


def test_the_discriminators_power_iteration_moves_only_when_told():
    network = sngan_discriminator('spectral')
    _, x = make('discriminator.sngan')
    variables = draw(Judge(network), x)
    variables = {kind: leaves['network'] for kind, leaves in variables.items()}

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def statistics(train, update_spectral):
        options = {'train': train, 'update_spectral': update_spectral}
        return network.apply(variables, *x, **options, mutable=['batch_stats'])[1]['batch_stats']

    jax.tree.map(np.testing.assert_array_equal, statistics(True, False), variables['batch_stats'])
    moved = traverse_util.flatten_dict(statistics(True, True))
    still = {
        key for key, old in traverse_util.flatten_dict(variables['batch_stats']).items() if (old == moved[key]).all()
    }
    # A matrix with one column has one direction only.
    assert all(key[0] == 'psi_spectral' for key in still)
    assert ('projection_spectral', 'projection/embedding/u') in moved


@pytest.mark.parametrize(
    ('name', 'norm', 'options', 'message'),
    [
        (
            'generator.dcgan',
            'batch',
            {'size': 48},
            'data.crop_size=48: generator.dcgan is for images of 8, 16, 32, 64, …',
        ),
        ('discriminator.dcgan', 'batch', {'size': 4}, 'data.crop_size=4: discriminator.dcgan is for images of 8, 16'),
        (
            'generator.sngan',
            'none',
            {'size': 256},
            'data.crop_size=256: generator.sngan is for images of 32, 64 or 128',
        ),
        ('discriminator.sngan', 'none', {'size': 16}, 'data.crop_size=16: discriminator.sngan is for images of 32, 64'),
        ('generator.dcgan', 'batch', {'label_input': 'onehot'}, "generator.dcgan.label_input='onehot' is unknown"),
        ('generator.sngan', 'batch', {}, "generator.sngan.norm='batch': expected none or spectral"),
        ('discriminator.sngan', 'instance', {}, "discriminator.sngan.norm='instance': expected none or spectral"),
        ('generator.sngan', 'none', {'width': 0}, 'generator.sngan.width=0: expected at least 1'),
        (
            'discriminator.dcgan',
            'batch',
            {'last_activation': 'tan'},
            "discriminator.dcgan.last_activation='tan' is unk",
        ),
    ],
)
def test_options_that_do_not_go_together_are_errors(name, norm, options, message):
    network, x = make(name, norm, **options)
    with pytest.raises(UserError, match=message):
        shapes_of(network, x)


def torch_sngan_generator(torch):
    """SNGAN's generator as its authors have it (doubled before each convolution), in plain PyTorch; names as ours."""
    nn, widen = torch.nn, functools.partial(torch.nn.functional.interpolate, scale_factor=2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last_norm, self.head = nn.Linear(LATENT, 64), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, 1, 1)
            for side in (8, 16, 32):
                for i in (1, 2):
                    self.add_module(f'block_{side}_conv_{i}', nn.Conv2d(4, 4, 3, 1, 1))
                    self.add_module(f'block_{side}_norm_{i}', nn.BatchNorm2d(4, affine=False))
                    self.add_module(f'block_{side}_norm_{i}_scale', nn.Embedding(CLASSES, 4))
                    self.add_module(f'block_{side}_norm_{i}_shift', nn.Embedding(CLASSES, 4))
                self.add_module(f'block_{side}_shortcut', nn.Conv2d(4, 4, 1))

        def norm(self, name, x, labels):
            scale, shift = (getattr(self, f'{name}_{part}')(labels)[..., None, None] for part in ('scale', 'shift'))
            return (getattr(self, name)(x) * scale + shift).relu()

        def forward(self, condition):
            labels, noise = condition
            x = self.first(noise).view(-1, 4, 4, 4).permute(0, 3, 1, 2)
            for side in (8, 16, 32):
                name = f'block_{side}'
                y = getattr(self, f'{name}_conv_1')(widen(self.norm(f'{name}_norm_1', x, labels)))
                y = getattr(self, f'{name}_conv_2')(self.norm(f'{name}_norm_2', y, labels))
                x = y + getattr(self, f'{name}_shortcut')(widen(x))
            return self.head(self.last_norm(x).relu()).tanh()

    return Net()


def torch_sngan_discriminator(torch):
    """SNGAN's discriminator as its authors have it (halved after each convolution), in plain PyTorch; names as ours."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for i in range(4):
                inputs = 2 if i else 3
                self.add_module(f'block_{i}_conv_1', nn.Conv2d(inputs, 2, 3, 1, 1))
                self.add_module(f'block_{i}_conv_2', nn.Conv2d(2, 2, 3, 1, 1))
                if i < 2:
                    self.add_module(f'block_{i}_shortcut', nn.Conv2d(inputs, 2, 1))
            self.psi, self.projection = nn.Linear(2, 1), nn.Embedding(CLASSES, 2)

        def forward(self, labels, x):
            for i in range(4):
                y = getattr(self, f'block_{i}_conv_1')(x.relu() if i else x)
                y = getattr(self, f'block_{i}_conv_2')(y.relu())
                if i < 2:
                    x, y = (nn.functional.avg_pool2d(z, 2) for z in (getattr(self, f'block_{i}_shortcut')(x), y))
                x = x + y
            phi = x.relu().sum((2, 3))
            return (self.psi(phi) + (self.projection(labels) * phi).sum(1, keepdim=True))[..., None, None]

    return Net()


def torch_dcgan_generator(torch):
    """DCGAN's generator with an embedded label, in plain PyTorch; layers have the names of ours."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.label, self.first = nn.Embedding(CLASSES, LATENT), nn.Linear(2 * LATENT, 64, bias=False)
            self.first_norm, self.up_8_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(2)
            self.up_8 = nn.ConvTranspose2d(4, 2, 4, 2, 1, bias=False)
            self.head = nn.ConvTranspose2d(2, 3, 4, 2, 1)

        def forward(self, condition):
            labels, noise = condition
            x = self.first(torch.cat([noise, self.label(labels)], 1)).view(-1, 4, 4, 4).permute(0, 3, 1, 2)
            x = self.up_8_norm(self.up_8(self.first_norm(x).relu())).relu()
            return self.head(x).tanh()

    return Net()


def test_sngan_keeps_its_values():
    """Means and deviations of four images, and four scores, noted when the networks equalled PyTorch's (below)."""
    network, x = make('generator.sngan')
    images = run(network, draw(network, x), x)
    np.testing.assert_allclose(images.mean((1, 2, 3)), [-0.05883, 0.00070, 0.03846, 0.04543], atol=1e-4)
    np.testing.assert_allclose(images.std((1, 2, 3)), [0.65922, 0.58812, 0.67115, 0.64038], atol=1e-4)
    network, x = make('discriminator.sngan')
    scores = run(network, draw(network, x), x)[:, 0, 0, 0]
    np.testing.assert_allclose(scores, [-7.4922, -55.6396, -89.8702, -57.1046], rtol=1e-4)


def test_equals_the_same_networks_in_pytorch():
    torch = pytest.importorskip('torch')

    class Wrapped(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(*x)

    for name, reference in (
        ('generator.dcgan', torch_dcgan_generator(torch)),
        ('generator.sngan', torch_sngan_generator(torch)),
        ('discriminator.sngan', Wrapped(torch_sngan_discriminator(torch))),
    ):
        network, x = make(name)
        check_equals_torch(network, reference, x)
