"""evaluate for generators of images from labels: the scores, where they come from, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from p2p_jax import classifier, evaluate_labels, sample_scores
from p2p_jax.evaluate_labels import Options
from p2p_jax.features import Features
from p2p_jax.generate import build_sampler
from p2p_jax.inference import Model
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from p2p_jax.sample_scores import Seen, score
from tests import trees
from tests.conftest import small_config
from tests.test_html import Page

SIZE = 8


@dataclasses.dataclass
class Judge:
    """Recognises a label by brightness; its classes stand in another order than the data's."""

    classes: tuple[str, ...] = ('frog', 'cat', 'dog')

    def predict(self, images, *, batch_size):
        del batch_size
        return np.clip(images.mean(axis=(1, 2, 3)) * 3, 0, 2).astype(int)


def features(probabilities=False):
    """Stands in for a network: the corners of an image; Inception's classes are three."""

    def describe(params, images):
        del params
        flat = np.asarray(images)[:, ::7, ::7].reshape(len(images), -1)
        return flat, (flat[:, :3] if probabilities else None)

    return lambda source, key: Features('corners', probabilities, describe, None)


@pytest.fixture(autouse=True)
def _cheap_networks(monkeypatch):
    tables = {'inception': features(probabilities=True), 'vgg16': features()}
    monkeypatch.setattr(sample_scores, 'FEATURES', tables)
    monkeypatch.setattr(classifier, 'load', lambda path: Judge())


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """An untrained generator of three labels, and its data."""
    root = tmp_path_factory.mktemp('classes')
    trees.classes(root)
    config = small_config(root)
    config.generator.name = config.discriminator.name = 'dcgan'
    config.generator.dcgan.update(width=8, norm='none', init_std=0.2)
    config.data.update(classes=trees.CLASSES, crop_size=SIZE, resize=SIZE)
    config.loss.l1.weight = 0.0
    job = build_job(config, 1)
    state = jax.jit(lambda: job.create_state(0, (SIZE, SIZE, 3)))()
    return Model(config, job, state.evaluated, 0, root / 'none', 1.0)


def seen(labels, recognised=None, seed=0, offset=0.0):
    random = np.random.default_rng(seed)
    found = {name: random.normal(offset, 1, (len(labels), 4)) for name in ('vgg16', 'inception')}
    probabilities = random.dirichlet(np.ones(5), len(labels))
    return Seen(np.array(labels), found, probabilities, None if recognised is None else np.array(recognised))


def test_the_same_images_are_at_no_distance_and_others_farther():
    labels = [0, 1] * 20
    same, other = (score('m', seen(labels), seen(labels, offset=o), ['a', 'b']) for o in (0.0, 2.0))
    for result, far in ((same, 0.0), (other, 16.0)):  # four features, each 2 apart
        rows = [result.scores, *result.by_class.values()]
        assert [row['fid'].mean for row in rows] == pytest.approx([far] * 3, abs=1e-6)
        assert [row['frechet_vgg16'].mean for row in rows] == pytest.approx([far] * 3, abs=1e-6)
    assert same.scores['kid'].mean < 0 < 5 < other.scores['kid'].mean  # the estimate of 0 is unbiased, not positive
    assert set(same.by_class['a']) == {'fid', 'frechet_vgg16'} and same.confusion is None


def test_agreement_by_class():
    result = score('m', seen([0, 0, 0, 0, 1, 1] * 2, [0, 0, 0, 1, 0, 1] * 2), seen([0, 1] * 6), ['a', 'b'])
    assert result.scores['agreement'].mean == pytest.approx(4 / 6)
    assert [result.by_class[kind]['agreement'].mean for kind in 'ab'] == [0.75, 0.5]
    assert result.confusion.tolist() == [[6, 2], [2, 2]]


def evaluate(model, **changes):
    files = {name: changes.pop(name) for name in ('output', 'html_file') if name in changes}
    return evaluate_labels.evaluate_labels([model], options=Options(**({'samples': 11} | changes)), **files)


def test_prints_writes_and_shows_the_same_numbers(model, tmp_path, capsys):
    files = {'output': tmp_path / 'scores.json', 'html_file': tmp_path / 'page.html'}
    (result,) = evaluate(model, inception='some file', classifier=tmp_path, batch_size=2, **files)
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / 'scores.json').read_text())
    assert written['scores'][result.name]['frechet_vgg16']['mean'] == result.scores['frechet_vgg16'].mean
    assert written['options']['samples'] == 11 and '11 generated images against 6 real ones of test' in printed
    assert np.sum(written['confusion'][result.name]) == 11
    for metric, digits in (('fid', 2), ('agreement', 3)):
        assert f'{result.scores[metric].mean:.{digits}f}' in printed
    content = Page((tmp_path / 'page.html').read_text()).content
    titles = ['Samples', 'Nearest training images', 'From label to label', 'From noise to noise']
    assert [figure['title'] for figure in content['figures']] == titles
    assert set(content['breakdowns']['class']) == set(trees.CLASSES)
    assert content['rows'][result.name]['fid'][0] == result.scores['fid'].mean
    again = evaluate(model, inception='some file', classifier=tmp_path, batch_size=5)[0]
    assert again.scores['frechet_vgg16'].mean == pytest.approx(result.scores['frechet_vgg16'].mean, rel=1e-4)


def test_a_classifier_s_classes_may_stand_in_another_order(model):
    (result,) = evaluate(model, samples=30, classifier='file')
    images = [image for row in pictures_of(model, 10) for image in row]
    place = [trees.CLASSES.index(Judge().classes[i]) for i in Judge().predict(np.stack(images), batch_size=1)]
    assert result.scores['agreement'].mean == pytest.approx(np.mean(np.repeat([0, 1, 2], 10) == place))


def pictures_of(model, count):
    sample = build_sampler(model.job, 5)
    return [sample(model.variables, label, range(count), 0) for label in range(3)]


def test_a_generator_that_repeats_its_training_images_is_found_out(model):
    splits = evaluate_labels.datasets.find_splits(model.config, ('train', 'val', 'test'), lambda line: None)
    copies = [[record.target.read() / 255 for record in splits['train'] if record.label == k][:2] for k in range(3)]
    found = evaluate_labels.find_neighbours([copies, pictures_of(model, 2)], splits, SIZE, 1)
    assert found.generated[0] < 1e-3 < 0.05 < min(found.generated[1], found.held_out)
    for row in found.rows:
        for made, nearest in zip(row[::2], row[1::2], strict=True):
            np.testing.assert_allclose(made, nearest, atol=1e-6)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'samples': 5}, 'expected at least 10 samples, of each class two'),
        ({'batch_size': 0}, 'a batch of at least 1'),
        ({'truncation': -1.0}, '--truncation=-1.0: expected more than 0'),
        ({'split': 'tset'}, "--split='tset' is unknown. Available: test, train, val"),
        ({'protocol': 'fid'}, "--protocol='fid' is unknown. Available: cifar10-10k-test, cifar10-50k-train"),
        ({'protocol': 'cifar10-10k-test'}, 'FID needs --inception=FILE'),
        ({'protocol': 'cifar10-10k-test', 'inception': 'f'}, 'the splits test have 6. Give the whole of CIFAR-10'),
        ({'protocol': 'cifar10-50k-train', 'inception': 'f'}, 'the splits train and val have 9'),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(model, changes, message):
    with pytest.raises(UserError, match=message):
        evaluate(model, **changes)


def test_data_that_do_not_fit_are_refused(model, tmp_path):
    def other(**changes):
        config = model.config.copy_and_resolve_references()
        config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
        return evaluate_labels.evaluate_labels([model], config, Options(samples=10))

    with pytest.raises(UserError, match=r'data.crop_size=16, but .*none makes images of 8 pixels; set it and'):
        other(data__crop_size=16)
    with pytest.raises(UserError, match='it makes images from images; expected one of labels'):
        other(generator__name='unet')
    # A training whose data have changed since.
    stored = {'scale': 1.0, 'splits': {'test': ['gone']}}
    (tmp_path / 'data.json').write_text(json.dumps(stored))
    with pytest.raises(UserError, match='holds a training on other data than is there now'):
        evaluate(dataclasses.replace(model, origin=tmp_path))


def test_other_classes_are_refused(model, tmp_path, monkeypatch):
    trees.class_folders(tmp_path)
    (tmp_path / 'cat').rename(tmp_path / 'cow')
    config = model.config.copy_and_resolve_references()
    config.data.update(dir=str(tmp_path), classes=())
    with pytest.raises(UserError, match='none makes cat, dog, frog; the data have cow, dog, frog'):
        evaluate_labels.evaluate_labels([model], config, Options(samples=10))
    monkeypatch.setattr(classifier, 'load', lambda path: Judge(('cow', 'dog', 'frog')))
    with pytest.raises(UserError, match='--classifier=file: it knows cow, dog, frog; expected cat, dog, frog'):
        evaluate(model, classifier='file')
