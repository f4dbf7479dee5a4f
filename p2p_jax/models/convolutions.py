"""Convolutions, in the form that suits the back end.

This is the one place where that form is chosen. A GPU or TPU has the native one. XLA's CPU back end computes the kernel
gradient of an lhs-dilated convolution (what a transposed convolution is, and what the input gradient of a strided one
becomes) by a naive path, and moves kernels around in memory that are larger than the images at the innermost levels of
a U-Net. There a convolution and its two gradients are three operations, each by itself a convolution of stride 1 or 2,
or matrix products, whichever is quicker for so many positions (measured: experiments/benchmarks/NOTES.md). All forms
share one kernel of shape (side, side, in, out), so that checkpoints do not depend on the form. 3×3 kernels of stride 2
are 4×4 ones with a row and a column of zeros; 2×2 ones, whose windows do not overlap, are matrix products.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp

from p2p_jax.lookup import pick

FORMS = ('native', 'cpu', 'portable')
# Side of the kernel: what the native forms pad before and after, so that sizes are halved (rounded down) and doubled.
_PADS_DOWN = {2: (0, 0), 3: (1, 0), 4: (1, 1)}
_PADS_UP = {2: (1, 1), 3: (1, 2), 4: (2, 2)}
_NHWC = ('NHWC', 'HWIO', 'NHWC')
# Positions of the smaller image, over the batch, up to which: kernels, read in place, cost more than anything else;
# matrix products beat XLA's strided convolution; and its convolution of stride 1 that gives four phases at once.
_FEW, _REDUCED, _EXPANDED = 64, 256, 1024
# Channels of an image, a pair of images or a score, as opposed to those of features.
_NARROW = 8


def _products(still: jax.Array, moved: jax.Array, starts: list[tuple[int, int]]) -> jax.Array:
    """The slopes by the taps of a kernel: products of one image and windows of another, summed over all positions.

    Args:
      still: (n, h, w, a).
      moved: (n, more than h, more than w, b).
      starts: row and column of each window, of the size of `still`.

    Returns:
      (windows, a, b).
    """
    # Transposed once for all windows, which are cut and multiplied one after the other: XLA's own way, or all of them
    # at once, takes up to twice as long.
    rows = still.reshape(-1, still.shape[-1]).T

    def product(start: jax.Array) -> jax.Array:
        window = jax.lax.dynamic_slice(moved, (0, start[0], start[1], 0), (*still.shape[:3], moved.shape[-1]))
        return rows @ window.reshape(-1, moved.shape[-1])

    return jax.lax.map(product, jnp.array(starts))


def _pad(x: jax.Array, width: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)))


# Below, `high` is the larger image (n, 2 h, 2 w, high), or an odd row or column more, and `low` the smaller one
# (n, h, w, low). Tap 2a + p of a kernel joins position o of `low` with block o + a, at phase p, of `high` padded by 1.
# Kernels of downsampling are (4, 4, high, low); those of upsampling are (4, 4, low, high) and mirrored: `mirrored`.


def _blocks(high: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The blocks of two by two of `high`: (n, h + 1, w + 1, p, q, high)."""
    (n, _, _, channels), (h, w) = high.shape, size
    padded = _pad(high, 1)[:, : 2 * h + 2, : 2 * w + 2]
    return padded.reshape(n, h + 1, 2, w + 1, 2, channels).swapaxes(2, 3)


def _windows(high: jax.Array, size: tuple[int, int]) -> list[jax.Array]:
    """What the taps meet at the positions of `low`: (n, h, w, p, q, high) for each (a, b), in their order."""
    blocks, (h, w) = _blocks(high, size), size
    return [blocks[:, a : a + h, b : b + w] for a in (0, 1) for b in (0, 1)]


def _columns(high: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The same, all taps of a position behind one another: (n h w, 16 high)."""
    windows = jnp.stack(_windows(high, size))
    windows = windows.reshape(2, 2, *windows.shape[1:]).transpose(2, 3, 4, 0, 5, 1, 6, 7)
    return windows.reshape(-1, 16 * high.shape[-1])


def _mirrored_taps(high: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The same, one tap after the other, in the order of a mirrored kernel: (16, n h w, high)."""
    windows = jnp.stack(_windows(high, size))
    windows = windows.reshape(2, 2, *windows.shape[1:]).transpose(0, 5, 1, 6, 2, 3, 4, 7)
    return windows.reshape(16, -1, high.shape[-1])[::-1]


def _taps(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(16, *kernel.shape[2:])


def _reduce(high: jax.Array, kernel: jax.Array, mirrored: bool) -> jax.Array:
    """The sum, at each position of `low`, of what the taps meet times the taps: (n, h, w, low)."""
    n, h, w = len(high), high.shape[1] // 2, high.shape[2] // 2
    if n * h * w > _REDUCED:
        if mirrored:
            kernel = jax.lax.rev(kernel, (0, 1))
        numbers = ('NHWC', 'HWOI' if mirrored else 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(high, kernel, (2, 2), [_PADS_DOWN[4]] * 2, dimension_numbers=numbers)
    if not mirrored:
        low = _columns(high, (h, w)) @ kernel.reshape(-1, kernel.shape[-1])
    elif n * h * w > _FEW:
        pairs = zip(_mirrored_taps(high, (h, w)), _taps(kernel), strict=True)
        low = functools.reduce(operator.add, [x @ tap.T for x, tap in pairs])
    else:
        low = jnp.einsum('tmo,tio->tmi', _mirrored_taps(high, (h, w)), _taps(kernel)).sum(0)
    return low.reshape(n, h, w, -1)


def _expand(low: jax.Array, kernel: jax.Array, mirrored: bool, size: tuple[int, int]) -> jax.Array:
    """The transpose of `_reduce`: (n, *size, high)."""
    n, h, w, channels = low.shape
    count = n * h * w
    if count > _EXPANDED:
        if not mirrored:
            kernel = jax.lax.rev(kernel, (0, 1)).swapaxes(2, 3)
        # Of the mirrored kernel, tap 2r + 1 - p meets block b of the result, at phase p, from position b + r - 1.
        phases = kernel.reshape(2, 2, 2, 2, channels, -1)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
        padded = _pad(low, 1)
        blocks = jax.lax.conv_general_dilated(
            padded, phases.reshape(2, 2, channels, -1), (1, 1), 'VALID', dimension_numbers=_NHWC
        ).reshape(n, h + 1, w + 1, 2, 2, -1)
        placed = [[blocks[:, :, :, p, q] for q in (0, 1)] for p in (0, 1)]
    else:
        flat = low.reshape(count, channels)
        if not mirrored:
            products = (kernel.reshape(-1, channels) @ flat.T).reshape(16, -1, count).swapaxes(1, 2)
        elif count > _FEW:
            products = jnp.einsum('mi,tio->tmo', flat, _taps(kernel))
        else:
            products = jnp.broadcast_to(flat, (16, *flat.shape)) @ _taps(kernel)
        products = products.reshape(4, 4, n, h, w, -1)[:: -1 if mirrored else 1, :: -1 if mirrored else 1]

        def place(i: int, j: int) -> jax.Array:
            return jnp.pad(products[i, j], ((0, 0), (i // 2, 1 - i // 2), (j // 2, 1 - j // 2), (0, 0)))

        quarters = [[[(i, j) for i in (p, p + 2) for j in (q, q + 2)] for q in (0, 1)] for p in (0, 1)]
        placed = [[functools.reduce(operator.add, [place(*tap) for tap in taps]) for taps in row] for row in quarters]
    rows = jnp.stack([jnp.stack(row, axis=3) for row in placed], axis=2)
    return rows.reshape(n, 2 * h + 2, 2 * w + 2, -1)[:, 1 : 1 + size[0], 1 : 1 + size[1]]


def _correlate(high: jax.Array, low: jax.Array, mirrored: bool) -> jax.Array:
    """The slope of `_reduce` and `_expand` by the kernel, of the kernel's shape."""
    n, h, w, channels = low.shape
    features, flat = high.shape[-1], low.reshape(-1, channels)
    shape = (4, 4, *((channels, features) if mirrored else (features, channels)))
    if n * h * w <= _FEW:
        if not mirrored:
            return (_columns(high, (h, w)).T @ flat).reshape(shape)
        return (jnp.broadcast_to(flat.T, (16, *flat.T.shape)) @ _mirrored_taps(high, (h, w))).reshape(shape)
    if mirrored:
        blocks = _blocks(high, (h, w)).reshape(n, h + 1, w + 1, -1)
        products = _products(low, blocks, [(a, b) for a in (0, 1) for b in (0, 1)])
        products = products.reshape(2, 2, channels, 2, 2, features).transpose(0, 3, 1, 4, 2, 5).reshape(shape)
        return jax.lax.rev(products, (0, 1))
    if features <= _NARROW:
        windows = [window.reshape(-1, 4 * features) for window in _windows(high, (h, w))]
        products = jnp.stack([window.T @ flat for window in windows])
    else:
        blocks = _blocks(high, (h, w)).reshape(n, h + 1, w + 1, -1)
        products = _products(blocks, _pad(low, 1), [(1 - a, 1 - b) for a in (0, 1) for b in (0, 1)])
    return products.reshape(2, 2, 2, 2, features, channels).swapaxes(1, 2).reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _resample(x: jax.Array, kernel: jax.Array, up: bool) -> jax.Array:
    """A 4×4 convolution of stride 2 with padding 1, or its transpose, in the forms for a CPU."""
    return _expand(x, kernel, True, (2 * x.shape[1], 2 * x.shape[2])) if up else _reduce(x, kernel, False)


def _resample_forward(x: jax.Array, kernel: jax.Array, up: bool) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _resample(x, kernel, up), (x, kernel)


def _resample_backward(up: bool, kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    if up:
        return _reduce(slope, kernel, True), _correlate(slope, x, True)
    return _expand(slope, kernel, False, (x.shape[1], x.shape[2])), _correlate(x, slope, False)


_resample.defvjp(_resample_forward, _resample_backward)


def _native(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=_NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _same(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """A convolution of stride 1, whose slope by the kernel XLA takes 1.5 to 20 times as long for."""
    return _native(x, kernel, padding)


def _same_forward(x: jax.Array, kernel: jax.Array, padding: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _same(x, kernel, padding), (x, kernel)


def _same_backward(padding: int, kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    by_image = jax.vjp(lambda x: _native(x, kernel, padding), x)[1](slope)[0]
    side, _, inputs, outputs = kernel.shape
    # What is shifted against the other is the smaller of the two: tap i meets x at y where the slope is at y - i.
    beyond, last, (h, w) = side - 1 - padding, range(side - 1, -1, -1), x.shape[1:3]
    if outputs <= _NARROW:
        slopes = _pad(slope, beyond)
        shifted = jnp.stack([slopes[:, i : i + h, j : j + w].reshape(-1, outputs) for i in last for j in last])
        taps = jnp.einsum('mi,tmo->tio', x.reshape(-1, inputs), shifted)
    elif outputs < inputs:
        taps = _products(x, _pad(slope, beyond), [(i, j) for i in last for j in last])
    else:
        starts = [(i, j) for i in range(side) for j in range(side)]
        taps = _products(slope, _pad(x, padding), starts).swapaxes(1, 2)
    return by_image, taps.reshape(kernel.shape)


_same.defvjp(_same_forward, _same_backward)


@jax.custom_vjp
def settle(x: jax.Array) -> jax.Array:
    """Returns x, of which neither the values nor the slope are computed anew for each use.

    On a CPU XLA would add a residual stream up from its beginning for each of the blocks that it passes.
    """
    return jax.lax.optimization_barrier(x)


settle.defvjp(lambda x: (settle(x), None), lambda _, slope: (jax.lax.optimization_barrier(slope),))


def choose_form(form: str) -> str:
    """Returns the form of a convolution.

    Args:
      form: 'native', 'cpu', 'portable', which is native but chooses by the back end that it comes to run on where that
        matters for inference, or 'auto', which chooses by the present one.

    Raises:
      UserError: an unknown form.
    """
    if form == 'auto':
        return 'cpu' if jax.default_backend() == 'cpu' else 'native'
    return pick({name: name for name in FORMS}, form, 'conv_form')


def _multiply(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """(..., in) @ (in, out); of a matrix, as whose product XLA takes the slope without transposing first."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def convolve(x: jax.Array, kernel: jax.Array, padding: int, form: str) -> jax.Array:
    """A convolution of stride 1.

    Args:
      x: (n, h, w, in).
      kernel: (side, side, in, out).
      padding: zeros on each side, less than the kernel's side.
      form: 'auto' or one of FORMS; all give the same values.

    Returns:
      (n, h + 2 padding + 1 - side, w + 2 padding + 1 - side, out).
    """
    if choose_form(form) != 'cpu':
        return _native(x, kernel, padding)
    if kernel.shape[0] == 1 and not padding:
        return _multiply(x, kernel[0, 0])
    # From few channels XLA's way is the quickest, unless it is to few ones.
    if kernel.shape[2] <= _NARROW < kernel.shape[3]:
        return _native(x, kernel, padding)
    return _same(x, kernel, padding)


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
    side = kernel.shape[0]
    # 16 taps for 9 cost more than XLA's gradients of the 3×3 convolution do (twice as much, measured).
    form = 'native' if side == 3 and form == 'auto' else choose_form(form)
    if form in ('native', 'portable'):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), [_PADS_DOWN[side]] * 2, dimension_numbers=_NHWC)
    if side == 2:
        h, w = height // 2, width // 2
        x = x[:, : 2 * h, : 2 * w].reshape(n, h, 2, w, 2, features).transpose(0, 1, 3, 2, 4, 5)
        return _multiply(x.reshape(n, h, w, 4 * features), kernel.reshape(4 * features, -1))
    return _resample(x, jnp.pad(kernel, ((0, 4 - side), (0, 4 - side), (0, 0), (0, 0))), False)


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
    form = choose_form(form)
    side, out = kernel.shape[0], kernel.shape[-1]
    if form in ('native', 'portable'):
        return jax.lax.conv_transpose(x, kernel, (2, 2), [_PADS_UP[side]] * 2, dimension_numbers=_NHWC)
    if side == 2:
        taps = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(features, 4 * out)
        return _multiply(x, taps).reshape(n, h, w, 2, 2, out).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, out)
    return _resample(x, jnp.pad(kernel, ((4 - side, 0), (4 - side, 0), (0, 0), (0, 0))), True)


@jax.custom_vjp
def _shift_and_add(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise` as the sum of nine shifted images."""
    h, w = x.shape[1:3]
    x = _pad(x, 1)
    taps = [x[:, i : i + h, j : j + w] * kernel[i, j, 0] for i in range(3) for j in range(3)]
    return functools.reduce(operator.add, taps)


def _shift_and_add_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shift_and_add(x, kernel), (x, kernel)


def _shift_and_add_backward(kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    # Otherwise XLA computes the slope anew for each use, with the padding in the innermost loop.
    slope = jax.lax.optimization_barrier(slope)
    padded = _pad(x, 1)
    n, h, w, channels = x.shape
    rows = h // math.gcd(h, 4)

    def tap(i: jax.Array) -> jax.Array:
        # Bands of rows are added up first: what is summed over all positions XLA writes down before.
        bands = [
            jax.lax.dynamic_slice(padded, (0, i // 3 + y, i % 3, 0), (n, rows, w, channels)) * slope[:, y : y + rows]
            for y in range(0, h, rows)
        ]
        return jnp.sum(jax.lax.optimization_barrier(functools.reduce(operator.add, bands)), axis=(0, 1, 2))

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

    form = choose_form(form)
    if form == 'portable':
        return jax.lax.platform_dependent(x, kernel, cpu=_shift_and_add, default=grouped)
    return grouped(x, kernel) if form == 'native' else _shift_and_add(x, kernel)
