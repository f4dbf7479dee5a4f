"""The PatchGAN discriminator of pix2pix (Isola et al. 2017, appendix 6.1.2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.lookup import UserError, pick
from p2p_jax.models.layers import ACTIVATIONS, Style


class Layer(NamedTuple):
    """One convolution: kernel size, stride, padding on each side, channels of its output."""

    size: int
    stride: int
    padding: int
    features: int


class PatchGAN(nn.Module):
    """Judges overlapping patches: `strided` layers of stride 2, `unstrided` ones of stride 1, and a head of stride 1.

    3 + 1 is the reference's 70×70 PatchGAN (2,768,705 parameters on six channels with batch norm). With `strided` 0
    all kernels are 1×1: 0 + 2 is the reference's PixelGAN. The grids of the denoising study at 256² are 4 + 0
    (15 × 15), 4 + 1 (14 × 14) and 7 + 0 (1 × 1).

    Attributes:
      strided: number of stride-2 layers.
      unstrided: number of stride-1 layers before the head.
      width: channels of the first layer; they double with each layer, up to eight times the width.
      activation: key of ACTIVATIONS, between layers.
      last_activation: key of ACTIVATIONS, on the head.
      style: how the layers convolve and normalise.
      section: of the configuration that the options come from, for messages.

    What each layer but the head gives is kept in the collection 'features' where the caller makes it mutable.
    """

    strided: int
    unstrided: int
    width: int
    activation: str
    last_activation: str
    style: Style
    section: str = 'discriminator.patchgan'

    def layers(self) -> list[Layer]:
        """Returns the convolutions in order, the head last."""
        size, padding = (4, 1) if self.strided else (1, 0)
        count = max(self.strided + self.unstrided, 1)
        strides = [2 if i < self.strided else 1 for i in range(count)]
        hidden = [Layer(size, s, padding, self.width * min(2**i, 8)) for i, s in enumerate(strides)]
        return [*hidden, Layer(size, 1, padding, 1)]

    def receptive_field(self) -> int:
        """Returns the side of the patch that one output sees, in pixels."""
        field = 1
        for layer in reversed(self.layers()):
            field = field * layer.stride + layer.size - layer.stride
        return field

    def patch_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns (rows, columns) of judgements for an image of (height, width) pixels.

        Raises:
          UserError: nothing is left of so small an image.
        """
        rows, columns = size
        for layer in self.layers():
            rows, columns = ((n + 2 * layer.padding - layer.size) // layer.stride + 1 for n in (rows, columns))
            if min(rows, columns) < 1:
                raise UserError(
                    f'{self.section}: {self.strided} strided and {self.unstrided} unstrided layers leave '
                    f'nothing of a {size[0]}×{size[1]} image. Take fewer layers or a larger data.crop_size.'
                )
        return rows, columns

    @nn.compact
    def __call__(
        self, condition: jax.Array, image: jax.Array, *, train: bool, update_spectral: bool = False
    ) -> jax.Array:
        """Judges whether `image` belongs to `condition`.

        Args:
          condition: (n, h, w, c).
          image: (n, h, w, c'), real or generated.
          train: whether batch norm uses the batch's statistics and updates the running ones.
          update_spectral: whether the spectral norm's power iteration moves on.

        Returns:
          float32 (n, rows, columns, 1).

        Raises:
          UserError: an image too small for the layers.
        """
        self.patch_grid((image.shape[1], image.shape[2]))
        activation = pick(ACTIVATIONS, self.activation, f'{self.section}.activation')
        last_activation = pick(ACTIVATIONS, self.last_activation, f'{self.section}.last_activation')
        x = jnp.concatenate([condition, image], axis=-1)
        *hidden, head = self.layers()
        for i, layer in enumerate(hidden):
            bias = None if i else True  # no norm follows the first layer
            if layer.stride == 2:
                x = self.style.resample(
                    f'conv_{i}', 'down', layer.features, x, update_spectral=update_spectral, use_bias=bias
                )
            else:
                x = self.style.convolve(
                    f'conv_{i}', layer.size, layer.features, x, update_spectral=update_spectral, use_bias=bias
                )
            if i:
                x = self.style.normalise(f'norm_{i}', x, train=train)
            x = activation(x)
            self.sow('features', f'layer_{i}', x)
        x = self.style.convolve('head', head.size, head.features, x, update_spectral=update_spectral, use_bias=True)
        return last_activation(x.astype(jnp.float32))
