from pathlib import Path

import pytest

from p2p_jax.data import LAYOUTS
from p2p_jax.data.images import image_size, write_png
from p2p_jax.data.records import Record, load, split_by_scene, verify
from p2p_jax.lookup import UserError
from tests.conftest import picture, write_pairs

RATIOS = (0.6, 0.2, 0.2)


def everything(splits):
    return [record for records in splits.values() for record in records]


def scenes(splits):
    return {name: {record.scene for record in records} for name, records in splits.items()}


def assert_split_by_scene(splits):
    parts = list(scenes(splits).values())
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))


def make_sidd(root: Path, count: int = 6) -> Path:
    """SIDD-Medium as it unpacks: two frames an instance, scenes shared by instances."""
    for instance in range(1, count + 1):
        scene = (instance - 1) % 4 + 1
        folder = root / 'Data' / f'{instance:04}_{scene:03}_S6_00100_00060_3200_L'
        for frame in ('010', '011'):
            for side in ('NOISY', 'GT'):
                write_png(folder / f'{instance:04}_{side}_SRGB_{frame}.PNG', picture(instance))
    return root


def make_polyu(root: Path) -> Path:
    for scene, numbers in {
        'Canon_a': (1, 2),
        'Nikon_b_': (3,),
        'Nikon_b': (4,),
        'Sony_c': (5,),
        'Sony_d': (6,),
    }.items():
        for number in numbers:
            for side in ('real', 'mean'):
                write_png(root / 'CroppedImages' / f'{scene}_{number}_{side}.JPG', picture(number))
    return root


def test_sidd_pairs_by_instance_and_frame_and_splits_by_scene(tmp_path):
    splits = load(LAYOUTS['sidd'], make_sidd(tmp_path), RATIOS, 0)
    records = everything(splits)
    assert len(records) == 12
    for record in records:
        assert record.input.parent == record.target.parent
        assert record.input.name.replace('NOISY', 'GT') == record.target.name
    assert_split_by_scene(splits)
    assert set.union(*scenes(splits).values()) == {'001', '002', '003', '004'}


def test_sidd_may_be_named_by_its_data_folder(tmp_path):
    whole = load(LAYOUTS['sidd'], make_sidd(tmp_path), RATIOS, 0)
    assert load(LAYOUTS['sidd'], tmp_path / 'Data', RATIOS, 0) == whole


def test_polyu_scene_is_the_name_less_its_number(tmp_path):
    splits = load(LAYOUTS['polyu'], make_polyu(tmp_path), RATIOS, 0)
    assert set.union(*scenes(splits).values()) == {'Canon_a', 'Nikon_b', 'Sony_c', 'Sony_d'}
    assert_split_by_scene(splits)
    assert all('real' in r.input.name and 'mean' in r.target.name for r in everything(splits))


def test_real_polyu(real_data):
    splits = load(LAYOUTS['polyu'], real_data / 'polyu', (0.7, 0.15, 0.15), 0)
    records = everything(splits)
    assert len(records) == len(list((real_data / 'polyu' / 'CroppedImages').glob('*_real.JPG')))
    assert_split_by_scene(splits)
    assert {record.size for record in verify(records, 512, 'it')} == {(512, 512)}


def test_pairs_with_their_own_split(pairs):
    splits = load(LAYOUTS['pairs'], pairs, RATIOS, 0)
    assert {name: len(records) for name, records in splits.items()} == {'train': 6, 'val': 4, 'test': 4}
    assert all(record.input.stem == record.target.stem for record in splits['train'])


def test_pairs_split_by_seeded_ratio_and_extensions_may_differ(tmp_path):
    write_pairs(tmp_path, 10)
    (tmp_path / 'input' / '3.png').rename(tmp_path / 'input' / '3.JPG')
    first, again, other = (load(LAYOUTS['pairs'], tmp_path, RATIOS, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert {name: len(records) for name, records in first.items()} == {'train': 6, 'val': 2, 'test': 2}


def test_all_lonely_files_are_found_and_ten_shown(tmp_path):
    write_pairs(tmp_path, 15)
    for i in range(12):
        (tmp_path / 'target' / f'{i}.png').unlink()
    (tmp_path / 'input' / '14.png').unlink()
    with pytest.raises(UserError) as caught:
        load(LAYOUTS['pairs'], tmp_path, RATIOS, 0)
    message = str(caught.value)
    assert '13 files without a partner' in message
    assert message.count('.png: no ') == 10
    assert '… and 3 more' in message


def test_two_files_of_one_stem_are_ambiguous(tmp_path):
    write_pairs(tmp_path, 3)
    write_png(tmp_path / 'input' / '1.bmp', picture(0))
    with pytest.raises(UserError, match='the same stem'):
        load(LAYOUTS['pairs'], tmp_path, RATIOS, 0)


@pytest.mark.parametrize('layout', ['sidd', 'polyu', 'pairs'])
def test_missing_and_empty_folders_say_what_was_expected(tmp_path, layout):
    with pytest.raises(UserError, match=r'(?s)no such folder.*Expected under data.dir.*configs/sample.py'):
        load(LAYOUTS[layout], tmp_path / 'none', RATIOS, 0)
    (tmp_path / 'readme.txt').touch()
    with pytest.raises(UserError, match=r'(?s)it holds readme.txt.*Expected under data.dir'):
        load(LAYOUTS[layout], tmp_path, RATIOS, 0)


def test_a_missing_split_is_named(pairs):
    (pairs / 'val').rename(pairs / 'validation')
    with pytest.raises(UserError, match='val/ missing beside train/, test/'):
        load(LAYOUTS['pairs'], pairs, RATIOS, 0)


def records_of(counts: dict[str, int]) -> list[Record]:
    return [Record(f'{s}{i}', Path(), Path(), scene=s) for s, n in counts.items() for i in range(n)]


@pytest.mark.parametrize('seed', range(20))
def test_every_split_gets_a_scene_whatever_the_shares(seed):
    for counts in ({'a': 1, 'b': 1, 'c': 1}, {'a': 9, 'b': 1, 'c': 5, 'd': 2}):
        records = split_by_scene(records_of(counts), (0.1, 0.45, 0.45), seed)
        assert {record.split for record in records} == {'train', 'val', 'test'}
        assert len({(record.scene, record.split) for record in records}) == len(counts)


def test_shares_are_kept_where_scenes_allow():
    records = split_by_scene(records_of({str(i): 1 for i in range(100)}), (0.7, 0.2, 0.1), 3)
    assert [sum(r.split == s for r in records) for s in ('train', 'val', 'test')] == [70, 20, 10]


def test_bad_shares_and_too_few_scenes():
    with pytest.raises(UserError, match=r'data.split=\(0.9, 0.1\): expected three positive shares'):
        split_by_scene(records_of({'a': 9}), (0.9, 0.1), 0)
    with pytest.raises(UserError, match='at least three are needed'):
        split_by_scene(records_of({'a': 5, 'b': 5}), RATIOS, 0)


def test_verify_finds_every_problem_at_once(tmp_path):
    write_pairs(tmp_path, 5)
    write_png(tmp_path / 'input' / '0.png', picture(0, 10, 20))
    (tmp_path / 'input' / '1.png').write_text('broken')
    write_png(tmp_path / 'input' / '2.png', picture(0, 20, 20))
    write_png(tmp_path / 'target' / '2.png', picture(0, 20, 20))
    records = everything(load(LAYOUTS['pairs'], tmp_path, RATIOS, 0))
    with pytest.raises(UserError) as caught:
        verify(records, 32, 'data.crop_size=32')
    message = str(caught.value)
    assert '3 of 5 examples' in message
    assert '0.png is 10×20, but' in message
    assert '1.png: not a readable image' in message
    assert '2.png is 20×20: smaller than data.crop_size=32' in message


def test_sample_is_split_by_photograph():
    splits = load(LAYOUTS['sample'], None, RATIOS, 0)
    assert_split_by_scene(splits)
    names = {record.name for records in splits.values() for record in records}
    assert len(names & {'motorcycle_left', 'motorcycle_right'}) == 1
    for record in everything(splits):
        assert image_size(record.target) > (200, 200)
