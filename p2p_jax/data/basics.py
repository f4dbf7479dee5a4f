"""What all degradations share: their type, the draw of a strength, the sRGB curve."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (image, key) to an image of the same shape: (height, width, channels), float32 in [0, 1].
Degradation = Callable[[jax.Array, jax.Array], jax.Array]
# Lowest and highest strength, drawn anew for each image; equal values fix it.
Bounds = tuple[float, float]


def uniform(key: jax.Array, bounds: Bounds) -> jax.Array:
    """Draws a number uniformly from [lowest, highest]."""
    return jax.random.uniform(key, minval=bounds[0], maxval=bounds[1])


def log_uniform(key: jax.Array, bounds: Bounds) -> jax.Array:
    """Draws a positive number whose logarithm is uniform: all orders of magnitude are as likely."""
    low, high = jnp.log(bounds[0]), jnp.log(bounds[1])
    return jnp.exp(jax.random.uniform(key, minval=low, maxval=high)) if bounds[0] != bounds[1] else jnp.exp(low)


def integer(key: jax.Array, bounds: Bounds) -> jax.Array:
    """Draws a whole number, each from lowest to highest as likely; int32."""
    return jax.random.randint(key, (), int(bounds[0]), int(bounds[1]) + 1)


def srgb_to_linear(image: jax.Array) -> jax.Array:
    """Undoes the sRGB transfer curve (IEC 61966-2-1); values in [0, 1]."""
    return jnp.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(image: jax.Array) -> jax.Array:
    """Applies the sRGB transfer curve (IEC 61966-2-1); values in [0, 1]."""
    # The power's slope is infinite at 0, where the linear branch is the one that counts.
    power = 1.055 * jnp.maximum(image, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.minimum(jnp.where(image <= 0.0031308, image * 12.92, power), 1)  # rounding may exceed it
