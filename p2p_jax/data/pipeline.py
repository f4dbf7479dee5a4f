"""From records to batches: random access by batch number, crop, flip, shard, prefetch."""

import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from p2p_jax.data import images
from p2p_jax.data.records import Record

Batch = dict[str, np.ndarray]


class ImageCache:
    """Keeps decoded files until a budget is spent; nothing is ever put out, since an epoch visits every file once."""

    def __init__(self, megabytes: int):
        self._left = megabytes * 2**20
        self._held: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def read(self, path: Path) -> np.ndarray:
        """Returns the file's pixels, as `images.read_image`."""
        held = self._held.get(path)
        if held is not None:
            return held
        image = images.read_image(path)
        with self._lock:
            if path not in self._held and image.nbytes <= self._left:
                self._left -= image.nbytes
                self._held[path] = image
        return image


@dataclasses.dataclass(frozen=True)
class Shard:
    """The slice of every global batch that one process takes: the `index`-th of `count`."""

    index: int = 0
    count: int = 1

    def of(self, batch_size: int) -> range:
        """Returns the positions of a global batch that this process loads; `count` divides `batch_size`."""
        local = batch_size // self.count
        return range(self.index * local, (self.index + 1) * local)


class TrainData:
    """Training batches as a pure function of (seed, batch number): there is no iterator state to save.

    Batch n holds the examples n·B … n·B + B - 1 of an endless sequence that is one global permutation of the records
    an epoch. Another number of processes continues the same sequence.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        batch_size: int,
        crop_size: int,
        flip: bool,
        rotate: bool,
        seed: int,
        cache_mb: int,
        threads: int,
        prefetch: int,
        shard: Shard,
    ):
        """
        Args:
          records: the training examples, none smaller than the crop.
          batch_size: examples of a global batch.
          crop_size: height and width of the random crop, in pixels.
          flip: mirror half of the examples left to right.
          rotate: turn by a random multiple of 90°.
          seed: of order, crops, flips and turns.
          cache_mb: budget for decoded files, in MiB.
          threads: that decode.
          prefetch: batches made ahead.
          shard: this process's share.
        """
        self._records = records
        self._batch_size = batch_size
        self._crop_size = crop_size
        self._flip = flip
        self._rotate = rotate
        self._seed = seed
        self._cache = ImageCache(cache_mb)
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch * batch_size)
        self._positions = shard.of(batch_size)
        self._order = functools.lru_cache(maxsize=4)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._records))

    def example(self, number: int, position: int) -> Batch:
        """Returns example `position` of global batch `number`: 'condition' and 'target' uint8 (crop, crop, 3)."""
        epoch, place = divmod(number * self._batch_size + position, len(self._records))
        record = self._records[self._order(epoch)[place]]
        random = np.random.default_rng((self._seed, number, position))
        top, left = (random.integers(length - self._crop_size + 1) for length in record.size)
        mirrored, turns = self._flip and random.random() < 0.5, int(random.integers(4)) if self._rotate else 0

        def augment(path: Path) -> np.ndarray:
            image = self._cache.read(path)[top : top + self._crop_size, left : left + self._crop_size]
            return np.rot90(image[:, ::-1] if mirrored else image, turns)

        target = augment(record.target)
        condition = target if record.input == record.target else augment(record.input)
        return {
            'condition': condition,
            'target': target,
            'mask': np.ones((), np.float32),
            'index': np.array(position, np.int32),
        }

    def _examples(self, first: int, count: int) -> grain.MapDataset:
        """This process's examples of the global batches first … first + count - 1, in order."""
        local = len(self._positions)
        return grain.MapDataset.range(count * local).map(
            lambda i: self.example(first + i // local, self._positions[i % local])
        )

    def batch(self, number: int) -> Batch:
        """Returns this process's slice of global batch `number`.

        Keys: 'condition', 'target' uint8 (n, crop, crop, 3); 'mask' float32 (n,), ones; 'index' int32 (n,), the
        position in the global batch, from which the step draws the example's degradation.
        """
        return self._examples(number, 1).batch(len(self._positions))[0]

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Yields `batch(first)`, `batch(first + 1)`, … `count` of them, made ahead by several threads."""
        if count > 0:
            examples = self._examples(first, count).to_iter_dataset(self._options)
            yield from examples.batch(len(self._positions))


def centre_crop(image: np.ndarray, size: int | None) -> np.ndarray:
    """Returns the central `size` × `size` pixels; sides that are shorter stay whole, None leaves the image whole."""
    if size is None:
        return image
    top, left = (max(0, length - size) // 2 for length in image.shape[:2])
    return image[top : top + size, left : left + size]


def evaluation_batches(
    records: Sequence[Record], *, batch_size: int, crop_size: int | None, shard: Shard
) -> Iterator[Batch]:
    """Yields every record exactly once, in batches of one image size each.

    The last batch of each size is filled up with its first example under a mask of 0, so that each size is one shape.

    Args:
      records: the examples, with sizes.
      batch_size: examples of a global batch.
      crop_size: of the central crop, in pixels; None takes whole images.
      shard: this process's share of each batch.

    Yields:
      'condition', 'target' uint8 (n, height, width, 3); 'mask' float32 (n,); 'index' int32 (n,), place in `records`.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, record in enumerate(records):
        size = tuple(length if crop_size is None else min(length, crop_size) for length in record.size)
        groups.setdefault(size, []).append(index)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            chosen = members[start : start + batch_size]
            padded = chosen + chosen[:1] * (batch_size - len(chosen))
            mine = shard.of(batch_size)
            read = functools.lru_cache(maxsize=2 * batch_size)(images.read_image)
            yield {
                'condition': np.stack([centre_crop(read(records[padded[i]].input), crop_size) for i in mine]),
                'target': np.stack([centre_crop(read(records[padded[i]].target), crop_size) for i in mine]),
                'mask': np.array([i < len(chosen) for i in mine], np.float32),
                'index': np.array([padded[i] for i in mine], np.int32),
            }


def split_over_devices(batch: Batch, devices: int) -> Batch:
    """Returns the batch with a leading device axis: (n, …) becomes (devices, n / devices, …)."""
    return {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}
