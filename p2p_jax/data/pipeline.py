"""From records to batches: random access by batch number, crop, augmentation, shard, prefetch."""

import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from p2p_jax.data import images, order
from p2p_jax.data.records import Record, in_threads, workers
from p2p_jax.data.sources import Source

Batch = dict[str, np.ndarray]


class ImageCache:
    """Keeps decoded images until a budget is spent; nothing is ever put out, since an epoch visits every one once."""

    def __init__(self, megabytes: int):
        self._left = megabytes * 2**20
        self._held: dict[Source, np.ndarray] = {}
        self._lock = threading.Lock()

    def read(self, source: Source) -> np.ndarray:
        """Returns the source's pixels, as `Source.read`."""
        if source.kind == 'tfds':
            return source.read()  # as quick from there, and its pages are the system's to keep
        # The tiles of an image share one entry, unless they are resized, which costs more than the memory.
        key = source if source.size else source.whole
        pixels = self._held.get(key)
        if pixels is None:
            pixels = key.read()
            with self._lock:
                if key not in self._held and pixels.nbytes <= self._left:
                    self._left -= pixels.nbytes
                    self._held[key] = pixels
        return pixels if key == source else source.cut(pixels)


@dataclasses.dataclass(frozen=True)
class Format:
    """What all images of a batch are brought to: `channels` 1 or 3, `bits` 8 or 16."""

    channels: int
    bits: int

    @classmethod
    def of(cls, records: Sequence[Record], channels: int) -> 'Format':
        """Takes the greatest depth among the records, so that nothing is lost."""
        return cls(channels, max((record.bits for record in records), default=8))

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The integer type of the pixels."""
        return np.uint16 if self.bits == 16 else np.uint8

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return images.to_format(pixels, self.channels, self.bits)


@dataclasses.dataclass(frozen=True)
class Shard:
    """The slice of every global batch that one process takes: the `index`-th of `count`."""

    index: int = 0
    count: int = 1

    def of(self, batch_size: int) -> range:
        """Returns the positions of a global batch that this process loads; `count` divides `batch_size`."""
        local = batch_size // self.count
        return range(self.index * local, (self.index + 1) * local)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to a training example, alike to input and target; the keys of that name in the section `data`.

    Attributes:
      crop_size: height and width of the random crop, in pixels.
      flip: mirror half of the examples left to right.
      rotate: turn by a random multiple of 90°; with `flip` these are the eight orientations.
      permute_channels: put the colours in a random order.
      jitter: brightness, contrast and saturation each change by a factor within 1 ± jitter; 0 leaves them.
      mixup: probability of mixing in a second example, with a weight from Beta(1.2, 1.2) (Zhang et al. 2018;
        the parameter is that of Zamir et al. 2022, Restormer's training).
    """

    crop_size: int
    flip: bool
    rotate: bool
    permute_channels: bool = False
    jitter: float = 0.0
    mixup: float = 0.0

    def cut(self, pair: Sequence[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
        """Crops, mirrors and turns images of one size alike; the results are views."""
        height, width = pair[0].shape[:2]
        top, left = (int(random.integers(length - self.crop_size + 1)) for length in (height, width))
        mirrored, turns = self.flip and random.random() < 0.5, int(random.integers(4)) if self.rotate else 0
        crops = [image[top : top + self.crop_size, left : left + self.crop_size] for image in pair]
        return [np.rot90(crop[:, ::-1] if mirrored else crop, turns) for crop in crops]

    def colour(self, pair: list[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
        """Changes the colours of images alike; integers stay integers."""
        if self.permute_channels and pair[0].shape[-1] == 3:
            order = random.permutation(3)
            pair = [image[..., order] for image in pair]
        if self.jitter:
            brightness, contrast, saturation = random.uniform(1 - self.jitter, 1 + self.jitter, 3).astype(np.float32)
            # One mean for both, or the jitter would differ between input and target.
            mean = pair[-1].mean(dtype=np.float32)
            pair = [_jitter(image, mean, brightness, contrast, saturation) for image in pair]
        return pair


def _jitter(image: np.ndarray, mean: float, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    pixels = brightness * (mean + contrast * (image.astype(np.float32) - mean))
    grey = pixels.mean(-1, keepdims=True)
    return np.clip(np.rint(grey + saturation * (pixels - grey)), 0, np.iinfo(image.dtype).max).astype(image.dtype)


def _copy(image: np.ndarray, out: np.ndarray) -> None:
    """Copies (height, width, channels); of mirrored and turned views channel by channel, which is five times faster."""
    if image.strides[1] == out.strides[1]:
        out[...] = image
    else:
        for channel in range(out.shape[-1]):
            out[..., channel] = image[..., channel]


class TrainData:
    """Training batches as a pure function of (seed, batch number): there is no iterator state to save.

    Batch n holds the examples n·B … n·B + B - 1 of an endless sequence that is one global permutation of the records
    an epoch, or has all classes equally often. Another number of processes continues the same sequence.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        batch_size: int,
        channels: int,
        labels: bool,
        balanced: bool,
        augmentation: Augmentation,
        seed: int,
        cache_mb: int,
        threads: int | None,
        prefetch: int,
        shard: Shard,
    ):
        """
        Args:
          records: the training examples, none smaller than the crop.
          batch_size: examples of a global batch.
          channels: of the images, 1 or 3.
          labels: whether conditions are the labels.
          balanced: whether all classes are seen equally often, whatever their numbers of records.
          augmentation: what is done to an example.
          seed: of order and augmentation.
          cache_mb: budget for decoded images, in MiB.
          threads: that make batches; None: one a core.
          prefetch: batches made ahead.
          shard: this process's share.
        """
        self._records = records
        self._batch_size = batch_size
        self._format = Format.of(records, channels)
        self._labels = labels
        self._augmentation = augmentation
        self._seed = seed
        self._cache = ImageCache(cache_mb)
        count = workers(threads)
        self._options = grain.ReadOptions(num_threads=count, prefetch_buffer_size=max(prefetch, count))
        self._positions = shard.of(batch_size)
        if balanced:
            self._order = order.balanced([record.label for record in records if record.label is not None], seed)
        else:
            self._order = order.shuffled(len(records), seed)

    def _crops(self, record: Record, random: np.random.Generator) -> list[np.ndarray]:
        """Input, where there is one, and target of an example: cropped, in the set's format."""
        whole = [self._cache.read(source) for source in record.sources]
        return [self._format(crop) for crop in self._augmentation.cut(whole, random)]

    def record(self, number: int, position: int) -> Record:
        """Returns the record of a place in a global batch."""
        return self._records[self._order(number * self._batch_size + position)]

    def example(self, number: int, position: int) -> list[np.ndarray]:
        """Returns input, where there is one, and target of a place in a global batch: integers (crop, crop, c)."""
        random = np.random.default_rng((self._seed, number, position))
        pair = self._crops(self.record(number, position), random)
        if self._augmentation.mixup and random.random() < self._augmentation.mixup:
            weight = np.float32(random.beta(1.2, 1.2))
            other = self._crops(self._records[int(random.integers(len(self._records)))], random)
            pair = [np.rint(weight * a + (1 - weight) * b).astype(a.dtype) for a, b in zip(pair, other, strict=True)]
        return self._augmentation.colour(pair, random)

    def batch(self, number: int) -> Batch:
        """Returns this process's slice of global batch `number`.

        Keys: 'condition', 'target' uint8 or uint16 (n, crop, crop, channels), the condition int32 (n,) where it is
        the label; 'mask' float32 (n,), ones; 'index' int32 (n,), the position in the global batch, from which the step
        draws what is random about the example.
        """
        size, count = self._augmentation.crop_size, len(self._positions)
        shape = (count, size, size, self._format.channels)
        target = np.empty(shape, self._format.dtype)
        condition = np.empty(shape, self._format.dtype) if self._records[0].input else target
        for place, position in enumerate(self._positions):
            pair = self.example(number, position)
            _copy(pair[-1], target[place])
            if condition is not target:
                _copy(pair[0], condition[place])
        if self._labels:
            condition = np.array([self.record(number, position).label for position in self._positions], np.int32)
        return {
            'condition': condition,
            'target': target,
            'mask': np.ones(count, np.float32),
            'index': np.asarray(self._positions, np.int32),
        }

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Yields `batch(first)`, `batch(first + 1)`, … `count` of them, made ahead by several threads."""
        if count > 0:
            yield from grain.MapDataset.range(first, first + count).map(self.batch).to_iter_dataset(self._options)


def centre_crop(image: np.ndarray, size: int | None) -> np.ndarray:
    """Returns the central `size` × `size` pixels; sides that are shorter stay whole, None leaves the image whole."""
    if size is None:
        return image
    top, left = (max(0, length - size) // 2 for length in image.shape[:2])
    return image[top : top + size, left : left + size]


def evaluation_batches(
    records: Sequence[Record],
    *,
    batch_size: int,
    crop_size: int | None,
    channels: int,
    shard: Shard,
    threads: int | None,
) -> Iterator[Batch]:
    """Yields every record exactly once, in batches of one image size each.

    The last batch of each size is filled up with its first example under a mask of 0, so that each size is one shape.

    Args:
      records: the examples, with sizes.
      batch_size: examples of a global batch.
      crop_size: of the central crop, in pixels; None takes whole images.
      channels: of the images, 1 or 3.
      shard: this process's share of each batch.
      threads: that decode, each one batch; None: one a core.

    Yields:
      'condition', 'target' uint8 or uint16 (n, height, width, channels); 'mask' float32 (n,); 'index' int32 (n,),
      place in `records`.
    """
    as_stored = Format.of(records, channels)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, record in enumerate(records):
        size = tuple(length if crop_size is None else min(length, crop_size) for length in record.size)
        groups.setdefault(size, []).append(index)
    chunks = [
        members[start : start + batch_size]
        for members in groups.values()
        for start in range(0, len(members), batch_size)
    ]
    mine = shard.of(batch_size)
    # Tiles of one image are next to one another.
    whole = functools.lru_cache(maxsize=4)(lambda source: source.read())

    def load(chosen: list[int]) -> Batch:
        """Reads one batch; runs in a thread."""
        padded = chosen + chosen[:1] * (batch_size - len(chosen))
        read = functools.lru_cache(maxsize=2 * batch_size)(
            lambda source: as_stored(centre_crop(source.cut(whole(source.whole)), crop_size))
        )
        target = np.stack([read(records[padded[i]].target) for i in mine])
        inputs = [records[padded[i]].input for i in mine]
        return {
            'condition': np.stack([read(source) for source in inputs]) if all(inputs) else target,
            'target': target,
            'mask': np.array([i < len(chosen) for i in mine], np.float32),
            'index': np.array([padded[i] for i in mine], np.int32),
        }

    yield from in_threads(load, chunks, threads, ahead=1)


def split_over_devices(batch: Batch, devices: int) -> Batch:
    """Returns the batch with a leading device axis: (n, …) becomes (devices, n / devices, …)."""
    return {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}
