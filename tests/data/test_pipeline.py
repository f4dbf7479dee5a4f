import numpy as np
import pytest

from p2p_jax.data import LAYOUTS, images
from p2p_jax.data.pipeline import ImageCache, Shard, TrainData, centre_crop, evaluation_batches, split_over_devices
from p2p_jax.data.records import load, verify


@pytest.fixture
def splits(pairs):
    return {name: verify(records, 11, 'it') for name, records in load(LAYOUTS['pairs'], pairs, (), 0).items()}


def train_data(records, *, shard=None, **options):
    options = (
        dict(batch_size=4, crop_size=16, flip=True, rotate=True, seed=7, cache_mb=1, threads=2, prefetch=2) | options
    )
    return TrainData(records, shard=shard or Shard(), **options)


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key, value in batch.items():
        np.testing.assert_array_equal(value, other[key])


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
    originals = [images.read_image(record.target) for record in records]

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
        for batch in evaluation_batches(records, batch_size=batch_size, crop_size=None, shard=Shard()):
            assert len(batch['mask']) == batch_size
            for place, index in enumerate(batch['index']):
                target = images.read_image(records[index].target)
                np.testing.assert_array_equal(batch['target'][place], target)
                if batch['mask'][place]:
                    seen.append(int(index))
        assert sorted(seen) == list(range(len(records)))


def test_evaluation_shards_are_slices_of_the_whole(splits):
    whole = list(evaluation_batches(splits['val'], batch_size=4, crop_size=20, shard=Shard()))
    parts = [list(evaluation_batches(splits['val'], batch_size=4, crop_size=20, shard=Shard(i, 2))) for i in range(2)]
    for batch, *pieces in zip(whole, *parts, strict=True):
        assert_same(batch, {key: np.concatenate([piece[key] for piece in pieces]) for key in batch})
        assert batch['target'].shape[1:] == (20, 20, 3)


def test_centre_crop():
    image = np.arange(7 * 4).reshape(7, 4, 1)
    np.testing.assert_array_equal(centre_crop(image, 3), image[2:5, 0:3])
    np.testing.assert_array_equal(centre_crop(image, 5), image[1:6])
    assert centre_crop(image, None) is image


def test_cache_stops_at_its_budget(splits):
    path = splits['train'][0].target
    full, empty = ImageCache(1), ImageCache(0)
    assert full.read(path) is full.read(path)
    assert empty.read(path) is not empty.read(path)


def test_split_over_devices():
    batch = split_over_devices({'mask': np.arange(6), 'image': np.zeros((6, 2, 2, 3))}, 2)
    assert batch['mask'].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert batch['image'].shape == (2, 3, 2, 2, 3)
