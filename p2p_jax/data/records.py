"""What is on disk: finds the pairs of each data-set layout, splits them by scene, and checks them."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from p2p_jax.data import images
from p2p_jax.lookup import UserError, shortlist

SPLITS = ('train', 'val', 'test')
Splits = dict[str, list['Record']]

NO_DOWNLOAD = 'Without a download this runs: python -m p2p_jax.main --config=configs/sample.py'


@dataclasses.dataclass(frozen=True)
class Record:
    """One example on disk.

    Attributes:
      name: readable, unique in its set.
      input: file of the condition. The same as `target` where the condition is made by a degradation.
      target: file of the image that the generator should give.
      scene: examples of one scene never fall into different splits.
      split: 'train', 'val' or 'test' where the layout fixes it, else None.
      size: (height, width) of the target in pixels; filled by `verify`.
    """

    name: str
    input: Path
    target: Path
    scene: str
    split: str | None = None
    size: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way in which a data set lies on disk.

    Attributes:
      find: gives the records below a folder; none where the folder does not hold this layout.
      tree: how the folder looks, for messages.
      source: where to get the set, for messages.
      default_root: gives the folder where `data.dir` is None.
    """

    find: Callable[[Path], list[Record]]
    tree: str
    source: str = ''
    default_root: Callable[[], Path] | None = None

    def missing(self, root: Path | None, found: str) -> UserError:
        """The error for a folder that does not hold this layout."""
        lines = [f'data.dir={str(root)!r}: {found}', f'Expected under data.dir: {self.tree}']
        if self.source:
            lines.append(f'Where to get it: {self.source}')
        return UserError('\n'.join([*lines, NO_DOWNLOAD]))


def _pair(inputs: dict[str, Path], targets: dict[str, Path], where: str) -> list[tuple[str, Path, Path]]:
    """Joins two dictionaries by key; every key must be in both."""
    lonely = [f'{inputs[k]}: no target' for k in sorted(inputs.keys() - targets.keys())]
    lonely += [f'{targets[k]}: no input' for k in sorted(targets.keys() - inputs.keys())]
    if lonely:
        raise UserError(f'{where}: {len(lonely)} files without a partner:{shortlist(lonely)}')
    return [(key, inputs[key], targets[key]) for key in sorted(inputs)]


def _by_stem(folder: Path) -> dict[str, Path]:
    """Maps the path below `folder` without its extension to the file."""
    found: dict[str, Path] = {}
    for path in images.find_images(folder):
        stem = path.relative_to(folder).with_suffix('').as_posix()
        if stem in found:
            raise UserError(f'{found[stem]} and {path} have the same stem: which of them is meant? Remove one.')
        found[stem] = path
    return found


def _find_pairs(root: Path) -> list[Record]:
    """`{train,val,test}/{input,target}/`, or one `input/` and `target/`; stems equal, extensions free."""
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if folders and len(folders) < len(SPLITS):
        absent = ', '.join(f'{split}/' for split in SPLITS if split not in folders)
        raise UserError(
            f'data.dir={str(root)!r}: {absent} missing beside {", ".join(f"{s}/" for s in folders)}. '
            'Add it, or give one input/ and target/, which are then split by data.split.'
        )
    records = []
    groups: list[tuple[str | None, Path]] = [*folders.items()] or [(None, root)]
    for split, folder in groups:
        if not ((folder / 'input').is_dir() and (folder / 'target').is_dir()):
            return []
        for stem, source, target in _pair(_by_stem(folder / 'input'), _by_stem(folder / 'target'), str(folder)):
            name = f'{split}/{stem}' if split else stem
            records.append(Record(name, source, target, scene=name, split=split))
    return records


def _find_polyu(root: Path) -> list[Record]:
    """`CroppedImages/<scene>_<n>_{real,mean}.JPG`; a trailing `_` of a scene is a slip in the set."""
    sides: dict[str, dict[str, Path]] = {'real': {}, 'mean': {}}
    for path in images.find_images(root / 'CroppedImages'):
        match = re.fullmatch(r'(.+)_(real|mean)', path.stem)
        if match:
            sides[match[2]][match[1]] = path
    return [
        Record(name, source, target, scene=re.sub(r'_+\d+$', '', name))
        for name, source, target in _pair(sides['real'], sides['mean'], str(root / 'CroppedImages'))
    ]


def _find_sidd(root: Path) -> list[Record]:
    """`Data/<inst>_<scene>_<phone>_…/<inst>_{NOISY,GT}_SRGB_<frame>.PNG` of SIDD-Medium and SIDD-Small."""
    base = root / 'Data' if (root / 'Data').is_dir() else root
    sides: dict[str, dict[str, Path]] = {'NOISY': {}, 'GT': {}}
    for path in images.find_images(base):
        match = re.fullmatch(r'\d+_(NOISY|GT)_SRGB_(\d+)', path.stem)
        if match and re.match(r'\d+_\d+_', path.parent.name):
            sides[match[1]][f'{path.parent.name}/{match[2]}'] = path
    return [
        Record(name, source, target, scene=name.split('_')[1])
        for name, source, target in _pair(sides['NOISY'], sides['GT'], str(base))
    ]


PAIRS = Layout(_find_pairs, '{train,val,test}/{input,target}/*.png, or one input/ and target/; equal stems are a pair')
POLYU = Layout(
    _find_polyu,
    'CroppedImages/<scene>_<n>_{real,mean}.JPG (data.layout=polyu)',
    'https://github.com/csjunxu/PolyU-Real-World-Noisy-Images-Dataset',
)
SIDD = Layout(
    _find_sidd,
    'Data/<instance>_<scene>_<phone>_…/<instance>_{NOISY,GT}_SRGB_010.PNG (data.layout=sidd), '
    'which is how SIDD-Medium sRGB and SIDD-Small sRGB unpack',
    'https://abdokamel.github.io/sidd/ (SIDD-Medium sRGB or SIDD-Small sRGB)',
)


def load(layout: Layout, root: Path | None, ratios: Sequence[float], seed: int) -> Splits:
    """Finds the records of a layout, split.

    Args:
      layout: how the set lies on disk.
      root: its folder; None for the layout's own.
      ratios: shares of train, val and test; used where the layout has no split of its own.
      seed: of that split.

    Raises:
      UserError: the folder is missing or empty, files lack their partner, or there are too few scenes.
    """
    if root is None and layout.default_root:
        root = layout.default_root()
    if root is None or not root.is_dir():
        raise layout.missing(root, 'no such folder' if root else 'not set')
    records = layout.find(root)
    if not records:
        raise layout.missing(root, f'no such pairs found there; it holds {_listing(root)}')
    if any(record.split is None for record in records):
        records = split_by_scene(records, ratios, seed)
    splits: Splits = {split: [r for r in records if r.split == split] for split in SPLITS}
    empty = [split for split, members in splits.items() if not members]
    if empty:
        raise layout.missing(root, f'no images for {", ".join(empty)}')
    return splits


def _listing(root: Path) -> str:
    names = sorted(path.name + ('/' if path.is_dir() else '') for path in root.iterdir())
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '') if names else 'nothing'


def split_by_scene(records: Sequence[Record], ratios: Sequence[float], seed: int) -> list[Record]:
    """Gives every record a split; scenes stay whole, and each split has at least one.

    Args:
      records: the examples.
      ratios: shares of train, val and test, which sum to 1.
      seed: of the order in which scenes are dealt.

    Raises:
      UserError: fewer than three scenes, or ratios that are no shares.
    """
    if len(ratios) != len(SPLITS) or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
        raise UserError(f'data.split={tuple(ratios)}: expected three positive shares (train, val, test) that sum to 1')
    scenes = sorted({record.scene for record in records})
    if len(scenes) < len(SPLITS):
        raise UserError(f'{len(scenes)} scenes ({", ".join(scenes)}): at least three are needed for train, val, test')
    count = {scene: sum(record.scene == scene for record in records) for scene in scenes}
    order = [scenes[i] for i in np.random.default_rng(seed).permutation(len(scenes))]
    chosen: dict[str, str] = {}
    for split, ratio in ((SPLITS[2], ratios[2]), (SPLITS[1], ratios[1])):
        taken = 0
        # The last scene belongs to train, whatever the shares; one more must be left for val.
        while not taken or (taken < round(ratio * len(records)) and len(order) > (2 if split == SPLITS[2] else 1)):
            scene = order.pop()
            chosen[scene] = split
            taken += count[scene]
    return [dataclasses.replace(r, split=chosen.get(r.scene, SPLITS[0])) for r in records]


def verify(records: Sequence[Record], least: int, why: str) -> list[Record]:
    """Reads the headers of all files and returns the records with their sizes.

    Args:
      records: the examples.
      least: the smallest height and width in pixels that will do.
      why: what asks for that, for the message.

    Raises:
      UserError: all files that cannot be read, pairs whose sizes differ, images smaller than `least`.
    """
    sized, problems = [], []
    for record in records:
        try:
            size, other = images.image_size(record.target), images.image_size(record.input)
        except UserError as error:
            problems.append(str(error))
            continue
        if size != other:
            problems.append(f'{record.input} is {other[0]}×{other[1]}, but {record.target} is {size[0]}×{size[1]}')
        elif min(size) < least:
            problems.append(f'{record.target} is {size[0]}×{size[1]}: smaller than {why}')
        sized.append(dataclasses.replace(record, size=size))
    if problems:
        raise UserError(f'{len(problems)} of {len(records)} examples cannot be used:{shortlist(problems)}')
    return sized
