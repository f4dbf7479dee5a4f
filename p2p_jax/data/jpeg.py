"""The losses of baseline JPEG (ITU-T T.81), as libjpeg makes them at its defaults and Pillow after it."""

import math

import jax
import jax.numpy as jnp

from p2p_jax.data.basics import Bounds, Degradation, integer

# Annex K: quantisation steps at quality 50, rows by vertical frequency.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# JFIF: RGB to Y, Cb, Cr, rows in that order; the latter two have 128 added.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


def jpeg(quality: Bounds) -> Degradation:
    """Encodes as JPEG and decodes again.

    Args:
      quality: libjpeg's, 1 to 100; whole numbers, each as likely.

    Returns:
      A function of an image of one or three channels and a key.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        return jpeg_round_trip(image, integer(key, quality))

    return degrade


def jpeg_round_trip(image: jax.Array, quality: jax.Array) -> jax.Array:
    """Returns what is left of an image after JPEG: with three channels, chroma at half the resolution (4:2:0).

    Args:
      image: (height, width, 1 or 3) in [0, 1]; rounded to 8 bits first.
      quality: int32, 1 to 100.

    Returns:
      The same shape, multiples of 1/255.

    Raises:
      ValueError: another number of channels.
    """
    height, width, channels = image.shape
    if channels not in (1, 3):
        raise ValueError(f'JPEG has one or three channels, not {channels}')
    multiple = 8 if channels == 1 else 16
    padding = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    image = _round(jnp.pad(image, padding, mode='edge') * 255)
    if channels == 1:
        result = _code_plane(image[..., 0], _LUMINANCE, quality)[..., None]
    else:
        result = _code_colour(image, quality)
    return result[:height, :width] / 255


def _code_colour(image: jax.Array, quality: jax.Array) -> jax.Array:
    """Codes (height, width, 3) with sides that divide by 16; whole numbers from 0 to 255, as the result."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    luma, cb, cr = (a * red + b * green + c * blue for a, b, c in _TO_YCC)
    luma = _code_plane(_round(luma), _LUMINANCE, quality)
    # libjpeg rounds halves down here, lest the bluest blue become 256.
    cb, cr = (_code_chroma(jnp.floor(plane + 128.4999), quality) - 128 for plane in (cb, cr))
    planes = (luma + 1.402 * cr, luma - 0.344136286 * cb - 0.714136286 * cr, luma + 1.772 * cb)
    return jnp.clip(_round(jnp.stack(planes, axis=-1)), 0, 255)


def _code_chroma(plane: jax.Array, quality: jax.Array) -> jax.Array:
    """Halves (height, width) by means of 2×2, codes, and doubles by linear interpolation (libjpeg's "fancy" one).

    Like libjpeg, rounds halves down in one column and up in the next, so that colours keep their mean.
    """
    height, width = plane.shape
    odd = jnp.arange(width) % 2
    small = _round(plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) + (odd[: width // 2] - 1) / 4)
    large = jax.image.resize(_code_plane(small, _CHROMINANCE, quality), (height, width), 'linear')
    return _round(large - odd / 16)


def _code_plane(plane: jax.Array, table: tuple[tuple[int, ...], ...], quality: jax.Array) -> jax.Array:
    """Quantises the cosine transforms of 8×8 blocks.

    Args:
      plane: (height, width), sides that divide by 8; whole numbers from 0 to 255.
      table: steps at quality 50.
      quality: int32, 1 to 100.

    Returns:
      The decoded plane, likewise.
    """
    # libjpeg's jpeg_quality_scaling and jpeg_add_quant_table, in whole numbers like them.
    percent = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    steps = jnp.clip((jnp.array(table).reshape(64) * percent + 50) // 100, 1, 255)
    basis = _cosines()
    height, width = plane.shape
    blocks = plane.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).reshape(-1, 64)
    coefficients = jnp.matmul(blocks - 128, basis.T, precision=jax.lax.Precision.HIGHEST)
    coefficients = jnp.sign(coefficients) * _round(jnp.abs(coefficients) / steps) * steps
    blocks = jnp.matmul(coefficients, basis, precision=jax.lax.Precision.HIGHEST)
    plane = blocks.reshape(height // 8, width // 8, 8, 8).swapaxes(1, 2).reshape(height, width)
    return jnp.clip(_round(plane + 128), 0, 255)


def _round(x: jax.Array) -> jax.Array:
    """Rounds halves up, also those that a sum's order put a hair below: they are common, and a step may be large."""
    return jnp.floor(x + 0.5001)


def _cosines() -> jax.Array:
    """Returns the orthonormal cosine transform of 8×8 pixels as a matrix: 64 frequencies by 64 pixels."""
    scale = [math.sqrt(1 / 8)] + [math.sqrt(2 / 8)] * 7
    rows = [[scale[k] * math.cos(math.pi * k * (2 * n + 1) / 16) for n in range(8)] for k in range(8)]
    return jnp.kron(jnp.array(rows), jnp.array(rows))
