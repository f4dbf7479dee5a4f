"""Every layout as it is published: recognised, paired, split, read."""

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy import io as scipy_io

from configs import default
from p2p_jax.data import LAYOUTS, sources
from p2p_jax.data.images import header, write_image
from p2p_jax.data.records import AUTO, SPLITS, find
from p2p_jax.datasets import selection
from p2p_jax.lookup import UserError
from tests import trees
from tests.conftest import picture, write_pairs

CHOICE = selection(default.get_config())

# Maker of the tree: (layout, how many examples in all, in train, in val, in test).
TREES = {
    trees.sidd: ('sidd', 12, None),
    trees.sidd_validation: ('sidd_blocks', 6, (0, 0, 6)),
    trees.sidd_benchmark: ('sidd_blocks', 6, (0, 0, 6)),
    trees.polyu: ('polyu', 6, None),
    trees.crops: ('crops', 11, (4, 4, 3)),
    trees.fmd: ('fmd', 24, (14, 4, 6)),
    trees.inria: ('inria', 16, (8, 2, 6)),
    trees.ffhq: ('ffhq', 7, (4, 1, 2)),
    trees.faces: ('ffhq', 8, (6, 1, 1)),
    trees.cifar_binary: ('cifar10', 24, (16, 4, 4)),
    trees.cifar_python: ('cifar10', 24, (16, 4, 4)),
    trees.cifar_kaggle: ('cifar10', 9, (7, 1, 1)),
    trees.classes: ('labelled', 15, (7, 2, 6)),
    trees.class_folders: ('labelled', 12, (8, 2, 2)),
    trees.class_zip: ('labelled', 9, (7, 1, 1)),
    trees.pairs: ('pairs', 10, (6, 2, 2)),
    trees.split_pairs: ('pairs', 9, (3, 3, 3)),
    trees.side_by_side: ('side_by_side', 6, (4, 1, 1)),
    trees.listed: ('list', 6, (2, 2, 2)),
    trees.listed_by_split: ('list', 6, (2, 2, 2)),
    trees.clean: ('clean', 6, (4, 1, 1)),
}


def look(root, layout=AUTO, **changes):
    return find(LAYOUTS, layout, root, dataclasses.replace(CHOICE, **changes))


def make(maker, root):
    maker(root)
    return root


def scenes(records):
    return [{record.scene for record in records if record.split == split} for split in SPLITS]


@pytest.mark.parametrize('maker', TREES, ids=lambda maker: maker.__name__)
def test_each_layout_is_recognised_split_by_scene_and_read(tmp_path, maker):
    layout, count, shares = TREES[maker]
    name, found = look(make(maker, tmp_path / 'set'))
    assert name == layout
    assert not found.problems
    assert len(found.records) == count == len({record.name for record in found.records})
    in_splits = tuple(sum(record.split == split for record in found.records) for split in SPLITS)
    assert sum(in_splits) == count
    if shares:
        assert in_splits == shares
    parts = scenes(found.records)
    assert sum(map(len, parts)) == len(set.union(*parts))
    for record in found.records[:2] + found.records[-2:]:
        for source in record.sources:
            pixels = source.read()
            assert pixels.dtype == np.uint8 and pixels.ndim == 3
            if not source.box:
                assert source.header().size == pixels.shape[:2]
    # The explicit name gives the same, and the split its seed.
    assert look(tmp_path / 'set', layout)[1] == found
    if shares is None:
        assert any(look(tmp_path / 'set', split_seed=s)[1].records != found.records for s in range(1, 5))


def test_sidd_attributes_and_names(tmp_path):
    _, found = look(make(trees.sidd, tmp_path))
    record = found.records[0]
    assert record.scene == '001'
    assert record.attributes == {
        'instance': '0001', 'phone': 'S6', 'iso': '00100', 'shutter': '00060', 'temperature': '3200', 'brightness': 'L',
    }  # fmt: skip
    for record in found.records:
        assert record.input.path.name.replace('NOISY', 'GT') == record.target.path.name
    assert look(tmp_path / 'Data')[1].records == found.records


def test_polyu_scene_is_the_name_less_its_number(tmp_path):
    _, found = look(make(trees.polyu, tmp_path))
    assert {r.scene for r in found.records} == {
        'Canon5D2_5_160_3200_a', 'Nikon_6_1_2_b', 'Sony_4-5_1_2_c', 'Sony_4-5_1_2_d'
    }  # fmt: skip
    assert found.records[0].attributes['iso'] == '3200'
    _, frames = look(tmp_path, 'polyu_full')
    assert [r.name for r in frames.records] == ['Canon5D2_bag', 'Nikon800_map', 'SonyA7II_book']
    assert all('Real' in r.input.path.name for r in frames.records)


def test_real_polyu(real_data):
    name, found = look(real_data / 'polyu')
    assert name == 'polyu'
    assert len(found.records) == len(list((real_data / 'polyu' / 'CroppedImages').glob('*_real.JPG')))
    parts = scenes(found.records)
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts))


def test_real_layouts_are_recognised(real_data):
    for folder, layout in (('facades', 'side_by_side'), ('bsd400', 'clean'), ('set12', 'clean')):
        assert look(real_data / folder)[0] == layout
    name, found = look(real_data / 'cifar10')
    assert name == 'labelled' and len(found.records) == 50_000
    assert found.classes[:2] == ('airplane', 'automobile') and len(found.classes) == 10
    assert found.records[0].target.header().size == (32, 32)


def test_blocks_are_the_array_s_and_the_benchmark_is_blind(tmp_path):
    _, found = look(make(trees.sidd_validation, tmp_path / 'val'))
    record = found.records[4]
    assert record.name == '01/01' and not record.blind
    np.testing.assert_array_equal(record.input.read() ^ 1, record.target.read())
    assert record.size == (16, 16)
    assert all(r.blind for r in look(make(trees.sidd_benchmark, tmp_path / 'bench'))[1].records)


def test_fmd_channels_of_one_view_share_a_scene_and_view_19_is_the_test(tmp_path):
    _, found = look(make(trees.fmd, tmp_path))
    scene = {r.scene for r in found.records if r.name.startswith(('Confocal_BPAE_B/2/', 'Confocal_BPAE_G/2/'))}
    assert scene == {'Confocal_BPAE/2'}
    assert {r.attributes['view'] for r in found.records if r.split == 'test'} == {'19'}
    assert {r.target.path.name for r in found.records} == {'avg50.png'}
    one = look(tmp_path / 'TwoPhoton_MICE')[1]
    assert len(one.records) == 8


def test_inria_holds_out_one_to_five_by_integer_and_its_mask_is_the_input(tmp_path):
    _, found = look(make(trees.inria, tmp_path))
    held_out = {r.name for r in found.records if r.split == 'test'}
    assert held_out == {f'{city}{n}' for city in ('austin', 'tyrol-w') for n in (1, 2, 5)}
    assert found.records[0].input.header().channels == 1 and found.records[0].target.header().channels == 3
    _, turned = look(tmp_path, direction='BtoA')
    assert turned.records[0].input == found.records[0].target


def test_side_by_side_halves_and_direction(tmp_path):
    root = make(trees.side_by_side, tmp_path)
    _, found = look(root)
    left, right = picture(0, 32, 32), 255 - picture(0, 32, 32)
    np.testing.assert_array_equal(found.records[0].input.read(), left)
    np.testing.assert_array_equal(found.records[0].target.read(), right)
    _, turned = look(root, direction='BtoA')
    np.testing.assert_array_equal(turned.records[0].input.read(), right)
    with pytest.raises(UserError, match='no pairs whose sides could be exchanged'):
        look(make(trees.clean, tmp_path / 'clean'), direction='BtoA')


def test_ffhq_takes_the_last_ten_thousand_for_the_test(tmp_path):
    _, found = look(make(trees.ffhq, tmp_path))
    assert {r.name for r in found.records if r.split == 'test'} == {'60000', '69999'}


@pytest.mark.parametrize('maker', [trees.cifar_binary, trees.cifar_python, trees.cifar_kaggle])
def test_cifar_labels_and_pixels(tmp_path, maker):
    _, found = look(make(maker, tmp_path))
    images, labels = trees.cifar_images(4 if maker != trees.cifar_kaggle else 9, 0)
    assert found.classes == trees.CLASSES
    for record, image, label in zip(found.records, images, labels, strict=False):
        assert record.label == label and record.attributes == {'class': trees.CLASSES[label]}
        np.testing.assert_array_equal(record.target.read(), image)


def test_a_pickle_that_would_fill_the_memory_is_refused(tmp_path):
    """A few bytes that name place 2³¹ of the memo, an array of pointers."""
    (tmp_path / 'data_batch_1').write_bytes(b'\x80\x02}r\x00\x00\x00\x80.')
    with pytest.raises(UserError, match='not a pickle of arrays .*it keeps something in place 2147483648'):
        sources.cifar_batch(tmp_path / 'data_batch_1')


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'owned'),)

    trees.cifar_python(tmp_path)
    (tmp_path / 'cifar-10-batches-py' / 'batches.meta').write_bytes(pickle.dumps({'label_names': Evil()}))
    with pytest.raises(UserError, match=r'batches.meta: not a pickle of arrays .*asks for posix.mkdir'):
        look(tmp_path)
    assert not (tmp_path / 'owned').exists()


def test_damaged_cifar_batches_are_problems(tmp_path):
    trees.cifar_binary(tmp_path)
    folder = tmp_path / 'cifar-10-batches-bin'
    (folder / 'data_batch_2.bin').write_bytes(b'x' * 100)
    (folder / 'data_batch_3.bin').unlink()
    messages = [p.message for p in look(tmp_path)[1].problems]
    assert len(messages) == 2
    assert '100 bytes; expected a multiple of 3073' in messages[0] and 'missing' in messages[1]


def test_unpaired_files_and_equal_stems_are_problems(tmp_path):
    write_pairs(tmp_path, 12)
    for i in range(5):
        (tmp_path / 'target' / f'{i}.png').unlink()
    (tmp_path / 'input' / '11.png').unlink()
    write_image(tmp_path / 'input' / '8.tif', picture(0))
    found = look(tmp_path)[1]
    messages = [p.message for p in found.problems]
    assert len(messages) == 7 and {p.kind for p in found.problems} == {'unpaired'}
    assert sum('no target' in m for m in messages) == 5 and sum('no input' in m for m in messages) == 1
    assert sum('the same stem' in m for m in messages) == 1
    assert len(found.records) == 6


def test_extensions_may_differ_and_folders_have_customary_names(tmp_path):
    write_pairs(tmp_path, 4)
    (tmp_path / 'input' / '3.png').rename(tmp_path / 'input' / '3.PNG')
    (tmp_path / 'input').rename(tmp_path / 'blur')
    (tmp_path / 'target').rename(tmp_path / 'sharp')
    assert len(look(tmp_path)[1].records) == 4


def test_a_set_without_validation_images_takes_them_from_training(tmp_path):
    trees.split_pairs(tmp_path)
    (tmp_path / 'val' / 'input' / '0.png').rename(tmp_path / 'gone.png')
    for path in sorted((tmp_path / 'val').rglob('*'), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / 'val').rmdir()
    (tmp_path / 'gone.png').unlink()
    records = look(tmp_path)[1].records
    assert [sum(r.split == s for r in records) for s in SPLITS] == [2, 1, 3]
    assert {r.name.split('/')[0] for r in records if r.split == 'test'} == {'test'}


def test_lists_name_the_rows_that_do_not_exist(tmp_path):
    trees.listed(tmp_path)
    with (tmp_path / 'pairs.csv').open('a') as file:
        file.write('a/none.png,b/other1.png,s9\n')
    found = look(tmp_path / 'pairs.csv')[1]
    assert len(found.records) == 6
    assert 'row 7' in found.problems[0].message and 'none.png: no such file' in found.problems[0].message


def test_lists_and_tables_that_are_no_text(tmp_path):
    for name in ('train.txt', 'trainLabels.csv'):
        (tmp_path / name).write_bytes(b'\xff\xfe\x00broken')
    (tmp_path / 'train').mkdir()
    with pytest.raises(UserError, match=r'(?s)trainLabels.csv is no table of id,label.*train.txt is no UTF-8 text'):
        look(tmp_path)


def test_errors_say_what_was_found_and_why_nothing_matched(tmp_path):
    (tmp_path / 'readme.txt').touch()
    with pytest.raises(UserError) as caught:
        look(tmp_path)
    message = str(caught.value)
    assert 'holds readme.txt' in message
    for name, layout in LAYOUTS.items():
        assert (f'\n  {name}: ' in message) == (not layout.default_root and not layout.named)
    for name in ('sidd', 'polyu', 'pairs'):
        with pytest.raises(
            UserError, match=rf'(?s)holds readme.txt.*not data.layout={name}: .*Expected under data.dir'
        ):
            look(tmp_path, name)
    with pytest.raises(UserError, match=r'(?s)no such folder; .* holds readme.txt.*configs/sample.py'):
        look(tmp_path / 'none')
    with pytest.raises(UserError, match="data.layout='polu' is unknown.*Did you mean 'polyu'"):
        look(tmp_path, 'polu')
    with pytest.raises(UserError, match='data.dir is not set'):
        look(None)


def test_an_archive_in_place_of_a_folder(tmp_path):
    for name in ('SIDD.zip', 'set.tar', 'x.tgz'):
        (tmp_path / name).write_bytes(b'PK')
    with pytest.raises(UserError, match='is an archive: unpack it'):
        look(tmp_path / 'SIDD.zip', 'sidd')
    with pytest.raises(UserError, match='is an archive: unpack it'):
        look(tmp_path / 'set.tar')
    with pytest.raises(UserError, match='It holds archives: unpack them first'):
        look(tmp_path)


def test_parents_of_several_sets_are_not_taken_for_one(tmp_path):
    trees.clean(tmp_path / 'clean')
    trees.side_by_side(tmp_path / 'facades')
    with pytest.raises(UserError, match='No layout fits'):
        look(tmp_path)


def test_a_mat_file_of_another_shape_is_refused(tmp_path):
    scipy_io.savemat(tmp_path / 'ValidationNoisyBlocksSrgb.mat', {'x': np.zeros((3, 4))})
    with pytest.raises(UserError, match=r"holds \{'x': \(3, 4\)\}; expected one uint8 array"):
        sources.mat_blocks(tmp_path / 'ValidationNoisyBlocksSrgb.mat')
    Path(tmp_path / 'y.mat').write_bytes(b'none')
    with pytest.raises(UserError, match='not a readable MATLAB file'):
        sources.mat_blocks(tmp_path / 'y.mat')


def test_the_sample_is_split_by_photograph_and_needs_no_folder():
    name, found = look(None, 'sample')
    assert name == 'sample'
    names = {record.name for record in found.records}
    assert len(names & {'motorcycle_left', 'motorcycle_right'}) == 1
    for record in found.records:
        assert min(header(str(record.target), record.target.path).size) > 200


def test_a_member_of_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    trees.class_zip(tmp_path)
    source = look(tmp_path)[1].records[0].target
    monkeypatch.setattr(sources, '_LARGEST_MEMBER', 100)
    with pytest.raises(UserError, match=r'photos.zip\[photos/cat/0.png\]: refused, for it unpacks to'):
        source.read()
