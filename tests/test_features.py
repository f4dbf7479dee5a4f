"""What describes images: batches, sizes, and the two networks by name."""

import numpy as np
import pytest

from p2p_jax import features
from p2p_jax.lookup import UserError
from p2p_jax.models.vgg import normalise
from tests.conftest import picture
from tests.weights import NARROW, draw, make_narrow, write_file


def test_in_batches_gives_each_row_once_whatever_the_batch():
    images = np.arange(7.0)[:, None]
    shapes = []

    def function(batch):
        shapes.append(batch.shape)
        return {'twice': 2 * batch[:, 0], 'nothing': None}

    found = features.in_batches(function, images, 3)
    assert shapes == [(3, 1)] * 3 and found['nothing'] is None
    np.testing.assert_array_equal(found['twice'], 2 * images[:, 0])


@pytest.fixture
def vgg16(tmp_path, monkeypatch):
    """The narrow network, and what it says of images that are as large as it wants them."""
    make_narrow(monkeypatch)
    features._describe_vgg16.clear_cache()
    yield features.FEATURES['vgg16'](str(write_file(tmp_path, 'vgg16')), '--weights')
    features._describe_vgg16.clear_cache()


def test_vgg16_is_its_last_convolution_averaged_over_positions(vgg16):
    large = np.stack([picture(seed, 64, 80) for seed in range(3)]).astype(np.float32) / 255
    found, probabilities = vgg16(large, batch_size=2)
    assert probabilities is None and not vgg16.has_scores and 'FID' not in vgg16.distance
    network = NARROW['vgg16']
    expected = network.apply({'params': draw(network)}, normalise(large), ('relu5_3',))['relu5_3']
    np.testing.assert_allclose(found, np.asarray(expected).mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_small_images_are_enlarged_for_vgg16(vgg16):
    # Doubling what has no detail changes nothing but the border's reach.
    flat = np.broadcast_to(np.float32([0.2, 0.5, 0.7]), (1, 32, 32, 3))
    large = np.broadcast_to(flat[:, :1, :1], (1, 64, 64, 3))
    np.testing.assert_allclose(vgg16(flat, batch_size=1)[0], vgg16(large, batch_size=1)[0], rtol=1e-4, atol=1e-5)


def test_every_network_says_what_it_needs(tmp_path):
    for build in features.FEATURES.values():
        with pytest.raises(UserError, match=r'--weights=.*none.pth: no such file'):
            build(str(tmp_path / 'none.pth'), '--weights')
