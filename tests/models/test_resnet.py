import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.lookup import UserError
from p2p_jax.models import GENERATORS
from p2p_jax.models.convolutions import downsample, upsample
from p2p_jax.models.layers import NORMS, Style
from p2p_jax.models.resnet import ResNetGenerator
from tests.models.generators import (
    check_any_size,
    check_batch_independence,
    check_bfloat16,
    check_dropout,
    check_equals_torch,
    check_forms,
    check_gradients,
    count_parameters,
    image,
    shapes_of,
)


def resnet(norm='batch', dtype=jnp.float32, **options):
    options = dict(out_channels=3, blocks=1, width=4, dropout=0.0, last_activation='none', residual=False) | options
    return ResNetGenerator(style=Style(norm, 0.02, dtype=dtype), **options)


@pytest.mark.parametrize(
    ('norm', 'blocks', 'count'),
    [
        ('instance', 9, 11_378_179),
        ('batch', 9, 11_383_427),
        ('instance', 6, 7_837_699),
        ('batch', 6, 7_841_411),
    ],
)
def test_parameter_counts_of_the_reference(norm, blocks, count):
    assert count_parameters(resnet(norm, blocks=blocks, width=64)) == count


def test_any_size_comes_back():
    check_any_size(resnet, NORMS)


def test_gradients_are_finite_and_reach_every_parameter():
    check_gradients(resnet(), image(5, 7, 2))


def test_results_do_not_depend_on_the_rest_of_the_batch():
    check_batch_independence(resnet(dropout=0.5), (12, 9))


def test_bfloat16_computes_near_float32_with_float32_parameters():
    check_bfloat16(resnet(), resnet(dtype=jnp.bfloat16), image(16, 16))


@pytest.mark.parametrize('function', [downsample, upsample])
def test_forms_of_the_strided_convolutions_agree(function):
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 4)).astype(np.float32)
    check_forms(function, image(4, 6, 2), kernel)
    check_forms(function, image(5, 3, 2), kernel)


def test_dropout_acts_in_training():
    check_dropout(resnet(dropout=0.5), image(8, 8))


def torch_resnet(torch, width, blocks, norm):
    """The generator as CycleGAN's code has it, in plain PyTorch; layers have the names of ours."""
    nn = torch.nn
    bias = norm is nn.InstanceNorm2d

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.first_norm = nn.Conv2d(3, width, 7, bias=bias), norm(width)
            for i in range(2):
                features = width * 2 ** (i + 1)
                self.add_module(f'down_{i}', nn.Conv2d(features // 2, features, 3, 2, 1, bias=bias))
                self.add_module(f'down_norm_{i}', norm(features))
            for i in range(blocks):
                for j in (1, 2):
                    self.add_module(f'block_{i}_conv_{j}', nn.Conv2d(4 * width, 4 * width, 3, bias=bias))
                    self.add_module(f'block_{i}_norm_{j}', norm(4 * width))
            for i in range(2):
                features = width * 2 ** (1 - i)
                self.add_module(f'up_{i}', nn.ConvTranspose2d(2 * features, features, 3, 2, 1, 1, bias=bias))
                self.add_module(f'up_norm_{i}', norm(features))
            self.head = nn.Conv2d(width, 3, 7)

        def both(self, name, norm, x):
            return getattr(self, norm)(getattr(self, name)(x))

        def forward(self, x):
            x = self.both('first', 'first_norm', nn.functional.pad(x, (3,) * 4, 'reflect')).relu()
            for i in range(2):
                x = self.both(f'down_{i}', f'down_norm_{i}', x).relu()
            for i in range(blocks):
                name = f'block_{i}'
                y = nn.functional.pad(x, (1,) * 4, 'reflect')
                y = self.both(f'{name}_conv_1', f'{name}_norm_1', y).relu()
                y = nn.functional.pad(y, (1,) * 4, 'reflect')
                x = x + self.both(f'{name}_conv_2', f'{name}_norm_2', y)
            for i in range(2):
                x = self.both(f'up_{i}', f'up_norm_{i}', x).relu()
            return self.head(nn.functional.pad(x, (3,) * 4, 'reflect')).tanh()

    return Net()


@pytest.mark.parametrize('norm', ['batch', 'instance'])
def test_equals_pytorch(norm):
    torch = pytest.importorskip('torch')
    reference = torch_resnet(torch, 4, 2, {'batch': torch.nn.BatchNorm2d, 'instance': torch.nn.InstanceNorm2d}[norm])
    check_equals_torch(resnet(norm, blocks=2, last_activation='tanh'), reference, image(16, 12, 2))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(blocks=0), 'generator.resnet.blocks=0: expected at least 1'),
        (dict(dropout=1.0), 'generator.resnet.dropout=1.0: expected a rate'),
        (dict(residual=True, out_channels=1), 'resnet.residual: 3 channels cannot be added to 1'),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        shapes_of(resnet(**options), image(8, 8))


def test_registered():
    assert GENERATORS['resnet'] is ResNetGenerator
