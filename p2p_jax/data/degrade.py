"""Synthetic degradations by name: each is a pure function of one image and a key.

An image is (height, width, channels), float32 in [0, 1], and so is the result. What makes a degradation takes its
strengths as pairs (lowest, highest), from which one is drawn for each image; equal values fix it. Values that leave
[0, 1] are clipped. Noise is drawn for each channel by itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from p2p_jax.data.basics import Bounds, Degradation, integer, linear_to_srgb, log_uniform, srgb_to_linear, uniform
from p2p_jax.data.blur import gaussian_blur, lens_blur, motion_blur, resample
from p2p_jax.data.camera import camera
from p2p_jax.data.jpeg import jpeg

CUT_SIDE = 0.7  # of the image's sides: CutBlur's rectangle


def awgn(mean: float, std: Bounds, percentage: Bounds) -> Degradation:
    """Additive white Gaussian noise: x + N(mean, std) · percentage.

    Args:
      mean: of the noise, before `percentage`.
      std: its standard deviation, drawn uniformly.
      percentage: how much of it is added (1: all), drawn uniformly.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        std_key, percentage_key, noise_key = jax.random.split(key, 3)
        noise = mean + uniform(std_key, std) * jax.random.normal(noise_key, image.shape)
        return jnp.clip(image + noise * uniform(percentage_key, percentage), 0, 1)

    return degrade


def poisson(peak: Bounds) -> Degradation:
    """Photon noise: Poisson(x · peak) / peak, of variance x / peak.

    Args:
      peak: photons at full scale, drawn log-uniformly; the fewer, the more noise.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        peak_key, noise_key = jax.random.split(key)
        photons = log_uniform(peak_key, peak)
        return jnp.clip(jax.random.poisson(noise_key, image * photons) / photons, 0, 1)

    return degrade


def poisson_gaussian(shot: Bounds, read: Bounds) -> Degradation:
    """Camera-like noise: signal-dependent in linear light, then back to sRGB.

    The Poisson part is taken as a normal variable of the same variance, so that the noisy value is normal with
    variance `shot` · x + `read`² (Foi et al. 2008, "Practical Poissonian-Gaussian noise modeling and fitting", eq. 4).

    Args:
      shot: gain of the shot noise, in units of full scale; drawn log-uniformly.
      read: likewise the standard deviation of the read noise.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        shot_key, read_key, noise_key = jax.random.split(key, 3)
        gain = log_uniform(shot_key, shot)
        sigma = log_uniform(read_key, read)
        light = srgb_to_linear(image)
        noise = jax.random.normal(noise_key, image.shape) * jnp.sqrt(gain * light + sigma**2)
        return linear_to_srgb(jnp.clip(light + noise, 0.0, 1.0))

    return degrade


def salt_and_pepper(amount: Bounds) -> Degradation:
    """Sets values to 0 or to 1, either as likely.

    Args:
      amount: share of the values that are set, drawn uniformly.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        amount_key, noise_key = jax.random.split(key)
        half = uniform(amount_key, amount) / 2
        draw = jax.random.uniform(noise_key, image.shape)
        return jnp.where(draw < half, 0, jnp.where(draw < 2 * half, 1, image))

    return degrade


def speckle(std: Bounds) -> Degradation:
    """Multiplicative noise: x + x · N(0, std).

    Args:
      std: standard deviation, drawn uniformly.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        std_key, noise_key = jax.random.split(key)
        noise = uniform(std_key, std) * jax.random.normal(noise_key, image.shape)
        return jnp.clip(image + image * noise, 0, 1)

    return degrade


def quantisation(levels: Bounds) -> Degradation:
    """Rounds to evenly spaced levels, of which 0 and 1 are the outermost.

    Args:
      levels: how many, at least 2; whole numbers, each as likely.
    """

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        steps = integer(key, levels) - 1
        return jnp.round(image * steps) / steps

    return degrade


def chain(*degradations: Degradation) -> Degradation:
    """Applies degradations one after the other, each with a key of its own; a single one as if it were alone."""
    if len(degradations) == 1:
        return degradations[0]

    def degrade(image: jax.Array, key: jax.Array) -> jax.Array:
        for degradation, own_key in zip(degradations, jax.random.split(key, len(degradations)), strict=True):
            image = degradation(image, own_key)
        return image

    return degrade


def cut_blur(condition: jax.Array, target: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """CutBlur: the condition with a rectangle of the target, or the target with a rectangle of the condition.

    Yoo et al. 2020, "Rethinking data augmentation for image super-resolution". Either is as likely. As in the authors'
    code, the rectangle has the image's proportions and lies anywhere inside; its sides are N(0.7, 0.01) of the image's.

    Args:
      condition: (height, width, channels).
      target: of the same shape.
      key: draws everything.
      probability: with which anything is changed.

    Returns:
      What takes the condition's place; the target stays.
    """
    apply_key, side_key, place_key, swap_key = jax.random.split(key, 4)
    share = jnp.clip(CUT_SIDE + 0.01 * jax.random.normal(side_key), 0, 1)
    inside = []
    for side, own_key in zip(condition.shape[:2], jax.random.split(place_key), strict=True):
        length = (side * share).astype(jnp.int32)
        pixels = jnp.arange(side) - jax.random.randint(own_key, (), 0, side - length + 1)
        inside.append((pixels >= 0) & (pixels < length))
    from_target = (inside[0][:, None] & inside[1]) ^ jax.random.bernoulli(swap_key)
    return jnp.where(from_target[..., None] & jax.random.bernoulli(apply_key, probability), target, condition)


DEGRADATIONS: dict[str, Callable[..., Degradation]] = {
    'awgn': awgn,
    'camera': camera,
    'gaussian_blur': gaussian_blur,
    'jpeg': jpeg,
    'lens_blur': lens_blur,
    'motion_blur': motion_blur,
    'poisson': poisson,
    'poisson_gaussian': poisson_gaussian,
    'quantisation': quantisation,
    'resample': resample,
    'salt_and_pepper': salt_and_pepper,
    'speckle': speckle,
}
