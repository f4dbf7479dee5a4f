"""Loss of sharpness: blurs with a kernel of their own for each image, and lost resolution.

Beyond the border, blurs see the image mirrored (… b a | a b c …). The kernels' arrays have the size that the
strongest blur needs; only their values depend on the draw. They are applied in the frequency domain, since XLA's
convolution with a kernel for each example is slow on CPUs.
"""

import math

import jax
import jax.numpy as jnp

from p2p_jax.data.basics import Bounds, Degradation, linear_to_srgb, srgb_to_linear, uniform

_EXACT = jax.lax.Precision.HIGHEST  # accelerators otherwise round the factors of a product to fewer bits


def gaussian_blur(sigma: Bounds) -> Degradation:
    """Gaussian blur, cut off at 4 standard deviations of the widest.

    Args:
      sigma: standard deviation in pixels, drawn uniformly; 0 leaves the image as it is.
    """
    reach = int(4 * sigma[1] + 0.5)

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        return convolve(image, gaussian_kernel(uniform(key, sigma), reach))

    return degrade


def lens_blur(radius: Bounds, linear_light: bool) -> Degradation:
    """Blur of a lens out of focus: every point becomes a disc.

    Args:
      radius: of the disc in pixels, drawn uniformly; up to 0.5, where it lies within a pixel, nothing changes.
      linear_light: whether the blur happens before the sRGB curve, as in a lens, where highlights grow into discs.
    """
    reach = math.ceil(radius[1])

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        kernel = disc_kernel(uniform(key, radius), reach)
        return linear_to_srgb(convolve(srgb_to_linear(image), kernel)) if linear_light else convolve(image, kernel)

    return degrade


def motion_blur(length: Bounds, angle: Bounds) -> Degradation:
    """Blur of a camera that moved along a line at even speed while the shutter was open.

    Args:
      length: way in pixels, drawn uniformly; 0 leaves the image as it is.
      angle: of the way in degrees, from the horizontal, anticlockwise; drawn uniformly.
    """
    reach = math.ceil(length[1] / 2)

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        length_key, angle_key = jax.random.split(key)
        return convolve(image, line_kernel(uniform(length_key, length), uniform(angle_key, angle), reach))

    return degrade


def resample(factor: Bounds) -> Degradation:
    """Makes the image smaller and large again, both by antialiased cubic interpolation.

    The small image has a whole number of pixels a side, at least one, and its values are clipped to [0, 1].

    Args:
      factor: sides of the image over sides of the small one, at least 1, drawn uniformly.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        drawn = uniform(key, factor)
        down, up = zip(*(_resampling(side, drawn, factor[0]) for side in image.shape[:2]), strict=True)
        return _resize(_resize(image, *down), *up)

    return degrade


def gaussian_kernel(sigma: jax.Array, reach: int) -> jax.Array:
    """Returns the samples of a Gaussian, (2 · reach + 1,) squared, of sum 1."""
    offsets = jnp.arange(-reach, reach + 1)
    # At a thousandth of a pixel all but the central sample underflow to 0.
    samples = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)
    samples /= samples.sum()
    return samples[:, None] * samples


def disc_kernel(radius: jax.Array, reach: int) -> jax.Array:
    """Returns each pixel's share of the area of a disc, (2 · reach + 1,) squared, exact but for rounding.

    The area that the disc shares with the rectangle from its centre to (x, y) is, for x and y from 0 to the radius r,
    ∫₀ˣ min(y, √(r² - t²)) dt. Its mixed differences between the pixels' edges are the areas of the pixels.
    """
    r = jnp.maximum(radius, 1e-3)  # as good as a point, and what is divided by is not 0
    edges = jnp.arange(-reach, reach + 2) - 0.5
    x, y = jnp.minimum(jnp.abs(edges), r)[:, None], jnp.minimum(jnp.abs(edges), r)

    def circle(t: jax.Array) -> jax.Array:
        return jnp.sqrt((r - t) * (r + t))  # unlike a difference of squares, never below 0 by rounding

    def primitive(t: jax.Array) -> jax.Array:
        return (t * circle(t) + r**2 * jnp.arctan2(t, circle(t))) / 2

    bend = jnp.minimum(x, circle(y))  # from here on, the rectangle's side lies above the circle
    area = jnp.sign(edges)[:, None] * jnp.sign(edges) * (y * bend + primitive(x) - primitive(bend))
    kernel = jnp.maximum(jnp.diff(jnp.diff(area, axis=0), axis=1), 0)
    return kernel / kernel.sum()


def line_kernel(length: jax.Array, angle: jax.Array, reach: int) -> jax.Array:
    """Returns the mean of bilinear shifts along a line through the centre, (2 · reach + 1,) squared.

    Args:
      length: of the line in pixels, at most 2 · reach.
      angle: in degrees, from the horizontal, anticlockwise.
      reach: pixels on each side of the centre.
    """
    count = 8 * reach + 1  # at least four to a pixel
    way = ((jnp.arange(count) + 0.5) / count - 0.5) * length
    radians = jnp.deg2rad(angle)
    offsets = jnp.arange(-reach, reach + 1)
    rows = jnp.maximum(1 - jnp.abs(offsets + way[:, None] * jnp.sin(radians)), 0)  # rows count downwards
    columns = jnp.maximum(1 - jnp.abs(offsets - way[:, None] * jnp.cos(radians)), 0)
    return jnp.einsum('ni,nj->ij', rows, columns, precision=_EXACT) / count


def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel with a kernel of odd sides, over a mirrored border; the result is clipped to [0, 1]."""
    height, width, _ = image.shape
    reach = kernel.shape[0] // 2
    if not reach:
        return image
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode='symmetric').transpose(2, 0, 1)
    # The ends wrap around, but only into what is cut off.
    sides = (_smooth(height + 2 * reach), _smooth(width + 2 * reach))
    result = jnp.fft.irfft2(jnp.fft.rfft2(padded, sides) * jnp.fft.rfft2(kernel, sides), sides)
    return jnp.clip(result[:, 2 * reach :, 2 * reach :][:, :height, :width].transpose(1, 2, 0), 0, 1)


def _smooth(size: int) -> int:
    """Returns the next number without prime factors above 5, of which Fourier transforms are fast."""
    rest = size
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return size if rest == 1 else _smooth(size + 1)


def _cubic(x: jax.Array) -> jax.Array:
    """Keys's cubic kernel with a = -0.5 (1981, "Cubic convolution interpolation", eq. 15)."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _resampling(side: int, factor: jax.Array, lowest: float) -> tuple[jax.Array, jax.Array]:
    """Returns the matrices that make a line of pixels smaller and large again: (small, side) and (side, small).

    How many pixels the small line has depends on the factor, and arrays must not: `small` has room for the longest.
    """
    room = math.ceil(side / lowest)
    small = jnp.clip(jnp.round(side / factor), 1, room)
    return _interpolation(room, small, side, jnp.float32(side)), _interpolation(side, jnp.float32(side), room, small)


def _interpolation(rows: int, outputs: jax.Array, columns: int, inputs: jax.Array) -> jax.Array:
    """Returns the matrix (rows, columns) from the first `inputs` pixels of a line to the first `outputs` of another.

    Columns from `inputs` on are 0; rows from `outputs` on mean nothing.
    """
    scale = inputs / outputs
    centres = jnp.minimum((jnp.arange(rows) + 0.5) * scale, inputs) - 0.5
    offsets = jnp.arange(columns) - centres[:, None]
    # A wider kernel when the image becomes smaller is what avoids aliasing.
    weights = jnp.where(jnp.arange(columns) < inputs, _cubic(offsets / jnp.maximum(scale, 1)), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def _resize(image: jax.Array, vertical: jax.Array, horizontal: jax.Array) -> jax.Array:
    image = jnp.einsum('ij,jkc->ikc', vertical, image, precision=_EXACT)
    image = jnp.einsum('ij,kjc->kic', horizontal, image, precision=_EXACT)
    return jnp.clip(image, 0, 1)
