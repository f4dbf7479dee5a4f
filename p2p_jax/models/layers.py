"""Building blocks of all networks: convolutions, normalisation, activation.

This is the one place where the form of a strided convolution is chosen. XLA's CPU back end computes the kernel
gradient of an lhs-dilated convolution (what a transposed convolution is, and what the input gradient of a strided one
becomes) by a naive path. A 4×4 convolution of stride 2 is therefore rewritten as a 2×2 convolution of stride 1, with
the same weights in another order, whose gradients are plain. All forms share one kernel of shape (4, 4, in, out), so
that checkpoints do not depend on the form. 3×3 kernels are 4×4 ones with a row and a column of zeros; 2×2 ones, whose
windows do not overlap, are matrix products.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.lookup import UserError, pick

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
FORMS = ('native', 'phase', 'gemm', 'portable')
# On the CPU the matrix product wins over XLA's convolution up to this height and width of the 2×2 convolution.
_GEMM_UP_TO = 64
# Side of the kernel: what the native forms pad before and after, so that sizes are halved (rounded down) and doubled.
_PADS_DOWN = {2: (0, 0), 3: (1, 0), 4: (1, 1)}
_PADS_UP = {2: (1, 1), 3: (1, 2), 4: (2, 2)}
_NHWC = ('NHWC', 'HWIO', 'NHWC')

# In both kinds of layer, tap 2a + p of the kernel meets block a at phase p: (4, 4, in, out) -> (a, p, b, q, in, out).


def _conv2x2(x: jax.Array, kernel: jax.Array, form: str) -> jax.Array:
    """A VALID 2×2 convolution of stride 1: (n, h + 1, w + 1, in), (2, 2, in, out) -> (n, h, w, out)."""
    if form == 'phase':
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', dimension_numbers=_NHWC)
    columns = jnp.concatenate([x[:, :-1, :-1], x[:, :-1, 1:], x[:, 1:, :-1], x[:, 1:, 1:]], axis=-1)
    return columns @ kernel.reshape(-1, kernel.shape[-1])


def choose_form(form: str, *sizes: int) -> str:
    """Returns the form of a strided convolution.

    Args:
      form: 'native', 'phase', 'gemm', 'portable', which is native but chooses by the back end that it comes to run on
        where that matters for inference, or 'auto', which chooses by the present one.
      *sizes: height and width on the low-resolution side, in pixels; only 'auto' looks at them.

    Raises:
      UserError: an unknown form.
    """
    if form == 'auto':
        if jax.default_backend() != 'cpu':
            return 'native'
        return 'gemm' if max(sizes) <= _GEMM_UP_TO else 'phase'
    return pick({name: name for name in FORMS}, form, 'conv_form')


def downsample(x: jax.Array, kernel: jax.Array, form: str) -> jax.Array:
    """A convolution of stride 2, in the given form: 4×4 or 3×3 with padding 1, or 2×2 without.

    Args:
      x: (n, h, w, in); of an odd height, 3×3 leaves out the window that would start at the last row.
      kernel: (4, 4, in, out), (3, 3, in, out) or (2, 2, in, out).
      form: 'auto' or one of FORMS; all give the same values.

    Returns:
      (n, h // 2, w // 2, out).
    """
    n, height, width, features = x.shape
    h, w = height // 2, width // 2
    side = kernel.shape[0]
    # 16 taps for 9 cost more than XLA's gradients of the 3×3 convolution do (twice as much, measured).
    form = 'native' if side == 3 and form == 'auto' else choose_form(form, h, w)
    if form in ('native', 'portable'):
        pads = (_PADS_DOWN[side], _PADS_DOWN[side])
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), pads, dimension_numbers=_NHWC)
    if side == 2:
        x = x[:, : 2 * h, : 2 * w].reshape(n, h, 2, w, 2, features).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(n, h, w, 4 * features) @ kernel.reshape(4 * features, -1)
    if side == 3:
        kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    # The last row of an odd height meets no window; the same for the last column.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, : 2 * h + 2, : 2 * w + 2]
    x = x.reshape(n, h + 1, 2, w + 1, 2, features).transpose(0, 1, 3, 2, 4, 5).reshape(n, h + 1, w + 1, 4 * features)
    taps = kernel.reshape(2, 2, 2, 2, features, -1).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * features, -1)
    return _conv2x2(x, taps, form)


def upsample(x: jax.Array, kernel: jax.Array, form: str) -> jax.Array:
    """A transposed convolution of stride 2, in the given form.

    In PyTorch's terms 4×4 with padding 1, 3×3 with padding 1 and output padding 1, or 2×2 without; its kernels are
    `flax.linen.ConvTranspose`'s, which are PyTorch's mirrored in height and width.

    Args:
      x: (n, h, w, in).
      kernel: (4, 4, in, out), (3, 3, in, out) or (2, 2, in, out).
      form: 'auto' or one of FORMS; all give the same values.

    Returns:
      (n, 2 h, 2 w, out).
    """
    n, h, w, features = x.shape
    form = choose_form(form, h, w)
    side, out = kernel.shape[0], kernel.shape[-1]
    if form in ('native', 'portable'):
        pads = (_PADS_UP[side], _PADS_UP[side])
        return jax.lax.conv_transpose(x, kernel, (2, 2), pads, dimension_numbers=_NHWC)
    if side == 2:
        taps = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(features, 4 * out)
        return (x @ taps).reshape(n, h, w, 2, 2, out).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, out)
    if side == 3:
        kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    taps = kernel.reshape(2, 2, 2, 2, features, out).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, features, 4 * out)
    y = _conv2x2(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), taps, form).reshape(n, h + 1, w + 1, 2, 2, out)
    phases = [[y[:, p : p + h, q : q + w, p, q] for q in (0, 1)] for p in (0, 1)]
    rows = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    return rows.reshape(n, 2 * h, 2 * w, out)


@jax.custom_vjp
def _shift_and_add(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise` as the sum of nine shifted images."""
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [x[:, i : i + h, j : j + w] * kernel[i, j, 0] for i in range(3) for j in range(3)]
    return functools.reduce(operator.add, taps)


def _shift_and_add_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shift_and_add(x, kernel), (x, kernel)


def _shift_and_add_backward(kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def tap(i: jax.Array) -> jax.Array:
        shifted = jax.lax.dynamic_slice(padded, (0, i // 3, i % 3, 0), x.shape)
        return jnp.sum(shifted * slope, axis=(0, 1, 2))

    # One tap after the other: all nine in one loop, as XLA fuses them otherwise, take up to six times as long.
    return _shift_and_add(slope, kernel[::-1, ::-1]), jax.lax.map(tap, jnp.arange(9)).reshape(kernel.shape)


_shift_and_add.defvjp(_shift_and_add_forward, _shift_and_add_backward)


def depthwise(x: jax.Array, kernel: jax.Array, form: str) -> jax.Array:
    """A 3×3 convolution of each channel by itself, stride 1, padding 1.

    Args:
      x: (n, h, w, c).
      kernel: (3, 3, 1, c).
      form: 'native' is XLA's grouped convolution, which is slow on the CPU (forward 40 times as slow as the sum of the
        nine shifted images that the other forms are, forward and backward 10 to 20 times); 'auto' and 'portable'
        choose by back end.

    Returns:
      (n, h, w, c).
    """

    def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        pads = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), pads, dimension_numbers=_NHWC, feature_group_count=x.shape[-1]
        )

    form = choose_form(form, *x.shape[1:3])
    if form == 'portable':
        return jax.lax.platform_dependent(x, kernel, cpu=_shift_and_add, default=grouped)
    return grouped(x, kernel) if form == 'native' else _shift_and_add(x, kernel)


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


class Strided(nn.Module):
    """A convolution of stride 2 that halves or doubles height and width, with its parameters.

    Attributes:
      features: channels of the output.
      use_bias: whether a bias is added.
      direction: 'down' halves height and width, 'up' doubles them.
      form: of the convolution, or 'auto'.
      init_std: standard deviation of the initial kernel; see `kernel_initializer`.
      dtype: of the computation.
      size: of the kernel: 4, 3 or 2; see `downsample` and `upsample`.
    """

    features: int
    use_bias: bool
    direction: str
    form: str
    init_std: float | None
    dtype: Any
    size: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param('kernel', kernel_initializer(self.init_std), shape)
        resample = {'down': downsample, 'up': upsample}[self.direction]
        y = resample(x.astype(self.dtype), kernel.astype(self.dtype), self.form)
        if self.use_bias:
            y += self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


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


@dataclasses.dataclass(frozen=True)
class Style:
    """What the layers of one network share. Its methods are called inside a compact module, which owns the layers.

    Attributes:
      norm: 'batch', 'instance', 'spectral', 'group' or 'none'; spectral norm goes on every convolution, dense layer and
        embedding, whose kernel then starts divided by its norm (flax does so; the function is the same).
      init_std: standard deviation of the initial kernels (mean 0) and of the initial scales of norms (mean 1); None:
        kernels as in `kernel_initializer`, scales of 1.
      conv_form: form of the strided convolutions, or 'auto'.
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
        layer = Strided(
            features,
            use_bias=self._use_bias if use_bias is None else use_bias,
            direction=direction,
            form=self.conv_form,
            init_std=self.init_std,
            dtype=self.dtype,
            size=size,
            name=name,
        )
        return self._apply(layer, x, update_spectral)

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
        layer = nn.Conv(
            features,
            (size, size),
            padding=padding,
            use_bias=self._use_bias if use_bias is None else use_bias,
            kernel_init=kernel_initializer(self.init_std),
            dtype=self.dtype,
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
