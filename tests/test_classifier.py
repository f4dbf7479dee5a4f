"""A classifier's file: what goes in comes out, and what is said of other files."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from p2p_jax import classifier, modelfile
from p2p_jax.classifier import Classifier, Description
from p2p_jax.lookup import UserError
from p2p_jax.models import classifier as networks

DESCRIPTION = Description(('cat', 'dog', 'frog'), 8, 4, 0.75, 40, 12)


@pytest.fixture(scope='module')
def made():
    """A classifier of random weights and statistics."""
    shapes = jax.eval_shape(
        lambda: DESCRIPTION.network().init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=False)
    )
    random = np.random.default_rng(1)

    def draw(leaf):
        values = random.normal(size=leaf.shape) if leaf.ndim > 1 else random.uniform(0.5, 1.5, leaf.shape)
        return values.astype(np.float32)

    return Classifier(DESCRIPTION, jax.tree.map(draw, shapes))


def test_a_file_gives_back_the_classifier(made, tmp_path):
    classifier.save(tmp_path / 'c.safetensors', made)
    read = classifier.load(tmp_path / 'c.safetensors')
    assert read.description == DESCRIPTION
    assert read.classes == ('cat', 'dog', 'frog') and read.accuracy == 0.75
    assert jax.tree.structure(read.variables) == jax.tree.structure(made.variables)
    for a, b in zip(jax.tree.leaves(read.variables), jax.tree.leaves(made.variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_predictions_are_the_largest_score_in_any_batch_and_size(made):
    random = np.random.default_rng(1)
    images = (random.random((20, 1, 1, 3)) + 0.1 * random.random((20, 8, 8, 3))).astype(np.float32) / 1.1
    apply = jax.jit(functools.partial(made.description.network().apply, train=False))
    expected = np.argmax(apply(made.variables, 2 * images - 1), axis=1)
    assert len(set(expected.tolist())) > 1
    np.testing.assert_array_equal(made.predict(images, batch_size=6), expected)
    # What has no detail looks the same in any size.
    flat = np.broadcast_to(images[:, :1, :1], images.shape)
    larger = np.broadcast_to(images[:, :1, :1], (20, 13, 11, 3))
    np.testing.assert_array_equal(made.predict(larger, batch_size=6), made.predict(flat, batch_size=6))


def test_other_files_are_refused(made, tmp_path):
    good = tmp_path / 'c.safetensors'
    classifier.save(good, made)
    with pytest.raises(UserError, match='--classifier=.*none: no such file'):
        classifier.load(tmp_path / 'none')
    (tmp_path / 'half').write_bytes(good.read_bytes()[:-100])
    with pytest.raises(UserError, match='--classifier=.*half: truncated'):
        classifier.load(tmp_path / 'half')
    facts = modelfile.Facts({}, step=1, weights='raw', scale=1.0, scores={})
    modelfile.write(tmp_path / 'model', made.variables, facts)
    with pytest.raises(UserError, match='model: it holds a generator, not a classifier. .*experiments.cifar_class'):
        classifier.load(tmp_path / 'model')
    with pytest.raises(UserError, match='--model=.*c.safetensors: it holds a classifier, which makes no images'):
        modelfile.read(good)
    wider = dataclasses.replace(DESCRIPTION, width=5)
    classifier.save(tmp_path / 'wider', Classifier(wider, made.variables))
    with pytest.raises(UserError, match=r'(?s)wider: its weights do not fit its configuration:.*\(3, 3, 5, 5\) wanted'):
        classifier.load(tmp_path / 'wider')
    modelfile.write_described(tmp_path / 'older', made.variables, {'kind': 'classifier', 'p2p_jax': '0'})
    with pytest.raises(UserError, match='older: its header is damaged'):
        classifier.load(tmp_path / 'older')


def test_size_of_the_network():
    network = networks.Classifier(10, 32, 32)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == 555_082
    with pytest.raises(UserError, match='size=12: a classifier is for images of 8, 16, 32'):
        networks.check_size(12)
