"""From a configuration to examples: use, problems, cutting, stored splits, and prepared sets."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from p2p_jax import datasets
from p2p_jax.data import builders
from p2p_jax.data.images import write_image
from p2p_jax.data.pipeline import Augmentation, Shard, TrainData
from p2p_jax.data.records import SPLITS
from p2p_jax.lookup import UserError
from tests import trees
from tests.conftest import noisy, picture, small_config, write_pairs


def setting(folder, **changes):
    config = small_config(folder)
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config


def splits_of(config, names=SPLITS):
    return datasets.find_splits(config, names, lambda line: None)


def batches(splits, channels=3, labels=False):
    augmentation = Augmentation(crop_size=16, flip=True, rotate=True)
    options = dict(batch_size=4, channels=channels, labels=labels, balanced=False, seed=0)
    options |= dict(cache_mb=1, threads=2, prefetch=2, shard=Shard())
    data = TrainData(splits['train'], augmentation=augmentation, **options)
    return [data.batch(number) for number in range(3)]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_clean_images_and_labels_need_a_degradation(tmp_path):
    trees.clean(tmp_path / 'clean')
    trees.class_folders(tmp_path / 'classes')
    for folder, what in (('clean', 'clean images alone'), ('classes', 'labels')):
        with pytest.raises(UserError, match=f'this set has {what}, no input images. Choose the degradation'):
            splits_of(setting(tmp_path / folder))
        assert splits_of(setting(tmp_path / folder, degrade__name='poisson_gaussian'))['train']


# A generator that makes images from labels, and what goes with it.
LABELS = {'generator__name': 'dcgan', 'discriminator__name': 'dcgan', 'loss__l1__weight': 0.0}


def test_labels_are_the_conditions_of_a_generator_that_takes_them(tmp_path):
    trees.classes(tmp_path)
    config = setting(tmp_path, **LABELS)
    splits = splits_of(config)
    names = {record.name: record.label for record in splits['train']}
    assert datasets.with_classes(config, splits).data.classes == trees.CLASSES
    seen = batches(splits, labels=True)
    assert {batch['condition'].dtype.name for batch in seen} == {'int32'}
    # The same images as without labels, and each with its own label.
    for batch, plain in zip(seen, batches(splits), strict=True):
        np.testing.assert_array_equal(batch['target'], plain['target'])
    first_pass = np.concatenate([batch['condition'] for batch in seen])[: len(names)]
    assert sorted(first_pass) == sorted(names.values())
    again = datasets.with_classes(setting(tmp_path, data__classes=trees.CLASSES, **LABELS), splits)
    assert again.data.classes == trees.CLASSES
    with pytest.raises(UserError, match=r"data.classes=\('cat', 'dog'\), but .* has \('cat', 'dog', 'frog'\)"):
        datasets.with_classes(setting(tmp_path, data__classes=('cat', 'dog'), **LABELS), splits)
    splits['train'] = [record for record in splits['train'] if record.label != 1]
    with pytest.raises(UserError, match='no training images of the classes dog'):
        datasets.with_classes(config, splits)


def test_a_generator_that_takes_labels_needs_them(pairs):
    with pytest.raises(UserError, match='this set has no labels, and generator.name=dcgan makes images from labels'):
        splits_of(setting(pairs, **LABELS))


def test_a_benchmark_without_targets_is_refused(tmp_path):
    trees.sidd_benchmark(tmp_path)
    with pytest.raises(UserError, match='targets of this benchmark are not published'):
        splits_of(setting(tmp_path), ['test'])


def test_validation_blocks_can_be_scored_but_not_trained_on(tmp_path):
    trees.sidd_validation(tmp_path)
    assert len(splits_of(setting(tmp_path), ['test'])['test']) == 6
    with pytest.raises(UserError, match=r"no images for train, val; found: \{'train': 0, 'val': 0, 'test': 6\}"):
        splits_of(setting(tmp_path))


def test_the_seed_denoiser_s_split_is_a_configuration(tmp_path):
    """Twelve tiles an image, 70/15/15 by scene, reduced to so many of training and validation."""
    write_pairs(tmp_path, 20, height=48, width=64)
    config = setting(tmp_path, data__grid=(3, 4))
    whole = splits_of(config)
    assert [len(whole[s]) for s in SPLITS] == [14 * 12, 3 * 12, 3 * 12]
    config.data.limit = (40, 9, None)
    reduced = splits_of(config)
    assert [len(reduced[s]) for s in SPLITS] == [40, 9, 36]
    assert {r.size for records in reduced.values() for r in records} == {(16, 16)}
    assert len({r.scene for r in reduced['train']}) == 14


def test_problems_stop_all_at_once_or_are_dropped(tmp_path):
    write_pairs(tmp_path, 12)
    (tmp_path / 'target' / '0.png').unlink()
    (tmp_path / 'input' / '1.png').write_bytes((tmp_path / 'input' / '1.png').read_bytes()[:400])
    write_image(tmp_path / 'input' / '2.png', picture(0, 20, 20))
    with pytest.raises(UserError) as caught:
        splits_of(setting(tmp_path))
    message = str(caught.value)
    for part in ('0.png: no target', '1.png: truncated', '2.png', '3 problems', 'data.on_problem=drop', ' audit '):
        assert part in message
    said = []
    splits = datasets.find_splits(setting(tmp_path, data__on_problem='drop'), SPLITS, said.append)
    assert sum(map(len, splits.values())) == 9
    assert any('3 problems; going on without 2 examples' in line for line in said)


def test_what_is_dropped_does_not_depend_on_who_asks(pairs):
    """A copy in validation and test: training and evaluation leave out the same one."""
    for side in ('input', 'target'):
        shutil.copy(pairs / 'val' / side / '1.png', pairs / 'test' / side / 'copy.png')
    config = setting(pairs, data__on_problem='drop')
    everything, alone = splits_of(config), splits_of(config, ['test'])
    assert [r.name for r in everything['test']] == [r.name for r in alone['test']]
    names = {r.name for records in everything.values() for r in records}
    assert len(names & {'val/1', 'test/copy'}) == 1


def test_a_list_of_wrong_pairs_cannot_be_dropped(tmp_path):
    for i in range(16):
        random = np.random.default_rng(i)
        image = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        write_image(tmp_path / 'target' / f'{i:02}.png', image)
        write_image(tmp_path / 'input' / f'{(i + 1) % 16:02}.png', image // 2)
    for choice in ('stop', 'drop'):
        with pytest.raises(UserError, match=r'(?s)mismatched \(1\).*down the list: is the list of pairs wrong'):
            splits_of(setting(tmp_path, data__on_problem=choice))


def test_images_smaller_than_the_crop_or_its_part_are_found(tmp_path):
    write_pairs(tmp_path, 6)
    with pytest.raises(UserError, match=r'48×40.*too small for data.crop_size=41'):
        splits_of(setting(tmp_path, data__crop_size=41))
    with pytest.raises(UserError, match=r'data.grid=\(1, 2\) leaves parts .* data.crop_size=30(.|\n)*48×20'):
        splits_of(setting(tmp_path, data__crop_size=30, data__grid=(1, 2)))
    assert splits_of(setting(tmp_path, data__crop_size=60, data__resize=64))['train'][0].size == (64, 64)


def test_audit_prints_a_table_writes_json_and_says_whether_all_is_well(tmp_path, capsys):
    write_pairs(tmp_path / 'good', 6, height=64, width=64)
    assert datasets.audit_data(setting(tmp_path / 'good'), tmp_path / 'audit.json')
    assert 'no problems in 6 examples' in capsys.readouterr().out
    content = json.loads((tmp_path / 'audit.json').read_text())
    assert content['layout'] == 'pairs' and content['problems'] == []
    assert sorted(name for names in content['splits'].values() for name in names) == [str(i) for i in range(6)]
    (tmp_path / 'good' / 'target' / '3.png').unlink()
    assert not datasets.audit_data(setting(tmp_path / 'good'), tmp_path / 'audit.json')
    assert '3.png: no target' in capsys.readouterr().out
    assert len(json.loads((tmp_path / 'audit.json').read_text())['problems']) == 1


def test_a_training_s_data_may_not_change(pairs, tmp_path):
    config = small_config(pairs)
    splits = splits_of(config)
    datasets.check_stored_splits(tmp_path / 'run', splits)
    datasets.store_splits(tmp_path / 'run', splits)
    assert json.loads((tmp_path / 'run' / 'data.json').read_text())['scale'] == 1
    datasets.check_stored_splits(tmp_path / 'run', splits)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'data.json').write_text('{"spl')
    with pytest.raises(UserError, match='data.json: damaged'):
        datasets.check_stored_splits(tmp_path / 'other', splits)
    (pairs / 'train' / 'input' / '0.png').rename(pairs / 'train' / 'input' / 'x.png')
    (pairs / 'train' / 'target' / '0.png').rename(pairs / 'train' / 'target' / 'x.png')
    with pytest.raises(UserError, match=r'(?s)other data than is there now.*train/0 is gone.*train/x is new'):
        datasets.check_stored_splits(tmp_path / 'run', splits_of(config))


@pytest.mark.parametrize(
    ('maker', 'changes'),
    [
        (trees.sidd, {'data.tile_size': 24, 'data.tile_overlap': 4}),
        (trees.inria, {'data.grid': (2, 2), 'data.resize': 20, 'data.mask_values': (0, 255), 'data.limit': (9, 2, 2)}),
        (trees.side_by_side, {'data.direction': 'BtoA'}),
        (trees.clean, {'degrade.name': 'poisson_gaussian'}),
        (trees.class_zip, {'degrade.name': 'poisson_gaussian'}),
        (trees.ffhq, {'degrade.name': 'lens_blur', 'data.resize': 32}),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_a_prepared_set_gives_the_batches_of_the_files_themselves(tmp_path, maker, changes):
    maker(tmp_path / 'set')
    config = small_config(tmp_path / 'set')
    config.update_from_flattened_dict(changes)
    config.data.on_problem = 'drop'
    direct = splits_of(config)
    datasets.prepare(config, tmp_path / 'out')
    config.data.dir = str(tmp_path / 'out')
    prepared = splits_of(config)
    for split in SPLITS:
        for a, b in zip(direct[split], prepared[split], strict=True):
            for field in ('name', 'scene', 'size', 'bits', 'label', 'scale'):
                assert getattr(a, field) == getattr(b, field)
            assert dict(a.attributes) == dict(b.attributes)
    assert_same(batches(direct), batches(prepared))


def test_deep_images_are_prepared_in_their_depth(tmp_path):
    write_pairs(tmp_path / 'set', 4)
    for path in (tmp_path / 'set').rglob('*.png'):
        write_image(path, picture(int(path.stem), 32, 32).astype(np.uint16) * 200 + 1)
    config = setting(tmp_path / 'set', data__on_problem='drop')
    direct = splits_of(config)
    config.data.dir = str(datasets.prepare(config, tmp_path / 'out'))
    prepared = splits_of(config)
    assert prepared['train'][0].target.read().dtype == np.uint16
    assert_same(batches(direct), batches(prepared))


def test_prepared_otherwise_is_refused_and_left_alone(tmp_path, capsys):
    trees.pairs(tmp_path / 'set')
    config = small_config(tmp_path / 'set')
    folder = datasets.prepare(config, tmp_path / 'out')
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert datasets.prepare(config, tmp_path / 'out') == folder
    assert 'prepared already' in capsys.readouterr().out
    config.data.tile_size = 24
    for act in (
        lambda: datasets.prepare(config, tmp_path / 'out'),
        lambda: splits_of(setting(folder, data__resize=20)),
    ):
        with pytest.raises(UserError, match=r'(?s)was prepared otherwise:.*data\.(tile_size|resize): None there'):
            act()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_broken_file_leaves_no_set_and_a_killed_run_s_rest_is_cleared(tmp_path):
    trees.pairs(tmp_path / 'set')
    config = small_config(tmp_path / 'set')
    rest = tmp_path / 'out' / 'pairs' / 'incomplete.XYZ_1.0.0'
    rest.mkdir(parents=True)
    (rest / 'metadata.json').write_text('{"manifest": {}}')
    (rest / 'dataset_info.json').write_text('{}')
    with pytest.raises(UserError, match='No layout fits'):
        splits_of(setting(tmp_path / 'out'))
    found = splits_of(config)
    broken = found['train'][2].target.path
    content = broken.read_bytes()
    broken.write_bytes(content[:-300])
    with pytest.raises(UserError, match=rf'{broken.name}: truncated'):
        builders.build('pairs', datasets.selection(config), (), found, tmp_path / 'out', 2, lambda: None)
    assert not list((tmp_path / 'out').rglob('*.array_record*'))
    broken.write_bytes(content)
    datasets.prepare(config, tmp_path / 'out')
    assert not rest.exists()
    assert splits_of(setting(tmp_path / 'out'))['train'][0].name == found['train'][0].name


def test_a_small_disk_is_found_before_anything_is_written(tmp_path, monkeypatch):
    trees.pairs(tmp_path / 'set')
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match='preparing takes about 0.0 GB .*, but 0.0 GB are free'):
        datasets.prepare(small_config(tmp_path / 'set'), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_preparing_and_reading_need_no_tensorflow(tmp_path):
    trees.pairs(tmp_path / 'set')
    code = f"""
import sys
from pathlib import Path
from p2p_jax import datasets
from tests.conftest import small_config
config = small_config(Path({str(tmp_path / 'set')!r}))
datasets.prepare(config, Path({str(tmp_path / 'out')!r}))
config.data.dir = {str(tmp_path / 'out')!r}
assert datasets.find_splits(config, ['train'])['train'][0].target.read().shape == (48, 40, 3)
assert 'tensorflow' not in sys.modules
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '10/10' in done.stdout  # the progress bar


class TinyLabelled(tfds.core.GeneratorBasedBuilder):
    """A set of TFDS's own kind: encoded images and a named label."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        features = {
            'image': tfds.features.Image(shape=(None, None, 3)),
            'label': tfds.features.ClassLabel(names=['a', 'b']),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(0, 8), 'test': self._generate_examples(8, 12)}

    def _generate_examples(self, first, last):
        folder = Path(self.data_path).parent
        for i in range(first, last):
            write_image(folder / f'{i}.png', picture(i, 32, 32))
            yield i, {'image': str(folder / f'{i}.png'), 'label': i % 2}


def test_a_set_that_tfds_names(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    config = setting(None, data__layout='tfds', degrade__name='poisson_gaussian')
    config.data.dir = 'tiny_labelled'
    splits = splits_of(config)
    assert [len(splits[s]) for s in SPLITS] == [7, 1, 4]
    record = splits['test'][0]
    assert record.attributes['class'] == 'ab'[record.label]
    assert any(np.array_equal(record.target.read(), picture(i, 32, 32)) for i in range(8, 12))
    config.data.dir = 'no_such_set'
    with pytest.raises(UserError, match="data.dir='no_such_set': TFDS knows no such set"):
        splits_of(config)


class TinyPairs(TinyLabelled):
    """Two images an example, named as they please."""

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3))
        features = tfds.features.FeaturesDict({'noisy': image, 'clean': tfds.features.Image(shape=(None, None, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self, first, last):
        folder = Path(self.data_path).parent
        for i in range(first, last):
            for side, image in (('clean', picture(i, 32, 32)), ('noisy', noisy(picture(i, 32, 32), i))):
                write_image(folder / f'{side}{i}.png', image)
            yield i, {side: str(folder / f'{side}{i}.png') for side in ('noisy', 'clean')}


def test_a_set_of_pairs_that_tfds_names(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    config = setting(None, data__layout='tfds')
    config.data.dir = 'tiny_pairs'
    for direction, input_is_noisy in (('AtoB', True), ('BtoA', False)):
        config.data.direction = direction
        record = splits_of(config)['test'][0]
        clean, other = (source.read() for source in record.sources[:: -1 if input_is_noisy else 1])
        number = next(i for i in range(8, 12) if np.array_equal(clean, picture(i, 32, 32)))
        np.testing.assert_array_equal(other, noisy(picture(number, 32, 32), number))


def test_a_prepared_set_cannot_be_prepared_again(tmp_path):
    trees.pairs(tmp_path / 'set')
    config = small_config(tmp_path / 'set')
    datasets.prepare(config, tmp_path / 'out')
    config.data.dir = str(tmp_path / 'out')
    with pytest.raises(UserError, match='is a prepared set itself'):
        datasets.prepare(config, tmp_path / 'other')
    with pytest.raises(UserError, match='that is a file; expected a folder'):
        (tmp_path / 'file').touch()
        datasets.prepare(dataclasses.replace, tmp_path / 'file')  # the configuration is not looked at
