"""Inception-v3 (Szegedy et al. 2016) as FID uses it: TensorFlow's graph of December 2015, in pytorch-fid's terms.

It differs from the paper's, and torchvision's, network in that averages over 3×3 windows leave out what lies beyond the
border, in that the last block takes the largest value of the window in the average's place, and in 1008 classes.
Layers are named as in pytorch-fid's weights. Batch norm is part of the convolutions' kernels and biases: the network
only ever describes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

EPSILON = 1e-3  # of the batch norm that was folded
SIZE = 299  # height and width of its images, in pixels
CLASSES = 1008


class Layer(NamedTuple):
    """A convolution and the ReLU after it: name inside its block, channels, kernel, stride.

    Of stride 1 it is padded so that the size stays, of stride 2 it is not padded.
    """

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# What is done to a block's input: convolutions one after the other; at last, maybe, several side by side.
Branch = tuple[Layer | tuple[Layer, ...], ...]


class Block(NamedTuple):
    """Branches side by side; then what `pool` gives, 'average', 'largest' or 'halved', the last without convolution."""

    branches: tuple[Branch, ...]
    pool: str
    pool_features: int = 0


def _block_35(pool_features: int) -> Block:
    """Figure 5 of the paper, with one more 3×3 in the place of a 5×5."""
    double = (Layer('branch3x3dbl_1', 64), Layer('branch3x3dbl_2', 96, (3, 3)), Layer('branch3x3dbl_3', 96, (3, 3)))
    five = (Layer('branch5x5_1', 48), Layer('branch5x5_2', 64, (5, 5)))
    return Block(((Layer('branch1x1', 64),), five, double), 'average', pool_features)


def _block_17(features: int) -> Block:
    """Figure 6 of the paper, n = 7."""
    row, column = (1, 7), (7, 1)
    single = (Layer('branch7x7_1', features), Layer('branch7x7_2', features, row), Layer('branch7x7_3', 192, column))
    kernels = ((1, 1), column, row, column, row)
    widths = (features, features, features, features, 192)
    double = tuple(Layer(f'branch7x7dbl_{i}', w, k) for i, (w, k) in enumerate(zip(widths, kernels, strict=True), 1))
    return Block(((Layer('branch1x1', 192),), single, double), 'average', 192)


def _block_8(pool: str) -> Block:
    """Figure 7 of the paper."""

    def both(name: str) -> tuple[Layer, ...]:
        return Layer(f'{name}a', 384, (1, 3)), Layer(f'{name}b', 384, (3, 1))

    single = (Layer('branch3x3_1', 384), both('branch3x3_2'))
    double = (Layer('branch3x3dbl_1', 448), Layer('branch3x3dbl_2', 384, (3, 3)), both('branch3x3dbl_3'))
    return Block(((Layer('branch1x1', 320),), single, double), pool, 192)


_HALVING_35 = Block(
    (
        (Layer('branch3x3', 384, (3, 3), 2),),
        (Layer('branch3x3dbl_1', 64), Layer('branch3x3dbl_2', 96, (3, 3)), Layer('branch3x3dbl_3', 96, (3, 3), 2)),
    ),
    'halved',
)
_HALVING_17 = Block(
    (
        (Layer('branch3x3_1', 192), Layer('branch3x3_2', 320, (3, 3), 2)),
        (
            Layer('branch7x7x3_1', 192),
            Layer('branch7x7x3_2', 192, (1, 7)),
            Layer('branch7x7x3_3', 192, (7, 1)),
            Layer('branch7x7x3_4', 192, (3, 3), 2),
        ),
    ),
    'halved',
)
# In order: the blocks at 35×35, 17×17 and 8×8, of an image of 299×299.
BLOCKS: dict[str, Block] = {
    'Mixed_5b': _block_35(32),
    'Mixed_5c': _block_35(64),
    'Mixed_5d': _block_35(64),
    'Mixed_6a': _HALVING_35,
    'Mixed_6b': _block_17(128),
    'Mixed_6c': _block_17(160),
    'Mixed_6d': _block_17(160),
    'Mixed_6e': _block_17(192),
    'Mixed_7a': _HALVING_17,
    'Mixed_7b': _block_8('average'),
    'Mixed_7c': _block_8('largest'),
}


def _convolve(layer: Layer, x: jax.Array, *, padded: bool = True) -> jax.Array:
    padding = 'SAME' if padded and layer.stride == 1 else 'VALID'
    return nn.relu(nn.Conv(layer.features, layer.kernel, layer.stride, padding, name=layer.name)(x))


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


class InceptionBlock(nn.Module):
    """One row of BLOCKS.

    Attributes:
      block: the row.
    """

    block: Block

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (n, h, w, c) to (n, h', w', c')."""
        found = []
        for branch in self.block.branches:
            y = x
            for step in branch:
                if isinstance(step, Layer):
                    y = _convolve(step, y)
                else:
                    y = jnp.concatenate([_convolve(layer, y) for layer in step], axis=-1)
            found.append(y)
        if self.block.pool == 'halved':
            return jnp.concatenate([*found, _halve(x)], axis=-1)
        if self.block.pool == 'average':
            x = nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)
        else:
            x = nn.max_pool(x, (3, 3), padding='SAME')
        found.append(_convolve(Layer('branch_pool', self.block.pool_features), x))
        return jnp.concatenate(found, axis=-1)


class InceptionV3(nn.Module):
    """The whole network; with batch norm folded and without the last bias it has 23,832,736 parameters."""

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Describes images.

        Args:
          images: (n, h, w, 3) in [-1, 1]; sides of 299 pixels, or at least 75.

        Returns:
          float32 features (n, 2048), pool3 of TensorFlow's graph: the mean over all positions; float32 (n, 1008), the
          scores of the classes without the last layer's bias, as Salimans et al.'s code and torch-fidelity
          (logits_unbiased) take them for the inception score.
        """
        x = images.astype(jnp.float32)
        x = _convolve(Layer('Conv2d_1a_3x3', 32, (3, 3), 2), x)
        x = _convolve(Layer('Conv2d_2a_3x3', 32, (3, 3)), x, padded=False)
        x = _convolve(Layer('Conv2d_2b_3x3', 64, (3, 3)), x)
        x = _convolve(Layer('Conv2d_3b_1x1', 80), _halve(x))
        x = _convolve(Layer('Conv2d_4a_3x3', 192, (3, 3)), x, padded=False)
        x = _halve(x)
        for name, block in BLOCKS.items():
            x = InceptionBlock(block, name=name)(x)
        features = jnp.mean(x, axis=(1, 2))
        return features, nn.Dense(CLASSES, use_bias=False, name='fc')(features)


def resize(images: jax.Array) -> jax.Array:
    """Brings images to 299×299 and [-1, 1] as pytorch-fid does.

    Bilinear, pixels by their centres, without antialiasing where images become smaller (PyTorch's F.interpolate with
    align_corners=False), then 2 x - 1. The TensorFlow code of FID (Heusel et al. 2017), and torch-fidelity after it,
    take pixels by their corners; scores differ a little.

    Args:
      images: (n, h, w, 3) in [0, 1].
    """
    shape = (len(images), SIZE, SIZE, images.shape[-1])
    return 2 * jax.image.resize(images.astype(jnp.float32), shape, 'linear', antialias=False) - 1
