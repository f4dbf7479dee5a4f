"""VGG (Simonyan and Zisserman 2015) and AlexNet (Krizhevsky 2014): what an image looks like to a trained classifier."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from p2p_jax.lookup import pick

SCORES = 'scores'  # the layer after the last fully connected one
_GRID = 7  # rows and columns that the fully connected layers see
# Of the images in [0, 1] that the networks were trained on. LPIPS's shift and scale of images in [-1, 1] are the same.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise(images: jax.Array) -> jax.Array:
    """Returns images in [0, 1], (n, h, w, 3), less ImageNet's mean and over its standard deviation."""
    return (images - _MEAN) / _STD


class Convolution(NamedTuple):
    """A convolution and the ReLU after it: name, channels of its output, kernel size, stride, padding on each side."""

    name: str
    features: int
    size: int
    stride: int
    padding: int

    @property
    def activation(self) -> str:
        """The name of what comes out of the ReLU: conv1_2 gives relu1_2."""
        return self.name.replace('conv', 'relu')


class Pool(NamedTuple):
    """The largest value of each window, with stride 2: name and size of the window."""

    name: str
    size: int


def _adaptive_average(size: int) -> np.ndarray:
    """The means over _GRID windows that share out `size` pixels, as a matrix: (_GRID, size).

    As PyTorch's AdaptiveAvgPool2d: window i goes from ⌊i·size/7⌋ to ⌈(i + 1)·size/7⌉; fewer pixels than windows repeat.
    """
    matrix = np.zeros((_GRID, size), np.float32)
    for i in range(_GRID):
        start, end = i * size // _GRID, -(-(i + 1) * size // _GRID)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


class FeatureNetwork(nn.Module):
    """A chain of convolutions and pools, then fully connected layers; it gives what comes out of the named layers.

    Nothing behind the last of these is computed or has parameters. All in float32.

    Attributes:
      plan: the convolutions and pools, in order.
      head: widths of the fully connected layers (fc6, fc7, fc8); the last gives the scores. () has none.
    """

    plan: tuple[Convolution | Pool, ...]
    head: tuple[int, ...]

    def layers(self) -> list[str]:
        """Returns the names of what can be asked for, in order."""
        names = [layer.activation if isinstance(layer, Convolution) else layer.name for layer in self.plan]
        return [*names, SCORES] if self.head else names

    def least_size(self, layers: tuple[str, ...]) -> int:
        """Returns the least side in pixels of an image of which something reaches the last of the named layers."""
        last = max(map(self.layers().index, layers))
        side = 1
        for layer in reversed(self.plan[: last + 1]):
            if isinstance(layer, Pool):
                side = 2 * (side - 1) + layer.size
            else:
                side = max((side - 1) * layer.stride + layer.size - 2 * layer.padding, 1)
        return side

    def torchvision_names(self) -> dict[str, str]:
        """Returns what torchvision calls the layers that have parameters: name here to prefix of the keys there.

        It numbers convolutions, ReLUs and pools one after the other, and in the classifier dropouts as well.
        """
        names, index = {}, 0
        for layer in self.plan:
            if isinstance(layer, Convolution):
                names[layer.name] = f'features.{index}'
                index += 1
            index += 1
        return names | {f'fc{6 + i}': f'classifier.{3 * i}' for i in range(len(self.head))}

    @nn.compact
    def __call__(self, images: jax.Array, layers: tuple[str, ...]) -> dict[str, jax.Array]:
        """Describes images at the named layers.

        Args:
          images: (n, h, w, 3), less ImageNet's mean and over its standard deviation; sides of at least `least_size`.
          layers: of `self.layers()`.

        Returns:
          Name to (n, h', w', c) of features, or (n, classes) of scores, which are logits.

        Raises:
          UserError: an unknown layer.
        """
        known = dict.fromkeys(self.layers())
        for name in layers:
            pick(known, name, 'layer')
        found: dict[str, jax.Array] = {}
        x = images.astype(jnp.float32)
        for name, layer in zip(self.layers(), self.plan, strict=False):
            if isinstance(layer, Pool):
                x = nn.max_pool(x, (layer.size, layer.size), (2, 2))
            else:
                kernel, strides = (layer.size, layer.size), (layer.stride, layer.stride)
                x = nn.relu(nn.Conv(layer.features, kernel, strides, layer.padding, name=layer.name)(x))
            found[name] = x
            if set(layers) <= set(found):
                return {name: found[name] for name in layers}
        grid = jnp.einsum('ih,nhwc,jw->nijc', _adaptive_average(x.shape[1]), x, _adaptive_average(x.shape[2]))
        x = grid.reshape(len(grid), math.prod(grid.shape[1:]))
        for i, width in enumerate(self.head):
            x = nn.Dense(width, name=f'fc{6 + i}')(nn.relu(x) if i else x)
        found[SCORES] = x
        return {name: found[name] for name in layers}


def vgg(
    convolutions: tuple[int, ...], *, width: int = 64, head: tuple[int, ...] = (4096, 4096, 1000)
) -> FeatureNetwork:
    """Returns a VGG without batch norm; its layers are relu1_1, relu1_2, pool1, relu2_1, …, pool5, scores.

    Args:
      convolutions: how many 3×3 convolutions each of the five blocks has.
      width: channels of the first block; they double up to eight times as many.
      head: widths of the fully connected layers.
    """
    plan: list[Convolution | Pool] = []
    for block, count in enumerate(convolutions):
        features = width * min(2**block, 8)
        plan += [Convolution(f'conv{block + 1}_{i + 1}', features, 3, 1, 1) for i in range(count)]
        plan.append(Pool(f'pool{block + 1}', 2))
    return FeatureNetwork(tuple(plan), head)


def alexnet(*, widths: tuple[int, ...] = (64, 192, 384, 256, 256)) -> FeatureNetwork:
    """Returns the convolutions of torchvision's AlexNet (Krizhevsky 2014, "One weird trick"): relu1, pool1, …, pool5.

    Args:
      widths: channels of the five convolutions.
    """
    plan: list[Convolution | Pool] = []
    for i, (features, size) in enumerate(zip(widths, (11, 5, 3, 3, 3), strict=True), 1):
        plan.append(Convolution(f'conv{i}', features, size, 1 if i > 1 else 4, size // 2 if i > 1 else 2))
        if i in (1, 2, 5):
            plan.append(Pool(f'pool{i}', 3))
    return FeatureNetwork(tuple(plan), ())


FEATURE_NETWORKS: dict[str, FeatureNetwork] = {
    'vgg16': vgg((2, 2, 3, 3, 3)),  # configuration D, 138,357,544 parameters
    'vgg19': vgg((2, 2, 4, 4, 4)),  # configuration E, 143,667,240 parameters
    'alexnet': alexnet(),
}
