"""VGG and AlexNet: sizes, names, and what they give on made-up weights, against PyTorch and stored numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.lookup import UserError
from p2p_jax.models.vgg import FEATURE_NETWORKS, SCORES, vgg
from tests.weights import NARROW, draw, torchvision_state


def image(height, width, n=1):
    return np.random.default_rng(3).normal(size=(n, height, width, 3)).astype(np.float32)


def run(network, layers, x, params=None):
    params = draw(network) if params is None else params
    return jax.jit(functools.partial(network.apply, layers=tuple(layers)))({'params': params}, x)


@pytest.mark.parametrize(
    ('name', 'layer', 'expected'),
    [
        ('vgg16', SCORES, 138_357_544),
        ('vgg19', SCORES, 143_667_240),
        ('vgg16', 'pool5', 14_714_688),
        ('vgg19', 'pool5', 20_024_384),
        ('vgg16', 'relu2_2', 260_160),  # nothing behind what is asked for
        ('alexnet', 'relu5', 2_469_696),
    ],
)
def test_numbers_of_parameters(name, layer, expected):
    network = FEATURE_NETWORKS[name]
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), (layer,)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_names_are_those_of_the_field():
    names = FEATURE_NETWORKS['vgg19'].layers()
    assert [name for name in names if '5_' in name] == ['relu5_1', 'relu5_2', 'relu5_3', 'relu5_4']
    assert names[:3] == ['relu1_1', 'relu1_2', 'pool1'] and names[-2:] == ['pool5', SCORES]
    assert FEATURE_NETWORKS['alexnet'].layers()[-2:] == ['relu5', 'pool5']
    there = FEATURE_NETWORKS['vgg16'].torchvision_names()
    assert there['conv1_1'] == 'features.0' and there['conv5_3'] == 'features.28' and there['fc8'] == 'classifier.6'
    assert FEATURE_NETWORKS['vgg19'].torchvision_names()['conv5_4'] == 'features.34'
    assert FEATURE_NETWORKS['alexnet'].torchvision_names()['conv5'] == 'features.10'
    with pytest.raises(UserError, match="layer='relu5_4' is unknown. Available: .*relu5_3"):
        FEATURE_NETWORKS['vgg16'].apply({}, jnp.zeros((1, 32, 32, 3)), ('relu5_4',))


@pytest.mark.parametrize(
    ('name', 'layer', 'least'),
    [('vgg16', 'relu1_2', 1), ('vgg16', 'relu5_3', 16), ('vgg19', SCORES, 32), ('alexnet', 'relu5', 31)],
)
def test_something_is_left_of_the_smallest_image_and_of_no_smaller_one(name, layer, least):
    network = NARROW[name]
    assert network.least_size((layer, network.layers()[0])) == least

    def shape(side):
        variables = {'params': draw(network)}
        return jax.eval_shape(lambda: network.apply(variables, jnp.zeros((1, side, side, 3)), (layer,)))[layer].shape

    assert min(shape(least)) >= 1
    if least > 1 and layer != SCORES:
        assert min(shape(least - 1)) < 1


def reference(name, head):
    """The network by its published configuration, as torchvision writes it down, with a name for each place."""
    from torch import nn  # noqa: PLC0415

    modules, names, channels = [], [], 3

    def convolution(features, size, stride, padding, label):
        nonlocal channels
        modules.extend([nn.Conv2d(channels, features, size, stride, padding), nn.ReLU()])
        names.extend([None, label])
        channels = features

    def pool(size, label):
        modules.append(nn.MaxPool2d(size, 2))
        names.append(label)

    if name == 'alexnet':
        convolution(8, 11, 4, 2, 'relu1')
        pool(3, 'pool1')
        convolution(9, 5, 1, 2, 'relu2')
        pool(3, 'pool2')
        for i, features in enumerate((10, 11, 12), 3):
            convolution(features, 3, 1, 1, f'relu{i}')
        pool(3, 'pool5')
        return nn.Sequential(*modules), names, None
    plan = {
        'vgg16': '4 4 M 8 8 M 16 16 16 M 32 32 32 M 32 32 32 M',
        'vgg19': '4 4 M 8 8 M 16 16 16 16 M 32 32 32 32 M 32 32 32 32 M',
    }[name]
    block, index = 1, 0
    for entry in plan.split():
        if entry == 'M':
            pool(2, f'pool{block}')
            block, index = block + 1, 0
        else:
            index += 1
            convolution(int(entry), 3, 1, 1, f'relu{block}_{index}')
    a, b, c = head
    classifier = nn.Sequential(
        *(nn.Linear(32 * 49, a), nn.ReLU(), nn.Dropout(), nn.Linear(a, b), nn.ReLU(), nn.Dropout(), nn.Linear(b, c))
    )
    return nn.Sequential(*modules), names, classifier


@pytest.mark.parametrize(('name', 'size'), [('vgg16', (266, 301)), ('vgg19', (39, 70)), ('alexnet', (80, 69))])
def test_equals_pytorch_at_every_layer(name, size):
    torch = pytest.importorskip('torch')
    network = NARROW[name]
    features, names, classifier = reference(name, network.head)
    state = {key: torch.tensor(value) for key, value in torchvision_state(network).items()}
    parts = {'features': features} | ({'classifier': classifier.eval()} if classifier else {})
    torch.nn.ModuleDict(parts).load_state_dict(state)
    x = image(*size)
    expected, y = {}, torch.tensor(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for module, label in zip(features, names, strict=True):
            y = module(y)
            expected[label] = y.numpy().transpose(0, 2, 3, 1)
        if classifier:
            expected[SCORES] = classifier(torch.nn.AdaptiveAvgPool2d(7)(y).flatten(1)).numpy()
    del expected[None]
    assert list(expected) == network.layers()
    ours = run(network, network.layers(), x)
    for layer in network.layers():
        assert expected[layer].std() > 0.05
        np.testing.assert_allclose(ours[layer], expected[layer], rtol=1e-4, atol=1e-4, err_msg=layer)


def test_gradient_equals_pytorch():
    torch = pytest.importorskip('torch')
    network = NARROW['vgg16']
    features, _, _ = reference('vgg16', network.head)
    state = torchvision_state(network)
    features.load_state_dict(
        {k.removeprefix('features.'): torch.tensor(v) for k, v in state.items() if k.startswith('features')}
    )
    x = image(32, 48)
    y = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    (features(y) ** 2).sum().backward()
    params = {'params': draw(network)}
    slope = jax.jit(jax.grad(lambda x: jnp.sum(network.apply(params, x, ('pool5',))['pool5'] ** 2)))(x)
    np.testing.assert_allclose(slope, y.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-4)


# Layer: mean and standard deviation, and the last value, at the time when PyTorch gave the same.
GOLDEN = {
    'vgg16': {
        'relu1_1': (0.50968, 0.77538, 0.19709),
        'relu3_3': (0.26491, 0.41335, 0.33556),
        'relu5_3': (0.86898, 1.09391, 0.0),
        'pool5': (1.2054, 1.22477, 0.0),
        'scores': (-0.27281, 1.41806, 0.22303),
    },
    'vgg19': {
        'relu2_2': (0.42795, 0.64429, 2.25533),
        'relu5_4': (0.15092, 0.23913, 0.27271),
        'scores': (0.10911, 0.24553, -0.19457),
    },
    'alexnet': {
        'relu1': (0.54278, 0.80539, 1.9712),
        'relu3': (1.46569, 2.22901, 0.0),
        'pool5': (2.36057, 1.68777, 3.77312),
    },
}


@pytest.mark.parametrize('name', NARROW)
def test_golden_numbers(name):
    network = NARROW[name]
    layers = tuple(GOLDEN[name])
    ours = run(network, layers, image(266, 301) if name == 'vgg16' else image(70, 69))
    for layer in layers:
        y = np.asarray(ours[layer])
        found = (y.mean(), y.std(), y[(0,) + (y.ndim - 1) * (-1,)])
        np.testing.assert_allclose(found, GOLDEN[name][layer], rtol=1e-3, atol=1e-4, err_msg=layer)


def test_images_of_a_batch_do_not_mix():
    network, x = vgg((1, 1), width=4, head=(5,)), image(20, 17, n=3)
    layers = ('relu1_1', 'pool2', SCORES)
    together, alone = run(network, layers, x), run(network, layers, x[1:2])
    for layer in layers:
        np.testing.assert_allclose(together[layer][1:2], alone[layer], rtol=1e-5, atol=1e-6)
