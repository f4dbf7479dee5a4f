"""What a data set consists of: records, their splits, their tiles, and how a folder's layout is recognised."""

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from p2p_jax.data.sources import Source
from p2p_jax.lookup import UserError, pick, shortlist

SPLITS = ('train', 'val', 'test')
Splits = dict[str, list['Record']]
AUTO = 'auto'
ARCHIVES = frozenset(('.zip', '.tar', '.gz', '.tgz', '.bz2', '.xz', '.7z', '.rar'))
NO_DOWNLOAD = 'Without a download this runs: python -m p2p_jax.main --config=configs/sample.py'

T = TypeVar('T')
R = TypeVar('R')


@dataclasses.dataclass(frozen=True)
class Record:
    """One example on disk.

    Attributes:
      name: readable, unique in its set.
      target: the image that the generator should give.
      input: the condition; None where a degradation makes it from the target, or where it is the label.
      scene: examples of one scene never fall into different splits.
      split: 'train', 'val' or 'test' where the layout fixes it, else None.
      label: of the class, where the set has classes.
      attributes: what the layout knows besides: camera, ISO, …
      blind: no target is published: `target` is the input itself, and nothing can be trained on or scored.
      size: (height, width) of the target in pixels; filled by `measure`.
      bits: of the deeper of the two images; likewise.
      scale: side of the example over the side of the part of the image that it shows; filled by `cut`.
    """

    name: str
    target: Source
    input: Source | None = None
    scene: str = ''
    split: str | None = None
    label: int | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    blind: bool = False
    size: tuple[int, int] = (0, 0)
    bits: int = 8
    scale: float = 1.0

    @property
    def sources(self) -> tuple[Source, ...]:
        """Input, where there is one, and target."""
        return (self.input, self.target) if self.input else (self.target,)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with a data set.

    Attributes:
      kind: a key of `audit.KINDS`.
      message: names the files and says what is wrong.
      records: the names of the examples to leave out if training shall go on without; may be empty.
      score: how sure, where it was measured.
    """

    kind: str
    message: str
    records: tuple[str, ...] = ()
    score: float | None = None


class MismatchError(Exception):
    """A folder does not hold a layout; the message says why."""


@dataclasses.dataclass
class Found:
    """What a layout found.

    Attributes:
      records: the examples; `input` is side A and `target` side B.
      problems: files that became no record.
      classes: the names of the labels.
      prepared: split, cut and turned as the configuration wants it already, with sizes.
    """

    records: list[Record]
    problems: list[Problem] = dataclasses.field(default_factory=list)
    classes: tuple[str, ...] = ()
    prepared: bool = False


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which part of a data set is used and how its images are cut; the keys of that name in the section `data`.

    Attributes:
      split: shares of train, val and test.
      split_seed: of the order in which scenes are dealt.
      own_split: take the split that the set itself has.
      limit: at most so many examples of train, val and test, evenly spread; None takes all.
      direction: 'AtoB', or 'BtoA' to exchange input and target.
      mask_values: the values that masks, side A, may have; empty where A is no mask.
      square: take the central square of each image first.
      grid: (rows, columns) that each image is cut into.
      tile_size: height and width of tiles in pixels; None leaves the images whole.
      tile_overlap: of neighbouring tiles, in pixels.
      resize: height and width to which each image or tile is resized; None leaves them.
    """

    split: tuple[float, float, float]
    split_seed: int
    own_split: bool
    limit: tuple[int | None, int | None, int | None]
    direction: str
    mask_values: tuple[int, ...]
    square: bool
    grid: tuple[int, int]
    tile_size: int | None
    tile_overlap: int
    resize: int | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way in which a data set lies on disk.

    Attributes:
      find: gives the records below a folder, or raises `MismatchError`.
      tree: how the folder looks, for messages.
      source: where to get the set, for messages.
      default_root: gives the folder where `data.dir` is None.
      named: `data.dir` is a name that the layout resolves, no folder.
      recognise: stands for `find` in 'auto', where `find` alone would take too much for this layout.
    """

    find: Callable[[Path, Selection], Found]
    tree: str
    source: str = ''
    default_root: Callable[[], Path] | None = None
    named: bool = False
    recognise: Callable[[Path, Selection], Found] | None = None

    @property
    def hint(self) -> str:
        """What to put where, for messages."""
        return f'Expected under data.dir: {self.tree}' + (f'\nWhere to get it: {self.source}' if self.source else '')


def listing(root: Path) -> str:
    """Returns what lies in a folder, shortened, for messages."""
    if root.is_file():
        return 'a file'
    names = sorted(path.name + ('/' if path.is_dir() else '') for path in root.iterdir())
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '') if names else 'nothing'


def _recognise(layouts: Mapping[str, Layout], names: Sequence[str], root: Path, selection: Selection) -> tuple:
    """Tries layouts in order; returns (name, Found) of the first that fits."""
    reasons = []
    for name in names:
        row = layouts[name]
        try:
            found = ((len(names) > 1 and row.recognise) or row.find)(root, selection)
        except MismatchError as reason:
            reasons.append(f'{name}: {reason}')
            continue
        if found.records or found.problems:
            return name, found
        reasons.append(f'{name}: nothing found')
    lines = [f'data.dir={str(root)!r} holds {listing(root)}.']
    if root.is_dir() and any(path.suffix.lower() in ARCHIVES for path in root.iterdir()):
        lines += ['It holds archives: unpack them first.']
    if len(names) == 1:
        lines += [f'That is not data.layout={reasons[0]}', layouts[names[0]].hint]
        lines += [f'data.layout={AUTO} tries every layout: {", ".join(layouts)}.']
    else:
        lines += [f'No layout fits; tried:{shortlist(reasons, len(reasons))}']
    raise UserError('\n'.join([*lines, NO_DOWNLOAD]))


def find(layouts: Mapping[str, Layout], name: str, root: Path | None, selection: Selection) -> tuple[str, Found]:
    """Finds the examples of a data set, turned and split.

    Args:
      layouts: by name, in the order in which 'auto' tries them.
      name: of one of them, or 'auto'.
      root: the set's folder; None for the layout's own.
      selection: what of it is used.

    Returns:
      The layout's name, and what was found; every record has a split.

    Raises:
      UserError: the folder is missing or holds no layout that is known; there are too few scenes to split.
    """
    if name != AUTO:
        layout = pick(layouts, name, 'data.layout')
        if root is None and layout.default_root:
            root = layout.default_root()
    hint = '' if name == AUTO else f'\n{layouts[name].hint}'
    if root is None:
        raise UserError(f'data.dir is not set: give the folder of the data set.{hint}\n{NO_DOWNLOAD}')
    if not root.exists() and not (name != AUTO and layouts[name].named):
        near = next((parent for parent in root.absolute().parents if parent.is_dir()), root)
        raise UserError(f'data.dir={str(root)!r}: no such folder; {near} holds {listing(near)}.{hint}\n{NO_DOWNLOAD}')
    readable = root.suffix.lower() == '.zip' and name in (AUTO, 'labelled')
    if root.is_file() and root.suffix.lower() in ARCHIVES and not readable:
        raise UserError(
            f'data.dir={str(root)!r} is an archive: unpack it, and give the folder. Only folders of classes '
            '(data.layout=labelled) may stay in a .zip.'
        )
    # A prepared set stands for the layout that it was made from.
    names = [n for n, row in layouts.items() if not (row.default_root or row.named)] if name == AUTO else [name]
    if 'prepared' in layouts and name not in (AUTO, 'prepared') and root.is_dir():
        try:
            return name, layouts['prepared'].find(root, selection)
        except MismatchError:
            pass
    chosen, found = _recognise(layouts, names, root, selection)
    if found.prepared:
        return chosen, found
    if selection.direction == 'BtoA':
        if any(record.input is None for record in found.records):
            raise UserError(f'data.direction=BtoA: layout {chosen} has no pairs whose sides could be exchanged')
        found.records = [dataclasses.replace(r, input=r.target, target=r.input) for r in found.records]
    found.records = _complete_splits(found.records, selection)
    return chosen, found


def _complete_splits(records: list[Record], selection: Selection) -> list[Record]:
    """Gives every record a split.

    A set that comes with training images and one held-out part keeps that part for the test, and its validation
    images are taken from the training images: nothing that chooses a checkpoint is ever scored.
    """
    if not selection.own_split:
        records = [dataclasses.replace(record, split=None) for record in records]
    there = {record.split for record in records}
    if there in ({None}, {'train'}):
        return split_by_scene(records, selection.split, selection.split_seed)
    if there == {'train', 'val'}:
        records = [dataclasses.replace(r, split='test' if r.split == 'val' else r.split) for r in records]
        there = {'train', 'test'}
    if there == {'train', 'test'}:
        train = [record for record in records if record.split == 'train']
        share = selection.split[1] / (selection.split[0] + selection.split[1])
        dealt = iter(split_by_scene(train, (1 - share, share), selection.split_seed))
        return [next(dealt) if record.split == 'train' else record for record in records]
    return records


def split_by_scene(records: Sequence[Record], ratios: Sequence[float], seed: int) -> list[Record]:
    """Gives every record a split; scenes stay whole, and each split has at least one.

    Args:
      records: the examples.
      ratios: shares of train, val and test, or of train and val; they sum to 1.
      seed: of the order in which scenes are dealt.

    Raises:
      UserError: fewer scenes than splits, or ratios that are no shares.
    """
    names = SPLITS[: len(ratios)]
    if len(ratios) not in (2, 3) or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
        raise UserError(f'shares {tuple(ratios)}: expected two or three positive ones that sum to 1')
    count = collections.Counter(record.scene for record in records)
    if len(count) < len(names):
        raise UserError(
            f'{len(count)} scenes ({", ".join(sorted(count))}): at least {len(names)} are needed for {", ".join(names)}'
        )
    scenes = sorted(count)
    order = [scenes[i] for i in np.random.default_rng(seed).permutation(len(scenes))]
    chosen: dict[str, str] = {}
    for place in range(len(names) - 1, 0, -1):
        taken = 0
        # One scene at least must be left for each of the splits before this one.
        while not taken or (taken < round(ratios[place] * len(records)) and len(order) > place):
            scene = order.pop()
            chosen[scene] = names[place]
            taken += count[scene]
    return [dataclasses.replace(r, split=chosen.get(r.scene, SPLITS[0])) for r in records]


def workers(threads: int | None) -> int:
    """Returns how many threads a setting means; None is one a core."""
    return threads or os.cpu_count() or 1


def in_threads(function: Callable[[T], R], items: Iterable[T], threads: int | None, ahead: int = 4) -> Iterator[R]:
    """Yields `function(item)` in order, computed by threads up to `ahead` items a thread before they are asked for."""
    count = workers(threads)
    ahead *= count
    with ThreadPoolExecutor(count) as pool:
        waiting: collections.deque = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def cut(record: Record, selection: Selection) -> list[Record]:
    """Returns the tiles of an example, as the selection wants them: parts of one image share its scene and split.

    Args:
      record: whole, with its size.
      selection: `square`, `grid`, `tile_size`, `tile_overlap`, `resize`, and `mask_values` with `direction`, for masks
        are resized without mixing their values.
    """
    whole = record.size
    height, width = (min(whole), min(whole)) if selection.square else whole
    tall, wide = height // selection.grid[0], width // selection.grid[1]
    boxes = [(r * tall, c * wide, tall, wide) for r in range(selection.grid[0]) for c in range(selection.grid[1])]
    if selection.tile_size:
        tall, wide = min(selection.tile_size, height), min(selection.tile_size, width)
        step = selection.tile_size - selection.tile_overlap
        tops, lefts = ([*range(0, side - part, step), side - part] for side, part in ((height, tall), (width, wide)))
        boxes = [(top, left, tall, wide) for top in tops for left in lefts]
    size = (selection.resize, selection.resize) if selection.resize else None
    mask = 'target' if selection.direction == 'BtoA' else 'input'
    tiles = []
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    for box in [(top + y, left + x, tall, wide) for y, x, tall, wide in boxes]:
        part = None if box == (0, 0, *whole) else box
        sides = {
            side: dataclasses.replace(
                source, box=source.inside(part), size=size, nearest=bool(selection.mask_values) and side == mask
            )
            for side, source in (('input', record.input), ('target', record.target))
            if source
        }
        tiles.append(
            dataclasses.replace(
                record,
                name=f'{record.name}@{box[0]},{box[1]}' if part and len(boxes) > 1 else record.name,
                target=sides['target'],
                input=sides.get('input'),
                size=size or box[2:],
                scale=math.sqrt(size[0] * size[1] / (box[2] * box[3])) if size else 1.0,
            )
        )
    return tiles


def limit(records: Sequence[Record], most: int | None) -> list[Record]:
    """Returns at most so many records, evenly spread over the list; None takes all."""
    if most is None or most >= len(records):
        return list(records)
    return [records[i * len(records) // most] for i in range(most)]
