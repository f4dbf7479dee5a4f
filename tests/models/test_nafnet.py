import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import default
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from p2p_jax.models import GENERATORS
from p2p_jax.models.convolutions import depthwise, downsample
from p2p_jax.models.layers import Style
from p2p_jax.models.nafnet import NAFBlock, NAFNet, average, pixel_shuffle
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

SMALL = dict(width=4, encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), local_size=None)


def nafnet(norm='none', dtype=jnp.float32, out_channels=3, **options):
    return NAFNet(out_channels, style=Style(norm, dtype=dtype), **SMALL | options)


@pytest.mark.parametrize(
    ('width', 'encoder', 'middle', 'decoder', 'count'),
    [
        (32, (1, 1, 1, 28), 1, (1, 1, 1, 1), 17_111_907),
        (64, (1, 1, 1, 28), 1, (1, 1, 1, 1), 67_888_835),
        (32, (2, 2, 4, 8), 12, (2, 2, 2, 2), 29_159_715),
        (64, (2, 2, 4, 8), 12, (2, 2, 2, 2), 115_982_915),
    ],
)
def test_parameter_counts_of_the_paper(width, encoder, middle, decoder, count):
    network = nafnet(width=width, encoder_blocks=encoder, middle_blocks=middle, decoder_blocks=decoder)
    assert count_parameters(network) == count


def test_any_size_comes_back():
    check_any_size(nafnet, ('none', 'spectral'))


def test_gradients_are_finite_and_reach_every_parameter():
    check_gradients(nafnet(), image(5, 7, 2))


def test_results_do_not_depend_on_the_rest_of_the_batch():
    check_batch_independence(nafnet(local_size=6), (12, 9))


def test_bfloat16_computes_near_float32_with_float32_parameters():
    check_bfloat16(nafnet(), nafnet(dtype=jnp.bfloat16), image(16, 16))


def test_at_the_start_it_is_affine_but_not_the_identity():
    x = image(6, 6, 2, 4)
    block = NAFBlock(None, Style())
    y, _ = jax.jit(lambda: block.init_with_output(jax.random.key(0), x, False))()
    np.testing.assert_array_equal(y, x)  # the scales of its branches start at 0
    network, x = nafnet(), image(7, 6, 2)
    x = jnp.concatenate([x, 2 * x[:1] - x[1:]])
    variables = draw(network, x)
    for layers in variables['params'].values():
        layers |= {name: np.zeros_like(layers[name]) for name in ('beta', 'gamma') if name in layers}
    y = run(network, variables, x)
    np.testing.assert_allclose(y[2], 2 * y[0] - y[1], atol=1e-4)
    assert float(jnp.abs(y - x).max()) > 0.1


def test_the_input_is_added_where_there_are_as_many_channels():
    # With a last convolution that gives 0, only what is added remains.
    x = image(7, 5)
    for channels, expected in ((3, x), (1, jnp.zeros((1, 7, 5, 1)))):
        network = nafnet(out_channels=channels)
        variables = draw(network, x)
        variables['params']['ending'] = jax.tree.map(jnp.zeros_like, variables['params']['ending'])
        np.testing.assert_array_equal(run(network, variables, x), expected)


def test_average_takes_the_squares_that_fit():
    x = np.asarray(image(7, 9, 2, 4))
    for covering in (None, 9):
        np.testing.assert_allclose(average(jnp.asarray(x), covering), x.mean((1, 2), keepdims=True), atol=1e-6)
    for window in (1, 2, 3, 8):
        mean = np.asarray(average(jnp.asarray(x), window))
        h, w = min(window, 7), min(window, 9)
        for i, j in ((0, 0), (3, 4), (6, 8)):
            top, left = (int(np.clip(p - (s - 1) // 2, 0, n - s)) for p, s, n in ((i, h, 7), (j, w, 9)))
            np.testing.assert_allclose(mean[:, i, j], x[:, top : top + h, left : left + w].mean((1, 2)), atol=1e-5)


def test_local_statistics_act_and_equal_global_ones_where_the_window_covers_the_image():
    x = image(12, 10)
    whole, covering, local = nafnet(), nafnet(local_size=12), nafnet(local_size=6)
    variables = draw(whole, x)
    expected = run(whole, variables, x)
    np.testing.assert_allclose(run(covering, variables, x), expected, rtol=1e-6, atol=1e-6)
    assert float(jnp.abs(run(local, variables, x) - expected).max()) > 1e-3


def test_the_window_is_the_same_part_of_the_image_on_each_level_and_only_outside_training():
    options = dict(encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    x = image(16, 16)
    local = nafnet(local_size=15, **options)
    variables = draw(local, x)
    # On the levels of 16, 8 and 4 positions it has 15, 7 and 3: none covers all.
    windows = []

    def record(next_function, args, kwargs, context):
        if type(context.module).__name__ == 'NAFBlock' and context.method_name == '__call__':
            windows.append(context.module.window)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        for train in (False, True):
            jax.eval_shape(lambda train=train: local.apply(variables, x, train=train))
    assert windows == [15, 7, 3, 7, 15, *[None] * 5]


def torch_nafnet(torch, width, encoder, middle, decoder):
    """The network as the paper's code has it, in plain PyTorch; layers have the names of ours."""
    nn = torch.nn

    class LayerNorm(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.scale, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

        def forward(self, x):
            centred = x - x.mean(1, keepdim=True)
            y = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
            return y * self.scale[:, None, None] + self.bias[:, None, None]

    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.norm_1, self.norm_2 = LayerNorm(c), LayerNorm(c)
            self.conv_1, self.conv_4 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, 2 * c, 1)
            self.conv_2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
            self.attention, self.conv_3, self.conv_5 = (nn.Conv2d(c, c, 1) for _ in range(3))
            self.beta, self.gamma = nn.Parameter(torch.zeros(c)), nn.Parameter(torch.zeros(c))

        def forward(self, x):
            a, b = self.conv_2(self.conv_1(self.norm_1(x))).chunk(2, 1)
            y = a * b
            y = self.conv_3(y * self.attention(y.mean((2, 3), keepdim=True)))
            x = x + y * self.beta[:, None, None]
            a, b = self.conv_4(self.norm_2(x)).chunk(2, 1)
            return x + self.conv_5(a * b) * self.gamma[:, None, None]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.intro, self.ending = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
            for level, count in enumerate(encoder):
                self.add_module(f'down_{level}', nn.Conv2d(width * 2**level, width * 2 ** (level + 1), 2, 2))
                self.add_blocks(f'encoder_{level}', width * 2**level, count)
            c = width * 2 ** len(encoder)
            self.add_blocks('middle', c, middle)
            for i, count in enumerate(decoder):
                self.add_module(f'up_{i}', nn.Conv2d(c, 2 * c, 1, bias=False))
                c //= 2
                self.add_blocks(f'decoder_{i}', c, count)

        def add_blocks(self, name, c, count):
            for i in range(count):
                self.add_module(f'{name}_{i}', Block(c))

        def run(self, name, count, x):
            for i in range(count):
                x = getattr(self, f'{name}_{i}')(x)
            return x

        def forward(self, image):
            h, w = image.shape[2:]
            multiple = 2 ** len(encoder)
            image = nn.functional.pad(image, (0, -w % multiple, 0, -h % multiple))
            x, skips = self.intro(image), []
            for level, count in enumerate(encoder):
                skips.append(self.run(f'encoder_{level}', count, x))
                x = getattr(self, f'down_{level}')(skips[-1])
            x = self.run('middle', middle, x)
            for i, count in enumerate(decoder):
                x = nn.functional.pixel_shuffle(getattr(self, f'up_{i}')(x), 2) + skips.pop()
                x = self.run(f'decoder_{i}', count, x)
            return (self.ending(x) + image)[:, :, :h, :w]

    return Net()


def test_equals_pytorch():
    torch = pytest.importorskip('torch')
    options = dict(encoder_blocks=(1, 2), middle_blocks=1, decoder_blocks=(2, 1))
    check_equals_torch(nafnet(**options), torch_nafnet(torch, 4, *options.values()), image(13, 10, 2))


@pytest.mark.parametrize('size', [(4, 6), (5, 3), (6, 5), (8, 7)])
def test_forms_of_its_convolutions_agree(size):
    random = np.random.default_rng(1)
    check_forms(depthwise, image(*size, n=2), random.normal(size=(3, 3, 1, 3)).astype(np.float32))
    check_forms(downsample, image(*size, n=2), random.normal(size=(2, 2, 3, 4)).astype(np.float32))


def test_pixel_shuffle_keeps_the_four_of_a_channel_together():
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    np.testing.assert_array_equal(pixel_shuffle(x)[0, ..., 1], [[4, 5], [6, 7]])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(width=0), 'generator.nafnet.width=0: expected at least 1'),
        (dict(decoder_blocks=(1, 2)), r'encoder_blocks=\(1,\) and decoder_blocks=\(1, 2\); expected as many levels'),
        (dict(middle_blocks=-1), 'middle_blocks=-1 and .* expected counts of at least 0'),
        (dict(local_size=0), 'local_size=0: expected at least 1, or None'),
        (dict(norm='batch'), "norm='batch': expected none or spectral"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: nafnet(**options).init(jax.random.key(0), image(8, 8), train=False))


def test_registered_and_built_from_its_section_which_may_come_from_json():
    assert GENERATORS['nafnet'] is NAFNet
    config = default.get_config()
    config.generator.name = 'nafnet'
    network = build_job(config, 10).generator
    assert network.style.norm == 'none' and network.encoder_blocks == (2, 2, 4, 8)
    lists = nafnet(encoder_blocks=[1], decoder_blocks=[1])
    x = image(8, 8)
    assert jax.tree.structure(shapes_of(lists, x)) == jax.tree.structure(shapes_of(nafnet(), x))
