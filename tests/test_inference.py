"""Models as they behave outside training: batch norm by either statistics, dropout as noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.inference import Model, in_mode
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from p2p_jax.predict import fingerprint
from p2p_jax.predictor import PredictOptions, Predictor
from tests.conftest import picture, small_config


def model(path, **options):
    """A network with dropout, whose running statistics are not those of its images."""
    config = small_config()
    config.generator.name = 'resnet'
    config.generator.resnet.update(dict(blocks=1, width=4, norm='batch', dropout=0.5, init_std=0.3) | options)
    config.gan.weight = 0.0
    job = build_job(config, 1)
    variables = jax.jit(lambda: job.create_state(0, (16, 16, 3)))().evaluated
    return Model(config, job, variables, 0, path, 1.0)


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    return model(tmp_path_factory.mktemp('none'))


@pytest.fixture(scope='module')
def image():
    return jnp.asarray(picture(0, 16, 16)[None] / 255, jnp.float32)


def by_its_statistics(job, variables, image, **rngs):
    """As in training, where batch norm takes those of the batch; without an axis to share them over."""
    config = small_config()
    style = job.generator.style
    network = job.generator.clone(style=type(style)(style.norm, style.init_std, config.conv_form))
    output, _ = network.apply(variables, job.to_network(image), train=True, mutable=['batch_stats'], rngs=rngs)
    return job.from_network(output)


def test_statistics_of_the_image_and_dropout_are_those_of_training(reference, image):
    job = reference.job
    calm = in_mode(reference, 'batch', dropout=False)
    output = jax.jit(calm.job.apply)(reference.variables, image)
    still = model(reference.origin, dropout=0.0)
    np.testing.assert_allclose(output, by_its_statistics(still.job, reference.variables, image), atol=1e-4)
    assert np.abs(output - jax.jit(job.apply)(reference.variables, image)).max() > 0.05

    both = in_mode(reference, 'batch', dropout=True)
    noisy = jax.jit(both.job.apply)(reference.variables, image)
    expected = by_its_statistics(job, reference.variables, image, dropout=jax.random.key(0))
    np.testing.assert_allclose(noisy, expected, atol=1e-4)
    assert np.abs(noisy - output).max() > 0.01
    assert both.config.norm.statistics == 'batch' and both.config.eval.dropout
    # A result that was made otherwise is not taken for this one's.
    assert len({str(fingerprint(each, PredictOptions())) for each in (reference, calm, both)}) == 3
    assert in_mode(both, 'running', dropout=False).config.norm.statistics == 'running'


def test_what_a_network_does_not_have_is_refused(tmp_path):
    bare = model(tmp_path, norm='instance', dropout=0.0)
    with pytest.raises(UserError, match='--statistics=batch: .* has no batch norm'):
        in_mode(bare, 'batch', dropout=False)
    with pytest.raises(UserError, match='--dropout: .* has no dropout'):
        in_mode(bare, None, dropout=True)
    with pytest.raises(UserError, match="--statistics='own' is unknown. Available: batch, running"):
        in_mode(bare, 'own', dropout=False)


def test_nothing_is_padded_where_the_statistics_are_the_image_s(reference):
    predictor = Predictor(in_mode(reference, 'batch', dropout=False), PredictOptions())
    assert predictor(picture(1, 16, 20)).shape == (16, 20, 3)
    with pytest.raises(UserError, match='an image of 18×16 pixels: .* sides must be multiples of 4'):
        predictor(picture(1, 16, 18))
    assert Predictor(reference, PredictOptions())(picture(1, 16, 18)).shape == (16, 18, 3)
