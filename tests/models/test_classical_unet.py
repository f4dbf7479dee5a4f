import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.lookup import UserError
from p2p_jax.models import GENERATORS
from p2p_jax.models.classical_unet import ClassicalUNet, max_pool
from p2p_jax.models.convolutions import upsample
from p2p_jax.models.layers import NORMS, Style
from tests.models.generators import (
    check_any_size,
    check_batch_independence,
    check_bfloat16,
    check_equals_torch,
    check_forms,
    check_gradients,
    count_parameters,
    draw,
    image,
    run,
    shapes_of,
)


def unet(norm='batch', dtype=jnp.float32, **options):
    options = dict(out_channels=3, depth=2, width=4, last_activation='none', residual=False) | options
    return ClassicalUNet(style=Style(norm, 0.02, dtype=dtype), **options)


def test_parameter_count_with_the_project_s_filters():
    assert count_parameters(unet(depth=4, width=64)) == 31_031_744


def test_any_size_comes_back():
    check_any_size(unet, NORMS)


def test_gradients_are_finite_and_reach_every_parameter():
    check_gradients(unet(depth=1), image(5, 7, 2))


def test_results_do_not_depend_on_the_rest_of_the_batch():
    check_batch_independence(unet(), (12, 9))


def test_bfloat16_computes_near_float32_with_float32_parameters():
    check_bfloat16(unet(depth=1), unet(depth=1, dtype=jnp.bfloat16), image(16, 16))


def test_pooling_takes_maxima_and_sends_the_gradient_there():
    x = image(6, 8, 2, 3)
    plain = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
    np.testing.assert_array_equal(max_pool(x), plain)
    slope = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_array_equal(slope, x == jnp.repeat(jnp.repeat(plain, 2, 1), 2, 2))


def test_forms_of_the_transposed_convolution_agree():
    kernel = np.random.default_rng(1).normal(size=(2, 2, 3, 4)).astype(np.float32)
    check_forms(upsample, image(3, 5, 2), kernel)


def test_only_the_transposed_convolutions_have_biases_and_the_last_block_no_norm():
    params = shapes_of(unet(), image(8, 8))['params']
    assert {name for name, layer in params.items() if 'kernel' in layer and 'bias' in layer} == {'up_0', 'up_1'}
    norms = {name for name in params if name.endswith('_norm')}
    assert norms == {'encoder_0_norm', 'encoder_1_norm', 'middle_norm', 'decoder_1_norm'}


def test_residual_gives_the_input_minus_the_network():
    x = image(6, 5)
    variables = draw(unet(depth=1), x)
    expected = x - run(unet(depth=1), variables, x)
    np.testing.assert_allclose(run(unet(depth=1, residual=True), variables, x), expected, atol=1e-5)


def torch_unet(torch, width, depth):
    """The network as the project's code has it, in plain PyTorch; layers have the names of ours."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            filters, features = [width * 2**level for level in range(depth + 1)], 3
            for level, out in enumerate(filters):
                features = self.add_block(self.name(level), features, out)
            for level in reversed(range(depth)):
                self.add_module(f'up_{level}', nn.ConvTranspose2d(filters[level + 1], filters[level], 2, 2))
                self.add_block(f'decoder_{level}', filters[level + 1], filters[level], level > 0)
            self.head = nn.Conv2d(width, 3, 1, bias=False)

        def name(self, level):
            return f'encoder_{level}' if level < depth else 'middle'

        def add_block(self, name, features, out, norm=True):
            self.add_module(f'{name}_conv_1', nn.Conv2d(features, out, 3, padding=1, bias=False))
            self.add_module(f'{name}_conv_2', nn.Conv2d(out, out, 3, padding=1, bias=False))
            if norm:
                self.add_module(f'{name}_norm', nn.BatchNorm2d(out))
            return out

        def block(self, name, x):
            x = getattr(self, f'{name}_conv_2')(getattr(self, f'{name}_conv_1')(x).relu())
            return (getattr(self, f'{name}_norm')(x) if hasattr(self, f'{name}_norm') else x).relu()

        def forward(self, x):
            skips = []
            for level in range(depth):
                skips.append(self.block(self.name(level), x))
                x = nn.functional.max_pool2d(skips[-1], 2)
            x = self.block('middle', x)
            for level in reversed(range(depth)):
                x = torch.cat([getattr(self, f'up_{level}')(x), skips[level]], 1)
                x = self.block(f'decoder_{level}', x)
            return self.head(x)

    return Net()


def test_equals_pytorch():
    torch = pytest.importorskip('torch')
    check_equals_torch(unet(), torch_unet(torch, 4, 2), image(12, 8, 2))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(depth=0), 'generator.classical_unet.depth=0: expected at least 1'),
        (dict(residual=True, out_channels=1), 'classical_unet.residual: 3 channels cannot be added to 1'),
        (dict(last_activation='tan'), "classical_unet.last_activation='tan' is unknown.*Did you mean 'tanh'"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        shapes_of(unet(**options), image(8, 8))


def test_registered():
    assert GENERATORS['classical_unet'] is ClassicalUNet
