"""FID's Inception-v3: against the same network in PyTorch, stored numbers, and what is refused as its weights."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from p2p_jax import features, pretrained
from p2p_jax.lookup import UserError
from p2p_jax.models import inception
from tests.conftest import picture

SIDE = 107  # of which 2×2 is left for the last blocks; 299 would take much longer


def made_up_state():
    """Weights and statistics by pytorch-fid's names, that keep the size of a signal."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: inception.InceptionV3().init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3))))
    state = {}
    for place, leaf in jax.tree_util.tree_leaves_with_path(shapes['params']):
        *parents, part = (entry.key for entry in place)
        name, width = '.'.join(parents), leaf.shape[-1]
        if name == 'fc':
            state['fc.weight'] = random.standard_normal((1008, 2048), np.float32) / np.float32(20)
            state['fc.bias'] = np.ones(1008, np.float32)
        elif part == 'kernel':
            out_first = leaf.shape[::-1][:2] + leaf.shape[:2]
            scale = np.float32((2 / np.prod(out_first[1:])) ** 0.5)
            state[f'{name}.conv.weight'] = random.standard_normal(out_first, np.float32) * scale
            for key, low, high in (('weight', 0.8, 1.3), ('bias', -0.2, 0.2), ('running_mean', -0.2, 0.2)):
                state[f'{name}.bn.{key}'] = random.uniform(low, high, width).astype(np.float32)
            state[f'{name}.bn.running_var'] = random.uniform(0.5, 1.5, width).astype(np.float32)
            state[f'{name}.bn.num_batches_tracked'] = np.zeros((), np.int64)
    return state


@pytest.fixture(scope='module')
def state():
    return made_up_state()


@pytest.fixture(scope='module')
def images():
    return np.stack([picture(seed, 20, 32) for seed in range(3)]).astype(np.float32) / 255


@pytest.fixture(scope='module')
def described(state, images, tmp_path_factory):
    """Features and probabilities of the images, at a small size."""
    path = tmp_path_factory.mktemp('inception') / 'weights.safetensors'
    save_file(state, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, 'SIZE', SIDE)
        found = features.FEATURES['inception'](str(path), '--inception')(images, batch_size=2)
    path.unlink()
    return found


def reference(state, x):
    """Features and unbiased scores, as pytorch-fid has them, in PyTorch."""
    import torch  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    def layer(name, x, **how):
        weight, *norm = (
            torch.tensor(state[f'{name}.{key}'])
            for key in ('conv.weight', 'bn.running_mean', 'bn.running_var', 'bn.weight', 'bn.bias')
        )
        return functional.relu(functional.batch_norm(functional.conv2d(x, weight, **how), *norm, eps=0.001))

    def chain(block, x, *steps):
        for name, padding, *stride in steps:
            x = layer(f'{block}.{name}', x, padding=padding, stride=stride or 1)
        return x

    def average(x):
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def largest(x):
        return functional.max_pool2d(x, 3, stride=1, padding=1)

    def halved(x):
        return functional.max_pool2d(x, 3, stride=2)

    def triple(block, x):
        return chain(block, x, ('branch3x3dbl_1', 0), ('branch3x3dbl_2', 1), ('branch3x3dbl_3', 1))

    def fork(block, name, x):
        return torch.cat([chain(block, x, (f'{name}a', (0, 1))), chain(block, x, (f'{name}b', (1, 0)))], 1)

    row, column = (0, 3), (3, 0)
    x = layer('Conv2d_1a_3x3', x, stride=2)
    x = layer('Conv2d_2b_3x3', layer('Conv2d_2a_3x3', x), padding=1)
    x = halved(layer('Conv2d_4a_3x3', layer('Conv2d_3b_1x1', halved(x))))
    for block in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
        five = chain(block, x, ('branch5x5_1', 0), ('branch5x5_2', 2))
        pooled = chain(block, average(x), ('branch_pool', 0))
        x = torch.cat([chain(block, x, ('branch1x1', 0)), five, triple(block, x), pooled], 1)
    double = chain('Mixed_6a', x, ('branch3x3dbl_1', 0), ('branch3x3dbl_2', 1), ('branch3x3dbl_3', 0, 2))
    x = torch.cat([chain('Mixed_6a', x, ('branch3x3', 0, 2)), double, halved(x)], 1)
    for block in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'):
        single = chain(block, x, ('branch7x7_1', 0), ('branch7x7_2', row), ('branch7x7_3', column))
        paddings = enumerate((0, column, row, column, row), 1)
        double = chain(block, x, *[(f'branch7x7dbl_{i}', padding) for i, padding in paddings])
        pooled = chain(block, average(x), ('branch_pool', 0))
        x = torch.cat([chain(block, x, ('branch1x1', 0)), single, double, pooled], 1)
    single = chain('Mixed_7a', x, ('branch3x3_1', 0), ('branch3x3_2', 0, 2))
    paddings = ((1, 0), (2, row), (3, column))
    seven = chain('Mixed_7a', x, *[(f'branch7x7x3_{i}', padding) for i, padding in paddings], ('branch7x7x3_4', 0, 2))
    x = torch.cat([single, seven, halved(x)], 1)
    for block, pool in (('Mixed_7b', average), ('Mixed_7c', largest)):
        single = fork(block, 'branch3x3_2', chain(block, x, ('branch3x3_1', 0)))
        double = fork(block, 'branch3x3dbl_3', chain(block, x, ('branch3x3dbl_1', 0), ('branch3x3dbl_2', 1)))
        pooled = chain(block, pool(x), ('branch_pool', 0))
        x = torch.cat([chain(block, x, ('branch1x1', 0)), single, double, pooled], 1)
    found = x.mean((2, 3))
    return found, found @ torch.tensor(state['fc.weight']).T


def test_equals_pytorch(state, images, described):
    torch = pytest.importorskip('torch')
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    x = 2 * torch.nn.functional.interpolate(x, size=(SIDE, SIDE), mode='bilinear', align_corners=False) - 1
    with torch.no_grad():
        expected, scores = reference(state, x)
    assert expected.std(0).mean() > 0.01
    np.testing.assert_allclose(described[0], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(described[1], torch.softmax(scores, 1), rtol=1e-3, atol=1e-6)


def test_golden_numbers(described):
    found, probabilities = described
    assert found.shape == (3, 2048) and probabilities.shape == (3, 1008)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    # At the time when PyTorch gave the same.
    np.testing.assert_allclose(found.mean(1), (1.459523, 1.467033, 1.540451), rtol=1e-4)
    np.testing.assert_allclose(found[:, :2].T, [(4.20028, 3.60707, 3.60205), (1.13804, 1.84192, 2.77737)], rtol=1e-3)
    np.testing.assert_allclose(probabilities.max(1), (0.544962, 0.513509, 0.579976), rtol=1e-3)


def test_number_of_parameters(state):
    folded = sum(array.size for key, array in state.items() if key.endswith(('conv.weight', 'bn.bias', 'fc.weight')))
    assert folded == 23_832_736


@pytest.mark.parametrize('size', [(20, 32), (400, 310)])
def test_images_are_resized_as_by_pytorch(size):
    torch = pytest.importorskip('torch')
    x = np.random.default_rng(0).random((1, *size, 3), np.float32)
    given = torch.tensor(x.transpose(0, 3, 1, 2))
    expected = 2 * torch.nn.functional.interpolate(given, size=(299, 299), mode='bilinear', align_corners=False) - 1
    np.testing.assert_allclose(inception.resize(x), expected.numpy().transpose(0, 2, 3, 1), atol=2e-5)


def test_resized_images_have_the_range_and_the_corners_of_the_network():
    x = np.zeros((1, 2, 2, 3), np.float32)
    x[:, :, 1] = 1
    resized = np.asarray(inception.resize(x))
    assert resized.shape == (1, 299, 299, 3)
    # Pixels by their centres: the outer quarters are flat, the middle is halfway.
    assert resized[0, 5, 70, 0] == -1 and resized[0, 290, 230, 2] == 1
    np.testing.assert_allclose(resized[0, :, 149, :], 0, atol=1e-6)


@pytest.mark.parametrize(
    ('key', 'change', 'message'),
    [
        ('fc.weight', lambda x: x[:1000], r'fc, kernel: \(2048, 1000\) there, \(2048, 1008\) wanted'),
        ('Mixed_6c.branch7x7_2.conv.weight', lambda x: x[:, :, :1, :3], r'Mixed_6c.branch7x7_2, kernel: \(1, 3'),
        ('Mixed_7c.branch_pool.bn.running_var', None, 'Mixed_7c.branch_pool: missing'),
        ('Mixed_5b.branch1x1.bn.bias', lambda x: x * np.nan, 'Mixed_5b.branch1x1, bias: holds NaN or infinity'),
    ],
)
def test_other_weights_are_refused(state, tmp_path, monkeypatch, key, change, message):
    other = dict(state)
    value = other.pop(key)
    if change:
        other[key] = change(value)
    (tmp_path / 'a.pth').touch()
    monkeypatch.setattr(pretrained, 'read_state_dict', lambda path, key: other)
    with pytest.raises(UserError, match=rf'(?s)--inception=.*a.pth: .*{message}.*{pretrained.INCEPTION_FILE}'):
        pretrained.read_inception(str(tmp_path / 'a.pth'), '--inception')


def test_a_missing_file_is_named_with_what_to_get(tmp_path):
    with pytest.raises(UserError, match=f'none.pth: no such file. Expected {pretrained.INCEPTION_FILE}'):
        pretrained.read_inception(str(tmp_path / 'none.pth'), '--inception')
