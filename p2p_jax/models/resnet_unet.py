"""A U-Net of ResNet blocks, the generator that a project on satellite images describes.

The satellite project's U-Net of ResNet blocks: the project (pix2pix from masks to satellite images of five cities, on
mrzhu-cool's pix2pix-pytorch) describes its generator so. The code that it started from has residual blocks at the
lowest resolution only and no skips, which is `resnet.ResNetGenerator`; this network is what the words say, and its
details (block, kernels between levels, head) are chosen here.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.models.layers import Style, check_options, finish, pad_to_multiple, reach_of

_SECTION = 'generator.resnet_unet'


class ResNetUNet(nn.Module):
    """U-Net with one residual block a level on both sides; strided and transposed 4×4 convolutions between levels.

    A block is that of He et al. 2016: two 3×3 convolutions with norms, added to its input (through a 1×1 convolution
    where channels change), then ReLU. With depth 4, width 64 and batch norm it has 34,958,019 parameters.

    Attributes:
      out_channels: channels of the image that comes out.
      depth: number of halvings.
      width: channels of the first level; they double with each level, up to eight times the width.
      dropout: rate between the two convolutions of the decoder's blocks.
      last_activation: key of ACTIVATIONS.
      residual: give the input minus the network's output; input and output then have the same channels.
      style: how the layers convolve and normalise.
    """

    out_channels: int
    depth: int
    width: int
    dropout: float
    last_activation: str
    residual: bool
    style: Style

    padding: ClassVar[str] = 'reflect'  # how sizes are brought to a multiple, at the bottom and the right

    @property
    def multiple(self) -> int:
        """Sides of this multiple are not padded."""
        return 2**self.depth

    @property
    def reach(self) -> int | None:
        """How far from a pixel those of the input lie that its result depends on outside training; None: anywhere."""
        block = [('same', 3)] * 2
        path = block + [('down', 4), *block] * self.depth + [('up', 4), *block] * self.depth + [('same', 3)]
        return None if self.style.is_global else reach_of(path)

    @nn.compact
    def __call__(self, condition: jax.Array, *, train: bool) -> jax.Array:
        """Maps (n, h, w, c) to (n, h, w, out_channels), float32, in the value range of the images; any h and w.

        Raises:
          UserError: options that do not go together.
        """
        counts = {'depth': self.depth, 'width': self.width}
        check_options(_SECTION, counts, {'dropout': self.dropout}, self.style.init_std)
        features = [self.width * min(2**level, 8) for level in range(self.depth + 1)]

        x = self._block('encoder_0', features[0], pad_to_multiple(condition, self.multiple), train)
        skips = [x]
        for level in range(1, self.depth + 1):
            x = self._resample(f'down_{level}', 'down', features[level], x, train)
            x = self._block(f'encoder_{level}', features[level], x, train)
            skips.append(x)
        for level in reversed(range(self.depth)):
            x = self._resample(f'up_{level}', 'up', features[level], x, train)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = self._block(f'decoder_{level}', features[level], x, train, self.dropout)
        x = self.style.convolve('head', 3, self.out_channels, x, update_spectral=train, use_bias=True)
        return finish(_SECTION, condition, x, self.last_activation, self.residual)

    def _resample(self, name: str, direction: str, features: int, x: jax.Array, train: bool) -> jax.Array:
        x = self.style.resample(name, direction, features, x, update_spectral=train)
        return nn.relu(self.style.normalise(f'{name}_norm', x, train=train))

    def _block(self, name: str, features: int, x: jax.Array, train: bool, dropout: float = 0.0) -> jax.Array:
        y = self.style.convolve(f'{name}_conv_1', 3, features, x, update_spectral=train)
        y = nn.relu(self.style.normalise(f'{name}_norm_1', y, train=train))
        y = self.style.drop(dropout, y, train=train)
        y = self.style.convolve(f'{name}_conv_2', 3, features, y, update_spectral=train)
        y = self.style.normalise(f'{name}_norm_2', y, train=train)
        if x.shape[-1] != features:
            x = self.style.convolve(f'{name}_shortcut', 1, features, x, update_spectral=train, use_bias=True)
        return nn.relu(x + y)
