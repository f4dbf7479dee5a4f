"""The classical U-Net (after Ronneberger et al. 2015) of a student project that denoised photographs with pix2pix."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.models.layers import Style, check_options, finish, pad_to_multiple, reach_of

_SECTION = 'generator.classical_unet'


def max_pool(x: jax.Array) -> jax.Array:
    """The maxima of 2×2 squares: (n, h, w, c) to (n, h / 2, w / 2, c); h and w are even."""
    n, h, w, features = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, features)
    # XLA's windowed maximum has the same values, but on the CPU its gradient takes eight times as long. That of `max`
    # over axes looks for inputs equal to the maximum: none where XLA computes them again in another fusion, and 0 / 0.
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


class ClassicalUNet(nn.Module):
    """U-Net of max-pooling, transposed 2×2 convolutions and two 3×3 convolutions a level, skips concatenated.

    Follows the public code of the project "AI_DL_UPC_Project" (Hdez, Squitieri, Guirao, Mira): no convolution but the
    transposed ones has a bias, the norm comes after the second convolution of a block only, and the last block has
    none. With depth 4, width 64 and batch norm the filters are its 64 to 1024 (31,031,744 parameters); its last
    activation is the sigmoid. Its spectral option, which ran the second convolution twice, is not copied.

    Attributes:
      out_channels: channels of the image that comes out.
      depth: number of halvings.
      width: filters of the first level; they double with each level.
      last_activation: key of ACTIVATIONS.
      residual: give the input minus the network's output; input and output then have the same channels.
      style: how the layers convolve and normalise.
    """

    out_channels: int
    depth: int
    width: int
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
        path = [*block, ('down', 2)] * self.depth + block + [('up', 2), *block] * self.depth
        return None if self.style.is_global else reach_of(path)

    @nn.compact
    def __call__(self, condition: jax.Array, *, train: bool) -> jax.Array:
        """Maps (n, h, w, c) to (n, h, w, out_channels), float32, in the value range of the images; any h and w.

        Raises:
          UserError: options that do not go together.
        """
        check_options(_SECTION, {'depth': self.depth, 'width': self.width}, {}, self.style.init_std)
        x = pad_to_multiple(condition, self.multiple)
        skips = []
        for level in range(self.depth):
            x = self._block(f'encoder_{level}', self.width * 2**level, x, train)
            skips.append(x)
            x = max_pool(x)
        x = self._block('middle', self.width * 2**self.depth, x, train)
        for level in reversed(range(self.depth)):
            features = self.width * 2**level
            x = self.style.resample(f'up_{level}', 'up', features, x, update_spectral=train, use_bias=True, size=2)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = self._block(f'decoder_{level}', features, x, train, norm=level > 0)
        x = self.style.convolve('head', 1, self.out_channels, x, update_spectral=train, use_bias=False)
        return finish(_SECTION, condition, x, self.last_activation, self.residual)

    def _block(self, name: str, features: int, x: jax.Array, train: bool, norm: bool = True) -> jax.Array:
        x = self.style.convolve(f'{name}_conv_1', 3, features, x, update_spectral=train, use_bias=False)
        x = self.style.convolve(f'{name}_conv_2', 3, features, nn.relu(x), update_spectral=train, use_bias=False)
        if norm:
            x = self.style.normalise(f'{name}_norm', x, train=train)
        return nn.relu(x)
