"""Damaged files and odd values: each is answered by a result or by a documented error. Always the same examples.

`python -m experiments.faults.fuzz` looks for more.
"""

import functools
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from p2p_jax import modelfile
from p2p_jax.configfile import flatten
from p2p_jax.data import LAYOUTS, images
from p2p_jax.data.records import MismatchError
from p2p_jax.datasets import selection
from p2p_jax.lookup import UserError
from p2p_jax.settings import check
from tests.conftest import picture, small_config

quick = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def damaged(whole):
    """Files that lack their end, or in which a few bytes are others."""
    edits = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=4)), max_size=4)

    def apply(data, edits, share):
        changed = bytearray(data)
        for at, piece in edits:
            changed[at % len(data) : at % len(data) + len(piece)] = piece
        return bytes(changed[: int(len(changed) * share)])

    return st.builds(apply, st.sampled_from(whole), edits, st.one_of(st.just(1), st.floats(0, 1)))


def pictures():
    """A small file of each format, with EXIF that turns it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [images.encode(np.zeros((5, 6, 2), np.uint16), '.tif', images.Metadata())]
    image = Image.fromarray(picture(0, 9, 7))
    for form, mode in (('PNG', 'RGB'), ('PNG', 'P'), ('JPEG', 'RGB'), ('TIFF', 'RGB'), ('BMP', 'RGB'), ('WEBP', 'RGB')):
        stream = io.BytesIO()
        image.convert(mode).save(stream, form, exif=exif)
        files.append(stream.getvalue())
    return files


@quick
@given(damaged(pictures()))
def test_damaged_images(data):
    for read in (images.header, images.decode, images.read_metadata):
        try:
            found = read('name', data)
        except UserError as error:
            assert str(error).startswith('name: ')
        else:
            assert read is not images.decode or (found.ndim == 3 and found.dtype in (np.uint8, np.uint16))


FACTS = modelfile.Facts({'seed': 0}, 3, 'raw', 1.0, {'psnr': 30.0})


@functools.cache
def model(folder):
    path = folder / 'whole.safetensors'
    modelfile.write(path, {'params': {'a': {'kernel': np.ones((2, 2), np.float32)}}}, FACTS)
    return path.read_bytes()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@quick
@given(st.data())
def test_damaged_model_files(folder, data):
    path = folder / 'model.safetensors'
    path.write_bytes(data.draw(damaged([model(folder)])))
    try:
        variables, facts = modelfile.read(path)
    except UserError as error:
        assert str(error).startswith(f'--model={path}: ')
    else:
        assert isinstance(facts.config, dict) and variables


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2000),
    st.floats(allow_nan=True),
    st.sampled_from(['', 'none', 'batch', 'wgan_gp', 'awgn+jpeg', 'dcgan', 'plateau', 'nafnet', 'é']),
    st.lists(st.one_of(st.none(), st.floats(), st.integers(-3, 9), st.text(max_size=3)), max_size=4).map(tuple),
)


@quick
@given(st.dictionaries(st.sampled_from(sorted(flatten(small_config().to_dict()))), VALUES, max_size=6))
def test_any_values_of_a_configuration(values):
    config = small_config()
    for key, value in values.items():
        try:
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError):  # another type: the command line names the key
            continue
    try:
        check(config)
    except UserError as error:
        assert any(key in str(error) for key in values) or 'unknown' in str(error)


# Names that layouts look for, and what may lie there.
NAMES = ['train', 'val', 'test', 'input', 'target', 'gt', 'raw', 'GT', 'images', 'Data', 'input_crops', 'cat', '1', 'é']
ENDS = [
    'a.png',
    '00000.png',
    'b_mean.JPG',
    'b_Real.JPG',
    '0001_NOISY_SRGB_010.PNG',
    '0001_GT_SRGB_010.PNG',
    'austin1.tif',
]
ENDS += ['pairs.csv', 'pairs.txt', 'train.txt', 'trainLabels.csv', 'data_batch_1', 'data_batch_1.bin', 'x.zip', '.png']
ENDS += [
    'batches.meta.txt',
    'ValidationNoisyBlocksSrgb.mat',
    'ValidationGtBlocksSrgb.mat',
    'p2p_jax.json',
    'dataset_info.json',
]
CONTENTS = [
    *pictures()[:2],
    b'',
    b'a.png b.png\n',
    b'id,label\n1,cat\n',
    b'a.png,\xff\n',
    b'"\n',
    bytes(3073),
    b'{}',
    b'PK\3\4',
]
TREES = st.dictionaries(
    st.tuples(st.lists(st.sampled_from(NAMES), max_size=3).map('/'.join), st.sampled_from(ENDS)).map('/'.join),
    st.sampled_from(CONTENTS),
    max_size=6,
)


@quick
@given(TREES)
def test_any_folder(folder, tree):
    root = folder / f'{abs(hash(tuple(sorted(tree.items())))):x}'
    for name, content in tree.items():
        path = root / name.lstrip('/')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    root.mkdir(exist_ok=True)
    chosen = selection(small_config())
    for layout in LAYOUTS.values():
        if layout.named or layout.default_root:
            continue
        for find in {layout.find, layout.recognise} - {None}:
            try:
                find(root, chosen)
            except (MismatchError, UserError) as error:
                assert str(error)
