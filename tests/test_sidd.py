"""The protocols of SIDD on made-up blocks."""

import base64
import json

import numpy as np
import pytest
from scipy import io as scipy_io

from configs import default
from p2p_jax import sidd
from p2p_jax.data.images import write_image
from p2p_jax.evaluate import Options
from p2p_jax.lookup import UserError
from tests import trees
from tests.conftest import picture
from tests.test_metrics import ssim_of_volumes

SHAPE = (2, 3, 16, 16, 3)


def blocks(seed=0):
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture
def benchmark(tmp_path):
    folder = tmp_path / 'benchmark'
    folder.mkdir()
    scipy_io.savemat(folder / sidd.BENCHMARK, {'BenchmarkNoisyBlocksSrgb': blocks()})
    return folder


def test_validation_is_the_mean_over_blocks_beside_what_is_published(tmp_path, capsys):
    trees.sidd_validation(tmp_path)
    noisy, clean = (scipy_io.loadmat(tmp_path / name)[name.removesuffix('.mat')] for name in sidd.VALIDATION)
    (result,) = sidd.validate(['identity'], default.get_config(), tmp_path, Options(), tmp_path / 'report.json')
    assert [image.name for image in result.images] == ['00/00', '00/01', '00/02', '01/00', '01/01', '01/02']
    for image, a, b in zip(result.images, noisy.reshape(-1, *SHAPE[2:]), clean.reshape(-1, *SHAPE[2:]), strict=True):
        assert set(image.scores['output']) == {'psnr', 'ssim_3d', 'psnr_uint8', 'ssim_uint8'}
        assert image.scores['output']['ssim_3d'] == pytest.approx(ssim_of_volumes(a / 255, b / 255, 1), abs=1e-5)
    assert {image.scene for image in result.images} == {'00', '01'}
    out = capsys.readouterr().out
    assert 'not the (40, 32, 256, 256, 3) of SIDD' in out
    lines = [line.split() for line in out.splitlines()]
    assert ['NAFNet-64', '40.30', '0.9614', 'Chen', 'et', 'al.', '2022'] in lines
    mean = np.mean([image.scores['output']['psnr'] for image in result.images])
    assert any(line[:3] == ['>', 'identity', f'{mean:.2f}'] for line in lines)
    assert 'BM3D' not in out, 'a score on the benchmark is none on the validation set'
    assert len(json.loads((tmp_path / 'report.json').read_text())['images']) == 6


def test_validation_needs_both_files(tmp_path):
    trees.sidd_validation(tmp_path)
    (tmp_path / sidd.VALIDATION[1]).unlink()
    with pytest.raises(UserError, match='no ValidationGtBlocksSrgb.mat'):
        sidd.validate(['identity'], default.get_config(), tmp_path, Options())


def test_submission_holds_the_blocks_in_order(benchmark, tmp_path, capsys):
    sidd.submit('identity', benchmark, tmp_path / 'out')
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['SubmitSrgb.csv', 'SubmitSrgb.mat']
    # As the benchmark's own notebook reads it, byte by byte.
    header, *lines = (tmp_path / 'out' / 'SubmitSrgb.csv').read_bytes().decode().split('\n')
    assert header == 'ID,BLOCK' and lines.pop() == ''
    for number, line in enumerate(lines):
        place, text = line.split(',')
        assert int(place) == number
        image, block = divmod(number, SHAPE[1])
        assert base64.b64decode(text) == blocks()[image, block].tobytes()
    content = scipy_io.loadmat(tmp_path / 'out' / 'SubmitSrgb.mat')
    assert content['DenoisedBlocksSrgb'].shape == (2, 3) and content['DenoisedBlocksSrgb'].dtype == object
    for place in np.ndindex(2, 3):
        cell = content['DenoisedBlocksSrgb'][place]
        assert cell.dtype == np.uint8
        np.testing.assert_array_equal(cell, blocks()[place])
    assert float(content['TimeMPSrgb'].item()) > 0
    assert content['OptionalData']['MethodName'].item().item() == 'identity'
    out = capsys.readouterr().out
    assert 'no file can be submitted' in out and out.count('read back and equal') == 2
    assert 'BM3D' in out and 'NAFNet' not in out


def test_submission_overwrites_nothing(benchmark, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'SubmitSrgb.mat').write_text('mine')
    with pytest.raises(UserError, match='holds SubmitSrgb.mat, and nothing is overwritten'):
        sidd.submit('identity', benchmark, tmp_path / 'out')
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['SubmitSrgb.mat']


def test_what_is_read_back_differently_is_not_left(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(sidd, 'read_csv', lambda path, shape: blocks(1))
    with pytest.raises(UserError, match='what was read back is not what was written'):
        sidd.submit('identity', benchmark, tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())


def test_damaged_submissions_are_noticed(tmp_path):
    path = tmp_path / 'a.csv'
    sidd.write_csv(path, blocks())
    np.testing.assert_array_equal(sidd.read_csv(path, SHAPE), blocks())
    lines = path.read_text().splitlines(keepends=True)
    for damaged, message in (
        ([lines[0], lines[2], lines[1], *lines[3:]], 'line 2 has ID 1'),
        (lines[:-1], '5 blocks; expected 6'),
        ([*lines[:-1], lines[-1][:-9] + '\n'], 'line 7|not base64'),
        (['ID;BLOCK\n', *lines[1:]], 'its first line is not ID,BLOCK'),
    ):
        path.write_text(''.join(damaged))
        with pytest.raises(UserError, match=message):
            sidd.read_csv(path, SHAPE)
    sidd.write_mat(tmp_path / 'a.mat', blocks(), 0.5, {'MethodName': 'x'})
    np.testing.assert_array_equal(sidd.read_mat(tmp_path / 'a.mat', SHAPE), blocks())
    with pytest.raises(UserError, match='no cell DenoisedBlocksSrgb'):
        sidd.read_mat(tmp_path / 'a.mat', (3, 2, *SHAPE[2:]))


def test_other_folders_are_refused(tmp_path):
    write_image(tmp_path / 'a.png', picture(0))
    with pytest.raises(UserError, match='no BenchmarkNoisyBlocksSrgb.mat'):
        sidd.submit('identity', tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
