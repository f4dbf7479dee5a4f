"""Denoisers without training, through the same scores as the models: what a network must be better than."""

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from p2p_jax.lookup import UserError
from p2p_jax.metrics import PSNR_CEILING

# An image, float32 (h, w, 1 or 3) in [0, 1], and a strength, to an image of the same shape.
Filter = Callable[[np.ndarray, float], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A denoiser with one number to choose.

    Attributes:
      text: what it is, and what the strength means.
      build: returns it, or raises a UserError where its package is missing.
      strengths: that are tried, rising; () where there is nothing to choose.
      default: where there is nothing to try them on.
    """

    text: str
    build: Callable[[], Filter]
    strengths: tuple[float, ...]
    default: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """A strength, and the mean PSNR in dB of each that was tried; none where there was nothing to try them on."""

    strength: float
    tried: dict[float, float]


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the package {package} is missing ({error}): pip install -e '.[baselines]'") from None


def _identity() -> Filter:
    return lambda image, strength: image


def _bilateral() -> Filter:
    cv2 = _package('cv2', 'opencv-python-headless')

    def denoise(image: np.ndarray, strength: float) -> np.ndarray:
        return cv2.bilateralFilter(np.ascontiguousarray(image), 0, strength / 255, 3.0).reshape(image.shape)

    return denoise


def _nlmeans() -> Filter:
    cv2 = _package('cv2', 'opencv-python-headless')

    def denoise(image: np.ndarray, strength: float) -> np.ndarray:
        pixels = np.rint(image * 255).astype(np.uint8)
        if image.shape[-1] == 1:
            result = cv2.fastNlMeansDenoising(pixels, None, strength, 7, 21)
        else:
            swapped = np.ascontiguousarray(pixels[..., ::-1])  # OpenCV expects BGR, and turns it into CIELAB
            result = cv2.fastNlMeansDenoisingColored(swapped, None, strength, strength, 7, 21)[..., ::-1]
        return result.reshape(image.shape) / np.float32(255)

    return denoise


def _wavelet() -> Filter:
    _package('pywt', 'PyWavelets')
    restoration = _package('skimage.restoration', 'scikit-image')

    def denoise(image: np.ndarray, strength: float) -> np.ndarray:
        colour = image.shape[-1] == 3
        options = {'channel_axis': -1, 'convert2ycbcr': True} if colour else {}
        plain = image if colour else image[..., 0]
        result = restoration.denoise_wavelet(plain, strength / 255, method='BayesShrink', rescale_sigma=True, **options)
        return result.reshape(image.shape)

    return denoise


def _bm3d() -> Filter:
    bm3d = _package('bm3d', 'bm3d')

    def denoise(image: np.ndarray, strength: float) -> np.ndarray:
        if image.shape[-1] == 3:
            return bm3d.bm3d_rgb(image, strength / 255)
        return bm3d.bm3d(image[..., 0], strength / 255).reshape(image.shape)

    return denoise


BASELINES: dict[str, Baseline] = {
    'identity': Baseline('the input as it is', _identity, (), 0),
    'bilateral': Baseline(
        'bilateral filter (Tomasi and Manduchi 1998), OpenCV, σ of 3 pixels; strength: σ between colours, of 255',
        _bilateral,
        (5, 10, 15, 20, 30, 45, 70, 100),
        20,
    ),
    'nlmeans': Baseline(
        'non-local means (Buades et al. 2005), OpenCV, of images rounded to 8 bits; strength: h',
        _nlmeans,
        (1, 2, 3, 5, 8, 12, 18, 25),
        3,
    ),
    'wavelet': Baseline(
        'wavelets, BayesShrink (Chang et al. 2000), scikit-image; strength: σ of the noise, of 255',
        _wavelet,
        (2, 4, 6, 8, 10, 15, 20, 25, 30, 40, 50),
        6,
    ),
    'bm3d': Baseline(
        'BM3D (Dabov et al. 2007), the package bm3d; strength: σ of the noise, of 255',
        _bm3d,
        (5, 10, 15, 20, 30, 50),
        15,
    ),
}


def apply(denoise: Filter, image: np.ndarray, strength: float) -> np.ndarray:
    """Returns the denoised image, float32, clamped to [0, 1]."""
    return np.clip(denoise(image, strength), 0, 1).astype(np.float32)


def choose(
    baseline: Baseline,
    denoise: Filter,
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    look: Callable[[], object] = lambda: None,
) -> Choice:
    """Finds the strength of the highest mean PSNR.

    Args:
      baseline: whose strengths are tried.
      denoise: what it built.
      pairs: of the validation: input and target, float32 (h, w, c) in [0, 1]; none leaves the default.
      look: called after each image and strength.
    """
    sums = dict.fromkeys(baseline.strengths, 0.0)
    count = 0
    for noisy, target in pairs:
        count += 1
        for strength in sums:
            error = float(np.mean((np.float64(apply(denoise, noisy, strength)) - target) ** 2))
            sums[strength] += min(-10 * np.log10(error), PSNR_CEILING) if error else PSNR_CEILING
            look()
    if not count or not sums:
        return Choice(baseline.default, {})
    tried = {strength: total / count for strength, total in sums.items()}
    return Choice(max(tried, key=lambda strength: tried[strength]), tried)
