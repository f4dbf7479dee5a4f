"""Building blocks of all networks: layers with their parameters, normalisation, activation."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from p2p_jax.lookup import UserError, pick
from p2p_jax.models.convolutions import choose_form, convolve, depthwise, downsample, settle, upsample

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'leaky_relu': lambda x: nn.leaky_relu(x, 0.2),
    'relu': nn.relu,
    'sigmoid': nn.sigmoid,
    'silu': nn.silu,
    'tanh': jnp.tanh,
    'none': lambda x: x,
}
NORMS = ('batch', 'instance', 'spectral', 'group', 'none')
STATISTICS = ('running', 'batch')
CONVOLVED = 'convolved'  # what a convolution gives, for `jax.checkpoint`


def missing(length: int, multiple: int) -> int:
    """Returns what a length lacks to the next multiple; of an unknown length, as a term that makes the sum one."""
    return -(-length // multiple) * multiple - length


def reflect(x: jax.Array, *pads: tuple[int, int]) -> jax.Array:
    """Pads (n, h, w, c) with the image mirrored at its border, again and again where the image is small.

    Args:
      x: the images, from 1×1 on.
      *pads: of height and of width, in pixels before and after.
    """
    if not any(jax.export.is_symbolic_dim(length) for length in x.shape[1:3]):
        return jnp.pad(x, ((0, 0), *pads, (0, 0)), mode='reflect')
    # An export for any size: `jnp.pad` must know how often the image is mirrored. The values are the same.
    for axis, (before, after) in enumerate(pads, 1):
        last = x.shape[axis] - 1
        there_and_back = (jnp.arange(before + last + 1 + after) - before) % jnp.maximum(2 * last, 1)
        x = jnp.take(x, jnp.minimum(there_and_back, 2 * last - there_and_back), axis=axis, mode='clip')
    return x


def kernel_initializer(init_std: float | None) -> nn.initializers.Initializer:
    """Returns N(0, init_std), or, for None, PyTorch's default: uniform within ±1/√(inputs of one output)."""
    if init_std is None:
        return nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    return nn.initializers.normal(init_std)


class Convolution(nn.Module):
    """A convolution with its parameters, which keeps, halves or doubles height and width.

    Attributes:
      features: channels of the output.
      size: of the kernel; 4, 3 or 2 where height and width change, see `downsample` and `upsample`.
      use_bias: whether a bias is added.
      direction: 'same' has stride 1, 'down' halves height and width, 'up' doubles them.
      form: of the convolution, or 'auto'.
      init_std: standard deviation of the initial kernel; see `kernel_initializer`.
      dtype: of the computation.
      padding: zeros on each side, of 'same'.
    """

    features: int
    size: int
    use_bias: bool
    direction: str
    form: str
    init_std: float | None
    dtype: Any
    padding: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param('kernel', kernel_initializer(self.init_std), shape)
        x, taps = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.direction == 'same':
            y = convolve(x, taps, self.padding, self.form)
        else:
            y = {'down': downsample, 'up': upsample}[self.direction](x, taps, self.form)
        if self.use_bias:
            y += self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return checkpoint_name(y, CONVOLVED)


class Depthwise(nn.Module):
    """A 3×3 convolution of each channel by itself, with its parameters.

    Attributes:
      form: of the convolution, or 'auto'.
      init_std: standard deviation of the initial kernel; see `kernel_initializer`.
      dtype: of the computation.
    """

    form: str
    init_std: float | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        kernel = self.param('kernel', kernel_initializer(self.init_std), (3, 3, 1, features))
        bias = self.param('bias', nn.initializers.zeros, (features,))
        return depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.form) + bias.astype(self.dtype)


class PresentBatchNorm(nn.Module):
    """Batch norm by the statistics of the images at hand, which changes nothing; its variables are `nn.BatchNorm`'s.

    Attributes:
      epsilon: added to the variance.
      dtype: of the result; the statistics are float32.
      scale_init: of the scale.
      affine: whether a scale and a shift of each channel follow.
    """

    epsilon: float
    dtype: Any
    scale_init: nn.initializers.Initializer
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        # Of no use here, but training updates them: the network has the same variables in either mode.
        self.variable('batch_stats', 'mean', jnp.zeros, shape)
        self.variable('batch_stats', 'var', jnp.ones, shape)
        y = x.astype(jnp.float32)
        y -= jnp.mean(y, axis=(0, 1, 2))
        y *= jax.lax.rsqrt(jnp.mean(y**2, axis=(0, 1, 2)) + self.epsilon)
        if self.affine:
            y *= self.param('scale', self.scale_init, shape)
            y += self.param('bias', nn.initializers.zeros, shape)
        return y.astype(self.dtype)


def _average_of_channels(x: jax.Array) -> jax.Array:
    # As a product: XLA's reductions, where they are fused with what surrounds them, take up to five times as long.
    return (x.reshape(-1, x.shape[-1]) @ jnp.full((x.shape[-1], 1), 1 / x.shape[-1])).reshape(*x.shape[:-1], 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standardise(x: jax.Array, epsilon: float) -> jax.Array:
    return _standardise_forward(x, epsilon)[0]


def _standardise_forward(x: jax.Array, epsilon: float) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x -= _average_of_channels(x)
    inverse = jax.lax.rsqrt(_average_of_channels(x**2) + epsilon)
    x *= inverse
    return x, (x, inverse)


def _standardise_backward(_: float, kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array]:
    x, inverse = kept
    return (inverse * (slope - _average_of_channels(slope) - x * _average_of_channels(slope * x)),)


_standardise.defvjp(_standardise_forward, _standardise_backward)


class LayerNorm(nn.Module):
    """Layer norm over the channels, in the form for a CPU; values and parameters are `nn.LayerNorm`'s.

    Attributes:
      epsilon: added to the variance.
      dtype: of the result; the statistics are float32.
    """

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _standardise(x.astype(jnp.float32), self.epsilon)
        y *= self.param('scale', nn.initializers.ones, (x.shape[-1],))
        y += self.param('bias', nn.initializers.zeros, (x.shape[-1],))
        return y.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Style:
    """What the layers of one network share. Its methods are called inside a compact module, which owns the layers.

    Attributes:
      norm: 'batch', 'instance', 'spectral', 'group' or 'none'; spectral norm goes on every convolution, dense layer and
        embedding, whose kernel then starts divided by its norm (flax does so; the function is the same).
      init_std: standard deviation of the initial kernels (mean 0) and of the initial scales of norms (mean 1); None:
        kernels as in `kernel_initializer`, scales of 1.
      conv_form: form of the convolutions and of layer norm, or 'auto'.
      norm_axis: mapped axis over which batch norm sees the whole batch; None: each device sees its own part.
      dtype: of the computation; parameters and statistics stay float32.
      statistics: what batch norm normalises by outside training: 'running' (those gathered in training) or 'batch'
        (those of the images at hand, each device's own, as the reference pix2pix tests).
      noise: dropout stays on outside training, as the reference pix2pix tests.
    """

    norm: str = 'none'
    init_std: float | None = None
    conv_form: str = 'auto'
    norm_axis: str | None = None
    dtype: Any = jnp.float32
    statistics: str = 'running'
    noise: bool = False

    @property
    def is_global(self) -> bool:
        """Whether, outside training, the norm makes each pixel depend on the whole image."""
        return self.norm in ('instance', 'group') or (self.norm == 'batch' and self.statistics == 'batch')

    @property
    def _use_bias(self) -> bool:
        # As the reference pix2pix: the shift of batch and group norm takes the bias's place.
        return self.norm not in ('batch', 'group')

    def _apply(self, layer: nn.Module, x: jax.Array, update_spectral: bool) -> jax.Array:
        if self.norm == 'spectral':
            return nn.SpectralNorm(layer, name=f'{layer.name}_spectral')(x, update_stats=update_spectral)
        return layer(x)

    def resample(
        self,
        name: str,
        direction: str,
        features: int,
        x: jax.Array,
        *,
        update_spectral: bool,
        use_bias: bool | None = None,
        size: int = 4,
    ) -> jax.Array:
        """A `size` × `size` convolution (4, 3 or 2) of stride 2, `direction` 'down' or 'up'; x (n, h, w, c)."""
        return self._convolution(name, size, features, x, direction, update_spectral, use_bias)

    def convolve(
        self,
        name: str,
        size: int,
        features: int,
        x: jax.Array,
        *,
        update_spectral: bool,
        use_bias: bool | None = None,
        mirrored: bool = False,
    ) -> jax.Array:
        """A `size` × `size` convolution of stride 1; x (n, h, w, c) is padded by (size - 1) // 2 on each side.

        `mirrored` pads with the image mirrored at its border instead of zeros; `size` is then odd.
        """
        padding = (size - 1) // 2
        if mirrored:
            x, padding = reflect(x, *[(padding, padding)] * 2), 0
        return self._convolution(name, size, features, x, 'same', update_spectral, use_bias, padding)

    def _convolution(
        self,
        name: str,
        size: int,
        features: int,
        x: jax.Array,
        direction: str,
        update_spectral: bool,
        use_bias: bool | None,
        padding: int = 0,
    ) -> jax.Array:
        layer = Convolution(
            features,
            size,
            use_bias=self._use_bias if use_bias is None else use_bias,
            direction=direction,
            form=self.conv_form,
            init_std=self.init_std,
            dtype=self.dtype,
            padding=padding,
            name=name,
        )
        return self._apply(layer, x, update_spectral)

    def depthwise(self, name: str, x: jax.Array, *, update_spectral: bool) -> jax.Array:
        """A 3×3 convolution of each channel by itself, with a bias; x (n, h, w, c)."""
        layer = Depthwise(self.conv_form, self.init_std, self.dtype, name=name)
        return self._apply(layer, x, update_spectral)

    def dense(
        self, name: str, features: int, x: jax.Array, *, update_spectral: bool, use_bias: bool | None = None
    ) -> jax.Array:
        """A matrix product; x (n, c)."""
        layer = nn.Dense(
            features,
            use_bias=self._use_bias if use_bias is None else use_bias,
            kernel_init=kernel_initializer(self.init_std),
            dtype=self.dtype,
            name=name,
        )
        return self._apply(layer, x, update_spectral)

    def embed(self, name: str, count: int, features: int, labels: jax.Array, *, update_spectral: bool) -> jax.Array:
        """A row of `features` numbers for each of `count` labels; labels (n,).

        Rows start with a norm of about 1, whatever `init_std`.
        """
        return self._apply(nn.Embed(count, features, dtype=self.dtype, name=name), labels, update_spectral)

    def settle(self, x: jax.Array) -> jax.Array:
        """Returns x, the end of a residual block; see `convolutions.settle`."""
        return settle(x) if choose_form(self.conv_form) == 'cpu' else x

    def drop(self, rate: float, x: jax.Array, *, train: bool) -> jax.Array:
        """Dropout in training, and outside it where it is to be noise."""
        return nn.Dropout(rate, deterministic=not (train or self.noise))(x)

    def _init_scale(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return 1 + (self.init_std or 0.0) * jax.random.normal(key, shape, dtype)

    def batch_norm(self, name: str, x: jax.Array, *, train: bool, affine: bool = True) -> jax.Array:
        """Batch norm of (n, h, w, c), whatever `norm`; `affine`: followed by a scale and a shift of each channel."""
        # epsilon and momentum are PyTorch's, so that the reference's weights mean the same here.
        if self.statistics == 'batch' and not train:
            return PresentBatchNorm(1e-5, self.dtype, self._init_scale, affine, name=name)(x)
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            use_scale=affine,
            use_bias=affine,
            dtype=self.dtype,
            axis_name=self.norm_axis,
            scale_init=self._init_scale,
            name=name,
        )(x)

    def conditional_batch_norm(
        self, name: str, x: jax.Array, labels: jax.Array, classes: int, *, train: bool
    ) -> jax.Array:
        """Batch norm whose scale and shift are the class's own (Dumoulin et al. 2017; de Vries et al. 2017).

        Args:
          name: of the norm.
          x: (n, h, w, c).
          labels: int32 (n,), or float32 (n, classes), see `rows`.
          classes: number of classes; one makes it plain batch norm.
          train: whether the batch's statistics are used, or the running ones; either is that of all classes together.
        """
        if classes == 1:
            return self.batch_norm(name, x, train=train)
        x = self.batch_norm(name, x, train=train, affine=False)
        # Spectral norm would divide a table of ones by the root of its size.
        scale, shift = (
            rows(nn.Embed(classes, x.shape[-1], dtype=self.dtype, embedding_init=init, name=f'{name}_{part}'), labels)
            for part, init in (('scale', self._init_scale), ('shift', nn.initializers.zeros))
        )
        return x * scale[:, None, None] + shift[:, None, None]

    def layer_norm(self, name: str, x: jax.Array, epsilon: float) -> jax.Array:
        """Layer norm of (n, h, w, c) over the channels, whatever `norm`, then a scale and a shift of each channel."""
        if choose_form(self.conv_form) == 'cpu':
            return LayerNorm(epsilon, self.dtype, name=name)(x)
        # The quick variance, E[x²] - E[x]², loses what makes channels differ where their mean is large.
        return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=self.dtype, name=name)(x)

    def normalise(self, name: str, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises (n, h, w, c); batch norm by the batch's statistics in training, by `statistics` otherwise."""
        if self.norm == 'batch':
            return self.batch_norm(name, x, train=train)
        if self.norm == 'instance':
            return nn.InstanceNorm(epsilon=1e-5, use_bias=False, use_scale=False, dtype=self.dtype, name=name)(x)
        if self.norm == 'group':
            groups = math.gcd(32, x.shape[-1])
            return nn.GroupNorm(groups, epsilon=1e-5, dtype=self.dtype, scale_init=self._init_scale, name=name)(x)
        if self.norm in ('spectral', 'none'):
            return x
        raise ValueError(f'norm={self.norm!r}: expected one of {", ".join(NORMS)}')


def rows(table: nn.Embed, labels: jax.Array) -> jax.Array:
    """Returns the rows of a table that belong to labels, or what lies between them.

    Args:
      table: of as many rows as classes.
      labels: int32 (n,); or float32 (n, classes), the shares with which the rows are mixed.

    Returns:
      (n, features).
    """
    return table(labels) if labels.ndim == 1 else labels.astype(table.dtype) @ table.embedding.astype(table.dtype)


def reach_of(layers: Sequence[tuple[str, int]]) -> int:
    """Returns how far from a pixel of the output those of the input lie at most that it depends on.

    Args:
      layers: the longest path through a network, from input to output: 'same', 'down' or 'up' and the kernel's side, of
        the convolutions of `Style.convolve` (an odd side) and `Style.resample`.

    Returns:
      In pixels, on each side.
    """
    most = 0
    # Which windows a pixel lies in depends on its place on the coarsest grid.
    for place in range(2 ** sum(direction == 'down' for direction, _ in layers)):
        first = last = place
        for direction, size in reversed(layers):
            pad = (size - 1) // 2
            if direction == 'up':
                first, last = -((size - 1 - pad - first) // 2), (last + pad) // 2
            else:
                stride = 2 if direction == 'down' else 1
                first, last = stride * first - pad, stride * last - pad + size - 1
        most = max(most, place - first, last - place)
    return most


def pad_to_multiple(x: jax.Array, multiple: int, mode: str = 'reflect') -> jax.Array:
    """Pads (n, h, w, c) at the bottom and the right until both sides are multiples; any size from 1×1."""
    pads = [(0, missing(length, multiple)) for length in x.shape[1:3]]
    return reflect(x, *pads) if mode == 'reflect' else jnp.pad(x, ((0, 0), *pads, (0, 0)), mode=mode)


def check_options(section: str, counts: dict[str, int], rates: dict[str, float], init_std: float | None) -> None:
    """Checks the options that many networks have.

    Args:
      section: of the configuration that they come from, for the message.
      counts: each at least 1.
      rates: of dropout, each in [0, 1).
      init_std: at least 0, or None.

    Raises:
      UserError: one is out of range.
    """
    for name, count in counts.items():
        if count < 1:
            raise UserError(f'{section}.{name}={count}: expected at least 1')
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f'{section}.{name}={rate}: expected a rate in [0, 1)')
    if init_std is not None and init_std < 0:
        raise UserError(f'{section}.init_std={init_std}: expected at least 0')


def finish(section: str, condition: jax.Array, x: jax.Array, last_activation: str, residual: bool) -> jax.Array:
    """Makes the image of what a network's last convolution gives.

    Args:
      section: of the configuration that the options come from, for the message.
      condition: (n, h, w, c), what the network was given.
      x: (n, at least h, at least w, out); what goes beyond the condition is cut off.
      last_activation: key of ACTIVATIONS.
      residual: give the condition minus the network's output.

    Returns:
      float32 (n, h, w, out).

    Raises:
      UserError: an unknown activation, or a residual of other channels than the condition's.
    """
    if residual and condition.shape[-1] != x.shape[-1]:
        raise UserError(f'{section}.residual: {condition.shape[-1]} channels cannot be added to {x.shape[-1]}')
    height, width = condition.shape[1:3]
    x = pick(ACTIVATIONS, last_activation, f'{section}.last_activation')(x.astype(jnp.float32))[:, :height, :width]
    return condition - x if residual else x
