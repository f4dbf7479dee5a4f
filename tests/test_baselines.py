import sys

import numpy as np
import pytest

from p2p_jax.baselines import BASELINES, Baseline, apply, choose
from p2p_jax.lookup import UserError
from tests.conftest import picture

NEEDS = {'bilateral': 'cv2', 'nlmeans': 'cv2', 'wavelet': 'pywt', 'bm3d': 'bm3d'}


def pairs(sigma, count=2, channels=3):
    """Images with noise of a known σ, of 255."""
    random = np.random.default_rng(0)
    for seed in range(count):
        target = picture(seed, 64, 56)[..., :channels] / np.float32(255)
        yield np.clip(target + random.normal(0, sigma / 255, target.shape), 0, 1).astype(np.float32), target


def test_takes_the_strength_of_the_highest_mean_and_tells_all():
    offsets = Baseline('', lambda: lambda image, strength: image + (strength - 8) / 100, (2, 8, 16), 2)
    target = np.full((8, 8, 3), 0.5, np.float32)
    choice = choose(
        offsets, offsets.build(), [(target + np.float32(0.01), target), (target - np.float32(0.01), target)]
    )
    assert choice.strength == 8
    assert choice.tried == pytest.approx(
        {2: -10 * np.log10([0.05**2, 0.07**2]).mean(), 8: 40, 16: -10 * np.log10([0.09**2, 0.07**2]).mean()}, abs=1e-3
    )


def test_without_images_or_strengths_the_default_is_taken():
    row = BASELINES['identity']
    assert choose(row, row.build(), pairs(10)).tried == {}
    offsets = Baseline('', lambda: lambda image, strength: image, (2, 8), 5)
    assert choose(offsets, offsets.build(), []).strength == 5


@pytest.mark.parametrize(('name', 'sigma'), [('wavelet', 10), ('wavelet', 25), ('bm3d', 20)])
def test_the_search_finds_the_noise(name, sigma):
    pytest.importorskip(NEEDS[name])
    row = BASELINES[name]
    strengths = (10, 20, 50) if name == 'bm3d' else row.strengths
    chosen = choose(Baseline(row.text, row.build, strengths, row.default), row.build(), pairs(sigma, 1)).strength
    assert abs(strengths.index(chosen) - strengths.index(sigma)) <= (name == 'wavelet')


@pytest.mark.parametrize('name', ['bilateral', 'nlmeans'])
def test_more_noise_asks_for_more_strength(name):
    pytest.importorskip(NEEDS[name])
    row = BASELINES[name]
    weak, strong = (choose(row, row.build(), pairs(sigma)).strength for sigma in (5, 30))
    assert weak < strong


@pytest.mark.parametrize('name', NEEDS)
@pytest.mark.parametrize('channels', [1, 3])
def test_denoises_colour_and_grey_in_their_order(name, channels):
    pytest.importorskip(NEEDS[name])
    row = BASELINES[name]
    ((noisy, target),) = pairs(20, 1, channels)
    result = apply(row.build(), noisy, 40 if name == 'bilateral' else 20)
    assert result.shape == target.shape and result.dtype == np.float32
    assert np.mean((result - target) ** 2) < 0.4 * np.mean((noisy - target) ** 2)


def test_a_missing_package_is_named(monkeypatch):
    for module in ('cv2', 'pywt', 'bm3d'):
        monkeypatch.setitem(sys.modules, module, None)
    for name, package in (('nlmeans', 'opencv-python-headless'), ('wavelet', 'PyWavelets'), ('bm3d', 'bm3d')):
        with pytest.raises(UserError, match=rf'the package {package} is missing .*\[baselines\]'):
            BASELINES[name].build()
