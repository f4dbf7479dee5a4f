import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from configs import default
from p2p_jax.data.images import write_image
from p2p_jax.data.records import SPLITS, Record, cut, in_threads, limit, split_by_scene
from p2p_jax.data.sources import Source
from p2p_jax.datasets import selection
from p2p_jax.lookup import UserError
from tests.conftest import picture

RATIOS = (0.6, 0.2, 0.2)
CHOICE = selection(default.get_config())


def records_of(counts: dict[str, int]) -> list[Record]:
    return [Record(f'{s}{i}', Source(Path()), scene=s) for s, n in counts.items() for i in range(n)]


@pytest.mark.parametrize('seed', range(20))
def test_every_split_gets_a_scene_whatever_the_shares(seed):
    for counts in ({'a': 1, 'b': 1, 'c': 1}, {'a': 9, 'b': 1, 'c': 5, 'd': 2}):
        records = split_by_scene(records_of(counts), (0.1, 0.45, 0.45), seed)
        assert {record.split for record in records} == set(SPLITS)
        assert len({(record.scene, record.split) for record in records}) == len(counts)


def test_shares_are_kept_where_scenes_allow():
    records = split_by_scene(records_of({str(i): 1 for i in range(100)}), (0.7, 0.2, 0.1), 3)
    assert [sum(r.split == s for r in records) for s in SPLITS] == [70, 20, 10]
    two = split_by_scene(records_of({str(i): 1 for i in range(100)}), (0.9, 0.1), 3)
    assert [sum(r.split == s for r in two) for s in SPLITS] == [90, 10, 0]


def test_the_satellite_project_s_split():
    """180 aerial photographs, cut 2×2: 540 parts for training, 60 for validation, 120 for the test."""
    whole = [dataclasses.replace(r, size=(5000, 5000)) for r in records_of({str(i): 1 for i in range(180)})]
    dealt = split_by_scene(whole, (0.75, 0.0833, 0.1667), 0)
    parts = [part for r in dealt for part in cut(r, dataclasses.replace(CHOICE, grid=(2, 2), resize=286))]
    assert [sum(r.split == s for r in parts) for s in SPLITS] == [540, 60, 120]
    assert {part.scale for part in parts} == {286 / 2500}
    assert {part.size for part in parts} == {(286, 286)} and {part.target.box[2:] for part in parts} == {(2500, 2500)}


def test_bad_shares_and_too_few_scenes():
    with pytest.raises(UserError, match='expected two or three positive ones that sum to 1'):
        split_by_scene(records_of({'a': 9}), (0.9, 0.2), 0)
    with pytest.raises(UserError, match='at least 3 are needed for train, val, test'):
        split_by_scene(records_of({'a': 5, 'b': 5}), RATIOS, 0)


@pytest.fixture
def record(tmp_path):
    image = picture(3, 50, 70)
    write_image(tmp_path / 'a.png', image)
    write_image(tmp_path / 'mask.png', (image[..., :1] > 127) * np.uint8(255))
    return Record('a', Source(tmp_path / 'a.png'), Source(tmp_path / 'mask.png'), scene='s', split='val', size=(50, 70))


def tiles_of(record, **changes):
    return cut(record, dataclasses.replace(CHOICE, **changes))


def test_without_cutting_a_record_stays_itself(record):
    assert tiles_of(record) == [record]


def test_a_grid_gives_equal_parts_in_rows(record):
    tiles = tiles_of(record, grid=(2, 3))
    whole = record.target.read()
    assert [t.size for t in tiles] == [(25, 23)] * 6
    assert {(t.scene, t.split) for t in tiles} == {('s', 'val')}
    assert len({t.name for t in tiles}) == 6
    np.testing.assert_array_equal(tiles[4].target.read(), whole[25:50, 23:46])
    assert tiles[4].input.box == tiles[4].target.box


def test_twelve_tiles_of_a_photograph_of_4000_by_3000():
    tiles = tiles_of(Record('p', Source(Path('p.png')), size=(3000, 4000)), grid=(3, 4))
    assert len(tiles) == 12 and {t.size for t in tiles} == {(1000, 1000)}


@pytest.mark.parametrize(('size', 'overlap'), [(16, 0), (16, 4), (50, 10), (64, 0)])
def test_tiles_of_a_size_cover_everything_and_overlap_at_least_so_much(record, size, overlap):
    tiles = tiles_of(record, tile_size=size, tile_overlap=overlap)
    seen = np.zeros((50, 70), int)
    for tile in tiles:
        top, left, height, width = tile.target.box or (0, 0, 50, 70)
        assert (height, width) == (min(size, 50), min(size, 70)) == tile.size
        seen[top : top + height, left : left + width] += 1
    assert seen.min() == 1 or overlap
    assert seen.min() >= 1
    lefts = sorted({(t.target.box or (0, 0))[1] for t in tiles})
    assert all(b - a <= size - overlap for a, b in itertools.pairwise(lefts))


@pytest.mark.parametrize('changes', [{}, {'grid': (2, 2)}, {'tile_size': 20}, {'resize': 30}])
def test_the_halves_of_a_picture_are_cut_each_by_itself(tmp_path, changes):
    left, right = picture(1, 40, 40), picture(2, 40, 40)
    path = tmp_path / 'both.png'
    write_image(path, np.concatenate([left, right], 1))
    halves = {side: Source(path, box=(0, 40 * i, 40, 40)) for i, side in enumerate(('input', 'target'))}
    tiles = tiles_of(Record('a', **halves, size=(40, 40)), **changes)
    for image, side in ((left, 'input'), (right, 'target')):
        write_image(tmp_path / f'{side}.png', image)
        alone = tiles_of(Record('a', Source(tmp_path / f'{side}.png'), size=(40, 40)), **changes)
        for tile, expected in zip(tiles, alone, strict=True):
            np.testing.assert_array_equal(getattr(tile, side).read(), expected.target.read())


def test_the_central_square_is_taken_before_anything_else(record):
    (tile,) = tiles_of(record, square=True)
    assert (tile.name, tile.size, tile.scale) == ('a', (50, 50), 1)
    np.testing.assert_array_equal(tile.target.read(), record.target.read()[:, 10:60])
    (small,) = tiles_of(record, square=True, resize=25)
    assert (small.size, small.scale) == ((25, 25), 0.5)  # of equal sides: nothing is stretched
    parts = tiles_of(record, square=True, grid=(2, 2))
    np.testing.assert_array_equal(parts[3].target.read(), record.target.read()[25:, 35:60])


def test_resizing_keeps_the_values_of_masks(record):
    (tile,) = tiles_of(record, resize=24, mask_values=(0, 255))
    assert tile.size == (24, 24) == tile.target.read().shape[:2]
    assert set(np.unique(tile.input.read())) <= {0, 255}
    (mixed,) = tiles_of(record, resize=24)
    assert len(np.unique(mixed.input.read())) > 2
    (turned,) = tiles_of(record, resize=24, mask_values=(0, 255), direction='BtoA')
    assert not turned.input.nearest and turned.target.nearest
    parts = tiles_of(record, grid=(2, 2), resize=24)
    assert len(parts) == 4 and {t.target.read().shape[:2] for t in parts} == {(24, 24)}


def test_limit_spreads_over_the_list():
    records = records_of({'a': 100})
    assert [r.name for r in limit(records, 4)] == ['a0', 'a25', 'a50', 'a75']
    assert limit(records, None) == records == limit(records, 100)


def test_threads_keep_order_run_ahead_a_little_and_pass_errors_on():
    seen = []

    def double(i):
        seen.append(i)
        if i == 90:
            raise UserError('ninety')
        return 2 * i

    results = in_threads(double, range(100), 2, ahead=3)
    assert [next(results) for _ in range(10)] == [2 * i for i in range(10)]
    assert max(seen) <= 17
    with pytest.raises(UserError, match='ninety'):
        list(results)
