import jax.numpy as jnp
import pytest

from p2p_jax.lookup import UserError
from p2p_jax.models import GENERATORS
from p2p_jax.models.layers import NORMS, Style
from p2p_jax.models.resnet_unet import ResNetUNet
from tests.models.generators import (
    check_any_size,
    check_batch_independence,
    check_bfloat16,
    check_dropout,
    check_equals_torch,
    check_gradients,
    count_parameters,
    image,
    shapes_of,
)


def unet(norm='batch', dtype=jnp.float32, **options):
    options = dict(out_channels=3, depth=1, width=4, dropout=0.0, last_activation='none', residual=False) | options
    return ResNetUNet(style=Style(norm, 0.02, dtype=dtype), **options)


@pytest.mark.parametrize(('norm', 'count'), [('batch', 34_958_019), ('instance', 34_950_787)])
def test_parameter_counts(norm, count):
    assert count_parameters(unet(norm, depth=4, width=64)) == count


def test_any_size_comes_back():
    check_any_size(lambda norm, **options: unet(norm, depth=3, **options), NORMS)


def test_gradients_are_finite_and_reach_every_parameter():
    check_gradients(unet(), image(5, 7, 2))


def test_results_do_not_depend_on_the_rest_of_the_batch():
    check_batch_independence(unet(dropout=0.5), (12, 9))


def test_bfloat16_computes_near_float32_with_float32_parameters():
    check_bfloat16(unet(), unet(dtype=jnp.bfloat16), image(16, 16))


def test_dropout_acts_in_training():
    check_dropout(unet(dropout=0.5), image(8, 8))


def torch_unet(torch, width, depth, norm):
    """The same network in plain PyTorch; layers have the names of ours."""
    nn = torch.nn
    bias = norm is nn.InstanceNorm2d
    features = [width * min(2**level, 8) for level in range(depth + 1)]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_block('encoder_0', 3, width)
            for level in range(1, depth + 1):
                self.add_module(f'down_{level}', nn.Conv2d(features[level - 1], features[level], 4, 2, 1, bias=bias))
                self.add_module(f'down_{level}_norm', norm(features[level]))
                self.add_block(f'encoder_{level}', features[level], features[level])
            for level in reversed(range(depth)):
                up = nn.ConvTranspose2d(features[level + 1], features[level], 4, 2, 1, bias=bias)
                self.add_module(f'up_{level}', up)
                self.add_module(f'up_{level}_norm', norm(features[level]))
                self.add_block(f'decoder_{level}', 2 * features[level], features[level])
            self.head = nn.Conv2d(width, 3, 3, padding=1)

        def add_block(self, name, into, out):
            for i, channels in ((1, into), (2, out)):
                self.add_module(f'{name}_conv_{i}', nn.Conv2d(channels, out, 3, padding=1, bias=bias))
                self.add_module(f'{name}_norm_{i}', norm(out))
            if into != out:
                self.add_module(f'{name}_shortcut', nn.Conv2d(into, out, 1))

        def both(self, name, norm, x):
            return getattr(self, norm)(getattr(self, name)(x))

        def block(self, name, x):
            y = self.both(f'{name}_conv_1', f'{name}_norm_1', x).relu()
            y = self.both(f'{name}_conv_2', f'{name}_norm_2', y)
            return (y + (getattr(self, f'{name}_shortcut')(x) if hasattr(self, f'{name}_shortcut') else x)).relu()

        def forward(self, x):
            skips = [self.block('encoder_0', x)]
            for level in range(1, depth + 1):
                x = self.both(f'down_{level}', f'down_{level}_norm', skips[-1]).relu()
                skips.append(self.block(f'encoder_{level}', x))
            x = skips.pop()
            for level in reversed(range(depth)):
                x = self.both(f'up_{level}', f'up_{level}_norm', x).relu()
                x = self.block(f'decoder_{level}', torch.cat([x, skips.pop()], 1))
            return self.head(x).tanh()

    return Net()


@pytest.mark.parametrize('norm', ['batch', 'instance'])
def test_equals_pytorch(norm):
    torch = pytest.importorskip('torch')
    kind = {'batch': torch.nn.BatchNorm2d, 'instance': torch.nn.InstanceNorm2d}[norm]
    network = unet(norm, depth=2, last_activation='tanh')
    check_equals_torch(network, torch_unet(torch, 4, 2, kind), image(16, 12, 2))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(width=0), 'generator.resnet_unet.width=0: expected at least 1'),
        (dict(dropout=1.0), 'generator.resnet_unet.dropout=1.0: expected a rate'),
        (dict(residual=True, out_channels=1), 'resnet_unet.residual: 3 channels cannot be added to 1'),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        shapes_of(unet(**options), image(8, 8))


def test_registered():
    assert GENERATORS['resnet_unet'] is ResNetUNet
