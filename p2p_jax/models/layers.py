"""Building blocks of all networks: convolutions, normalisation, activation.

This is the one place where the form of a strided convolution is chosen. XLA's CPU back end computes the kernel
gradient of an lhs-dilated convolution (what a transposed convolution is, and what the input gradient of a strided one
becomes) by a naive path. A 4×4 convolution of stride 2 is therefore rewritten as a 2×2 convolution of stride 1, with
the same weights in another order, whose gradients are plain. All forms share one kernel of shape (4, 4, in, out), so
that checkpoints do not depend on the form.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.lookup import pick

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'leaky_relu': lambda x: nn.leaky_relu(x, 0.2),
    'relu': nn.relu,
    'sigmoid': nn.sigmoid,
    'silu': nn.silu,
    'tanh': jnp.tanh,
    'none': lambda x: x,
}
NORMS = ('batch', 'instance', 'spectral', 'group', 'none')
FORMS = ('native', 'phase', 'gemm')
# On the CPU the matrix product wins over XLA's convolution up to this height and width of the 2×2 convolution.
_GEMM_UP_TO = 64

# In both kinds of layer, tap 2a + p of the kernel meets block a at phase p: (4, 4, in, out) -> (a, p, b, q, in, out).


def _conv2x2(x: jax.Array, kernel: jax.Array, form: str) -> jax.Array:
    """A VALID 2×2 convolution of stride 1: (n, h + 1, w + 1, in), (2, 2, in, out) -> (n, h, w, out)."""
    if form == 'phase':
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    columns = jnp.concatenate([x[:, :-1, :-1], x[:, :-1, 1:], x[:, 1:, :-1], x[:, 1:, 1:]], axis=-1)
    return columns @ kernel.reshape(-1, kernel.shape[-1])


def choose_form(form: str, size: int) -> str:
    """Returns the form of a strided convolution.

    Args:
      form: 'native', 'phase', 'gemm', or 'auto', which chooses by the back end.
      size: the larger of height and width on the low-resolution side, in pixels.

    Raises:
      UserError: an unknown form.
    """
    if form == 'auto':
        if jax.default_backend() != 'cpu':
            return 'native'
        return 'gemm' if size <= _GEMM_UP_TO else 'phase'
    return pick({name: name for name in FORMS}, form, 'conv_form')


def downsample(x: jax.Array, kernel: jax.Array, form: str) -> jax.Array:
    """A 4×4 convolution of stride 2 and padding 1, in the given form.

    Args:
      x: (n, h, w, in).
      kernel: (4, 4, in, out).
      form: 'auto', 'native', 'phase' or 'gemm'; all give the same values.

    Returns:
      (n, h // 2, w // 2, out).
    """
    n, height, width, features = x.shape
    h, w = height // 2, width // 2
    form = choose_form(form, max(h, w))
    if form == 'native':
        pads = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    # The last row of an odd height meets no window; the same for the last column.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, : 2 * h + 2, : 2 * w + 2]
    x = x.reshape(n, h + 1, 2, w + 1, 2, features).transpose(0, 1, 3, 2, 4, 5).reshape(n, h + 1, w + 1, 4 * features)
    taps = kernel.reshape(2, 2, 2, 2, features, -1).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * features, -1)
    return _conv2x2(x, taps, form)


def upsample(x: jax.Array, kernel: jax.Array, form: str) -> jax.Array:
    """A transposed 4×4 convolution of stride 2 and padding 1 (as `flax.linen.ConvTranspose`), in the given form.

    Args:
      x: (n, h, w, in).
      kernel: (4, 4, in, out).
      form: 'auto', 'native', 'phase' or 'gemm'; all give the same values.

    Returns:
      (n, 2 h, 2 w, out).
    """
    n, h, w, features = x.shape
    form = choose_form(form, max(h, w))
    if form == 'native':
        return jax.lax.conv_transpose(x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    out = kernel.shape[-1]
    taps = kernel.reshape(2, 2, 2, 2, features, out).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, features, 4 * out)
    y = _conv2x2(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), taps, form).reshape(n, h + 1, w + 1, 2, 2, out)
    phases = [[y[:, p : p + h, q : q + w, p, q] for q in (0, 1)] for p in (0, 1)]
    rows = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    return rows.reshape(n, 2 * h, 2 * w, out)


class Strided(nn.Module):
    """A 4×4 convolution of stride 2 and padding 1, or its transpose, with its parameters.

    Attributes:
      features: channels of the output.
      use_bias: whether a bias is added.
      direction: 'down' halves height and width, 'up' doubles them.
      form: of the convolution, or 'auto'.
      init_std: standard deviation of the initial kernel.
      dtype: of the computation.
    """

    features: int
    use_bias: bool
    direction: str
    form: str
    init_std: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (4, 4, x.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.normal(self.init_std), shape)
        resample = {'down': downsample, 'up': upsample}[self.direction]
        y = resample(x.astype(self.dtype), kernel.astype(self.dtype), self.form)
        if self.use_bias:
            y += self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


@dataclasses.dataclass(frozen=True)
class Style:
    """What the layers of one network share. Its methods are called inside a compact module, which owns the layers.

    Attributes:
      norm: 'batch', 'instance', 'spectral', 'group' or 'none'; spectral norm goes on every convolution, whose kernel
        then starts divided by its norm (flax does so; the function is the same).
      init_std: standard deviation of the initial kernels (mean 0) and of the initial scales of norms (mean 1).
      conv_form: form of the strided convolutions, or 'auto'.
      norm_axis: mapped axis over which batch norm sees the whole batch; None: each device sees its own part.
      dtype: of the computation; parameters and statistics stay float32.
    """

    norm: str
    init_std: float
    conv_form: str
    norm_axis: str | None
    dtype: Any

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
    ) -> jax.Array:
        """A 4×4 convolution of stride 2, `direction` 'down' or 'up'; x (n, h, w, c)."""
        layer = Strided(
            features,
            use_bias=self._use_bias if use_bias is None else use_bias,
            direction=direction,
            form=self.conv_form,
            init_std=self.init_std,
            dtype=self.dtype,
            name=name,
        )
        return self._apply(layer, x, update_spectral)

    def convolve(
        self, name: str, size: int, features: int, x: jax.Array, *, update_spectral: bool, use_bias: bool | None = None
    ) -> jax.Array:
        """A `size` × `size` convolution of stride 1, padded by (size - 1) // 2 on each side; x (n, h, w, c)."""
        layer = nn.Conv(
            features,
            (size, size),
            padding=(size - 1) // 2,
            use_bias=self._use_bias if use_bias is None else use_bias,
            kernel_init=nn.initializers.normal(self.init_std),
            dtype=self.dtype,
            name=name,
        )
        return self._apply(layer, x, update_spectral)

    def normalise(self, name: str, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises (n, h, w, c); batch norm by the batch's statistics in training, by running ones otherwise."""

        def scale_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return 1 + self.init_std * jax.random.normal(key, shape, dtype)

        # epsilon and momentum are PyTorch's, so that the reference's weights mean the same here.
        if self.norm == 'batch':
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                axis_name=self.norm_axis,
                scale_init=scale_init,
                name=name,
            )(x)
        if self.norm == 'instance':
            return nn.InstanceNorm(epsilon=1e-5, use_bias=False, use_scale=False, dtype=self.dtype, name=name)(x)
        if self.norm == 'group':
            groups = math.gcd(32, x.shape[-1])
            return nn.GroupNorm(groups, epsilon=1e-5, dtype=self.dtype, scale_init=scale_init, name=name)(x)
        if self.norm in ('spectral', 'none'):
            return x
        raise ValueError(f'norm={self.norm!r}: expected one of {", ".join(NORMS)}')
