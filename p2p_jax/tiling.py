"""Large images in tiles: where the tiles lie, how they go through a network, how their results become one image."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from p2p_jax.lookup import UserError, pick

OVERLAPS = ('blend', 'exact')
# Blended tiles begin at multiples of so many pixels, of which the outer levels of a network are laid out as in the
# whole image; those of a deep network's own multiple would leave tiles hardly a choice.
_GRID = 16
_LEAST_RAMP, _MOST_RAMP = 16, 64  # pixels over which one tile passes into the next
# Weights are multiples of this: a weight, one less a weight, and a product of two are then exact in float32.
_WEIGHT_STEP = 2.0**-12
_LIKELY_SIZE = 512  # pixels, where the memory is not known
_BYTES_PER_PIXEL = 8192  # a rough guess at what a network of width 64 needs, on the safe side
Apply = Callable[[np.ndarray], Any]


def full_scale(dtype: Any) -> float:
    """Returns the value that stands for 1 in images of a type: the largest integer; 1 for floats."""
    return np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1


@dataclasses.dataclass(frozen=True)
class Axis:
    """The tiles along one side of an image.

    Attributes:
      size: of each tile, pixels.
      starts: first pixel of each, rising.
      weights: float32 (tiles, size) in [0, 1]; at each pixel of the image those of all tiles sum to 1, exactly.
    """

    size: int
    starts: tuple[int, ...]
    weights: np.ndarray

    @property
    def length(self) -> int:
        """Of the side, pixels."""
        return self.starts[-1] + self.size


def _axis(size: int, starts: list[int], rises: list[np.ndarray]) -> Axis:
    """Puts an axis together from how much, at each pixel, the tiles from each one on have of the image."""
    steps = [*rises, np.zeros_like(rises[0])]
    shares = [a - b for a, b in itertools.pairwise(steps)]
    weights = [share[start : start + size] for share, start in zip(shares, starts, strict=True)]
    return Axis(size, tuple(starts), np.stack(weights).astype(np.float32))


def blended(length: int, size: int, ramp: int, grid: int) -> Axis:
    """Lays tiles evenly, so that each passes into the next over a raised cosine in the middle of their overlap.

    Args:
      length: of the side, pixels; a multiple of `grid` where it is more than `size`.
      size: of a tile; a multiple of `grid`.
      ramp: length of the cosine, a multiple of `grid`, less than `size`; tiles overlap at least so far.
      grid: starts are multiples of it.
    """
    if length <= size:
        return Axis(length, (0,), np.ones((1, length), np.float32))
    count = math.ceil((length - ramp) / (size - ramp))
    starts = [i * (length - size) // (count - 1) // grid * grid for i in range(count)]
    place = np.arange(length) + 0.5
    rises = [np.ones(length)]
    for before, after in itertools.pairwise(starts):
        middle = (after + before + size) / 2
        share = np.clip((place - middle) / ramp + 0.5, 0, 1)
        rises.append(np.rint((0.5 - 0.5 * np.cos(np.pi * share)) / _WEIGHT_STEP) * _WEIGHT_STEP)
    return _axis(size, starts, rises)


def exact(length: int, size: int, halo: int, grid: int) -> Axis:
    """Lays tiles whose cores meet, and which see so many pixels more on either side, or up to the image's border.

    Args:
      length: of the side, pixels; a multiple of `grid` where it is more than a tile.
      size: of a core; a multiple of `grid`.
      halo: on each side of it; likewise.
      grid: the network's own.
    """
    whole = size + 2 * halo
    if length <= whole:
        return Axis(length, (0,), np.ones((1, length), np.float32))
    cores = range(0, length, size)
    starts = [min(max(core - halo, 0), length - whole) for core in cores]
    return _axis(whole, starts, [(np.arange(length) >= core).astype(float) for core in cores])


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a network's images are cut.

    Attributes:
      size: of a tile, pixels; in exact mode of its core.
      overlap: 'blend', whose results differ a little from the whole image's, or 'exact'.
      reach: how far the network's results depend on the image, pixels; None: on all of it.
      multiple: sizes of this multiple are not padded by the network.
      padding: how it pads the others, at the bottom and the right: 'reflect', or 'constant' with `fill`.
      fill: a share of full scale.

    Raises:
      UserError: an unknown overlap, or an exact one of a network that sees the whole image.
    """

    size: int
    overlap: str
    reach: int | None
    multiple: int
    padding: str
    fill: float = 0.0

    def __post_init__(self) -> None:
        pick(dict.fromkeys(OVERLAPS), self.overlap, '--overlap')
        if self.size < 1:
            raise UserError(f'--tile={self.size}: expected at least 1')
        if self.overlap == 'exact' and self.reach is None:
            raise UserError(
                '--overlap=exact: each result of this network depends on the whole image (instance or group norm, '
                'statistics of the image at hand, or channel attention without local_size), which tiles do not show. '
                'Take --overlap=blend.'
            )

    def _grid(self) -> int:
        return self.multiple if self.overlap == 'exact' else min(self.multiple, _GRID)

    def tile(self) -> int:
        """The size that is used: of the network's multiple, and large enough to overlap where that is wanted."""
        least = 1 if self.overlap == 'exact' or self.multiple >= 2 * _GRID else 2
        return max(self.size // self.multiple, least) * self.multiple

    def axis(self, length: int) -> Axis:
        """Returns the tiles of a side, whose length is padded where it is more than a tile."""
        grid, size = self._grid(), self.tile()
        padded = length + -length % grid
        if self.overlap == 'exact':
            halo = math.ceil((self.reach or 0) / grid) * grid
            return exact(length if length <= size else padded, size, halo, grid)
        # Where the border of a tile is in reach, its results are off, and it should count for little.
        wanted = _MOST_RAMP if self.reach is None else min(max(2 * self.reach, _LEAST_RAMP), _MOST_RAMP)
        ramp = min(math.ceil(wanted / grid), max(size // grid // 3, 1)) * grid
        return blended(length if length <= size else padded, size, ramp, grid)

    def pad(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """Pads (n, h, w, c) to a height and a width; where its type cannot hold `fill`, as float32 in [0, 1]."""
        pads = ((0, 0), (0, height - image.shape[1]), (0, width - image.shape[2]), (0, 0))
        if not any(map(any, pads)):
            return image
        if self.padding == 'reflect':
            return np.pad(image, pads, mode='reflect')
        value = self.fill * full_scale(image.dtype)
        if value != image.dtype.type(value):
            image, value = image.astype(np.float32) / np.float32(full_scale(image.dtype)), self.fill
        return np.pad(image, pads, constant_values=value)

    def halved(self, longest: int) -> 'Tiling | None':
        """Returns tiles of half the size, of an image whose longest side is given; None: they are small already."""
        now = min(self.tile(), longest)
        smaller = dataclasses.replace(self, size=max(now // 2, 1))
        return smaller if smaller.tile() < now else None


def fitting_size(batch: int) -> int:
    """Returns a size of tiles, in pixels, that is likely to fit into the memory of the devices.

    Args:
      batch: tiles at a time on each.
    """
    device = jax.local_devices()[0]
    known = (device.memory_stats() or {}) if device.platform != 'cpu' else {}
    if 'bytes_limit' not in known:
        return _LIKELY_SIZE
    free = known['bytes_limit'] - known.get('bytes_in_use', 0)
    side = math.sqrt(max(free, 1) / batch / _BYTES_PER_PIXEL)
    return max(256, min(2048, 2 ** int(math.log2(max(side, 1)))))


def _outputs(apply: Apply, tiles: Iterator[np.ndarray], batch: int) -> Iterator[np.ndarray]:
    """Yields the result of each tile, in order; while one batch is taken over, the next is computed."""
    running: tuple[Any, int] | None = None
    while True:
        group = list(itertools.islice(tiles, batch))
        coming = (apply(np.stack(group + group[-1:] * (batch - len(group)))), len(group)) if group else None
        if running:
            yield from np.asarray(running[0])[: running[1]]
        if not coming:
            return
        running = coming


def bands(apply: Apply, image: np.ndarray, tiling: Tiling, batch: int) -> Iterator[tuple[int, np.ndarray]]:
    """Applies a network to images of any size.

    All its inputs have one shape. An image that is not larger than a tile goes through whole. Of what comes out, no
    more is held than the rows of a tile.

    Args:
      apply: (k, h, w, c) in the image's type, or float32 in [0, 1], to float32 (at least k, h, w, c').
      image: (n, height, width, c).
      tiling: how it is cut.
      batch: most tiles that `apply` is given at once; the last batch is filled up with copies of its last tile.

    Yields:
      The result's bands from top to bottom: first row, float32 (n, rows, width, c').
    """
    n, height, width = image.shape[:3]
    rows, columns = tiling.axis(height), tiling.axis(width)
    padded = tiling.pad(image, rows.length, columns.length)
    row_tiles = list(itertools.product(range(n), zip(columns.starts, columns.weights, strict=True)))
    tiles = (
        padded[i, top : top + rows.size, left : left + columns.size]
        for top in rows.starts
        for i, (left, _) in row_tiles
    )
    outputs = _outputs(apply, tiles, min(batch, len(rows.starts) * len(row_tiles)))
    open_rows: np.ndarray | None = None
    for top, after, weights in zip(rows.starts, (*rows.starts[1:], rows.length), rows.weights, strict=True):
        for i, (left, across) in row_tiles:
            result = next(outputs)
            if open_rows is None:
                open_rows = np.zeros((n, rows.size, columns.length, result.shape[-1]), np.float32)
            share = weights[:, None, None] * across[:, None]
            open_rows[i, :, left : left + columns.size] += share * result
        assert open_rows is not None
        yield top, open_rows[:, : min(after, height) - top, :width]
        done = after - top
        open_rows = np.concatenate([open_rows[:, done:], np.zeros_like(open_rows[:, :done])], axis=1)


def _is_exhausted(error: Exception) -> bool:
    return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)


def run(
    apply: Apply,
    image: np.ndarray,
    tiling: Tiling,
    batch: int,
    take: Callable[[int, np.ndarray], None],
    say: Callable[[str], None],
) -> Tiling:
    """Hands all bands of `bands` over; where the memory does not suffice, all anew with tiles of half the size.

    Args:
      apply: as in `bands`, as the three that follow.
      image: likewise.
      tiling: likewise.
      batch: likewise.
      take: receives the first row and the band; after a lack of memory from the top again.
      say: receives lines for people.

    Returns:
      The tiling that went through.

    Raises:
      UserError: the memory does not suffice for the smallest tiles either.
    """
    while True:
        try:
            for top, band in bands(apply, image, tiling, batch):
                take(top, band)
            return tiling
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not _is_exhausted(error):
                raise
            smaller = tiling.halved(max(image.shape[1:3]))
            if smaller is None:
                raise UserError(f'out of memory with the smallest tiles, of {tiling.tile()} pixels') from error
            say(f'out of memory with tiles of {tiling.tile()} pixels; going on with {smaller.tile()}')
            tiling = smaller
