"""Where one image lies: a file, or one of many in an archive, a .mat, a CIFAR batch or a prepared set."""

import dataclasses
import functools
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from p2p_jax.data import images
from p2p_jax.data.images import Header
from p2p_jax.lookup import UserError
from p2p_jax.unpickle import read_pickle

CIFAR = 'CIFAR-10'  # who publishes pickles
Box = tuple[int, int, int, int]
_LARGEST_MEMBER = 2**30  # bytes that an archive's image may unpack to


@dataclasses.dataclass(frozen=True)
class Source:
    """One image on disk.

    Attributes:
      path: the file or, for a prepared set, the folder.
      kind: a key of `KINDS`: how `path` is read.
      item: which image of `path`, where it holds several.
      box: (top, left, height, width) of the part that is meant; None is the whole.
      size: (height, width) to which the part is resized; None leaves it.
      nearest: resize by the nearest pixel, as masks need it.
    """

    path: Path
    kind: str = 'file'
    item: str = ''
    box: Box | None = None
    size: tuple[int, int] | None = None
    nearest: bool = False

    def __str__(self) -> str:
        name = f'{self.path}[{self.item}]' if self.item else str(self.path)
        return f'{name} at {self.box[0]},{self.box[1]}' if self.box else name

    @property
    def whole(self) -> 'Source':
        """The image that this is a part of."""
        return dataclasses.replace(self, box=None, size=None, nearest=False)

    def inside(self, part: Box | None) -> Box | None:
        """Returns the box of a part of this part, which may itself be one of two images side by side."""
        if part is None or self.box is None:
            return part or self.box
        return self.box[0] + part[0], self.box[1] + part[1], part[2], part[3]

    def encoded(self) -> Path | bytes:
        """Returns the path of a file, or the bytes of an archive's member, as they are stored."""
        if self.kind == 'file':
            return self.path
        assert self.kind == 'zip', 'other kinds hold pixels, no encoded files'
        try:
            member = _zip(self.path).getinfo(self.item)
            if member.file_size > _LARGEST_MEMBER:
                raise UserError(f'{self}: refused, for it unpacks to {member.file_size / 2**20:.0f} MiB')
            return _zip(self.path).read(member)
        except (zipfile.BadZipFile, OSError, KeyError, RuntimeError, NotImplementedError) as error:
            raise UserError(f'{self}: cannot be read from the archive ({error})') from None

    def header(self) -> Header:
        """Returns the header of the whole image, of which `box` may be a part."""
        return KINDS[self.kind][0](self)

    def read(self) -> np.ndarray:
        """Returns the pixels of the part that is meant: uint8 or uint16 (height, width, channels)."""
        return self.cut(KINDS[self.kind][1](self))

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the part that is meant of the whole image's pixels."""
        if self.box:
            top, left, height, width = self.box
            pixels = pixels[top : top + height, left : left + width]
        if self.size and self.size != pixels.shape[:2]:
            pixels = images.resize(pixels, self.size, nearest=self.nearest)
        return pixels


@functools.lru_cache(maxsize=16)
def _zip(path: Path) -> zipfile.ZipFile:
    """An opened archive; reading members from several threads is safe."""
    return zipfile.ZipFile(path)


def _file_header(source: Source) -> Header:
    return images.header(str(source.whole), source.encoded())


def _file_pixels(source: Source) -> np.ndarray:
    return images.decode(str(source.whole), source.encoded())


@functools.lru_cache(maxsize=4)
def mat_blocks(path: Path) -> np.ndarray:
    """Returns the one array of a MATLAB file: uint8 (images, blocks, height, width, 3), as SIDD publishes them.

    Raises:
      UserError: it is no MATLAB file up to version 7, or holds something else.
    """
    from scipy import io as scipy_io

    try:
        content = scipy_io.loadmat(path)
    except NotImplementedError:
        raise UserError(
            f'{path}: a MATLAB v7.3 file (HDF5); expected v5 to v7 as published. Save it with -v7.'
        ) from None
    except Exception as error:  # SciPy's own errors have no common class
        raise UserError(f'{path}: not a readable MATLAB file ({error})') from None
    arrays = [value for key, value in content.items() if not key.startswith('__')]
    if len(arrays) != 1 or arrays[0].ndim != 5 or arrays[0].dtype != np.uint8 or arrays[0].shape[-1] != 3:
        shapes = {key: getattr(value, 'shape', '?') for key, value in content.items() if not key.startswith('__')}
        raise UserError(f'{path}: holds {shapes}; expected one uint8 array (images, blocks, height, width, 3)')
    return arrays[0]


def _block(source: Source) -> np.ndarray:
    image, block = map(int, source.item.split(','))
    return mat_blocks(source.path)[image, block]


@functools.lru_cache(maxsize=8)
def cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns images, uint8 (n, 32, 32, 3), and labels, (n,), of a CIFAR-10 batch, binary or pickled.

    Raises:
      UserError: the file is damaged or no such batch.
    """
    if path.suffix == '.bin':
        rows = np.fromfile(path, np.uint8)
        if not rows.size or rows.size % 3073:
            raise UserError(f'{path}: {rows.size} bytes; expected a multiple of 3073 (label and 3×32×32 pixels)')
        rows = rows.reshape(-1, 3073)
        labels, pixels = rows[:, 0].astype(np.int64), rows[:, 1:]
    else:
        content = read_pickle(path, CIFAR)
        try:
            pixels, labels = np.asarray(content['data'], np.uint8), np.asarray(content['labels'], np.int64)
            pixels = pixels.reshape(len(labels), 3072)
        except (KeyError, ValueError) as error:
            raise UserError(f'{path}: expected "data" of n × 3072 and n "labels" ({error!r})') from None
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _cifar_row(source: Source) -> np.ndarray:
    return cifar_batch(source.path)[0][int(source.item)]


_opening = threading.Lock()


def data_source(path: Path, split: str) -> Any:
    """Returns random access to a split of a TFDS set in array_record, by its version's folder.

    Raises:
      UserError: it cannot be read.
    """
    # TFDS imports its parts when they are first used, under locks of its own: two threads at once may wait for each
    # other for ever.
    with _opening:
        return _data_source(path, split)


@functools.lru_cache(maxsize=16)
def _data_source(path: Path, split: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(str(path)).as_data_source(split)
    except Exception as error:  # TFDS raises whatever its parts raise
        raise UserError(f'{path}: split {split!r} cannot be read ({error}). Prepare the set anew.') from None


_last = threading.local()


def _example_image(source: Source) -> np.ndarray:
    """The image `item` = 'split/number/feature'; input and target of an example are parsed once."""
    split, number, feature = source.item.split('/')
    key = (source.path, split, number)
    if getattr(_last, 'key', None) != key:
        _last.example, _last.key = data_source(source.path, split)[int(number)], key
    return _last.example[feature]


def _pixel_header(source: Source) -> Header:
    pixels = KINDS[source.kind][1](source)
    height, width, channels = pixels.shape
    return Header(height, width, channels, pixels.dtype.itemsize * 8)


# Kind: (the header of a source, its pixels before `box` and `size`).
KINDS: dict[str, tuple[Callable[[Source], Header], Callable[[Source], np.ndarray]]] = {
    'file': (_file_header, _file_pixels),
    'zip': (_file_header, _file_pixels),
    'mat': (_pixel_header, _block),
    'cifar': (_pixel_header, _cifar_row),
    'tfds': (_pixel_header, _example_image),
}
