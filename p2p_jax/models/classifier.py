"""A small residual classifier of images, to say whether generated images show what was asked for."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.lookup import UserError
from p2p_jax.models.layers import Style, check_options

_WIDEST = 4  # times the width


def check_size(size: int) -> None:
    """Raises a UserError where images of that height and width, in pixels, cannot be halved down to 4×4."""
    if size < 8 or size & (size - 1):
        raise UserError(f'size={size}: a classifier is for images of 8, 16, 32, 64, … pixels')


class Classifier(nn.Module):
    """Halvings down to 4×4, each followed by a residual block (He et al. 2016, figure 2), then the mean and the scores.

    Every convolution is followed by batch norm. The first halving is the first layer: at full size, where a block would
    cost four times as much, nothing is computed. Channels double with each halving up to four times `width`. At 32²
    with ten classes and width 32 it has 555,082 parameters.

    Attributes:
      classes: number of classes.
      size: height and width of the images in pixels, a power of 2 from 8 on.
      width: channels after the first halving.
    """

    classes: int
    size: int
    width: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Scores images.

        Args:
          images: (n, size, size, 3) in [-1, 1].
          train: whether batch norm uses the batch's statistics and updates the running ones.

        Returns:
          float32 (n, classes), logits.

        Raises:
          UserError: options out of range.
        """
        check_options('classifier', {'width': self.width}, {}, None)
        check_size(self.size)
        style, x, features = Style(norm='batch'), images, self.width
        while x.shape[1] > 4:
            name = f'down_{x.shape[1] // 2}'
            x = style.resample(name, 'down', features, x, update_spectral=False)
            x = nn.relu(style.normalise(f'{name}_norm', x, train=train))
            x = self._block(style, f'block_{x.shape[1]}', x, train)
            features = min(2 * features, _WIDEST * self.width)
        x = jnp.mean(x, axis=(1, 2))
        return style.dense('scores', self.classes, x, update_spectral=False, use_bias=True).astype(jnp.float32)

    def _block(self, style: Style, name: str, x: jax.Array, train: bool) -> jax.Array:
        y = style.convolve(f'{name}_conv_1', 3, x.shape[-1], x, update_spectral=False)
        y = nn.relu(style.normalise(f'{name}_norm_1', y, train=train))
        y = style.convolve(f'{name}_conv_2', 3, x.shape[-1], y, update_spectral=False)
        return nn.relu(x + style.normalise(f'{name}_norm_2', y, train=train))
