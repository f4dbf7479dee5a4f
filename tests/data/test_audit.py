import dataclasses
import functools
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import default
from p2p_jax.data import LAYOUTS, audit, images, records, resemblance, sources
from p2p_jax.data.records import Problem, Record
from p2p_jax.data.sources import Source
from p2p_jax.datasets import selection
from tests.conftest import noisy, picture

SELECTION = selection(default.get_config())
LEAST = dict.fromkeys(records.SPLITS, (32, 'data.crop_size=32'))


@functools.cache
def textured(seed: int, size: int = 96) -> np.ndarray:
    """Noise of all scales, alike to photographs in its spectrum: uint8 (size, size, 3)."""
    random = np.random.default_rng(seed)
    image = np.zeros((size, size))
    for cells in (3, 6, 12, 24, 48):
        coarse = Image.fromarray(random.normal(size=(cells, cells)).astype(np.float32))
        image += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) / cells**0.3
    image = (image - image.min()) / np.ptp(image) * 200
    return np.rint(image[..., None] + random.uniform(0, 50, 3)).astype(np.uint8)


def jpeg(path: Path, image: np.ndarray, quality: int = 60) -> None:
    Image.fromarray(image).save(path.with_suffix('.jpg'), quality=quality)


def part(image: np.ndarray, share: float) -> np.ndarray:
    return image[5:, 3:][: round(len(image) * share), : round(len(image) * share)]


@pytest.fixture(scope='session')
def _sound(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('sound')
    for i in range(20):
        split = 'train' if i < 14 else 'val' if i < 17 else 'test'
        images.write_image(root / split / 'target' / f'{i:02}.png', textured(i))
        images.write_image(root / split / 'input' / f'{i:02}.png', noisy(textured(i), i))
    return root


@pytest.fixture
def root(_sound, tmp_path) -> Path:
    """A folder of 14, 3 and 3 noisy textures with their originals."""
    return Path(shutil.copytree(_sound, tmp_path / 'pairs'))


def look(root: Path, layout: str = 'pairs', *, sample=None, side='input', progress=None, **selection) -> audit.Audit:
    chosen = dataclasses.replace(SELECTION, **selection)
    _, found = records.find(LAYOUTS, layout, root, chosen)
    measured, problems = audit.measure(found.records, least=LEAST, threads=2)
    return audit.audit(
        measured,
        [*found.problems, *problems],
        mask_values=chosen.mask_values,
        mask_side=side,
        threads=2,
        sample=sample,
        progress=progress,
    )


def swap(a: Path, b: Path) -> None:
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


def change(path: Path, function) -> None:
    images.write_image(path, np.ascontiguousarray(function(images.decode(str(path), path))))


def both(folder: Path, name: str, function, of: int) -> None:
    """Adds a pair made from another one."""
    function(folder / 'target' / f'{name}.png', textured(of))
    function(folder / 'input' / f'{name}.png', noisy(textured(of), 99))


def grey(image: np.ndarray) -> np.ndarray:
    return image[..., :1]


def alpha(image: np.ndarray) -> np.ndarray:
    return np.concatenate([image, np.full_like(image[..., :1], 255)], -1)


def resized(path: Path, image: np.ndarray) -> None:
    images.write_image(path, images.resize(image, (64, 64)))


def brighter(path: Path, image: np.ndarray) -> None:
    images.write_image(path, np.clip(image * 1.1 + 10, 0, 255).astype(np.uint8))


def cropped(path: Path, image: np.ndarray) -> None:
    images.write_image(path, np.ascontiguousarray(part(image, 0.9)))


A, B = 'train/input/03.png', 'train/input/07.png'
# What is done to the folder, the kinds that must be found, what the messages must say, and what is dropped.
DAMAGES = {
    'unpaired': (lambda r: (r / A).unlink(), 'unpaired', 'target/03.png: no input', []),
    'zero bytes': (lambda r: (r / A).write_bytes(b''), 'empty', '0 bytes', ['train/03']),
    'truncated png': (lambda r: (r / A).write_bytes((r / A).read_bytes()[:5000]), 'unreadable', A, ['train/03']),
    'text': (lambda r: (r / A).write_text('no image'), 'unreadable', A, ['train/03']),
    'another size': (lambda r: change(r / A, lambda x: images.resize(x, (80, 80))), 'size', '80×80', ['train/03']),
    'too small': (
        lambda r: [change(r / p, lambda x: x[:20]) for p in (A, A.replace('input', 'target'))],
        'size',
        'is 20×96, too small for data.crop_size=32',
        ['train/03'],
    ),
    '16 bits': (lambda r: change(r / A, lambda x: x.astype(np.uint16) * 257), 'format', 'RGB 16 bit', ['train/03']),
    'grey': (lambda r: change(r / A, grey), 'format', 'most inputs are RGB 8 bit', ['train/03']),
    'alpha': (lambda r: change(r / A, alpha), 'format', 'RGBA 8 bit', ['train/03']),
    'constant': (lambda r: change(r / A, lambda x: x * 0 + 7), 'constant', 'every pixel is 7/7/7', ['train/03']),
    'swapped': (lambda r: swap(r / A, r / B), 'mismatched', r'fits .*t/0[37].png .1.00', ['train/03', 'train/07']),
    'mirrored': (
        lambda r: change(r / A, lambda x: x[:, ::-1]), 'mismatched', 'mirrored left to right', ['train/03']
    ),
    'upside down': (lambda r: change(r / A, lambda x: x[::-1]), 'mismatched', 'mirrored upside down', ['train/03']),
    'turned': (lambda r: change(r / A, np.rot90), 'mismatched', 'turned by 90° clockwise', ['train/03']),
    'shifted by 2': (
        lambda r: change(r / A, lambda x: np.roll(x, (2, -1), (0, 1))), 'misaligned', r'\(2, -1\)', ['train/03']
    ),
    'shifted by 20': (
        lambda r: change(r / A, lambda x: np.roll(x, (-20, 20), (0, 1))), 'misaligned', r'\(-20, 20\)', ['train/03']
    ),
    'exact leak': (
        lambda r: both(r / 'train', 'copy', images.write_image, 18),
        'leakage',
        r'test/target/18.png \(test\) and .*train/target/copy.png \(train\): the same picture',
        ['train/copy'],
    ),
    'exact copy': (
        lambda r: [shutil.copy(p, p.with_name('copy.png')) for p in (r / A, r / A.replace('input', 'target'))],
        'duplicate',
        'the same example',
        ['train/copy'],
    ),
    'recompressed': (lambda r: both(r / 'train', 'copy', jpeg, 18), 'leakage', 'nearly the same', ['train/copy']),
    'resized copy': (lambda r: both(r / 'train', 'copy', resized, 15), 'leakage', 'nearly the same', ['train/copy']),
    'brighter copy': (lambda r: both(r / 'val', 'copy', brighter, 18), 'leakage', r'\(val\)', ['val/copy']),
    'cropped copy': (lambda r: both(r / 'train', 'copy', cropped, 18), 'leakage', 'nearly the same', ['train/copy']),
    'copy in train': (lambda r: both(r / 'train', 'copy', jpeg, 2), 'duplicate', 'nearly the same', ['train/copy']),
}  # fmt: skip


def test_a_sound_set_has_no_problems(root):
    steps = []
    found = look(root, progress=lambda *step: steps.append(step))
    assert found.table() == 'no problems in 20 examples'
    assert (found.examined, found.examples, found.dropped()) == (20, 20, set())
    assert steps[-1] == (20, 20)


@pytest.mark.parametrize('damage', DAMAGES)
def test_each_damage_is_found_and_nothing_else(root, damage):
    act, kind, says, dropped = DAMAGES[damage]
    act(root)
    found = look(root)
    assert {problem.kind for problem in found.problems} == {kind}, found.table()
    assert found.dropped() == set(dropped), found.table()
    assert len(found.problems) == max(1, len(dropped))
    assert all(re.search(says, problem.message) for problem in found.problems), found.table()


def rotate(root: Path, make=lambda image: image) -> None:
    """Gives each input to the example before it in the list, after `make`."""
    paths = sorted(root.glob('*/input/*.png'))
    inputs = [make(images.decode(str(path), path)) for path in paths]
    for path, image in zip(paths, inputs[1:] + inputs[:1], strict=True):
        images.write_image(path, image)


def test_a_list_that_is_off_by_one_is_one_problem(root):
    rotate(root)
    found = look(root)
    assert [problem.kind for problem in found.problems] == ['mismatched'], found.table()
    assert 'the inputs fit the targets +1 down the list' in found.problems[0].message
    assert not found.dropped()


def test_inputs_that_do_not_resemble_their_targets_are_judged_as_a_whole(root):
    for path in root.glob('*/input/*.png'):
        # Negatives of every other one: no correlation has a sign in common.
        change(path, lambda image: image if int(path.stem) % 2 else 255 - image)  # noqa: B023
    found = look(root)
    assert not found.problems, found.table()
    assert re.search('do not correlate .* as a whole they fit by .* better', found.notes[0])
    # Too few to say anything.
    assert 'too few' in look(root, sample=8).notes[0]
    rotate(root)
    found = look(root)
    assert [problem.kind for problem in found.problems] == ['mismatched'], found.table()


def test_walls_skies_and_waves_are_neither_mismatched_nor_copies(tmp_path):
    down, right = np.mgrid[:96, :96, :1][:2] / 96
    random = np.random.default_rng(0)
    for i in range(24):
        if i % 3 == 0:
            image = 120 + 2 * right * random.normal() + 0 * down  # as good as nothing beside the noise
        elif i % 3 == 1:
            image = 90 + 100 * down**2 + 30 * right * random.uniform(0.5, 1)
        else:
            image = picture(i, 96, 96)
        image = np.broadcast_to(np.rint(image), (96, 96, 3)).astype(np.uint8)
        images.write_image(
            tmp_path / 'target' / f'{i}.png',
            np.clip(image + random.integers(0, 2, image.shape), 0, 255).astype(np.uint8),
        )
        images.write_image(tmp_path / 'input' / f'{i}.png', noisy(image, i))
    found = look(tmp_path)
    assert not found.problems, found.table()
    assert 'noise hides too much' in found.notes[0]


def test_the_same_frame_around_different_pictures_makes_no_copies(tmp_path):
    down, right = np.mgrid[:96, :96, :1][:2]
    frame = (down > 0.4 * right) & (down < 90) & (right + 0.2 * down < 90)
    for i in range(16):
        images.write_image(tmp_path / f'{i}.png', np.where(frame, textured(i), np.uint8(0)))
    found = look(tmp_path, 'clean')
    assert not found.problems, found.table()


def test_values_of_masks(root):
    for path in root.glob('*/input/*.png'):
        images.write_image(path, np.uint8(255) * (textured(int(path.stem))[..., :1] > 120))
    # An empty mask is no mistake, and two of them are no copies.
    for name in ('01.png', '04.png'):
        images.write_image(root / 'train' / 'input' / name, np.zeros((96, 96, 1), np.uint8))
    found = look(root, mask_values=(0, 255))
    assert not found.problems, found.table()
    found = look(root, mask_values=(0, 255), direction='BtoA', side='target')
    assert not found.problems, found.table()
    change(root / A, lambda x: np.where(np.arange(96)[:, None] < 7, np.uint8(9), x))
    found = look(root, mask_values=(0, 255))
    assert [(p.kind, p.records) for p in found.problems] == [('mask', ('train/03',))]
    assert 'values 9 in 672 pixels; declared are [0, 255]' in found.problems[0].message


def judged(found: list[Record], **keywords) -> audit.Audit:
    measured, problems = audit.measure(found, least={}, threads=2)
    keywords = {'mask_values': (), 'mask_side': 'input', 'threads': 2, 'sample': None, 'progress': None} | keywords
    return audit.audit(measured, problems, **keywords)


def test_many_inputs_may_share_a_target_unless_in_different_splits(root):
    def share(scenes: str, splits: tuple[str, ...]) -> audit.Audit:
        target = root / A.replace('input', 'target')
        made = []
        for i, (scene, split) in enumerate(zip(scenes, splits, strict=True)):
            path = root / f'{i}.png'
            images.write_image(path, noisy(textured(3), i))
            made.append(Record(str(i), Source(target), Source(path), scene=scene, split=split))
        return judged(made)

    assert not share('aaa', ('train',) * 3).problems
    assert not share('abc', ('train',) * 3).problems
    found = share('abc', ('train', 'train', 'test'))
    assert [(p.kind, p.records) for p in found.problems] == [('leakage', ('0', '1'))]
    # The one file behind three examples is reported once, for all of them.
    (root / A.replace('input', 'target')).write_bytes(b'')
    found = share('aaa', ('train',) * 3)
    assert [(p.kind, p.records) for p in found.problems] == [('empty', ('0', '1', '2'))]
    assert found.examples == 3


def test_copies_in_a_scene_are_exact_ones_only(tmp_path):
    made = []
    for i, function in enumerate((images.write_image, images.write_image, brighter)):
        function(tmp_path / f'{i}.png', textured(1))
        made.append(Record(str(i), Source(tmp_path / f'{i}.png'), scene='a', split='train', label=i))
    found = judged(made)
    assert [(p.kind, p.records) for p in found.problems] == [('duplicate', ('1',))]
    assert found.problems[0].message.endswith('of different classes')


def test_copies_are_found_over_all_blocks_of_the_search():
    detail = np.random.default_rng(0).normal(size=(1500, len(resemblance._BAND))).astype(np.float32)
    detail /= np.linalg.norm(detail, axis=1, keepdims=True)
    detail[1400] = 0.97 * detail[3]
    detail[1401] = 0.97 * detail[1399]
    scenes = np.arange(1500)
    scenes[1401] = scenes[1399]
    found = resemblance.find_candidates(detail, scenes)
    assert found[0][1:] == (3, 1400)
    assert (1399, 1401) not in [pair for _, *pair in found]


def test_halves_of_one_file_are_decoded_once(tmp_path, monkeypatch):
    for i in range(3):
        images.write_image(tmp_path / f'{i}.png', np.concatenate([noisy(textured(i), i), textured(i)], 1))
    decoded = []
    decode = images.decode
    monkeypatch.setattr(images, 'decode', lambda name, file: decoded.append(name) or decode(name, file))
    found = look(tmp_path, 'side_by_side')
    assert not found.problems, found.table()
    assert len(decoded) == 3


def test_measure_fills_sizes_and_opens_no_more_than_it_must(tmp_path, monkeypatch):
    images.write_image(tmp_path / 'a.png', textured(0))
    images.write_image(tmp_path / 'b.tif', textured(1).astype(np.uint16))
    opened = []

    def header(source: Source) -> images.Header:
        opened.append(source.item)
        return images.Header(32, 40 + (source.path.name == 'odd' and int(source.item.split('/')[1])), 3, 8)

    for kind in ('cifar', 'tfds'):
        monkeypatch.setitem(sources.KINDS, kind, (header, lambda source: np.zeros((32, 40, 3), np.uint8)))
    made = [
        Record('box', Source(tmp_path / 'a.png', box=(0, 10, 50, 60)), split='test'),
        Record('deep', Source(tmp_path / 'b.tif'), split='train'),
        Record('known', Source(tmp_path / 'none.png'), split='train', size=(12, 12)),
        *(Record(f'c{i}', Source(Path('batch'), 'cifar', str(i))) for i in range(9)),
        *(Record(f't{i}', Source(Path('even'), 'tfds', f'train/{i}/image')) for i in range(9)),
        *(Record(f'o{i}', Source(Path('odd'), 'tfds', f'train/{i}/image')) for i in range(9)),
    ]
    measured, problems = audit.measure(made, least={'train': (32, 'data.crop_size=32')}, threads=2)
    by_name = {record.name: record for record in measured}
    assert by_name['box'].size == (50, 60)
    assert by_name['deep'].bits == 16
    assert [by_name[name].size for name in ('c8', 't8', 'o0', 'o8')] == [(32, 40), (32, 40), (32, 40), (32, 48)]
    assert len(opened) == 1 + 3 + 3 + 9
    assert [(p.kind, p.records) for p in problems] == [('format', ('deep',)), ('size', ('known',))]


def test_a_truncated_jpeg_and_members_of_a_zip(tmp_path):
    for i in range(3):
        jpeg(tmp_path / f'{i}.jpg', textured(i))
    content = (tmp_path / '1.jpg').read_bytes()
    (tmp_path / '1.jpg').write_bytes(content[: len(content) // 2])
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('empty.png', b'')
    made = [Record(str(i), Source(tmp_path / f'{i}.jpg'), split='train', scene=str(i)) for i in range(3)]
    made += [Record(n, Source(tmp_path / 'a.zip', 'zip', n), split='train') for n in ('empty.png', 'none.png')]
    found = judged(made)
    kinds = {(problem.kind, *problem.records) for problem in found.problems}
    assert kinds == {('unreadable', '1'), ('empty', 'empty.png'), ('unreadable', 'none.png')}


def test_a_sample_is_spread_over_the_list(root):
    (root / 'train' / 'input' / '00.png').write_bytes(b'')
    change(root / A, lambda x: x * 0 + 7)
    found = look(root, sample=4)
    assert found.examined == 4
    assert found.table().endswith('in 20 examples, of which 4 were looked at')
    # Headers are read of all.
    assert 'empty' in {problem.kind for problem in found.problems}


def test_the_table_is_short_and_the_json_whole():
    problems = [Problem('size', f'file {i}', (str(i),), 0.5) for i in range(12)] + [Problem('empty', 'one')]
    found = audit.Audit(problems, 3, 5, ['a note'])
    lines = found.table().splitlines()
    assert lines[0].startswith('empty (1): ')
    assert lines[1:4] == ['  one', f'size (12): {audit.KINDS["size"]}', '  file 0']
    assert lines[-3:] == ['  … and 2 more', 'note: a note', '13 problems in 5 examples, of which 3 were looked at']
    content = json.loads(json.dumps(found.to_json()))
    assert len(content['problems']) == 13
    assert content['problems'][0] == {'kind': 'size', 'message': 'file 0', 'records': ['0'], 'score': 0.5}
    assert audit.Audit(problems[:1], 5, 5).table().endswith('\n1 problem in 5 examples')
    assert found.dropped() == set(map(str, range(12)))


@pytest.mark.parametrize(
    ('folder', 'layout', 'most'), [('polyu', 'polyu', None), ('facades', 'side_by_side', 60), ('bsd400', 'clean', None)]
)
def test_real_sets_are_sound(real_data, folder, layout, most):
    if not (real_data / folder).is_dir():
        pytest.skip(f'{real_data / folder} is not there')
    found = look(real_data / folder, layout, sample=most)
    assert not found.problems, found.table()


def test_a_wrong_list_of_real_facades_is_found(real_data):
    if not (real_data / 'facades').is_dir():
        pytest.skip('no facades')
    made = records.find(LAYOUTS, 'side_by_side', real_data / 'facades', SELECTION)[1].records[:60]
    others = [record.input for record in made[1:] + made[:1]]
    found = judged([dataclasses.replace(record, input=other) for record, other in zip(made, others, strict=True)])
    assert [problem.kind for problem in found.problems] == ['mismatched'], found.table()
