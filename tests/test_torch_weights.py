"""Weights of PyTorch: the networks that they are of, computed here and there, and what is said of other files.

The networks are written down twice, as shapes by key, which need no PyTorch, and in PyTorch, whose `load_state_dict`
takes nothing else. The golden values were computed in PyTorch 2.13 by the networks below, on the same weights.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from configs import default
from p2p_jax import inference, modelfile
from p2p_jax.data.images import read_image, write_image
from p2p_jax.finetune import initialise
from p2p_jax.job import build_job, training_size
from p2p_jax.lookup import UserError
from p2p_jax.predict import predict
from p2p_jax.predictor import PredictOptions
from p2p_jax.torch_weights import import_torch
from tests.conftest import picture, small_config
from tests.test_main import run as command


def conv(key, out, entering, side, bias):
    return {f'{key}.weight': (out, entering, side, side)} | ({f'{key}.bias': (out,)} if bias else {})


def up(key, entering, out, side, bias):
    return {f'{key}.weight': (entering, out, side, side)} | ({f'{key}.bias': (out,)} if bias else {})


def norm(key, features, batch):
    names = ('weight', 'bias', 'running_mean', 'running_var') if batch else ()
    return {f'{key}.{name}': (features,) for name in names} | ({f'{key}.num_batches_tracked': ()} if batch else {})


def unet_shapes(depth, width, batch, channels=3):
    features = [width * min(2**level, 8) for level in range(depth)]
    shapes, path = {}, 'model.model'
    for level, inner in enumerate(features):
        outer = features[level - 1] if level else channels
        middle = 0 < level < depth - 1
        shapes |= conv(f'{path}.{1 if level else 0}', inner, outer, 4, not batch)
        shapes |= up(f'{path}.{5 if middle else 3}', inner * (1 + (level < depth - 1)), outer, 4, not (level and batch))
        shapes |= norm(f'{path}.2', inner, batch) if middle else {}
        shapes |= norm(f'{path}.{6 if middle else 4}', outer, batch) if level else {}
        path += '.3.model' if level else '.1.model'
    return shapes


def resnet_shapes(blocks, width, batch, dropout=False, channels=3):
    shapes = conv('model.1', width, channels, 7, not batch) | norm('model.2', width, batch)
    for at, features in ((4, 2 * width), (7, 4 * width)):
        shapes |= conv(f'model.{at}', features, features // 2, 3, not batch) | norm(f'model.{at + 1}', features, batch)
    for block in range(10, 10 + blocks):
        for at in (1, 6 if dropout else 5):
            shapes |= conv(f'model.{block}.conv_block.{at}', 4 * width, 4 * width, 3, not batch)
            shapes |= norm(f'model.{block}.conv_block.{at + 1}', 4 * width, batch)
    for at, features in ((10 + blocks, 2 * width), (13 + blocks, width)):
        shapes |= up(f'model.{at}', 2 * features, features, 3, not batch) | norm(f'model.{at + 1}', features, batch)
    return shapes | conv(f'model.{17 + blocks}', channels, width, 7, True)


def patchgan_shapes(layers, width, batch, channels=6):
    features = [width * min(2**i, 8) for i in range(layers + 1)]
    shapes = conv('model.0', width, channels, 4, True)
    for i in range(1, layers + 1):
        shapes |= conv(f'model.{3 * i - 1}', features[i], features[i - 1], 4, not batch)
        shapes |= norm(f'model.{3 * i}', features[i], batch)
    return shapes | conv(f'model.{3 * layers + 2}', 1, features[-1], 4, True)


def pixelgan_shapes(width, batch):
    shapes = conv('net.0', width, 6, 1, True) | conv('net.2', 2 * width, width, 1, not batch)
    return shapes | norm('net.3', 2 * width, batch) | conv('net.5', 1, 2 * width, 1, not batch)


def nafnet_shapes(width, encoder, middle, decoder):
    shapes = conv('intro', width, 3, 3, True) | conv('ending', 3, width, 3, True)
    depth = len(encoder)
    places = [(f'middle_blks.{j}', width * 2**depth) for j in range(middle)]
    for i in range(depth):
        c = width * 2**i
        shapes |= conv(f'downs.{i}', 2 * c, c, 2, True)
        places += [(f'encoders.{i}.{j}', c) for j in range(encoder[i])]
        c = width * 2 ** (depth - i)
        shapes |= conv(f'ups.{i}.0', 2 * c, c, 1, False)
        places += [(f'decoders.{i}.{j}', c // 2) for j in range(decoder[i])]
    for key, c in places:
        for name, (out, entering, side) in {
            'conv1': (2 * c, c, 1),
            'conv2': (2 * c, 1, 3),
            'conv3': (c, c, 1),
            'sca.1': (c, c, 1),
            'conv4': (2 * c, c, 1),
            'conv5': (c, c, 1),
        }.items():
            shapes |= conv(f'{key}.{name}', out, entering, side, True)
        shapes |= {f'{key}.{name}.{leaf}': (c,) for name in ('norm1', 'norm2') for leaf in ('weight', 'bias')}
        shapes |= {f'{key}.{name}': (1, c, 1, 1) for name in ('beta', 'gamma')}
    return shapes


# What numpy draws must stay the same, as the golden values depend on it.
def draw(shapes, seed=0):
    """Weights of which none is 0: kernels keep the size of a signal, scales and variances are positive."""
    random = np.random.default_rng(seed)
    state = {}
    for key, shape in sorted(shapes.items()):
        if key.endswith('weight') and len(shape) == 4:
            state[key] = random.normal(0, 1.2 * np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        elif key.endswith(('running_var', 'weight')):
            state[key] = random.uniform(0.5, 1.5, shape).astype(np.float32)
        elif shape:
            state[key] = random.normal(0, 0.1, shape).astype(np.float32)
        else:
            state[key] = np.array(7, np.int64)
    return state


def images(size, n=2, channels=3):
    return np.random.default_rng(1).uniform(-1, 1, (n, size, size, channels)).astype(np.float32)


def torch_unet(torch, depth, width, batch, channels=3):
    nn = torch.nn
    normalise = nn.BatchNorm2d if batch else nn.InstanceNorm2d

    class Level(nn.Module):
        def __init__(self, layers, skip):
            super().__init__()
            self.model, self.skip = nn.Sequential(*layers), skip

        def forward(self, x):
            return torch.cat([x, self.model(x)], 1) if self.skip else self.model(x)

    features = [width * min(2**level, 8) for level in range(depth)]
    inside = []
    for level in reversed(range(depth)):
        inner, outer = features[level], features[level - 1] if level else channels
        layers = [nn.LeakyReLU(0.2)] if level else []
        layers += [nn.Conv2d(outer, inner, 4, 2, 1, bias=not batch)]
        layers += [normalise(inner)] if 0 < level < depth - 1 else []
        layers += [*inside, nn.ReLU()]
        layers += [nn.ConvTranspose2d(inner * (1 + len(inside)), outer, 4, 2, 1, bias=not (level and batch))]
        layers += [normalise(outer)] if level else [nn.Tanh()]
        layers += [nn.Dropout(0.5)] if 4 <= level < depth - 1 else []
        inside = [Level(layers, skip=level > 0)]
    return wrap(torch, inside[0])


def wrap(torch, module):
    """A module whose one part is called `model`."""

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = module

        def forward(self, x):
            return self.model(x)

    return Whole()


def torch_resnet(torch, blocks, width, batch, dropout=False, channels=3):
    nn = torch.nn
    normalise = nn.BatchNorm2d if batch else nn.InstanceNorm2d

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            half = [nn.ReflectionPad2d(1), nn.Conv2d(4 * width, 4 * width, 3, bias=not batch), normalise(4 * width)]
            rest = [nn.ReflectionPad2d(1), nn.Conv2d(4 * width, 4 * width, 3, bias=not batch), normalise(4 * width)]
            self.conv_block = nn.Sequential(*half, nn.ReLU(), *([nn.Dropout(0.5)] if dropout else []), *rest)

        def forward(self, x):
            return x + self.conv_block(x)

    layers = [nn.ReflectionPad2d(3), nn.Conv2d(channels, width, 7, bias=not batch), normalise(width), nn.ReLU()]
    for f in (width, 2 * width):
        layers += [nn.Conv2d(f, 2 * f, 3, 2, 1, bias=not batch), normalise(2 * f), nn.ReLU()]
    layers += [Block() for _ in range(blocks)]
    for f in (2 * width, width):
        layers += [nn.ConvTranspose2d(2 * f, f, 3, 2, 1, 1, bias=not batch), normalise(f), nn.ReLU()]
    return wrap(torch, nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), nn.Tanh()))


def torch_patchgan(torch, layers, width, batch, channels=6):
    nn = torch.nn
    normalise = nn.BatchNorm2d if batch else nn.InstanceNorm2d
    features = [width * min(2**i, 8) for i in range(layers + 1)]
    modules = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for i in range(1, layers + 1):
        modules += [nn.Conv2d(features[i - 1], features[i], 4, 2 if i < layers else 1, 1, bias=not batch)]
        modules += [normalise(features[i]), nn.LeakyReLU(0.2)]
    return wrap(torch, nn.Sequential(*modules, nn.Conv2d(features[-1], 1, 4, 1, 1)))


def torch_pixelgan(torch, width, batch):
    nn = torch.nn
    normalise = nn.BatchNorm2d if batch else nn.InstanceNorm2d
    layers = [nn.Conv2d(6, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 1, bias=not batch)]
    layers += [normalise(2 * width), nn.LeakyReLU(0.2), nn.Conv2d(2 * width, 1, 1, bias=not batch)]
    whole = nn.Module()
    whole.net = nn.Sequential(*layers)
    whole.forward = whole.net.forward
    return whole


def torch_nafnet(torch, width, encoder, middle, decoder):
    nn = torch.nn

    class LayerNorm(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

        def forward(self, x):
            y = nn.functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
            return y.permute(0, 3, 1, 2)

    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.norm1, self.norm2 = LayerNorm(c), LayerNorm(c)
            self.conv1, self.conv4 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, 2 * c, 1)
            self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
            self.conv3, self.conv5 = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
            self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
            self.beta, self.gamma = (nn.Parameter(torch.zeros(1, c, 1, 1)) for _ in range(2))

        def forward(self, x):
            a, b = self.conv2(self.conv1(self.norm1(x))).chunk(2, 1)
            x = x + self.conv3(a * b * self.sca(a * b)) * self.beta
            a, b = self.conv4(self.norm2(x)).chunk(2, 1)
            return x + self.conv5(a * b) * self.gamma

    def blocks(c, count):
        return nn.Sequential(*[Block(c) for _ in range(count)])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            depth = len(encoder)
            sides = [width * 2**i for i in range(depth + 1)]
            self.intro, self.ending = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
            self.encoders = nn.ModuleList(blocks(c, n) for c, n in zip(sides, encoder, strict=False))
            self.downs = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, 2) for c in sides[:-1])
            self.middle_blks = blocks(sides[-1], middle)
            self.ups = nn.ModuleList(
                nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2)) for c in sides[:0:-1]
            )
            self.decoders = nn.ModuleList(blocks(c, n) for c, n in zip(sides[-2::-1], decoder, strict=False))

        def forward(self, image):
            x, skips = self.intro(image), []
            for level, down in zip(self.encoders, self.downs, strict=True):
                skips.append(level(x))
                x = down(skips[-1])
            x = self.middle_blks(x)
            for widen, level in zip(self.ups, self.decoders, strict=True):
                x = level(widen(x) + skips.pop())
            return self.ending(x) + image

    return Net()


# Name: (shapes, PyTorch's network, its options, side of the image, statistics of batch norm).
CASES = {
    'unet_128': (unet_shapes, torch_unet, dict(depth=7, width=4, batch=True), 128, 'batch'),
    'unet_256': (unet_shapes, torch_unet, dict(depth=8, width=4, batch=True), 256, 'running'),
    'unet_128, instance norm': (unet_shapes, torch_unet, dict(depth=7, width=4, batch=False), 128, 'running'),
    'unet, grey': (unet_shapes, torch_unet, dict(depth=5, width=4, batch=True, channels=1), 32, 'running'),
    'resnet_6': (resnet_shapes, torch_resnet, dict(blocks=6, width=4, batch=True), 32, 'running'),
    'resnet_6, instance norm, dropout': (
        resnet_shapes,
        torch_resnet,
        dict(blocks=6, width=4, batch=False, dropout=True),
        32,
        'running',
    ),
    'resnet_1, dropout': (resnet_shapes, torch_resnet, dict(blocks=1, width=4, batch=True, dropout=True), 32, 'batch'),
    'nafnet': (nafnet_shapes, torch_nafnet, dict(width=8, encoder=(1, 1), middle=1, decoder=(1, 1)), 32, 'running'),
    'nafnet, uneven': (
        nafnet_shapes,
        torch_nafnet,
        dict(width=4, encoder=(0, 2), middle=0, decoder=(1, 0)),
        32,
        'running',
    ),
    'patchgan 3': (patchgan_shapes, torch_patchgan, dict(layers=3, width=4, batch=True), 64, 'running'),
    'patchgan 5, instance norm': (
        patchgan_shapes,
        torch_patchgan,
        dict(layers=5, width=4, batch=False),
        128,
        'running',
    ),
    'patchgan 1': (patchgan_shapes, torch_patchgan, dict(layers=1, width=4, batch=True), 32, 'running'),
    'pixelgan': (pixelgan_shapes, torch_pixelgan, dict(width=4, batch=True), 16, 'running'),
    'pixelgan, instance norm': (pixelgan_shapes, torch_pixelgan, dict(width=4, batch=False), 16, 'running'),
}


# Of each case: `sample` of PyTorch's output.
GOLDEN = """\
unet_128
0.2630 -0.2987 -0.7153 0.6803 0.7315 0.4689 -0.0719 0.8022 -0.4845 0.0860 0.6841 0.0250 -0.0612
unet_256
-0.1855 0.0953 -0.4177 0.5791 -0.0457 -0.4087 0.1116 0.0656 0.0369 -0.5444 0.1625 0.1098 0.0354
unet_128, instance norm
0.1226 -0.7330 0.4476 -0.5212 0.4063 -0.2834 0.2501 -0.4227 -0.3512 0.2006 0.6227 -0.1826 -0.0781
unet, grey
0.0920 0.0408 -0.7679 -0.0579 -0.7677 -0.5624 -0.3673 -0.1076 -0.5281 -0.4866 -0.9093 -0.0093 -0.2669
resnet_6
-0.9903 -0.1347 -0.9892 0.9957 0.4052 0.8645 -0.9929 0.5021 -0.9409 -1.0000 -0.7429 0.9885 -0.2743
resnet_6, instance norm, dropout
0.2581 0.2922 0.8612 -0.3846 0.3082 0.1205 0.3558 0.4300 0.7695 -0.8420 -0.4618 0.1649 0.0249
resnet_1, dropout
0.9256 0.6579 0.6143 -0.5925 0.5765 -0.5005 -0.8954 -0.0362 0.7350 0.4957 -0.8165 -0.2765 0.1076
nafnet
-1.7249 -2.6849 0.1394 0.1252 2.4484 1.4504 -0.4066 -0.5012 -4.8494 2.3514 -1.1888 0.3124 -0.0112
nafnet, uneven
-0.1679 -1.0010 -1.8893 -0.6058 1.0227 -1.1365 1.6506 0.1971 -1.3153 0.1032 -1.0440 0.2613 -0.0649
patchgan 3
0.1065 -0.0780 0.0365 0.0863 0.2928 -0.0763 0.4772 0.6026 0.1966 -0.2482 -0.0914 -0.3761 0.0092
patchgan 5, instance norm
0.6142 0.6142 -0.4869 -0.4869 0.1348 1.1551 1.1551 -0.2727 0.8821 0.8821 -0.0289 0.8813 0.3599
patchgan 1
-0.5337 -0.4848 -0.5606 -0.6176 0.1640 0.1860 0.3597 -0.7514 -0.4783 -0.5732 0.1980 -0.0599 -0.2491
pixelgan
-0.7562 -0.9469 -0.8824 -0.5827 -0.0175 0.3089 0.0006 -0.4691 -0.7462 -0.7634 -0.8174 -0.0462 -0.2537
pixelgan, instance norm
1.7826 1.8234 1.5794 0.6353 -1.1976 -2.1893 -0.4442 0.4775 1.7284 1.5573 1.4876 -1.9119 -0.1104
"""


def state_of(name):
    shapes, _, options, *_ = CASES[name]
    return draw(shapes(**options))


def condition(name):
    """The image that the network of a case is tried on; a discriminator's has both images of a pair."""
    _, _, options, size, _ = CASES[name]
    return images(size, channels=options.get('channels', 6 if 'gan' in name else 3))


@pytest.fixture(scope='module')
def computed(tmp_path_factory):
    """Our output of each case, from a file without PyTorch to a model file."""

    @functools.cache
    def compute(name):
        folder = tmp_path_factory.mktemp('case')
        save_file(state_of(name), folder / 'in.safetensors')
        import_torch(folder / 'in.safetensors', folder / 'out.safetensors', default.get_config(), CASES[name][-1])
        x = jnp.asarray(condition(name))
        if 'gan' in name:
            variables, facts = modelfile.read(folder / 'out.safetensors')
            network = build_job(ConfigDict(facts.config), 1).adversary.network
            return np.asarray(jax.jit(lambda v, x: network.apply(v, x[..., :3], x[..., 3:], train=False))(variables, x))
        model = inference.load_file(folder / 'out.safetensors')
        # Nothing is mutable.
        return np.asarray(jax.jit(lambda v, x: model.job.generator.apply(v, x, train=False))(model.variables, x))

    return compute


def sample(y):
    """Twelve values from all over an array, and the mean."""
    return [*y.reshape(-1)[np.linspace(0, y.size - 1, 12).astype(int)], y.mean()]


def in_torch(torch, name):
    """PyTorch's output of a case; with statistics of the batch it normalises as in training, without dropout."""
    _, make, options, _, statistics = CASES[name]
    network = make(torch, **options)
    network.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state_of(name).items()})
    network.eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train(statistics == 'batch')
    with torch.no_grad():
        return network(torch.from_numpy(condition(name).transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)


def read_golden():
    lines = iter(GOLDEN.splitlines())
    return {name: [float(value) for value in next(lines).split()] for name in lines}


@pytest.mark.parametrize('name', CASES)
def test_outputs_are_those_that_pytorch_once_gave(name, computed):
    # The golden values have four digits.
    np.testing.assert_allclose(sample(computed(name)), read_golden()[name], atol=1.5e-4)


@pytest.mark.parametrize('name', CASES)
def test_outputs_equal_pytorch(name, computed):
    torch = pytest.importorskip('torch')
    expected = in_torch(torch, name)
    assert expected.std() > 0.05  # the image is not all of one value
    np.testing.assert_allclose(computed(name), expected, rtol=0, atol=1e-4)


def convert(folder, state, statistics='running'):
    """Writes a state dict as safetensors and imports it; returns the model file."""
    save_file(state, folder / 'in.safetensors')
    (folder / 'out.safetensors').unlink(missing_ok=True)
    import_torch(folder / 'in.safetensors', folder / 'out.safetensors', default.get_config(), statistics)
    return folder / 'out.safetensors'


SMALL = resnet_shapes(1, 2, True)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('unet_128', dict(name='unet', depth=7, width=4, norm='batch', dropout=0.5, last_activation='tanh')),
        ('unet, grey', dict(name='unet', depth=5, norm='batch', dropout=0.0)),
        ('resnet_6', dict(name='resnet', blocks=6, width=4, norm='batch', dropout=0.0, last_activation='tanh')),
        ('resnet_6, instance norm, dropout', dict(name='resnet', blocks=6, norm='instance', dropout=0.5)),
        ('resnet_1, dropout', dict(name='resnet', blocks=1, norm='batch', dropout=0.5)),
        ('nafnet, uneven', dict(name='nafnet', encoder_blocks=[0, 2], middle_blocks=0, decoder_blocks=[1, 0])),
        ('patchgan 5, instance norm', dict(name='patchgan', strided=5, unstrided=1, width=4, norm='instance')),
        ('pixelgan', dict(name='patchgan', strided=0, unstrided=2, norm='batch', last_activation='none')),
    ],
)
def test_options_are_read_off_the_weights(name, expected, tmp_path):
    _, facts = modelfile.read(convert(tmp_path, state_of(name)))
    assert facts.network == ('discriminator' if 'gan' in name else 'generator')
    assert (facts.step, facts.weights, facts.scores) == (0, 'imported', {})
    section = facts.config[facts.network]
    found = section[section['name']] | {'name': section['name']}
    assert {key: found[key] for key in expected} == expected
    assert facts.config['data']['channels'] == (1 if 'grey' in name else 3)
    assert facts.config['value_range'] == ([0, 1] if 'nafnet' in name else [-1, 1])
    assert facts.config['norm']['statistics'] == 'running'
    # All the rest is as by default.
    assert set(facts.config) == set(default.get_config())


@pytest.mark.parametrize('batch', [True, False])
def test_files_of_older_versions_of_pytorch_mean_the_same(batch, tmp_path):
    """Before 0.4 instance norm stored statistics, which nothing used, and batch norm did not count its batches."""
    state = draw(unet_shapes(4, 2, batch))
    variables, _ = modelfile.read(convert(tmp_path, state))
    old = {key: value for key, value in state.items() if not key.endswith('num_batches_tracked')}
    if not batch:
        inner = 'model.model.1.model'
        norms = [f'{inner}.2', f'{inner}.6', f'{inner}.3.model.2', f'{inner}.3.model.6', f'{inner}.3.model.3.model.4']
        old |= {f'{key}.{name}': np.ones(4, np.float32) for key in norms for name in ('running_mean', 'running_var')}
    same, _ = modelfile.read(convert(tmp_path, old))
    jax.tree.map(np.testing.assert_array_equal, variables, same)


def test_files_of_pytorch_bare_and_wrapped(tmp_path):
    torch = pytest.importorskip('torch')
    state = {key: torch.from_numpy(value) for key, value in draw(SMALL).items()}
    half = {key: value.half() if value.ndim else value for key, value in state.items()}
    expected, _ = modelfile.read(convert(tmp_path, draw(SMALL)))
    for number, content in enumerate(
        (
            state,
            {'state_dict': {f'module.{key}': value for key, value in state.items()}, 'epoch': 3},
            {'params': {key: torch.zeros_like(value) for key, value in state.items()}, 'params_ema': state},
            {'params': half},
        )
    ):
        output = tmp_path / f'{number}.safetensors'
        torch.save(content, tmp_path / 'net.pth', _use_new_zipfile_serialization=number != 1)
        import_torch(tmp_path / 'net.pth', output, default.get_config(), 'running')
        read, _ = modelfile.read(output)
        for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3 if number == 3 else 0)


def check_refused(source, message, statistics='running', name='out.safetensors'):
    before = {path: path.stat().st_mtime_ns for path in source.parent.iterdir()}
    with pytest.raises(UserError, match=message):
        import_torch(source, source.parent / name, default.get_config(), statistics)
    assert {path: path.stat().st_mtime_ns for path in source.parent.iterdir()} == before


def without(shapes, *keys):
    return {key: shape for key, shape in shapes.items() if key not in keys}


@pytest.mark.parametrize(
    ('shapes', 'message'),
    [
        (SMALL | {'extra.weight': (1,)}, 'residual blocks, but for 1 keys:\n  extra.weight: unexpected'),
        (without(SMALL, 'model.2.running_var'), 'model.2.running_var: missing'),
        (SMALL | {'model.5.weight': (3,)}, r'model.5.weight: of shape \(3,\), expected \(4,\)'),
        (SMALL | {'model.1.bias': (2,)}, r'but for \d+ keys:(.|\n)*model.2.weight: unexpected'),
        (
            without(unet_shapes(4, 2, False), 'model.model.3.weight'),
            'U-Net, but for 1 keys:\n  model.model.3.weight: miss',
        ),
        (patchgan_shapes(3, 2, True, channels=3), 'judges 3 channels. .* as CycleGAN'),
        (patchgan_shapes(3, 2, True, channels=4), 'judges 4 channels'),
        (SMALL | conv('model.18', 1, 2, 7, True), 'makes images of 1 channels from 3; here both are 3, or'),
        (resnet_shapes(1, 2, True, channels=4), 'makes images of 4 channels from 4'),
        (
            {'conv1.weight': (8, 3, 3, 3), 'fc.bias': (9,)},
            r'no network that is known(.|\n)*conv1.weight: \(8, 3, 3, 3\)',
        ),
        ({'model.model.0.weight': (8, 3, 3, 3)}, 'no network that is known'),
        (
            without(nafnet_shapes(2, (1,), 1, (1,)), 'ups.0.0.weight'),
            'NAFNet, but for 1 keys:\n  ups.0.0.weight: missing',
        ),
    ],
)
def test_what_cannot_be_placed_is_listed(shapes, message, tmp_path):
    save_file(draw(shapes), tmp_path / 'in.safetensors')
    check_refused(tmp_path / 'in.safetensors', message)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    source = tmp_path / 'in.safetensors'
    save_file(draw(SMALL), source)
    check_refused(source, 'in.safetensors exists and is not overwritten', name='in.safetensors')
    check_refused(source, "--statistics='mean' is unknown", 'mean')
    content = source.read_bytes()
    for broken in (b'', b'hello', content[: len(content) // 2]):
        source.write_bytes(broken)
        check_refused(source, 'in.safetensors: truncated, or no safetensors file')
    check_refused(tmp_path / 'none.pth', 'none.pth: no such file')
    (tmp_path / 'net.pth').write_bytes(b'PK')
    monkeypatch.setitem(sys.modules, 'torch', None)
    check_refused(tmp_path / 'net.pth', r'net.pth: PyTorch reads this file, and is not installed: pip .*\[torch\]')


def test_files_of_pytorch_that_cannot_be_read(tmp_path):
    torch = pytest.importorskip('torch')
    source = tmp_path / 'net.pth'
    torch.save({key: torch.from_numpy(value) for key, value in draw(SMALL).items()}, source)
    content = source.read_bytes()
    for broken in (b'', b'hello, this is no network', content[: len(content) // 2], content[:100]):
        source.write_bytes(broken)
        check_refused(source, 'net.pth: truncated, no file of PyTorch')
    for foreign, message in (
        (torch.nn.Conv2d(3, 3, 1), 'holds more than tensors'),
        ({'state_dict': {}, 'options': Path('x')}, 'holds more than tensors'),
        ([torch.zeros(3)], r'expected a dictionary of tensors, not \[tens'),
        ({}, 'expected a dictionary of tensors, not {}'),
        ({'model.1.weight': 'text'}, 'not the dense tensors(.|\n)*model.1.weight: str'),
        ({'model.1.weight': torch.zeros(2, 2).to_sparse()}, 'not the dense tensors'),
        ({'params': {'params_ema': torch.zeros(3)}}, 'no network that is known'),
    ):
        torch.save(foreign, source)
        check_refused(source, message)


def test_statistics_of_the_batch_are_for_generators_with_batch_norm(tmp_path):
    for shapes in (unet_shapes(3, 2, False), nafnet_shapes(2, (1,), 1, (1,)), patchgan_shapes(1, 2, True)):
        save_file(draw(shapes), tmp_path / 'in.safetensors')
        check_refused(tmp_path / 'in.safetensors', '--statistics=batch: .* is no generator with batch norm', 'batch')


def test_the_command_line_writes_a_file_that_makes_pictures(tmp_path):
    save_file(draw(SMALL), tmp_path / 'in.safetensors')
    model = tmp_path / 'model.safetensors'
    flags = (f'--input={tmp_path / "in.safetensors"}', f'--output={model}', '--statistics=batch')
    out = command('import_torch', *flags, cwd=tmp_path)
    assert 'generator of residual blocks, 2,535 parameters' in out and 'norm.statistics=batch' in out
    write_image(tmp_path / 'photo.png', picture(0))
    loaded = inference.load_file(model)
    predict(loaded, tmp_path / 'photo.png', tmp_path / 'results', PredictOptions())
    expected = loaded.job.apply(loaded.variables, picture(0)[None] / np.float32(255))[0]
    assert np.abs(read_image(tmp_path / 'results' / 'photo.png') - np.rint(np.asarray(expected) * 255)).max() <= 1


def test_a_training_starts_from_a_discriminator(tmp_path):
    path = convert(tmp_path, draw(patchgan_shapes(1, 8, True)))
    with pytest.raises(UserError, match='out.safetensors: it holds a discriminator, .* --config.init_from='):
        inference.load_file(path)
    config, said = small_config(), []
    state = jax.jit(lambda: build_job(config, 1).create_state(1, training_size(config)))()
    started = initialise(state, path, said.append)
    assert any('generator: not in there, as initialised' in line for line in said)
    assert any('discriminator: 9 of 9 arrays taken' in line for line in said)
    jax.tree.map(np.testing.assert_array_equal, started.discriminator.variables, modelfile.read(path)[0])
    jax.tree.map(np.testing.assert_array_equal, started.generator.variables, state.generator.variables)
    with pytest.raises(UserError, match='it holds a discriminator, and with gan.weight=0 none is trained'):
        initialise(state.replace(discriminator=None), path, said.append)
