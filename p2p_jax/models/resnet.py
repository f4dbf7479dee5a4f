"""The generator of residual blocks (Johnson et al. 2016, "Perceptual Losses"), as CycleGAN's code has it."""

from typing import ClassVar

import jax
from flax import linen as nn

from p2p_jax.models.layers import Style, check_options, finish, pad_to_multiple, reach_of

_SECTION = 'generator.resnet'
_HALVINGS = 2


class ResNetGenerator(nn.Module):
    """Two halvings, `blocks` residual blocks at a quarter of the size, two doublings; no skips across them.

    With 9 blocks, width 64 and instance norm it is the reference's resnet_9blocks (11,378,179 parameters on three
    channels; 11,383,427 with batch norm), with 6 blocks its resnet_6blocks (7,837,699 and 7,841,411). Sizes that do not
    divide by 4, of which the reference gives back larger images, are reflected up to it and cut.

    Attributes:
      out_channels: channels of the image that comes out.
      blocks: number of residual blocks.
      width: channels after the first convolution; four times as many in the blocks.
      dropout: rate between the two convolutions of each block; the reference's, where it is on, is 0.5.
      last_activation: key of ACTIVATIONS; the reference's is tanh.
      residual: give the input minus the network's output; input and output then have the same channels.
      style: how the layers convolve and normalise.
    """

    out_channels: int
    blocks: int
    width: int
    dropout: float
    last_activation: str
    residual: bool
    style: Style

    padding: ClassVar[str] = 'reflect'  # how sizes are brought to a multiple, at the bottom and the right

    @property
    def multiple(self) -> int:
        """Sides of this multiple are not padded."""
        return 2**_HALVINGS

    @property
    def reach(self) -> int | None:
        """How far from a pixel those of the input lie that its result depends on outside training; None: anywhere."""
        middle = [('same', 3)] * (2 * self.blocks)
        path = [('same', 7)] + [('down', 3)] * _HALVINGS + middle + [('up', 3)] * _HALVINGS + [('same', 7)]
        return None if self.style.is_global else reach_of(path)

    @nn.compact
    def __call__(self, condition: jax.Array, *, train: bool) -> jax.Array:
        """Maps (n, h, w, c) to (n, h, w, out_channels), float32, in the value range of the images; any h and w.

        Raises:
          UserError: options that do not go together.
        """
        counts = {'blocks': self.blocks, 'width': self.width}
        check_options(_SECTION, counts, {'dropout': self.dropout}, self.style.init_std)
        style = self.style
        x = pad_to_multiple(condition, self.multiple)
        x = style.convolve('first', 7, self.width, x, update_spectral=train, mirrored=True)
        x = nn.relu(style.normalise('first_norm', x, train=train))
        for i in range(_HALVINGS):
            x = style.resample(f'down_{i}', 'down', 2 * x.shape[-1], x, update_spectral=train, size=3)
            x = nn.relu(style.normalise(f'down_norm_{i}', x, train=train))
        for i in range(self.blocks):
            x = x + self._branch(f'block_{i}', x, train)
        for i in range(_HALVINGS):
            x = style.resample(f'up_{i}', 'up', x.shape[-1] // 2, x, update_spectral=train, size=3)
            x = nn.relu(style.normalise(f'up_norm_{i}', x, train=train))
        x = style.convolve('head', 7, self.out_channels, x, update_spectral=train, use_bias=True, mirrored=True)
        return finish(_SECTION, condition, x, self.last_activation, self.residual)

    def _branch(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        features = x.shape[-1]
        x = self.style.convolve(f'{name}_conv_1', 3, features, x, update_spectral=train, mirrored=True)
        x = nn.relu(self.style.normalise(f'{name}_norm_1', x, train=train))
        x = self.style.drop(self.dropout, x, train=train)
        x = self.style.convolve(f'{name}_conv_2', 3, features, x, update_spectral=train, mirrored=True)
        return self.style.normalise(f'{name}_norm_2', x, train=train)
