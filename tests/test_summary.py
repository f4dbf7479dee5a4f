"""What single scores say together; the scores are made up."""

import json
import math

import numpy as np
import pytest

from p2p_jax import summary
from p2p_jax.scoring import ImageResult, ModelResult


def result(name, outputs, inputs=(20.0, 22.0, 24.0, 26.0), scenes='aabb'):
    cameras = ('Canon', 'Nikon', 'Canon', 'Nikon')
    images = tuple(
        ImageResult(
            name=f'{name} {i}'.split()[-1],
            scene=scenes[i],
            attributes={'camera': cameras[i], 'iso': ('3200', '100', '800', '800')[i], 'lens': 'x'},
            size=(8, 9),
            scores={
                side: {'psnr': values[i], 'ssim': values[i] / 100}
                for side, values in (('input', inputs), ('output', outputs))
            },
            pictures=dict,
        )
        for i in range(4)
    )
    return ModelResult(name, {'step': 1}, images)


FIRST = result('A', (30.0, 31.0, 32.0, 33.0))
SECOND = result('B', (31.0, 32.0, 30.0, 31.0))


def test_means_and_gains_by_hand():
    rows = summary.means(FIRST)
    assert {side: rows[side]['psnr'].mean for side in rows} == {'input': 23, 'output': 31.5, 'gain': 8.5}
    assert rows['output']['ssim'].mean == pytest.approx(0.315)
    # Two scenes: a twice, both, or b twice.
    assert rows['output']['psnr'][1:] == (30.5, 32.5)
    assert rows['gain']['psnr'][1:] == (7.5, 9.5)


def test_differences_are_paired_by_image():
    """Where the difference is the same everywhere, its interval is a point, however much images differ."""
    shifted = result('C', tuple(value + 0.25 for value in (30.0, 31.0, 32.0, 33.0)))
    rows = summary.differences([FIRST, SECOND, shifted])
    assert list(rows) == ['B', 'C']
    assert rows['C']['psnr'] == (0.25, 0.25, 0.25)
    assert rows['B']['psnr'] == (-0.5, -2, 1)


def test_breakdown_by_hand():
    tables = summary.breakdown([FIRST, SECOND])
    assert list(tables) == ['camera', 'iso', 'scene'], 'an attribute of one value says nothing'
    assert list(tables['iso']) == ['100', '800', '3200'], 'numbers by size'
    assert tables['camera']['Canon'] == summary.Part(2, 22, {'A': 31, 'B': 30.5})
    assert tables['iso']['800'] == summary.Part(2, 25, {'A': 32.5, 'B': 30.5})
    assert 'scene' not in summary.breakdown([result('A', (1.0, 2.0, 3.0, 4.0), scenes='abcd')])


def test_the_worst_come_first_and_nan_before_all():
    assert [image.name for image in summary.worst(SECOND, 3)] == ['2', '0', '3']
    assert summary.worst(result('A', (30.0, math.nan, 29.0, 31.0)), 1)[0].name == '1'


def test_text_of_one_model():
    text = summary.describe('test: 4 examples', [FIRST], ('noisy', 'denoised'), 2)
    lines = [line.split() for line in text.splitlines()]
    assert 'resamples of the 2 scenes' in text and 'too narrow' in text
    assert ['noisy', '23.00', '[21.00,', '25.00]', '0.2300', '[0.2100,', '0.2500]'] in lines
    assert ['gain', '+8.50', '[+7.50,', '+9.50]', '+0.0850', '[+0.0750,', '+0.0950]'] in lines
    assert ['Canon', '2', '22.00', '31.00', '+9.00'] in lines
    assert 'the 2 worst, by PSNR' in text and ['0', '20.00', '30.00', '+10.00', '0.3000'] in lines
    assert 'float_3d' not in text, 'what was not computed is not shown'


def test_text_of_several_models():
    lines = [x.split() for x in summary.describe('', [FIRST, SECOND], ('noisy', 'denoised'), 1).splitlines()]
    assert ['B', '31.00', '[30.50,', '31.50]', '0.3100', '[0.3050,', '0.3150]'] in lines
    assert ['B', '-', 'A', '-0.50', '[-2.00,', '+1.00]', '-0.0050', '[-0.0200,', '+0.0100]'] in lines
    assert ['Canon', '2', '22.00', '31.00', '+9.00', '30.50', '+8.50'] in lines


def test_json_holds_everything_and_is_json():
    content = summary.to_json([FIRST, SECOND], 2)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content['images'][2] == {
        'name': '2',
        'scene': 'b',
        'attributes': {'camera': 'Canon', 'iso': '800', 'lens': 'x'},
        'size': [8, 9],
        'input': {'psnr': 24, 'ssim': 0.24},
        'outputs': {'A': {'psnr': 32, 'ssim': 0.32}, 'B': {'psnr': 30, 'ssim': 0.3}},
    }
    assert content['models']['A']['means']['output']['psnr'] == {'mean': 31.5, 'low': 30.5, 'high': 32.5}
    assert content['differences']['means']['B']['psnr']['mean'] == -0.5
    assert content['protocols']['float']['metrics'] == ['psnr', 'ssim']
    assert content['models']['B']['worst'] == ['2', '0']
    alone = summary.to_json([result('A', (30.0, 31.0, 32.0, np.nan), scenes='aaaa')], 1)
    assert alone['models']['A']['means']['output']['psnr'] == {'mean': None, 'low': None, 'high': None}
