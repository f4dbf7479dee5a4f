"""DiffAugment (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", section 3).

Whatever D is shown, real or generated, is augmented first, also where G learns from D: D cannot memorise the few real
images, and G does not learn the augmentation. Strengths and draws are those of the authors' code.

In `AUGMENTATIONS`, an image is (height, width, channels), float32, in [-1, 1] as in the paper, and the result is one of
the same shape. What is uncovered or cut out becomes 0, which is middle grey. Colours may leave [-1, 1]: nothing is
clipped, for a clipped value has no gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from p2p_jax.lookup import pick


def color(image: jax.Array, key: jax.Array) -> jax.Array:
    """Changes brightness, saturation and contrast, in this order.

    Adds a number from [-0.5, 0.5]; multiplies the distance from the pixel's mean over the channels by one from [0, 2],
    and then that from the image's mean by one from [0.5, 1.5].
    """
    brightness, saturation, contrast = jax.random.uniform(key, (3,))
    image = image + (brightness - 0.5)
    grey = jnp.mean(image, axis=-1, keepdims=True)
    image = grey + (image - grey) * (2 * saturation)
    mean = jnp.mean(image)
    return mean + (image - mean) * (contrast + 0.5)


def translation(image: jax.Array, key: jax.Array) -> jax.Array:
    """Moves the image by whole pixels, along each side at most an eighth of it (rounded down) either way."""
    height, width, channels = image.shape
    most = jnp.array([height // 8, width // 8])
    row, column = jax.random.randint(key, (2,), 0, 2 * most + 1)
    padded = jnp.pad(image, ((height // 8,) * 2, (width // 8,) * 2, (0, 0)))
    return jax.lax.dynamic_slice(padded, (row, column, jnp.zeros_like(row)), (height, width, channels))


def cutout(image: jax.Array, key: jax.Array) -> jax.Array:
    """Cuts out a rectangle of half the height and half the width (rounded down).

    Its centre is anywhere in the image, so that up to three quarters of it may fall outside.
    """
    inside = []
    for side, own_key in zip(image.shape[:2], jax.random.split(key), strict=True):
        length = side // 2
        # An even length has its centre between two pixels, of which there is one place more.
        first = jax.random.randint(own_key, (), 0, side + 1 - length % 2) - length // 2
        pixels = jnp.arange(side)
        inside.append((pixels >= first) & (pixels < first + length))
    return jnp.where((inside[0][:, None] & inside[1])[..., None], 0, image)


AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    'color': color,
    'translation': translation,
    'cutout': cutout,
}


def augment(image: jax.Array, key: jax.Array, policy: tuple[str, ...], value_range: tuple[float, float]) -> jax.Array:
    """Applies the augmentations of a policy to one image, one after the other.

    Map it over a batch with `jax.vmap`, one key for each example. The same key does the same to another image of the
    same size: a real and a generated image may share it.

    Args:
      image: (height, width, channels), float32.
      key: draws everything; each augmentation has a key of its own, by its place in the policy.
      policy: keys of AUGMENTATIONS, in the order in which they are applied; () leaves the image as it is.
      value_range: lowest and highest value of images, which are augmented as if it were [-1, 1]: what is uncovered
        or cut out becomes the middle of the range.

    Returns:
      float32, of the shape of `image`.

    Raises:
      UserError: an unknown augmentation.
    """
    steps = [pick(AUGMENTATIONS, name, 'gan.augment') for name in policy]
    low, high = value_range
    middle, half = (low + high) / 2, (high - low) / 2
    x = (image - middle) / half
    for step, own_key in zip(steps, jax.random.split(key, len(steps)), strict=True):
        x = step(x, own_key)
    return x * half + middle
