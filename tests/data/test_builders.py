"""TFDS's own test of each builder, on made-up files in the real layouts."""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from p2p_jax.data import builders
from tests import trees


def _case(builder, maker, splits):
    """A `DatasetBuilderTestCase` whose files are made when it starts."""

    class Case(tfds.testing.DatasetBuilderTestCase):
        DATASET_CLASS = builder
        SPLITS = splits
        SKIP_CHECKSUMS = True

        @classmethod
        def setUpClass(cls):
            cls.EXAMPLE_DIR = cls.enterClassContext(tempfile.TemporaryDirectory())
            maker(Path(cls.EXAMPLE_DIR))
            super().setUpClass()

    Case.__name__ = Case.__qualname__ = f'{builder.__name__}Test'
    return Case


SiddTest = _case(builders.Sidd, trees.sidd, {'train': 6, 'val': 4, 'test': 2})
PolyuTest = _case(builders.Polyu, trees.polyu, {'train': 3, 'val': 2, 'test': 1})
InriaTest = _case(builders.Inria, trees.inria, {'train': 32, 'val': 8, 'test': 24})
FfhqBlurTest = _case(builders.FfhqBlur, trees.ffhq, {'train': 4, 'val': 1, 'test': 2})
PairsTest = _case(builders.Pairs, trees.split_pairs, {'train': 3, 'val': 3, 'test': 3})
LabelledTest = _case(builders.Labelled, trees.classes, {'train': 7, 'val': 2, 'test': 6})


def test_the_stored_examples_are_the_tiles_of_the_files(tmp_path):
    trees.inria(tmp_path / 'set')
    builder = builders.Inria(data_dir=str(tmp_path / 'out'), file_format='array_record')
    settings = tfds.download.DownloadConfig(manual_dir=str(tmp_path / 'set'))
    builder.download_and_prepare(download_config=settings)
    assert builder.info.splits['train'].num_examples == 32
    example = builder.as_data_source('train')[1]
    assert example['name'] == b'austin10@0,32' and example['scene'] == b'austin10'
    assert example['input'].shape == (286, 286, 1) and set(np.unique(example['input'])) <= {0, 255}
    assert example['target'].shape == (286, 286, 3)


def test_ffhq_blur_stores_what_the_lens_makes_of_the_sharp_image(tmp_path):
    trees.faces(tmp_path / 'set')
    builder = builders.FfhqBlur(data_dir=str(tmp_path / 'out'), file_format='array_record')
    settings = tfds.download.DownloadConfig(manual_dir=str(tmp_path / 'set'))
    builder.download_and_prepare(download_config=settings)
    example = builder.as_data_source('train')[0]
    assert example['input'].shape == example['target'].shape == (256, 256, 3)
    roughness = {side: np.abs(np.diff(example[side].astype(float), axis=0)).mean() for side in ('input', 'target')}
    assert roughness['input'] < roughness['target']
