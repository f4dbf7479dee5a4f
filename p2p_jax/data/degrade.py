"""Synthetic degradations: pure functions of one image and a key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Degradation = Callable[[jax.Array, jax.Array], jax.Array]


def srgb_to_linear(image: jax.Array) -> jax.Array:
    """Undoes the sRGB transfer curve (IEC 61966-2-1); values in [0, 1]."""
    return jnp.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(image: jax.Array) -> jax.Array:
    """Applies the sRGB transfer curve (IEC 61966-2-1); values in [0, 1]."""
    # The power's slope is infinite at 0, where the linear branch is the one that counts.
    power = 1.055 * jnp.maximum(image, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.where(image <= 0.0031308, image * 12.92, power)


def poisson_gaussian(shot: tuple[float, float], read: tuple[float, float]) -> Degradation:
    """Camera-like noise: signal-dependent in linear light, then back to sRGB.

    The Poisson part is taken as a normal variable of the same variance, so that the noisy value is normal with
    variance `shot` · x + `read`² (Foi et al. 2008, "Practical Poissonian-Gaussian noise modeling and fitting", eq. 4).

    Args:
      shot: lowest and highest gain of the shot noise, in units of full scale; drawn log-uniformly for each image.
      read: likewise the standard deviation of the read noise.

    Returns:
      A function of an image (height, width, channels) with values in [0, 1] and a key, which gives the noisy image
      in the same shape and range.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        shot_key, read_key, noise_key = jax.random.split(key, 3)
        gain = _log_uniform(shot_key, shot)
        sigma = _log_uniform(read_key, read)
        light = srgb_to_linear(image)
        noise = jax.random.normal(noise_key, image.shape) * jnp.sqrt(gain * light + sigma**2)
        return linear_to_srgb(jnp.clip(light + noise, 0.0, 1.0))

    return degrade


def _log_uniform(key: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    low, high = jnp.log(bounds[0]), jnp.log(bounds[1])
    return jnp.exp(jax.random.uniform(key, minval=low, maxval=high)) if bounds[0] != bounds[1] else jnp.exp(low)


DEGRADATIONS: dict[str, Callable[..., Degradation]] = {'poisson_gaussian': poisson_gaussian}
