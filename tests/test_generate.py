"""Images from labels: what they depend on, and what is written."""

import itertools

import jax
import numpy as np
import pytest

from p2p_jax.data.images import read_image
from p2p_jax.generate import build_sampler, generate, interpolate
from p2p_jax.inference import Model
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from tests.conftest import small_config

CLASSES = ('cat', 'dog', 'frog')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """An untrained generator of 8² from three labels, whose normalisation makes the most of its noise."""
    config = small_config()
    config.generator.name = config.discriminator.name = 'dcgan'
    config.generator.dcgan.update(width=8, norm='none', init_std=0.2)
    config.data.update(classes=CLASSES, crop_size=8)
    config.loss.l1.weight = 0.0
    job = build_job(config, 1)
    state = jax.jit(lambda: job.create_state(0, (8, 8, 3)))()
    return Model(config, job, state.evaluated, 0, tmp_path_factory.mktemp('none'), 1.0)


def sample(model, label, count, seed, batch_size):
    return build_sampler(model.job, batch_size)(model.variables, label, range(count), seed)


def test_an_image_depends_on_seed_label_and_number_alone(model):
    seven = sample(model, 1, 7, seed=3, batch_size=4)
    for batch_size in (1, 5, 16):
        np.testing.assert_allclose(sample(model, 1, 7, seed=3, batch_size=batch_size), seven, atol=1e-5)
    np.testing.assert_allclose(sample(model, 1, 2, seed=3, batch_size=4), seven[:2], atol=1e-6)
    for other in (sample(model, 2, 7, 3, 4), sample(model, 1, 7, 4, 4)):
        assert all(np.abs(a - b).max() > 0.01 for a, b in zip(other, seven, strict=True))
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(seven) for b in seven[:i])


def test_truncated_noise_is_that_of_a_truncated_normal(model):
    keys = jax.random.split(jax.random.key(0), 200)
    labels = np.zeros(200, np.int32)
    noise = model.job.given(labels, keys, 0.5)[1]
    assert np.abs(noise).max() <= 0.5 and np.std(noise) == pytest.approx(0.2804, rel=0.02)  # scipy.stats.truncnorm
    whole = model.job.given(labels, keys)[1]
    assert np.std(whole) == pytest.approx(1, rel=0.02) and np.abs(whole).max() > 3


def test_the_way_from_label_to_label_and_from_noise_to_noise(model):
    rows = interpolate(model.job, model.variables, 5, seed=3)
    ends = {label: sample(model, label, 2, 3, 2) for label in range(3)}
    for label, (through_labels, through_noises) in enumerate(zip(rows['labels'], rows['noises'], strict=True)):
        assert len(through_labels) == len(through_noises) == 5
        # The ends are what `generate` makes of the same seed: this noise as the next label, the second noise.
        np.testing.assert_allclose(through_labels[0], ends[label][0], atol=1e-5)
        np.testing.assert_allclose(through_noises[0], ends[label][0], atol=1e-5)
        np.testing.assert_allclose(through_noises[4], ends[label][1], atol=1e-5)
        for row in (through_labels, through_noises):
            steps = [np.abs(a - b).max() for a, b in itertools.pairwise(row)]
            assert min(steps) > 0 and max(steps) < np.abs(row[0] - row[-1]).max()
    of_next = model.job.apply(model.variables, (np.array([1]), noise_of(model, 0)))
    np.testing.assert_allclose(rows['labels'][0][4], of_next[0], atol=1e-5)


def noise_of(model, label):
    """The noise of the first image of a label, seed 3."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), label), 0)
    return model.job.given(np.array([label]), key[None])[1]


def write(model, output, names=(), **changes):
    generate(model, names, output, **({'count': 3, 'seed': 7, 'batch_size': 2, 'truncation': None} | changes))


def test_files_and_grid(model, tmp_path, capsys):
    write(model, tmp_path, ['frog', 'cat'])
    assert {path.name for path in tmp_path.iterdir()} == {'frog', 'cat', 'grid_7.png'}
    first = sample(model, 2, 1, 7, 2)[0]
    np.testing.assert_array_equal(read_image(tmp_path / 'frog' / '7_00000.png'), np.rint(first * 255))
    assert 'frog' in capsys.readouterr().out
    grid = read_image(tmp_path / 'grid_7.png')
    assert grid.shape[0] == 2 * 8 + 4
    np.testing.assert_array_equal(grid[:8, -8:], read_image(tmp_path / 'frog' / '7_00002.png'))
    write(model, tmp_path, seed=8)
    assert len(list(tmp_path.rglob('8_*.png'))) == 9


def test_nothing_is_overwritten_and_mistakes_are_told(model, tmp_path):
    write(model, tmp_path, ['dog'])
    before = (tmp_path / 'dog' / '7_00001.png').read_bytes()
    with pytest.raises(UserError, match=r'(?s)4 files exist and are not overwritten.*grid_7.png'):
        write(model, tmp_path)
    assert not (tmp_path / 'cat').exists() and (tmp_path / 'dog' / '7_00001.png').read_bytes() == before
    with pytest.raises(UserError, match="--label='horse' is unknown. Available: cat, dog, frog"):
        write(model, tmp_path, ['horse'])
    with pytest.raises(UserError, match='--count=0 .*expected counts of at least 1'):
        write(model, tmp_path, count=0)
    with pytest.raises(UserError, match='--truncation=0.0: expected .* a truncation above 0'):
        write(model, tmp_path, truncation=0.0)


def test_a_generator_of_images_is_told_apart(tmp_path):
    config = small_config()
    other = Model(config, build_job(config, 1), None, 0, tmp_path, 1.0)
    with pytest.raises(UserError, match='makes images from images, not from labels; see predict'):
        write(other, tmp_path / 'out')
