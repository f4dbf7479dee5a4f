"""Losses: one value per example; the step takes the mean."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2p_jax.lookup import UserError
from p2p_jax.metrics import SSIM_WINDOW

PixelLoss = Callable[[jax.Array, jax.Array], jax.Array]
ValueRange = tuple[float, float]
PyTree = Any


class GanLoss(NamedTuple):
    """The three terms of an adversarial loss; each maps the scores (n, …) of one scale to (n,).

    Attributes:
      real: what the discriminator pays on real images.
      generated: what the discriminator pays on generated images.
      generator: what the generator pays on generated images.
      on_logits: whether the discriminator's output must be unbounded.
      gradient_penalty: whether the loss includes WGAN-GP's penalty, which the step computes.
    """

    real: Callable[[jax.Array], jax.Array]
    generated: Callable[[jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]
    on_logits: bool
    gradient_penalty: bool = False


def mean_per_example(values: jax.Array) -> jax.Array:
    """Means over all axes but the first: (n, …) to (n,)."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def over_scales(term: Callable[[jax.Array], jax.Array], scores: PyTree) -> jax.Array:
    """Sums a term over a discriminator's scales (Wang et al. 2018, equation 2): arrays (n, …) to (n,)."""
    return functools.reduce(operator.add, map(term, jax.tree.leaves(scores)))


def feature_matching(generated: PyTree, real: PyTree, scales: int) -> jax.Array:
    """Mean absolute difference of what a discriminator's layers give (Wang et al. 2018, equation 3), (n,).

    Summed over the layers, and the mean over the scales, as in pix2pixHD's code, which weighs it with λ = 10. It does
    not depend on the value range by itself, but on what D makes of it.

    Args:
      generated: arrays (n, …), of all layers of all scales.
      real: likewise.
      scales: how many there are.
    """
    pairs = zip(jax.tree.leaves(generated), jax.tree.leaves(real), strict=True)
    return functools.reduce(operator.add, [l1(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in pairs]) / scales


def _cross_entropy(label: float) -> Callable[[jax.Array], jax.Array]:
    return lambda logits: mean_per_example(optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, label)))


def _squared_error(label: float) -> Callable[[jax.Array], jax.Array]:
    return lambda scores: mean_per_example(jnp.square(scores - label))


def _towards(sign: int) -> Callable[[jax.Array], jax.Array]:
    return lambda scores: sign * mean_per_example(scores)


def _hinge(sign: int) -> Callable[[jax.Array], jax.Array]:
    return lambda scores: mean_per_example(jax.nn.relu(1 + sign * scores))


def _vanilla(label_smoothing: float) -> GanLoss:
    """Goodfellow et al. 2014, section 3, with the non-saturating term for the generator."""
    return GanLoss(_cross_entropy(1 - label_smoothing), _cross_entropy(0.0), _cross_entropy(1.0), on_logits=True)


def _lsgan(label_smoothing: float) -> GanLoss:
    """Mao et al. 2017, equation 9 (a=0, b=c=1), without its factors 1/2, as the reference pix2pix."""
    return GanLoss(_squared_error(1 - label_smoothing), _squared_error(0.0), _squared_error(1.0), on_logits=False)


def _without_labels(mode: str, loss: GanLoss, label_smoothing: float) -> GanLoss:
    if label_smoothing:
        raise UserError(f'gan.label_smoothing={label_smoothing}: gan.mode={mode!r} has no labels to smooth; expected 0')
    return loss


# Each takes `label_smoothing`: one-sided, as Salimans et al. 2016, section 3.4: the real target is 1 less that.
# hinge: Lim and Ye 2017, as Miyato et al. 2018, equations 16 and 17.
# wgan_gp: Gulrajani et al. 2017, equation 3; a critic's scores have no bounds, and their differences count only.
GAN_LOSSES: dict[str, Callable[[float], GanLoss]] = {
    'vanilla': _vanilla,
    'lsgan': _lsgan,
    'hinge': functools.partial(_without_labels, 'hinge', GanLoss(_hinge(-1), _hinge(1), _towards(-1), on_logits=True)),
    'wgan_gp': functools.partial(
        _without_labels,
        'wgan_gp',
        GanLoss(_towards(-1), _towards(1), _towards(-1), on_logits=True, gradient_penalty=True),
    ),
}


def l1(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute error of each example: (n, h, w, c) twice to (n,), in units of the value range.

    pix2pix weighs it with λ = 100 for values in [-1, 1]; in [0, 1] the same image costs half as much.
    """
    return mean_per_example(jnp.abs(output - target))


def l2(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error of each example: (n, h, w, c) twice to (n,), in squared units of the value range.

    For values in [0, 1] the same image costs a quarter of what it costs in [-1, 1].
    """
    return mean_per_example(jnp.square(output - target))


def charbonnier(output: jax.Array, target: jax.Array) -> jax.Array:
    """L1 rounded off below ε = 1e-3 (Lai et al. 2017, section 3.2): (n, h, w, c) twice to (n,).

    In units of the value range, as is ε: equal images cost 1e-3, and L1's weights fit.
    """
    return mean_per_example(jnp.sqrt(jnp.square(output - target) + 1e-6))


def psnr(value_range: ValueRange) -> PixelLoss:
    """Returns minus the PSNR in dB: NAFNet's loss (Chen et al. 2022, `PSNRLoss` of its code).

    10 log₁₀(m + 1e-8), where m is an example's mean squared error once the value range is scaled to a length of 1. The
    value and the weight therefore mean the same in every range: a weight of 1 gains 1 for a dB. The least is -80.
    """
    peak = value_range[1] - value_range[0]

    def loss(output: jax.Array, target: jax.Array) -> jax.Array:
        return 10 / np.log(10) * jnp.log(l2(output / peak, target / peak) + 1e-8)

    return loss


def _blur(images: jax.Array) -> jax.Array:
    """SSIM's window, Gaussian with σ 1.5, where it lies wholly inside: (n, h, w, c) to (n, h - 10, w - 10, c).

    As products with banded matrices, which is several times faster than convolutions on the CPU, gradient included.
    """
    window = np.exp(-0.5 * ((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) / 1.5) ** 2)
    window /= window.sum()

    def band(size: int) -> np.ndarray:
        rows = size - SSIM_WINDOW + 1
        return np.asarray(sum(w * np.eye(rows, size, k) for k, w in enumerate(window)), np.float32)

    # The highest precision, for variances are small differences of large numbers.
    return jnp.einsum(
        'ih,nhwc,jw->nijc', band(images.shape[1]), images, band(images.shape[2]), precision=jax.lax.Precision.HIGHEST
    )


def _similarity(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Luminance and contrast-structure, the factors of SSIM at every pixel (Wang et al. 2004, section III.B).

    Args:
      x: (n, h, w, c) in [0, 1].
      y: likewise.

    Returns:
      Two arrays (n, h - 10, w - 10, c).
    """
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y, xx, yy, xy = jnp.split(_blur(jnp.concatenate([x, y, x * x, y * y, x * y])), 5)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    covariance, variances = xy - mean_x * mean_y, xx - mean_x**2 + yy - mean_y**2
    return luminance, (2 * covariance + c2) / (variances + c2)


def _check_size(name: str, image: jax.Array, least: int) -> None:
    height, width = image.shape[1:3]
    if min(height, width) < least:
        raise ValueError(f'{name} is not defined for an image of {height}×{width} pixels: expected sides of {least}')


def _to_unit(value_range: ValueRange, *images: jax.Array) -> tuple[jax.Array, ...]:
    low, high = value_range
    return tuple((image - low) / (high - low) for image in images)


def ssim(value_range: ValueRange) -> PixelLoss:
    """Returns 1 - SSIM, the mean over pixels and channels as in `metrics.ssim`: from 0 (equal) to 2.

    SSIM compares brightness as well, so that images are first mapped to [0, 1], where they are also scored: its value
    and its weight mean the same in every range. Sides of at least SSIM_WINDOW.
    """

    def loss(output: jax.Array, target: jax.Array) -> jax.Array:
        _check_size('ssim', output, SSIM_WINDOW)
        luminance, structure = _similarity(*_to_unit(value_range, output, target))
        return 1 - mean_per_example(luminance * structure)

    return loss


# Wang et al. 2003, section 4: of the scales, the finest first.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIZE = SSIM_WINDOW * 2 ** (len(_SCALE_WEIGHTS) - 1)  # pixels; smaller images have no MS-SSIM
# A scale whose structure correlates less than this counts as this and has no gradient: the slope of a power with an
# exponent below 1 grows without bound towards 0, and negative numbers have none.
_LEAST_SIMILARITY = 1e-3


def _halve(images: jax.Array) -> jax.Array:
    """Means over blocks of 2×2; the last row of an odd height is dropped, and the same for the last column."""
    n, h, w, c = images.shape
    blocks = images[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return jnp.mean(blocks, axis=(2, 4))


def ms_ssim(value_range: ValueRange) -> PixelLoss:
    """Returns 1 - MS-SSIM (Wang et al. 2003, equation 7): from 0 (equal) to 1.

    Five scales, of each channel by itself, then the mean over channels; in [0, 1], as `ssim`, so that the weight means
    the same in every value range. Raises a ValueError for sides below MS_SSIM_SIZE.
    """

    def loss(output: jax.Array, target: jax.Array) -> jax.Array:
        _check_size('ms_ssim', output, MS_SSIM_SIZE)
        x, y = _to_unit(value_range, output, target)
        product = jnp.ones((len(output), output.shape[-1]))
        for scale, weight in enumerate(_SCALE_WEIGHTS):
            if scale:
                x, y = _halve(x), _halve(y)
            luminance, structure = _similarity(x, y)
            # Brightness is compared at the coarsest scale only.
            similar = structure * luminance if scale == len(_SCALE_WEIGHTS) - 1 else structure
            product *= jnp.maximum(jnp.mean(similar, axis=(1, 2)), _LEAST_SIMILARITY) ** weight
        return 1 - jnp.mean(product, axis=1)

    return loss


def tv(output: jax.Array, target: jax.Array) -> jax.Array:
    """Anisotropic total variation of the output (after Rudin et al. 1992); the target plays no part.

    Mean absolute difference of vertical neighbours plus that of horizontal ones, (n, h, w, c) to (n,), sides of at
    least 2; in units of the value range, so that in [0, 1] the same image costs half of what it costs in [-1, 1].
    """
    del target
    return mean_per_example(jnp.abs(jnp.diff(output, axis=1))) + mean_per_example(jnp.abs(jnp.diff(output, axis=2)))


# Each takes the value range of the images inside the networks. The name is also the key of the weight:
# loss.<name>.weight.
PIXEL_LOSSES: dict[str, Callable[[ValueRange], PixelLoss]] = {
    'l1': lambda value_range: l1,
    'l2': lambda value_range: l2,
    'charbonnier': lambda value_range: charbonnier,
    'psnr': psnr,
    'ssim': ssim,
    'ms_ssim': ms_ssim,
    'tv': lambda value_range: tv,
}
# The least side of a training image, where a loss asks for one.
LEAST_SIZES = {'ssim': SSIM_WINDOW, 'ms_ssim': MS_SSIM_SIZE, 'tv': 2}
