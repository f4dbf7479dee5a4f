import dataclasses
import itertools
import sys
import time
import tracemalloc
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from p2p_jax.data import images
from p2p_jax.data.pipeline import (
    Augmentation,
    ImageCache,
    Shard,
    TrainData,
    centre_crop,
    evaluation_batches,
    split_over_devices,
)
from p2p_jax.data.records import SPLITS, Record
from p2p_jax.data.sources import Source
from p2p_jax.datasets import find_splits
from tests.conftest import noisy, picture, small_config


@pytest.fixture
def splits(pairs):
    return find_splits(small_config(pairs), SPLITS)


def train_data(records, *, shard=None, crop_size=16, flip=True, rotate=True, **options):
    extra = {key: options.pop(key) for key in ('permute_channels', 'jitter', 'mixup') if key in options}
    augmentation = Augmentation(crop_size, flip, rotate, **extra)
    data = dict(batch_size=4, channels=3, labels=False, balanced=False, seed=7)
    options = data | dict(cache_mb=1, threads=2, prefetch=2) | options
    return TrainData(records, shard=shard or Shard(), augmentation=augmentation, **options)


def evaluated(records, batch_size, crop_size=None, shard=None, channels=3):
    options = dict(batch_size=batch_size, crop_size=crop_size, channels=channels, threads=2)
    return list(evaluation_batches(records, shard=shard or Shard(), **options))


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key, value in batch.items():
        np.testing.assert_array_equal(value, other[key])


def test_prepared_sets_are_opened_by_one_thread_at_a_time(monkeypatch, tmp_path):
    inside, most = [], []

    def opened(path):
        inside.append(path)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return types.SimpleNamespace(as_data_source=lambda split: [{'target': np.zeros(1)}])

    library = types.SimpleNamespace(builder_from_directory=opened)
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', library)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda split: Source(tmp_path, 'tfds', f'{split}/0/target').read(), 'abcd'))
    assert most == [1, 1, 1, 1]


def test_the_stream_is_the_random_access_from_any_start(splits):
    data = train_data(splits['train'])
    for number, batch in zip(range(3, 8), data.batches(3, 5), strict=True):
        assert_same(batch, train_data(splits['train'], threads=1, cache_mb=0).batch(number))


def test_batches_keep_their_integers_and_differ(splits):
    data = train_data(splits['train'])
    batch = data.batch(0)
    assert batch['condition'].dtype == batch['target'].dtype == np.uint8
    assert batch['condition'].shape == batch['target'].shape == (4, 16, 16, 3)
    assert batch['mask'].tolist() == [1] * 4
    assert batch['index'].tolist() == [0, 1, 2, 3]
    assert not np.array_equal(batch['target'], data.batch(1)['target'])
    assert not np.array_equal(batch['target'], train_data(splits['train'], seed=8).batch(0)['target'])


def test_processes_share_each_global_batch(splits):
    whole = train_data(splits['train']).batch(5)
    parts = [train_data(splits['train'], shard=Shard(i, 2)).batch(5) for i in range(2)]
    assert_same(whole, {key: np.concatenate([part[key] for part in parts]) for key in whole})


def test_every_epoch_visits_every_record_once_in_another_order(splits):
    records = splits['train']  # six of 48×40: batches of four straddle the epochs
    whole = train_data(records, crop_size=40, flip=False, rotate=False)
    targets = np.concatenate([whole.batch(n)['target'] for n in range(6)])
    originals = [record.target.read() for record in records]

    def identify(crop):
        return next(
            i
            for i, image in enumerate(originals)
            if any(np.array_equal(image[top : top + 40], crop) for top in range(9))
        )

    order = [identify(crop) for crop in targets]
    epochs = [order[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_input_and_target_are_cut_and_turned_alike(splits):
    batch = train_data(splits['train'], batch_size=32).batch(0)
    difference = batch['condition'].astype(int) - batch['target']
    assert np.abs(difference).mean() < 25  # the noise of the fixture, σ = 20; unrelated crops differ by far more


def test_all_eight_orientations_occur(tmp_path, splits):
    record = splits['train'][0]
    size = min(record.size)
    seen = {train_data([record], crop_size=size, batch_size=1).batch(n)['target'].tobytes() for n in range(400)}
    crops = record.size[0] - size + 1
    assert len(seen) == pytest.approx(8 * crops, abs=3)


def test_evaluation_sees_every_example_once_in_batches_of_one_size(splits):
    records = splits['val']
    for batch_size in (1, 2, 3, 8):
        seen = []
        for batch in evaluated(records, batch_size):
            assert len(batch['mask']) == batch_size
            for place, index in enumerate(batch['index']):
                target = records[index].target.read()
                np.testing.assert_array_equal(batch['target'][place], target)
                if batch['mask'][place]:
                    seen.append(int(index))
        assert sorted(seen) == list(range(len(records)))


def test_evaluation_shards_are_slices_of_the_whole(splits):
    whole = evaluated(splits['val'], 4, 20)
    parts = [evaluated(splits['val'], 4, 20, Shard(i, 2)) for i in range(2)]
    for batch, *pieces in zip(whole, *parts, strict=True):
        assert_same(batch, {key: np.concatenate([piece[key] for piece in pieces]) for key in batch})
        assert batch['target'].shape[1:] == (20, 20, 3)


def test_centre_crop():
    image = np.arange(7 * 4).reshape(7, 4, 1)
    np.testing.assert_array_equal(centre_crop(image, 3), image[2:5, 0:3])
    np.testing.assert_array_equal(centre_crop(image, 5), image[1:6])
    assert centre_crop(image, None) is image


def test_cache_stops_at_its_budget(splits):
    source = splits['train'][0].target
    full, empty = ImageCache(1), ImageCache(0)
    assert full.read(source) is full.read(source)
    assert empty.read(source) is not empty.read(source)
    part = dataclasses.replace(source, box=(1, 2, 10, 20))
    np.testing.assert_array_equal(full.read(part), source.read()[1:11, 2:22])
    assert np.shares_memory(full.read(part), full.read(source))  # tiles take the image's one entry
    small = dataclasses.replace(part, size=(5, 5))
    np.testing.assert_array_equal(full.read(small), small.read())
    assert full.read(small) is full.read(small)


def test_augmentation_is_the_same_for_input_and_target(splits):
    """With the input equal to the target on disk, they stay equal whatever happens to them."""
    records = [dataclasses.replace(r, input=dataclasses.replace(r.target, item='')) for r in splits['train']]
    data = train_data(records, permute_channels=True, jitter=0.3, mixup=0.5, batch_size=32)
    batch = data.batch(0)
    np.testing.assert_array_equal(batch['condition'], batch['target'])
    assert_same(batch, data.batch(0))


def test_channels_are_permuted_in_every_order(splits):
    record = dataclasses.replace(splits['train'][0], input=None)
    data = train_data([record], permute_channels=True, flip=False, rotate=False, crop_size=40, batch_size=64)
    whole = record.target.read()
    orders = set()
    for crop in data.batch(0)['target']:
        for order in itertools.permutations(range(3)):
            if any(np.array_equal(crop, whole[top : top + 40, :, list(order)]) for top in range(9)):
                orders.add(order)
    assert orders == set(itertools.permutations(range(3)))


def test_jitter_stays_within_its_bounds_and_off_changes_nothing(splits):
    record = dataclasses.replace(splits['train'][0], input=None)
    options = dict(flip=False, rotate=False, crop_size=40, batch_size=64)
    plain = train_data([record], **options).batch(0)['target'].astype(float)
    changed = train_data([record], jitter=0.2, **options).batch(0)['target'].astype(float)
    ratio = changed.mean((1, 2, 3)) / plain.mean((1, 2, 3))
    assert 0.79 < ratio.min() < 0.9 and 1.1 < ratio.max() < 1.21


def test_mixup_mixes_two_examples_with_the_beta_distribution_s_weights(tmp_path):
    levels = (0, 200)
    records = []
    for level in levels:
        images.write_image(tmp_path / f'{level}.png', np.full((16, 16, 3), level, np.uint8))
        records.append(Record(f'{level}', Source(tmp_path / f'{level}.png'), scene=f'{level}', size=(16, 16)))
    data = train_data(records, mixup=1.0, batch_size=2000)
    values = data.batch(0)['target'][:, 0, 0, 0] / 200
    # Half of the partners are the example itself; the rest has the weight of Beta(1.2, 1.2): mean 1/2, variance 1/13.6.
    mixed = values[(values > 0) & (values < 1)]
    assert len(mixed) == pytest.approx(1000, abs=120)
    assert mixed.mean() == pytest.approx(0.5, abs=0.03) and mixed.var() == pytest.approx(1 / 13.6, rel=0.1)


def test_grey_and_deep_images_keep_their_depth(tmp_path):
    deep = picture(0).astype(np.uint16)[..., :1] * 257 + 5
    images.write_image(tmp_path / 'deep.png', deep)
    images.write_image(tmp_path / 'plain.png', noisy(picture(1), 0))
    records = [
        Record('deep', Source(tmp_path / 'deep.png'), scene='a', size=(48, 40), bits=16),
        Record('plain', Source(tmp_path / 'plain.png'), scene='b', size=(48, 40)),
    ]
    for channels in (1, 3):
        batch = train_data(records, channels=channels).batch(0)
        assert batch['target'].dtype == np.uint16 and batch['target'].shape == (4, 16, 16, channels)
        (shown,) = evaluated(records, 2, channels=channels)
        np.testing.assert_array_equal(shown['target'][0], np.broadcast_to(deep, (48, 40, channels)))
        assert (shown['target'][1] % 257 == 0).all()


def test_memory_stays_flat_without_a_cache(splits):
    data = train_data(splits['train'], cache_mb=0, batch_size=8)
    for _ in data.batches(0, 5):
        pass
    tracemalloc.start()
    for number, _ in enumerate(data.batches(0, 80)):
        if number == 20:
            early = tracemalloc.get_traced_memory()[0]
    late = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert late - early < 1_000_000


def test_split_over_devices():
    batch = split_over_devices({'mask': np.arange(6), 'image': np.zeros((6, 2, 2, 3))}, 2)
    assert batch['mask'].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert batch['image'].shape == (2, 3, 2, 2, 3)
