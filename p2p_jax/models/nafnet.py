"""NAFNet, a restoration network without activation functions (Chen et al. 2022, "Simple Baselines for Image
Restoration"), and its local statistics at test time (Chu et al. 2022, "Improving Image Restoration by Revisiting Global
Information Aggregation").
"""

from typing import ClassVar

import jax
import jax.export
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.lookup import UserError
from p2p_jax.models.layers import Style, check_options, pad_to_multiple, reach_of


def gate(x: jax.Array) -> jax.Array:
    """The paper's SimpleGate: (n, h, w, 2 c) to the product of its halves, (n, h, w, c)."""
    a, b = jnp.split(x, 2, axis=-1)
    return a * b


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """(n, h, w, 4 c) to (n, 2 h, 2 w, c); the four of a channel lie side by side, as PyTorch's PixelShuffle has it."""
    n, h, w, features = x.shape
    x = x.reshape(n, h, w, features // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, 2 * h, 2 * w, features // 4)


def average(x: jax.Array, window: int | None) -> jax.Array:
    """Averages (n, h, w, c) over height and width, or around each position.

    Args:
      x: the features.
      window: side of the square that is averaged over, in positions. Squares stay inside the image: at its border all
        positions take the average of the last square that fits. None, or a square that covers all: the whole image.

    Returns:
      (n, 1, 1, c) for the whole image, (n, h, w, c) otherwise.
    """
    known = not any(jax.export.is_symbolic_dim(length) for length in x.shape[1:3])
    if window is None or (known and window >= max(x.shape[1:3])):
        return jnp.mean(x, axis=(1, 2), keepdims=True)
    y = x.astype(jnp.float32)
    for axis in (1, 2):
        # Differences of sums along one axis, then the other: the time does not depend on the window, and sums stay
        # smaller, and thus more exact, than those over both axes.
        length = y.shape[axis]
        side = jax.core.min_dim(window, length)
        pads = [(int(i == axis), 0) for i in range(4)]
        sums = jnp.pad(jnp.cumsum(y, axis=axis), pads)
        high, low = (jax.lax.slice_in_dim(sums, i, i + length - side + 1, axis=axis) for i in (side, 0))
        inside = jnp.clip(jnp.arange(length) - (side - 1) // 2, 0, length - side)
        y = jnp.take((high - low) / side, inside, axis=axis, mode='clip')
    return y.astype(x.dtype)


class NAFBlock(nn.Module):
    """Two residual branches: a depthwise convolution with channel attention, then a gated pair of 1×1 convolutions.

    Attributes:
      window: side of the square over which channel attention averages, in positions; None: the whole image.
      style: how the layers convolve.
    """

    window: int | None
    style: Style

    def _convolve(self, name: str, features: int, x: jax.Array, train: bool) -> jax.Array:
        return self.style.convolve(name, 1, features, x, update_spectral=train, use_bias=True)

    def _normalise(self, name: str, x: jax.Array) -> jax.Array:
        return self.style.layer_norm(name, x, 1e-6)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(n, h, w, c) to the same; `train` only moves the spectral norm's power iteration on."""
        features = x.shape[-1]
        # Scales of 0: each block starts as the identity, so that any depth trains from the start.
        beta, gamma = (self.param(name, nn.initializers.zeros, (features,)) for name in ('beta', 'gamma'))
        y = self._convolve('conv_1', 2 * features, self._normalise('norm_1', x), train)
        y = gate(self.style.depthwise('conv_2', y, update_spectral=train))
        y = y * self._convolve('attention', features, average(y, self.window), train)
        y = self._convolve('conv_3', features, y, train)
        x = self.style.settle(x + y * beta.astype(y.dtype))
        y = self._convolve('conv_4', 2 * features, self._normalise('norm_2', x), train)
        y = self._convolve('conv_5', features, gate(y), train)
        return self.style.settle(x + y * gamma.astype(y.dtype))


class NAFNet(nn.Module):
    """A U-Net of NAFNet's blocks with additive skips, whose output is added to its input.

    With encoder (2, 2, 4, 8), middle 12, decoder (2, 2, 2, 2) it is the paper's denoiser (29,159,715 parameters at
    width 32, 115,982,915 at 64); with encoder (1, 1, 1, 28), middle 1, decoder (1, 1, 1, 1) its deblurrer (17,111,907
    and 67,888,835). At the start the blocks change nothing, so the network is linear in the image; it is not the
    identity, for the convolutions between the blocks, the first and the last among them, are random.

    Attributes:
      out_channels: channels of the image that comes out; the input is added where it has as many.
      width: channels after the first convolution; they double with each level.
      encoder_blocks: number of blocks in each level of the encoder, the outermost first.
      middle_blocks: number of blocks at the lowest resolution.
      decoder_blocks: number of blocks in each level of the decoder, the innermost first.
      local_size: outside training, channel attention averages over squares of so many pixels of the (padded) image
        instead of all of it; best about 1.5 times the training's crop. None: over all of it.
      style: how the layers convolve; of norms only spectral (or none), for the network has its own.
    """

    out_channels: int
    width: int
    encoder_blocks: tuple[int, ...]
    middle_blocks: int
    decoder_blocks: tuple[int, ...]
    local_size: int | None
    style: Style

    # How sizes are brought to a multiple: by zeros, where the other generators reflect, for published weights were
    # trained and are scored with zeros.
    padding: ClassVar[str] = 'constant'

    @property
    def multiple(self) -> int:
        """Sides of this multiple are not padded."""
        return 2 ** len(self.encoder_blocks)

    @property
    def reach(self) -> int | None:
        """How far from a pixel those of the input lie that its result depends on outside training; None: anywhere."""
        if self.local_size is None:
            return None
        depth = len(self.encoder_blocks)
        counts = [*self.encoder_blocks, self.middle_blocks, *self.decoder_blocks]
        # A depthwise convolution, then a window that at the border of the image lies wholly on one side.
        blocks = [
            [('same', 3), ('same', 2 * (self._window(min(i, 2 * depth - i)) or 1) - 1)] * count
            for i, count in enumerate(counts)
        ]
        path = [('same', 3), *blocks[0]]
        for i, block in enumerate(blocks[1:]):
            path += [('down' if i < depth else 'up', 2), *block]
        return reach_of([*path, ('same', 3)])

    @nn.compact
    def __call__(self, condition: jax.Array, *, train: bool) -> jax.Array:
        """Maps (n, h, w, c) to (n, h, w, out_channels), float32, in the value range of the images; any h and w.

        Raises:
          UserError: options that do not go together.
        """
        self._check()
        style, depth = self.style, len(self.encoder_blocks)
        height, width = condition.shape[1:3]
        x = pad_to_multiple(condition, self.multiple, self.padding)

        x = style.convolve('intro', 3, self.width, x, update_spectral=train, use_bias=True)
        skips = []
        for level, count in enumerate(self.encoder_blocks):
            x = self._blocks(f'encoder_{level}', level, count, x, train)
            skips.append(x)
            features = 2 * x.shape[-1]
            x = style.resample(f'down_{level}', 'down', features, x, update_spectral=train, use_bias=True, size=2)
        x = self._blocks('middle', depth, self.middle_blocks, x, train)
        for i, count in enumerate(self.decoder_blocks):
            x = style.convolve(f'up_{i}', 1, 2 * x.shape[-1], x, update_spectral=train, use_bias=False)
            level = depth - 1 - i
            x = self._blocks(f'decoder_{i}', level, count, pixel_shuffle(x) + skips[level], train)
        x = style.convolve('ending', 3, self.out_channels, x, update_spectral=train, use_bias=True)

        x = x.astype(jnp.float32)[:, :height, :width]
        return x + condition if condition.shape[-1] == self.out_channels else x

    def _blocks(self, name: str, level: int, count: int, x: jax.Array, train: bool) -> jax.Array:
        window = None if train else self._window(level)
        for i in range(count):
            x = NAFBlock(window, self.style, name=f'{name}_{i}')(x, train)
        return x

    def _window(self, level: int) -> int | None:
        # It covers the same part of the image at each level.
        return None if self.local_size is None else max(1, self.local_size // 2**level)

    def _check(self) -> None:
        encoder, decoder = tuple(self.encoder_blocks), tuple(self.decoder_blocks)
        check_options('generator.nafnet', {'width': self.width}, {}, self.style.init_std)
        if len(encoder) != len(decoder):
            raise UserError(
                f'generator.nafnet: encoder_blocks={encoder} and decoder_blocks={decoder}; expected as many levels'
            )
        if min(*encoder, *decoder, self.middle_blocks, 0) < 0:
            raise UserError(
                f'generator.nafnet: encoder_blocks={encoder}, middle_blocks={self.middle_blocks} and '
                f'decoder_blocks={decoder}; expected counts of at least 0'
            )
        if self.local_size is not None and self.local_size < 1:
            raise UserError(f'generator.nafnet.local_size={self.local_size}: expected at least 1, or None')
        if self.style.norm not in ('none', 'spectral'):
            raise UserError(f'generator.nafnet.norm={self.style.norm!r}: expected none or spectral')
