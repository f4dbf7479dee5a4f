"""Tiles: where they lie, that their results fit together, and what happens where the memory does not suffice."""

import functools
import itertools

import jax
import numpy as np
import pytest

from p2p_jax.lookup import UserError
from p2p_jax.models.classical_unet import ClassicalUNet
from p2p_jax.models.layers import Style
from p2p_jax.models.nafnet import NAFNet
from p2p_jax.models.resnet import ResNetGenerator
from p2p_jax.models.resnet_unet import ResNetUNet
from p2p_jax.models.unet import UNet
from p2p_jax.tiling import Tiling, bands, fitting_size, full_scale, run
from tests.models import generators


def unet(norm='none', depth=3, **style):
    return UNet(3, depth, 4, 0.0, 'none', True, Style(norm, **style))


def nafnet(local_size=None):
    return NAFNet(3, 4, (1,), 1, (1,), local_size, Style())


def tiling_of(network, size, overlap='blend'):
    return Tiling(size, overlap, network.reach, network.multiple, network.padding)


def put_together(apply, image, tiling, batch=2):
    """The whole result, and the shapes that the network was given."""
    shapes = []

    def watched(tiles):
        shapes.append(tiles.shape)
        return apply(tiles)

    parts = list(bands(watched, image, tiling, batch))
    assert [top for top, _ in parts] == [0, *np.cumsum([band.shape[1] for _, band in parts])[:-1]]
    return np.concatenate([band for _, band in parts], axis=1), shapes


@functools.cache
def prepared(network):
    """The network with drawn weights, of some size of signal."""
    variables = generators.draw(network, generators.image(16, 16))
    return lambda x: generators.run(network, variables, x)


@pytest.mark.parametrize('overlap', ['blend', 'exact'])
@pytest.mark.parametrize(('reach', 'multiple'), [(None, 256), (22, 8), (3, 2), (0, 1), (300, 16)])
def test_weights_sum_to_one_exactly(overlap, reach, multiple):
    if overlap == 'exact' and reach is None:
        return
    for size, length in itertools.product((1, 40, 300), (1, 255, 257, 1000)):
        axis = Tiling(size, overlap, reach, multiple, 'reflect').axis(length)
        assert 0 <= axis.length - length < multiple
        total = np.zeros(axis.length, np.float32)
        for start, weights in zip(axis.starts, axis.weights, strict=True):
            assert weights.min() >= 0 and weights.dtype == np.float32
            total[start : start + axis.size] += weights
        np.testing.assert_array_equal(total, 1)
        # Of two axes together, which is what tiles are weighted by, nothing is rounded either.
        square = np.float64(axis.weights[:2])[:, :, None] * axis.weights[0]
        np.testing.assert_array_equal(np.float32(square), square)


def test_blended_tiles_pass_over_smoothly_and_overlap_by_the_reach():
    for reach, ramp in ((None, 64), (500, 64), (20, 48), (1, 16)):
        axis = Tiling(512, 'blend', reach, 16, 'reflect').axis(4000)
        overlaps = [a + 512 - b for a, b in itertools.pairwise(axis.starts)]
        assert min(overlaps) >= ramp and len(axis.starts) == int(np.ceil((4000 - ramp) / (512 - ramp)))
        assert all(start % 16 == 0 for start in axis.starts)
        steps = np.abs(np.diff(axis.weights, axis=1))
        assert steps.max() == pytest.approx(np.pi / 2 / ramp, rel=0.05)
        assert max(axis.weights[1:, 0].max(), axis.weights[:-1, -1].max()) <= 2**-12


@pytest.mark.parametrize('size', [(1, 1), (1, 70), (33, 31), (95, 130), (64, 64), (200, 65)])
@pytest.mark.parametrize('padding', ['reflect', 'constant'])
@pytest.mark.parametrize('overlap', ['blend', 'exact'])
def test_the_identity_gives_the_image_back_and_sees_one_shape(size, overlap, padding):
    image = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    tiling = Tiling(64, overlap, 5, 8, padding, 0.5)
    result, shapes = put_together(lambda x: x / np.float32(full_scale(x.dtype)), image, tiling, 3)
    assert len(set(shapes)) == 1 and result.dtype == np.float32
    np.testing.assert_allclose(result, image / np.float32(255), atol=1e-6)


LOCAL = {
    'unet': unet(),
    'unet, batch': unet('batch', 2),
    'classical_unet': ClassicalUNet(3, 2, 4, 'none', True, Style()),
    'nafnet': nafnet(8),
    'resnet': ResNetGenerator(3, 1, 4, 0.0, 'none', True, Style()),
    'resnet_unet': ResNetUNet(3, 1, 4, 0.0, 'none', True, Style()),
}


@pytest.mark.parametrize('name', sorted(set(LOCAL) - {'unet, batch', 'nafnet'}))
def test_reach_is_how_far_a_pixel_has_an_effect(name):
    generators.check_reach(LOCAL[name], 2 * LOCAL[name].reach + 4 * LOCAL[name].multiple)


def test_reach_of_networks_that_see_everything():
    assert unet(depth=1).reach == 3
    assert unet('batch').reach == unet('spectral').reach == unet().reach
    for network in (unet('instance'), unet('group'), unet('batch', statistics='batch'), nafnet()):
        assert network.reach is None
        with pytest.raises(UserError, match=r'--overlap=exact: each result of this network depends on the whole image'):
            tiling_of(network, 64, 'exact')


@pytest.mark.parametrize('name', LOCAL)
def test_exact_tiles_equal_the_whole_image(name):
    network, image = LOCAL[name], np.asarray(generators.image(150, 117))
    apply = prepared(network)
    expected = np.asarray(apply(image))
    result, shapes = put_together(apply, image, tiling_of(network, 16, 'exact'))
    assert len(shapes) > 1 and len(set(shapes)) == 1
    assert np.abs(result - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    blend, _ = put_together(apply, image, tiling_of(network, 64))
    assert np.abs(blend - expected).max() > 1e-3, 'otherwise this test says nothing about exact'


def photograph(height, width):
    """A smooth shape with an edge and a little noise, and a ramp: both (1, height, width, 3) in [0, 1]."""
    y, x = np.mgrid[:height, :width] / 60
    shape = 0.5 + 0.2 * np.sin(x + 2 * np.cos(y)) + 0.15 * (np.hypot(x - 2, y - 2) < 1)
    shape = shape + np.random.default_rng(0).normal(0, 0.02, shape.shape)
    ramp = np.broadcast_to(np.arange(width) / width, (height, width))
    return [np.repeat(plane[None, ..., None], 3, -1).astype(np.float32) for plane in (shape, ramp)]


def jump(image):
    """The largest step in the mean of all rows or columns, from 8 pixels to the next 8: texture drops out."""
    steps = []
    for axis in (1, 2):
        sums = np.cumsum(image.mean(axis)[0], axis=0)
        means = (sums[8:] - sums[:-8]) / 8
        steps.append(np.abs(means[8:] - means[:-8]).max())
    return max(steps)


@pytest.mark.parametrize('network', [unet(), unet('instance'), nafnet()])
def test_there_are_no_seams(network):
    """Against the whole image, tiles shift regions against the next by far less than the image itself changes."""
    apply = prepared(network)

    def correct(x):
        """A correction of at most 0.1, as restoration networks make them."""
        return x + 0.1 * np.tanh(np.asarray(apply(x)) - x)

    for image in photograph(320, 320):
        whole = correct(image)
        blend, _ = put_together(correct, image, tiling_of(network, 128))
        cut = Tiling(128, 'exact', 0, network.multiple, network.padding)  # no overlap at all
        hard, _ = put_together(correct, image, cut)
        assert jump(blend - whole) < min(0.4 * jump(image), 0.4 * jump(hard - whole))


def test_memory_that_does_not_suffice_halves_the_tiles():
    image, said, seen = np.random.default_rng(0).random((1, 150, 100, 1), np.float32), [], []

    def apply(tiles):
        seen.append(tiles.shape[1])
        if tiles.shape[1] > 40:
            raise MemoryError if len(seen) == 1 else jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
        return tiles

    result = np.full((1, 150, 100, 1), np.nan, np.float32)

    def take(top, band):
        result[:, top : top + band.shape[1]] = band

    found = run(apply, image, Tiling(512, 'blend', 4, 8, 'reflect'), 1, take, said.append)
    assert found.tile() == 32 and seen[:3] == [150, 72, 32]
    lines = [f'out of memory with tiles of {a} pixels; going on with {b}' for a, b in ((512, 72), (72, 32))]
    assert said == lines
    np.testing.assert_allclose(result, image, atol=1e-6)


def test_memory_for_the_smallest_tiles_must_be_there_and_other_errors_pass():
    image = np.zeros((1, 60, 60, 1), np.float32)

    def fail(error):
        def apply(tiles):
            raise error

        return lambda: run(apply, image, Tiling(32, 'blend', 4, 8, 'reflect'), 1, lambda *_: None, lambda _: None)

    with pytest.raises(UserError, match='out of memory with the smallest tiles, of 16 pixels'):
        fail(MemoryError())()
    with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
        fail(jax.errors.JaxRuntimeError('INTERNAL: something else'))()


def test_mistakes_and_the_default_size():
    with pytest.raises(UserError, match="--overlap='smooth' is unknown. Available: blend, exact"):
        Tiling(64, 'smooth', 4, 8, 'reflect')
    with pytest.raises(UserError, match='--tile=0: expected at least 1'):
        Tiling(0, 'blend', 4, 8, 'reflect')
    assert fitting_size(1) == 512
