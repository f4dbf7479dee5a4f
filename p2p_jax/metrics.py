"""PSNR and SSIM, the conventions in which they are published, and the collections that average them over a split."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import dm_pix
import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

SSIM_WINDOW = 11  # pixels; smaller images have no SSIM
_SSIM_SIGMA = 1.5  # pixels, of its Gaussian
_SHORT = 512  # pixels, up to which a matrix product filters fastest
PSNR_CEILING = 100.0  # dB given to equal images, so that a mean over examples stays a number


def psnr(image: jax.Array, target: jax.Array, max_value: float) -> jax.Array:
    """Peak signal-to-noise ratio of each example in dB, at most PSNR_CEILING.

    Args:
      image: (n, h, w, c).
      target: of the same shape.
      max_value: the peak: the largest value less the smallest that the images can have.

    Returns:
      (n,).
    """
    return jnp.minimum(dm_pix.psnr(image / max_value, target / max_value), PSNR_CEILING)


def _blur(images: jax.Array, axes: tuple[int, ...] = (-3, -2)) -> jax.Array:
    """Filters with the Gaussian window along axes, by default rows and columns; windows lie wholly inside.

    Short axes by a product with a matrix of the window's places, which is quickest; long ones, of which that would be
    mostly zeros, as a sum of shifted slices. Neither loses bits on an accelerator, as a convolution would.
    """
    # A Gaussian that sums to 1.
    values = np.exp(-0.5 * ((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) / _SSIM_SIGMA) ** 2)
    taps = (values / values.sum()).astype(np.float32)
    for axis in (axis % images.ndim for axis in axes):
        length = images.shape[axis] + 1 - SSIM_WINDOW
        if length <= _SHORT:
            places = sum(tap * np.eye(length, images.shape[axis], i, np.float32) for i, tap in enumerate(taps))
            product = jnp.tensordot(places, images, ((1,), (axis,)), precision='highest')
            images = jnp.moveaxis(product, 0, axis)
        else:
            shifted = [jax.lax.slice_in_dim(images, i, i + length, axis=axis) for i in range(SSIM_WINDOW)]
            images = functools.reduce(operator.add, [tap * part for tap, part in zip(taps, shifted, strict=True)])
    return images


def ssim(image: jax.Array, target: jax.Array, max_value: float) -> jax.Array:
    """Structural similarity of each example (Wang et al. 2004): mean over pixels and channels.

    Each channel by itself, Gaussian window of 11×11 with σ 1.5, windows that lie wholly inside the image.

    Args:
      image: (n, h, w, c), sides of at least SSIM_WINDOW.
      target: of the same shape.
      max_value: the largest value less the smallest that the images can have.

    Returns:
      (n,).
    """
    return dm_pix.ssim(image, target, max_val=max_value, filter_size=SSIM_WINDOW, filter_fn=_blur)


def _blur_volumes(volumes: jax.Array) -> jax.Array:
    """Filters (…, h, w, c) with the Gaussian window along rows, columns and channels; edges are repeated."""
    reach = SSIM_WINDOW // 2
    pads = [(0, 0)] * (volumes.ndim - 3) + [(reach, reach)] * 3
    return _blur(jnp.pad(volumes, pads, mode='edge'), (-3, -2, -1))


def ssim_3d(image: jax.Array, target: jax.Array, max_value: float) -> jax.Array:
    """Structural similarity of each example as one volume of rows, columns and channels, meaned over all of it.

    Gaussian window of 11×11×11 with σ 1.5, edges repeated: what MATLAB's `ssim` computes of an h×w×3 array, and
    NAFNet's evaluation.

    Args:
      image: (n, h, w, c), of any size.
      target: of the same shape.
      max_value: the largest value less the smallest that the images can have.

    Returns:
      (n,).
    """
    # Variances do not depend on where 0 is; with it amid the values, less is lost in their differences of squares.
    shift = max_value / 2
    a, b = image - shift, target - shift
    mean_a, mean_b, square_a, square_b, product = _blur_volumes(jnp.stack([a, b, a * a, b * b, a * b]))
    var_a, var_b, covariance = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    mean_a, mean_b = mean_a + shift, mean_b + shift
    c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return jnp.mean(similarity, axis=(1, 2, 3))


def luma(image: jax.Array) -> jax.Array:
    """Returns Y of ITU-R BT.601 as MATLAB's `rgb2ycbcr` scales it: black is 16 / 255, white 235 / 255.

    Args:
      image: RGB (n, h, w, 3) in [0, 1].

    Returns:
      (n, h, w, 1), not rounded.
    """
    red, green, blue = (image[..., i : i + 1] for i in range(3))
    return (16 + 65.481 * red + 128.553 * green + 24.966 * blue) / 255


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A convention in which scores are published; figures of different ones must not be compared.

    Attributes:
      text: all that the numbers depend on.
      levels: the images are rounded to so many steps from 0, and that is their peak; None: floats with peak 1.
      scores: name to a function of images, targets and their peak to (n,). One name means one number everywhere.
    """

    text: str
    levels: int | None
    scores: Mapping[str, Callable[[jax.Array, jax.Array, float], jax.Array]]

    def __call__(self, image: jax.Array, target: jax.Array, *, y_channel: bool = False) -> dict[str, jax.Array]:
        """Scores each example.

        Args:
          image: (n, h, w, c) in [0, 1].
          target: likewise.
          y_channel: of the Y channel alone, taken after the rounding and not rounded itself; names end in '_y'.
        """
        if self.levels:
            image, target = (jnp.rint(x * self.levels) / self.levels for x in (image, target))
        if y_channel:
            image, target = luma(image), luma(target)
        peak = float(self.levels or 1)
        ending = '_y' if y_channel else ''
        return {name + ending: score(image * peak, target * peak, peak) for name, score in self.scores.items()}


# The first is that of training.
PROTOCOLS: dict[str, Protocol] = {
    'float': Protocol(
        'clamped to [0, 1], not rounded; SSIM per channel, 11×11 Gaussian, σ 1.5, valid (what training prints)',
        None,
        {'psnr': psnr, 'ssim': ssim},
    ),
    'float_3d': Protocol(
        "clamped to [0, 1], not rounded; SSIM 3-D, 11×11×11 Gaussian, σ 1.5, edges repeated (MATLAB's; NAFNet's)",
        None,
        {'psnr': psnr, 'ssim_3d': ssim_3d},
    ),
    'uint8': Protocol(
        "rounded to 8 bits, peak 255; SSIM per channel, 11×11 Gaussian, σ 1.5, valid, mean of channels (BasicSR's)",
        255,
        {'psnr_uint8': psnr, 'ssim_uint8': ssim},
    ),
}


@flax.struct.dataclass
class EvaluationMetrics(metrics.Collection):
    """Means over examples; a `mask` of 0 leaves an example out."""

    input_psnr: metrics.Average.from_output('input_psnr')  # type: ignore[valid-type]
    input_ssim: metrics.Average.from_output('input_ssim')  # type: ignore[valid-type]
    output_psnr: metrics.Average.from_output('output_psnr')  # type: ignore[valid-type]
    output_ssim: metrics.Average.from_output('output_ssim')  # type: ignore[valid-type]


_WITH_LPIPS = metrics.Collection.create(
    **EvaluationMetrics.__annotations__,
    **{name: metrics.Average.from_output(name) for name in ('input_lpips', 'output_lpips')},
)


def evaluation_metrics(
    condition: jax.Array,
    output: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    axis_name: str,
    lpips: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> EvaluationMetrics:
    """Scores inputs and outputs against the targets and gathers them from all devices.

    Args:
      condition: (n, h, w, c) in [0, 1].
      output: likewise.
      target: likewise.
      mask: (n,), 0 for examples that do not count.
      axis_name: of the mapped axis.
      lpips: a third score, (n,) of two images; None leaves it out.
    """
    kind: Any = EvaluationMetrics
    more = {}
    if lpips:
        kind = _WITH_LPIPS
        # An accelerator would take TF32 or bfloat16 for the convolutions; a score should not depend on that.
        with jax.default_matmul_precision('highest'):
            more = {'input_lpips': lpips(condition, target), 'output_lpips': lpips(output, target)}
    return kind.gather_from_model_output(
        axis_name=axis_name,
        mask=mask,
        input_psnr=psnr(condition, target, 1.0),
        input_ssim=ssim(condition, target, 1.0),
        output_psnr=psnr(output, target, 1.0),
        output_ssim=ssim(output, target, 1.0),
        **more,
    )
