"""A camera in small: mosaic of colours, noise, demosaicing, white balance, tone curve, JPEG."""

import jax
import jax.numpy as jnp

from p2p_jax.data.basics import Bounds, Degradation, integer, linear_to_srgb, log_uniform, srgb_to_linear, uniform
from p2p_jax.data.jpeg import jpeg_round_trip


def camera(shot: Bounds, read: Bounds, quality: Bounds, red_gain: Bounds, blue_gain: Bounds) -> Degradation:
    """Noise as photographs have it: made on the sensor, then spread over neighbours and channels by the camera.

    Goes back from the photograph to the sensor (as Brooks et al. 2019, "Unprocessing images for learned raw
    denoising", without their colour matrix and global tone curve), adds noise as `poisson_gaussian` does, and develops.

    Args:
      shot: gain of the shot noise on the sensor, in units of full scale; drawn log-uniformly.
      read: likewise the standard deviation of the read noise.
      quality: of the JPEG, 1 to 100; whole numbers, each as likely.
      red_gain: white balance, red over green; at least 1; drawn uniformly.
      blue_gain: likewise blue over green.

    Returns:
      A function of an image of three channels and a key; it raises a ValueError for another number of channels.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        if image.shape[-1] != 3:
            raise ValueError(f'a camera has three channels, not {image.shape[-1]}')
        shot_key, read_key, noise_key, red_key, blue_key, quality_key = jax.random.split(key, 6)
        gains = jnp.stack([uniform(red_key, red_gain), jnp.float32(1), uniform(blue_key, blue_gain)])
        light = mosaic(srgb_to_linear(image) / gains)
        deviation = jnp.sqrt(log_uniform(shot_key, shot) * light + log_uniform(read_key, read) ** 2)
        # A sensor saturates, but has an offset that keeps what the noise pulls below 0.
        light = jnp.minimum(light + jax.random.normal(noise_key, light.shape) * deviation, 1)
        developed = linear_to_srgb(jnp.clip(demosaic(light) * gains, 0, 1))
        return jpeg_round_trip(developed, integer(quality_key, quality))

    return degrade


def mosaic(image: jax.Array) -> jax.Array:
    """Keeps one channel of each pixel, as an RGGB filter: (height, width, 3) to (height, width)."""
    top, left = _parity(*image.shape[:2])
    green = image[..., 1]
    return jnp.where(top, jnp.where(left, image[..., 0], green), jnp.where(left, green, image[..., 2]))


def demosaic(raw: jax.Array) -> jax.Array:
    """Fills in the channels that an RGGB filter left out; the inverse of `mosaic` where colours are constant.

    Malvar, He and Cutler 2004, "High-quality linear interpolation for demosaicing of Bayer-patterned color images",
    figure 2. Beyond the border the image is mirrored at its outermost pixels, which keeps the pattern.

    Args:
      raw: (height, width).

    Returns:
      (height, width, 3); may exceed the range of `raw`.
    """
    height, width = raw.shape
    padded = jnp.pad(raw, 2, mode='reflect')

    def at(down: int, right: int) -> jax.Array:
        return padded[2 + down : 2 + down + height, 2 + right : 2 + right + width]

    rows, columns = at(-1, 0) + at(1, 0), at(0, -1) + at(0, 1)  # the neighbours above and below, and beside
    far_rows, far_columns = at(-2, 0) + at(2, 0), at(0, -2) + at(0, 2)
    diagonals = at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1)
    green = (4 * raw + 2 * (rows + columns) - far_rows - far_columns) / 8
    beside = (5 * raw + 4 * columns - diagonals - far_columns + far_rows / 2) / 8  # the colour of the pixels beside
    above = (5 * raw + 4 * rows - diagonals - far_rows + far_columns / 2) / 8
    opposite = (6 * raw + 2 * diagonals - 1.5 * (far_rows + far_columns)) / 8  # blue at red, red at blue

    top, left = _parity(height, width)
    return jnp.stack(
        [
            jnp.where(top, jnp.where(left, raw, beside), jnp.where(left, above, opposite)),
            jnp.where(top == left, green, raw),
            jnp.where(top, jnp.where(left, opposite, above), jnp.where(left, beside, raw)),
        ],
        axis=-1,
    )


def _parity(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns whether the pixels are in an even row, (height, 1), and in an even column, (width,)."""
    return jnp.arange(height)[:, None] % 2 == 0, jnp.arange(width) % 2 == 0
