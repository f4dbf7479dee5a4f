"""Losses: one value per example; the step takes the mean."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

PixelLoss = Callable[[jax.Array, jax.Array], jax.Array]


class GanLoss(NamedTuple):
    """The three terms of an adversarial loss; each maps the discriminator's output (n, …) to (n,).

    Attributes:
      real: what the discriminator pays on real images.
      generated: what the discriminator pays on generated images.
      generator: what the generator pays on generated images.
      on_logits: whether the discriminator's output must be unbounded.
    """

    real: Callable[[jax.Array], jax.Array]
    generated: Callable[[jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]
    on_logits: bool


def _mean_per_example(values: jax.Array) -> jax.Array:
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def _cross_entropy(label: float) -> Callable[[jax.Array], jax.Array]:
    return lambda logits: _mean_per_example(optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, label)))


def _squared_error(label: float) -> Callable[[jax.Array], jax.Array]:
    return lambda scores: _mean_per_example(jnp.square(scores - label))


# vanilla: Goodfellow et al. 2014, section 3, with the non-saturating term for the generator.
# lsgan: Mao et al. 2017, equation 9 (a=0, b=c=1), without its factors 1/2, as the reference pix2pix.
GAN_LOSSES: dict[str, GanLoss] = {
    'vanilla': GanLoss(_cross_entropy(1.0), _cross_entropy(0.0), _cross_entropy(1.0), on_logits=True),
    'lsgan': GanLoss(_squared_error(1.0), _squared_error(0.0), _squared_error(1.0), on_logits=False),
}


def l1(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute error of each example: (n, h, w, c) twice to (n,), in units of the value range.

    pix2pix weighs it with λ = 100 for values in [-1, 1]; in [0, 1] the same image costs half as much.
    """
    return _mean_per_example(jnp.abs(output - target))


# The name is also the key of the weight: loss.<name>.weight.
PIXEL_LOSSES: dict[str, PixelLoss] = {'l1': l1}
