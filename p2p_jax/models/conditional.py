"""Class-conditional networks: images of a label and noise, and what judges an image by its label.

A generator's condition is (labels, noise), int32 (n,) and float32 (n, latent); a discriminator's is the labels. With
one class the labels have no influence and no parameters: the pair is an ordinary, unconditional GAN. A generator's
labels may also be float32 (n, classes), shares of the classes, for what lies between two of them.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.lookup import UserError, pick
from p2p_jax.models.layers import ACTIVATIONS, Style, check_options, rows

LABEL_INPUTS = ('embedding', 'one_hot')
# Channels of SNGAN's networks in units of `width`, and how many blocks of the discriminator halve the size, as in the
# authors' code (https://github.com/pfnet-research/sngan_projection); the generator's begin with those at 4×4.
_GENERATOR_CHANNELS = {32: (4, 4, 4, 4), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
_DISCRIMINATOR_CHANNELS = {32: (2, 2, 2, 2), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}
_HALVINGS = {32: 2, 64: 5, 128: 5}


def _check_size(section: str, size: int, expected: str, possible: bool) -> None:
    if not possible:
        raise UserError(f'data.crop_size={size}: {section} is for images of {expected}; set it and data.resize to that')


def _check_dcgan(section: str, size: int, width: int, label_input: str, style: Style) -> None:
    check_options(section, {'width': width}, {}, style.init_std)
    pick(dict.fromkeys(LABEL_INPUTS), label_input, f'{section}.label_input')
    _check_size(section, size, '8, 16, 32, 64, … pixels', size >= 8 and size & (size - 1) == 0)


def _encode(style: Style, label_input: str, labels: jax.Array, classes: int, features: int, std: float) -> jax.Array:
    """Returns labels as (n, classes) zeros and ones, or as (n, features) learned numbers that start as N(0, std)."""
    if label_input == 'one_hot':
        return jax.nn.one_hot(labels, classes, dtype=style.dtype) if labels.ndim == 1 else labels.astype(style.dtype)
    # Spectral norm, which bounds the slope by the image, has no part in it, and would make it too small to be seen.
    init = nn.initializers.normal(std)
    return rows(nn.Embed(classes, features, dtype=style.dtype, embedding_init=init, name='label'), labels)


class DCGANGenerator(nn.Module):
    """Radford et al. 2016's generator (figure 1), its noise joined by the label (Mirza and Osindero 2014, figure 1).

    A dense layer makes 4×4 positions; transposed 4×4 convolutions double them, each with a norm and ReLU but the last.
    With one class, width 64, batch norm and a latent of 100 it has 3,576,707 parameters at 64².

    Attributes:
      out_channels: channels of the image that comes out.
      classes: number of classes.
      size: height and width of the image in pixels, a power of 2 from 8 on.
      latent: numbers of noise.
      width: channels before the last convolution; they double with each halving of the size.
      label_input: 'embedding' joins as many learned numbers to the noise as it has, 'one_hot' as many as classes.
      last_activation: key of ACTIVATIONS.
      style: how the layers convolve and normalise.
    """

    out_channels: int
    classes: int
    size: int
    latent: int
    width: int
    label_input: str
    last_activation: str
    style: Style

    @nn.compact
    def __call__(self, condition: tuple[jax.Array, jax.Array], *, train: bool) -> jax.Array:
        """Makes an image of each label and noise.

        Args:
          condition: labels, int32 (n,), each below `classes`, or their shares; noise, float32 (n, latent).
          train: whether batch norm uses the batch's statistics and updates the running ones; it also moves the
            spectral norm's power iteration on.

        Returns:
          float32 (n, size, size, channels), in the range of the last activation.

        Raises:
          UserError: options out of range.
        """
        section, style = 'generator.dcgan', self.style
        _check_dcgan(section, self.size, self.width, self.label_input, style)
        last_activation = pick(ACTIVATIONS, self.last_activation, f'{section}.last_activation')
        labels, x = condition
        if self.classes > 1:
            # A row's norm starts at 1, as that of a one-hot. Were rows as large as the noise, then the label, which is
            # the same from step to step, would outrun it: each class collapses to one image.
            latent = x.shape[-1]
            encoded = _encode(style, self.label_input, labels, self.classes, latent, latent**-0.5)
            x = jnp.concatenate([x, encoded.astype(x.dtype)], axis=-1)
        features = self.width * self.size // 8
        x = style.dense('first', 16 * features, x, update_spectral=train).reshape(-1, 4, 4, features)
        x = nn.relu(style.normalise('first_norm', x, train=train))
        while x.shape[1] < self.size // 2:
            name = f'up_{2 * x.shape[1]}'
            x = style.resample(name, 'up', x.shape[-1] // 2, x, update_spectral=train)
            x = nn.relu(style.normalise(f'{name}_norm', x, train=train))
        x = style.resample('head', 'up', self.out_channels, x, update_spectral=train, use_bias=True)
        return last_activation(x.astype(jnp.float32))


class DCGANDiscriminator(nn.Module):
    """Radford et al. 2016's discriminator (section 3), its image joined by the label as further planes.

    Strided 4×4 convolutions with a norm (but the first) and leaky ReLU halve the image to 4×4, of which one score is
    made. With one class, width 64 and batch norm it has 2,765,633 parameters at 64².

    Attributes:
      classes: number of classes.
      size: height and width of the images in pixels, a power of 2 from 8 on.
      width: channels of the first layer; they double with each layer.
      label_input: 'embedding' joins one learned plane to the image, 'one_hot' as many as classes, of zeros and ones.
      last_activation: key of ACTIVATIONS, on the score.
      style: how the layers convolve and normalise.
    """

    classes: int
    size: int
    width: int
    label_input: str
    last_activation: str
    style: Style

    @nn.compact
    def __call__(
        self, condition: jax.Array, image: jax.Array, *, train: bool, update_spectral: bool = False
    ) -> jax.Array:
        """Judges whether `image` is a real one of the class `condition`.

        Args:
          condition: labels, int32 (n,), each below `classes`.
          image: (n, size, size, channels), real or generated.
          train: whether batch norm uses the batch's statistics and updates the running ones.
          update_spectral: whether the spectral norm's power iteration moves on.

        Returns:
          float32 (n, 1, 1, 1).

        Raises:
          UserError: options out of range.
        """
        section, style, size = 'discriminator.dcgan', self.style, self.size
        _check_dcgan(section, size, self.width, self.label_input, style)
        last_activation = pick(ACTIVATIONS, self.last_activation, f'{section}.last_activation')
        x = image
        if self.classes > 1:
            planes = _encode(style, self.label_input, condition, self.classes, size * size, 1.0)
            shape = (len(x), size, size, 1) if self.label_input == 'embedding' else (len(x), 1, 1, self.classes)
            planes = jnp.broadcast_to(planes.reshape(shape), (len(x), size, size, shape[-1]))
            x = jnp.concatenate([x, planes.astype(x.dtype)], axis=-1)
        features = self.width
        while x.shape[1] > 4:
            name, first = f'down_{x.shape[1] // 2}', x.shape[1] == size
            bias = True if first else None  # no norm follows the first layer
            x = style.resample(name, 'down', features, x, update_spectral=update_spectral, use_bias=bias)
            x = nn.leaky_relu(x if first else style.normalise(f'{name}_norm', x, train=train), 0.2)
            features *= 2
        # A 4×4 convolution without padding.
        x = style.dense('head', 1, x.reshape(len(x), -1), update_spectral=update_spectral, use_bias=True)
        return last_activation(x.astype(jnp.float32))[:, None, None]


def double(x: jax.Array) -> jax.Array:
    """(n, h, w, c) to (n, 2 h, 2 w, c), each pixel four times."""
    n, h, w, features = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, features)).reshape(n, 2 * h, 2 * w, features)


def halve(x: jax.Array) -> jax.Array:
    """The means of 2×2 squares: (n, h, w, c) to (n, h / 2, w / 2, c); h and w are even."""
    n, h, w, features = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, features).mean(axis=(2, 4))


def _check_sngan(section: str, size: int, width: int, norm: str) -> None:
    check_options(section, {'width': width}, {}, None)
    _check_size(section, size, '32, 64 or 128 pixels', size in _HALVINGS)
    if norm not in ('none', 'spectral'):
        raise UserError(f'{section}.norm={norm!r}: expected none or spectral')


class SNGANGenerator(nn.Module):
    """Miyato et al. 2018's residual generator, with Miyato and Koyama 2018's conditional batch norm.

    A dense layer makes 4×4 positions, residual blocks double them. Channels in units of `width`, from 4×4 on:
    4, 4, 4, 4 at 32², 16, 8, 4, 2, 1 at 64² and 16, 16, 8, 4, 2, 1 at 128². At 32² with one class, width 64 and a
    latent of 128 it has 4,276,739 parameters, with ten classes 4,304,387.

    Attributes:
      out_channels: channels of the image that comes out.
      classes: number of classes.
      size: height and width of the image in pixels: 32, 64 or 128.
      latent: numbers of noise.
      width: the unit of the channels; the papers' is 64.
      last_activation: key of ACTIVATIONS.
      style: how the layers convolve; of norms only spectral (or none), for the network has batch norm in any case.
    """

    out_channels: int
    classes: int
    size: int
    latent: int
    width: int
    last_activation: str
    style: Style

    @nn.compact
    def __call__(self, condition: tuple[jax.Array, jax.Array], *, train: bool) -> jax.Array:
        """Makes an image of each label and noise; see `DCGANGenerator.__call__`."""
        section, style = 'generator.sngan', self.style
        _check_sngan(section, self.size, self.width, style.norm)
        last_activation = pick(ACTIVATIONS, self.last_activation, f'{section}.last_activation')
        labels, noise = condition
        first, *others = (self.width * units for units in _GENERATOR_CHANNELS[self.size])
        x = style.dense('first', 16 * first, noise, update_spectral=train).reshape(-1, 4, 4, first)
        for features in others:
            x = self._block(f'block_{2 * x.shape[1]}', features, x, labels, train)
        # The authors' last norm is that of all classes.
        x = nn.relu(style.batch_norm('last_norm', x, train=train))
        x = style.convolve('head', 3, self.out_channels, x, update_spectral=train)
        return last_activation(x.astype(jnp.float32))

    def _block(self, name: str, features: int, x: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        style = self.style
        y = nn.relu(style.conditional_batch_norm(f'{name}_norm_1', x, labels, self.classes, train=train))
        y = style.convolve(f'{name}_conv_1', 3, features, double(y), update_spectral=train)
        y = nn.relu(style.conditional_batch_norm(f'{name}_norm_2', y, labels, self.classes, train=train))
        y = style.convolve(f'{name}_conv_2', 3, features, y, update_spectral=train)
        # Doubled after the convolution instead of before: the same values for a quarter of the work.
        return y + double(style.convolve(f'{name}_shortcut', 1, features, x, update_spectral=train))


class SNGANDiscriminator(nn.Module):
    """Miyato et al. 2018's residual discriminator with Miyato and Koyama 2018's projection on the label.

    The score of an image of class y is ψ(φ) + Vᵧ · φ (the latter's equation 3), where φ is what the blocks give, summed
    over all positions, ψ a dense layer and Vᵧ the class's row. Channels in units of `width`: 2, 2, 2, 2 at 32²,
    1, 2, 4, 8, 16 at 64² and 1, 2, 4, 8, 16, 16 at 128²; the first two, five and five blocks halve the size. At 32²
    with one class and width 64 it has 1,053,825 parameters, with ten classes 1,055,105.

    Attributes:
      classes: number of classes.
      size: height and width of the images in pixels: 32, 64 or 128.
      width: the unit of the channels; the papers' is 64.
      last_activation: key of ACTIVATIONS, on the score.
      style: how the layers convolve; spectral norm is on V as well. Of norms only spectral (or none).
    """

    classes: int
    size: int
    width: int
    last_activation: str
    style: Style

    @nn.compact
    def __call__(
        self, condition: jax.Array, image: jax.Array, *, train: bool, update_spectral: bool = False
    ) -> jax.Array:
        """Judges whether `image` is a real one of the class `condition`; see `DCGANDiscriminator.__call__`.

        Nothing here depends on `train`.
        """
        del train
        section, style = 'discriminator.sngan', self.style
        _check_sngan(section, self.size, self.width, style.norm)
        last_activation = pick(ACTIVATIONS, self.last_activation, f'{section}.last_activation')
        x = image
        for i, units in enumerate(_DISCRIMINATOR_CHANNELS[self.size]):
            x = self._block(i, self.width * units, x, i < _HALVINGS[self.size], update_spectral)
        phi = nn.relu(x).sum(axis=(1, 2))
        score = style.dense('psi', 1, phi, update_spectral=update_spectral).astype(jnp.float32)
        if self.classes > 1:
            row = style.embed('projection', self.classes, phi.shape[-1], condition, update_spectral=update_spectral)
            score += jnp.sum((row * phi).astype(jnp.float32), axis=-1, keepdims=True)
        return last_activation(score)[:, None, None]

    def _block(self, i: int, features: int, x: jax.Array, halved: bool, update_spectral: bool) -> jax.Array:
        def convolve(name: str, size: int, features: int, x: jax.Array) -> jax.Array:
            return self.style.convolve(f'block_{i}_{name}', size, features, x, update_spectral=update_spectral)

        # The first block meets the image itself and widens at once; the others do so in their second convolution.
        y = convolve('conv_1', 3, x.shape[-1], nn.relu(x)) if i else convolve('conv_1', 3, features, x)
        y = convolve('conv_2', 3, features, nn.relu(y))
        if halved:
            x, y = halve(x), halve(y)
        # Halved before the convolution instead of after: the same values for a quarter of the work.
        return y + (convolve('shortcut', 1, features, x) if halved or x.shape[-1] != features else x)
