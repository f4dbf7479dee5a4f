"""The strided U-Net of pix2pix (Isola et al. 2017, appendix 6.1)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.lookup import UserError
from p2p_jax.models.layers import Style, check_options, finish, pad_to_multiple, reach_of

_SECTION = 'generator.unet'
# The reference network has dropout in the decoder levels at full width, from the fifth on.
_FIRST_DROPOUT_LEVEL = 4


class UNet(nn.Module):
    """Strided U-Net: `depth` halvings, as many doublings, skips between equal sizes.

    With depth 8, width 64 and batch norm it is the reference's U-Net-256 (54,413,955 parameters).

    Attributes:
      out_channels: channels of the image that comes out.
      depth: number of halvings.
      width: channels after the first; they double with each level, up to eight times the width.
      dropout: rate in the decoder's levels at full width (from the fifth, the innermost excepted), as the reference.
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
        path = [('down', 4)] * self.depth + [('up', 4)] * self.depth
        return None if self.style.is_global else reach_of(path)

    @nn.compact
    def __call__(self, condition: jax.Array, *, train: bool) -> jax.Array:
        """Maps (n, h, w, c) to (n, h, w, out_channels), float32, in the value range of the images; any h and w.

        Raises:
          UserError: options that do not go together.
        """
        self._check()
        features = [self.width * min(2**level, 8) for level in range(self.depth)]
        innermost = self.depth - 1

        x = pad_to_multiple(condition, self.multiple)
        skips = []
        for level in range(self.depth):
            x = nn.leaky_relu(x, 0.2) if level else x
            x = self.style.resample(f'down_{level}', 'down', features[level], x, update_spectral=train)
            if 0 < level < innermost:
                x = self.style.normalise(f'down_norm_{level}', x, train=train)
            skips.append(x)
        for level in range(innermost, 0, -1):
            x = self.style.resample(f'up_{level}', 'up', features[level - 1], nn.relu(x), update_spectral=train)
            x = self.style.normalise(f'up_norm_{level}', x, train=train)
            if self.dropout and _FIRST_DROPOUT_LEVEL <= level < innermost:
                x = self.style.drop(self.dropout, x, train=train)
            x = jnp.concatenate([skips[level - 1], x], axis=-1)
        x = self.style.resample('up_0', 'up', self.out_channels, nn.relu(x), update_spectral=train, use_bias=True)
        return finish(_SECTION, condition, x, self.last_activation, self.residual)

    def _check(self) -> None:
        counts = {'depth': self.depth, 'width': self.width}
        check_options(_SECTION, counts, {'dropout': self.dropout}, self.style.init_std)
        if self.dropout and self.depth <= _FIRST_DROPOUT_LEVEL + 1:
            raise UserError(
                f'generator.unet.dropout={self.dropout} has no effect at depth={self.depth}: as in the reference, it '
                f'belongs to levels that a U-Net has from depth {_FIRST_DROPOUT_LEVEL + 2} on. Set it to 0.'
            )
