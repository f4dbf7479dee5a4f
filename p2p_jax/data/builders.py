"""TFDS builders: cut once, stored as array_record without TensorFlow. `prepare` drives them; TFDS users may, too."""

import contextlib
import dataclasses
import functools
import io
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from p2p_jax.data import images, labelled, layouts
from p2p_jax.data.degrade import DEGRADATIONS
from p2p_jax.data.prepared import manifest
from p2p_jax.data.records import SPLITS, Layout, Record, Selection, Splits, cut, find, in_threads, limit
from p2p_jax.data.sources import Source
from p2p_jax.lookup import UserError, shortlist

_WHOLE = Selection(
    split=(0.7, 0.15, 0.15),
    split_seed=0,
    own_split=True,
    limit=(None, None, None),
    direction='AtoB',
    mask_values=(),
    grid=(1, 1),
    tile_size=None,
    tile_overlap=0,
    square=False,
    resize=None,
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `prepare` found out, so that the builder does not look again.

    Attributes:
      manifest: see `prepared.manifest`.
      splits: the examples, cut.
      channels: of each side, 1 or 3, by feature name.
      bits: of all images, 8 or 16.
      threads: that read and cut.
      progress: called once for each example that is done.
    """

    manifest: Mapping[str, Any]
    splits: Splits
    channels: Mapping[str, int]
    bits: int
    threads: int | None
    progress: Callable[[], object]


class ImageSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What all builders share: a layout becomes examples of 'input', 'target', 'label', 'name' and 'scene'.

    By itself, `manual_dir` is the folder as it was unpacked, and the class's own `selection` says how it is cut.
    """

    VERSION = tfds.core.Version('1.0.0')
    layout: Layout
    selection = _WHOLE
    channels: Mapping[str, int] = MappingProxyType({'input': 3, 'target': 3})
    has_label = False

    def __init__(self, *, plan: Plan | None = None, **options: Any):
        """
        Args:
          plan: of `prepare`; None finds the examples below `manual_dir`.
          **options: of every TFDS builder.
        """
        self._plan = plan
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        channels, bits = (self._plan.channels, self._plan.bits) if self._plan else (self.channels, 8)
        dtype = np.uint16 if bits == 16 else np.uint8
        features: dict[str, Any] = {
            # As bytes: ten times faster to read than TFDS's default for tensors.
            side: tfds.features.Tensor(shape=(None, None, count), dtype=dtype, encoding='bytes')
            for side, count in channels.items()
        }
        if self.has_label:
            features['label'] = tfds.features.Scalar(np.int64)
        features |= {'name': tfds.features.Text(), 'scene': tfds.features.Text()}
        metadata = tfds.core.MetadataDict(manifest=dict(self._plan.manifest)) if self._plan else None
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__ or '',
            features=tfds.features.FeaturesDict(features),
            homepage=self.layout.source or None,
            metadata=metadata,
            disable_shuffling=True,  # the order is the manifest's; training shuffles by itself
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        splits = self._plan.splits if self._plan else self._find(Path(dl_manager.manual_dir))
        return {split: self._generate_examples(records) for split, records in splits.items() if records}

    def _find(self, root: Path) -> Splits:
        _, found = find({self.name: self.layout}, self.name, root, self.selection)
        if found.problems:
            raise UserError(f'{root}:{shortlist([problem.message for problem in found.problems])}')
        splits: Splits = {}
        for number, split in enumerate(SPLITS):
            whole = [
                dataclasses.replace(record, size=record.size if any(record.size) else _size(record.target))
                for record in found.records
                if record.split == split
            ]
            tiles = [tile for record in whole for tile in cut(record, self.selection)]
            splits[split] = limit(tiles, self.selection.limit[number])
        return splits

    def _generate_examples(self, records: Sequence[Record]) -> Iterator[tuple[int, dict[str, Any]]]:
        threads = self._plan.threads if self._plan else None
        # The tiles of an image lie next to one another: it is decoded once for all of them.
        together = (list(tiles) for _, tiles in itertools.groupby(records, lambda record: record.target.whole))
        examples = itertools.chain.from_iterable(in_threads(self._examples, together, threads, ahead=1))
        for number, example in enumerate(examples):
            yield number, example
            if self._plan:
                self._plan.progress()

    def _examples(self, tiles: Sequence[Record]) -> list[dict[str, Any]]:
        """Reads the images of tiles that belong together and cuts them; runs in a thread."""
        read = functools.lru_cache(maxsize=2)(lambda source: source.read())
        return [self._example(tile, lambda source: source.cut(read(source.whole))) for tile in tiles]

    def _pixels(self, pixels: np.ndarray, side: str) -> np.ndarray:
        feature = self.info.features[side]
        return images.to_format(pixels, feature.shape[-1], 8 * np.dtype(feature.np_dtype).itemsize)

    def _example(self, record: Record, read: Callable[[Source], np.ndarray]) -> dict[str, Any]:
        example: dict[str, Any] = {'name': record.name, 'scene': record.scene}
        example['target'] = self._pixels(read(record.target), 'target')
        if 'input' in self.info.features:
            assert record.input is not None, 'the features say that there is an input'
            example['input'] = self._pixels(read(record.input), 'input')
        if self.has_label:
            example['label'] = record.label
        return example


def _size(source: Source) -> tuple[int, int]:
    return source.box[2:] if source.box else source.header().size


def _instructions(layout: Layout) -> str:
    return f'Unpack the set; manual_dir is the folder that holds {layout.tree}. {layout.source}'


class Sidd(ImageSet):
    """Smartphone photographs, noisy and clean (Abdelhamed et al. 2018), in tiles of 512²."""

    layout = layouts.SIDD
    selection = dataclasses.replace(_WHOLE, tile_size=512)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(layouts.SIDD)


class Polyu(ImageSet):
    """Photographs, noisy and averaged (Xu et al. 2018), in their crops of 512²."""

    layout = layouts.POLYU
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(layouts.POLYU)


class Inria(ImageSet):
    """Masks of buildings and aerial photographs (Maggiori et al. 2017), cut 2×2 and resized to 286²."""

    layout = layouts.INRIA
    selection = dataclasses.replace(_WHOLE, mask_values=(0, 255), grid=(2, 2), resize=286)
    channels = MappingProxyType({'input': 1, 'target': 3})
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(layouts.INRIA)


class FfhqBlur(ImageSet):
    """Faces (Karras et al. 2019) at 256², blurred by a lens out of focus, and sharp.

    By itself it stores a blur of radius 4; under `prepare` only the sharp image, for training blurs afresh.
    """

    layout = layouts.FFHQ
    selection = dataclasses.replace(_WHOLE, resize=256)
    radius = 4.0
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(layouts.FFHQ)

    def _example(self, record: Record, read: Callable[[Source], np.ndarray]) -> dict[str, Any]:
        if 'input' not in self.info.features:
            return super()._example(record, read)
        blur = DEGRADATIONS['lens_blur'](radius=(self.radius, self.radius), linear_light=True)
        sharp = self._pixels(read(record.target), 'target')
        blurred = np.asarray(blur(jax.numpy.asarray(sharp, np.float32) / 255, jax.random.key(0)))
        example = {'name': record.name, 'scene': record.scene, 'target': sharp}
        return example | {'input': np.rint(blurred * 255).astype(np.uint8)}


class Pairs(ImageSet):
    """Two folders of images with equal names."""

    layout = layouts.PAIRS
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(layouts.PAIRS)


class Clean(ImageSet):
    """Single clean images, for a synthetic degradation."""

    layout = layouts.CLEAN
    channels = MappingProxyType({'target': 3})
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(layouts.CLEAN)


class Labelled(ImageSet):
    """Images in one folder for each class."""

    layout = labelled.LABELLED
    channels = MappingProxyType({'target': 3})
    has_label = True
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(labelled.LABELLED)


# Layout: its builder; the others are stored by what they hold.
BUILDERS: dict[str, type[ImageSet]] = {'sidd': Sidd, 'polyu': Polyu, 'inria': Inria, 'ffhq': FfhqBlur}


def _choose(layout: str, record: Record) -> type[ImageSet]:
    if record.label is not None:
        return Labelled
    return BUILDERS.get(layout, Pairs if record.input else Clean)


def _channels(record: Record) -> dict[str, int]:
    """The channels, 1 or 3, of each side; alpha is not stored."""
    sides = {'input': record.input, 'target': record.target}
    return {side: 1 if source.header().channels < 3 else 3 for side, source in sides.items() if source}


def _check_disk(output: Path, needed: int) -> None:
    folder = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f'--output={output}: preparing takes about {needed / 1e9:.1f} GB (half of it only while it runs), '
            f'but {free / 1e9:.1f} GB are free in {folder}. Choose another disk, or set data.limit or data.resize.'
        )


def build(
    layout: str,
    selection: Selection,
    classes: tuple[str, ...],
    splits: Splits,
    output: Path,
    threads: int | None,
    progress: Callable[[], object],
) -> Path:
    """Stores cut examples as array_record; all or nothing: TFDS renames the folder when everything is written.

    Args:
      layout: the name of the layout.
      selection: how the examples were cut.
      classes: the names of the labels.
      splits: the examples, cut.
      output: TFDS's data_dir, in which the set gets a folder of its own.
      threads: that read and cut; None: one a core.
      progress: called once for each example that is done.

    Returns:
      The folder of the set.

    Raises:
      UserError: too little space, or a file that cannot be read; no set is left then.
    """
    records = [record for members in splits.values() for record in members]
    channels, bits = _channels(records[0]), max(record.bits for record in records)
    size = sum(record.size[0] * record.size[1] for record in records) * sum(channels.values()) * bits // 8
    # TFDS writes the examples, and then once more in order.
    _check_disk(output, 2 * size)
    for leftover in output.glob('*/incomplete.*'):
        shutil.rmtree(leftover)  # of a run that was killed
    plan = Plan(manifest(layout, selection, classes, splits), splits, channels, bits, threads, progress)
    builder = _choose(layout, records[0])(plan=plan, data_dir=str(output), file_format='array_record')
    tfds.disable_progress_bar()  # TFDS's own knows no total
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
            builder.download_and_prepare()
    finally:
        tfds.enable_progress_bar()
    return Path(builder.data_path)
