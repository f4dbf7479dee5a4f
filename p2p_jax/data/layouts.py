"""How data sets of image pairs lie on disk: one function for each."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from p2p_jax.data import images, sources
from p2p_jax.data.records import SPLITS, Found, Layout, MismatchError, Problem, Record, Selection
from p2p_jax.data.sources import Source
from p2p_jax.lookup import UserError

# The customary names of the two sides' folders: A, the input, and B, the target.
SIDES = (
    ('input', 'target'),
    ('A', 'B'),
    ('noisy', 'clean'),
    ('noisy', 'gt'),
    ('blur', 'sharp'),
    ('input', 'gt'),
    ('lq', 'gt'),
)
SPLIT_NAMES = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'test': 'test'}


def _subfolder(root: Path, name: str) -> Path:
    """The folder `name` below the root, or the root itself where that is the folder."""
    folder = root / name
    if folder.is_dir():
        return folder
    if root.is_dir() and root.name == name:
        return root
    raise MismatchError(f'no folder {name}/')


def _files(folder: Path) -> list[Path]:
    found = images.find_images(folder)
    if not found:
        raise MismatchError(f'no images below {folder.name}/')
    return found


def _by_stem(folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Maps the path below a folder without its extension to the file; two files of one stem are a problem."""
    found: dict[str, Path] = {}
    problems = []
    for path in images.find_images(folder):
        stem = path.relative_to(folder).with_suffix('').as_posix()
        if stem in found:
            problems.append(
                Problem('unpaired', f'{path}: the same stem as {found[stem].name}; which is meant? Remove one.')
            )
        else:
            found[stem] = path
    return found, problems


def _pair(inputs: dict[str, Path], targets: dict[str, Path]) -> tuple[list[tuple[str, Path, Path]], list[Problem]]:
    """Joins two dictionaries by key; what is in one alone is a problem."""
    problems = [Problem('unpaired', f'{inputs[k]}: no target') for k in sorted(inputs.keys() - targets.keys())]
    problems += [Problem('unpaired', f'{targets[k]}: no input') for k in sorted(targets.keys() - inputs.keys())]
    return [(k, inputs[k], targets[k]) for k in sorted(inputs.keys() & targets.keys())], problems


def _split_folders(root: Path) -> list[tuple[str | None, Path]]:
    """The folders of the splits that lie below the root; the root itself where there are none."""
    named = [(SPLIT_NAMES[p.name.lower()], p) for p in sorted(root.iterdir()) if p.name.lower() in SPLIT_NAMES]
    return [(split, path) for split, path in named if path.is_dir()] or [(None, root)]


def _need_folder(root: Path) -> None:
    if not root.is_dir():
        raise MismatchError('a folder is needed, this is a file')


def _find_pairs(root: Path, _: Selection) -> Found:
    """`{train,val,test}/{input,target}/`, or one `input/` and `target/`; stems equal, extensions free."""
    _need_folder(root)
    found = Found([])
    folders = _split_folders(root)
    for names in SIDES:
        if all((folder / name).is_dir() for _, folder in folders for name in names):
            break
    else:
        where = f'each of {", ".join(f"{p.name}/" for _, p in folders)}' if folders[0][0] else 'it'
        raise MismatchError(f'{where} must hold two folders, named {", ".join(f"{a}+{b}" for a, b in SIDES)}')
    for split, folder in folders:
        (inputs, doubled), (targets, twice) = (_by_stem(folder / name) for name in names)
        pairs, lonely = _pair(inputs, targets)
        found.problems += [*doubled, *twice, *lonely]
        for stem, source, target in pairs:
            name = f'{split}/{stem}' if split else stem
            found.records.append(Record(name, Source(target), Source(source), scene=name, split=split))
    return found


def _find_side_by_side(root: Path, _: Selection) -> Found:
    """One image holds A in its left half and B in its right half; optionally below train/, val/, test/."""
    _need_folder(root)
    found = Found([])
    sizes: dict[Path, tuple[int, int]] = {}
    splits = {path: split for split, folder in _split_folders(root) for path in _files(folder)}
    for path in splits:
        try:
            sizes[path] = images.header(str(path), path).size
        except UserError as error:
            found.problems.append(Problem('unreadable' if path.stat().st_size else 'empty', str(error)))
    # Where the pairs are of squares, an image of another shape would be cut in the wrong place.
    squares = sum(width == 2 * height for height, width in sizes.values()) > len(sizes) / 2
    for path, (height, width) in sizes.items():
        if width % 2 or width < height or (squares and width != 2 * height):
            usual = 'two squares, as the others are' if squares else 'two halves of equal width'
            found.problems.append(Problem('size', f'{path} is {height}×{width}: not {usual}'))
            continue
        stem = path.relative_to(root).with_suffix('').as_posix()
        left, right = (Source(path, box=(0, side * width // 2, height, width // 2)) for side in (0, 1))
        found.records.append(Record(stem, right, left, scene=stem, split=splits[path]))
    if not found.records:
        raise MismatchError('none of its images is two side by side')
    return found


def _sure_side_by_side(root: Path, selection: Selection) -> Found:
    """The same where nearly all images are exactly twice as wide as high."""
    found = _find_side_by_side(root, selection)
    double = [r for r in found.records if r.target.box and r.target.box[2] == r.target.box[3]]
    if len(double) < 0.9 * (len(found.records) + len(found.problems)):
        raise MismatchError('its images are not twice as wide as high; data.layout=side_by_side takes other shapes')
    return found


def _read_rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError:
        raise MismatchError(f'{path.name} is no UTF-8 text') from None
    if path.suffix.lower() == '.csv':
        return [row for row in csv.reader(text.splitlines()) if any(row)]
    return [re.split(r'\t|\s{2,}|\s', line.strip(), maxsplit=1) for line in text.splitlines() if line.strip()]


def _find_list(root: Path, _: Selection) -> Found:
    """A file of pairs, or train/val/test lists: `input target` a line (.txt), `input,target[,scene[,split]]` (.csv)."""
    lists: list[tuple[str | None, Path]] = [(None, root)]
    if root.is_dir():
        named = sorted(p for p in root.iterdir() if p.suffix.lower() in ('.txt', '.csv'))
        splits = [(SPLIT_NAMES.get(p.stem.lower()), p) for p in named]
        lists = [(s, p) for s, p in splits if s] or [(None, p) for p in named if p.stem.lower() == 'pairs']
        if not lists:
            raise MismatchError('no pairs.csv, pairs.txt, or train/val/test lists')
    elif root.suffix.lower() not in ('.txt', '.csv'):
        raise MismatchError('neither a .txt nor a .csv file')
    found = Found([])
    for split, path in lists:
        rows = _read_rows(path)
        if rows and [cell.strip().lower() for cell in rows[0][:2]] == ['input', 'target']:
            rows = rows[1:]
        for number, row in enumerate(rows, 1):
            cells = [cell.strip() for cell in row] + ['', '']
            if len(row) < 2 or not Path(cells[0]).suffix or not Path(cells[1]).suffix:
                raise MismatchError(f'{path.name}, row {number}: {" ".join(row)[:60]!r} names no two image files')
            source, target = (path.parent / cell for cell in cells[:2])
            own = SPLIT_NAMES.get(cells[3].lower()) if cells[3] else None
            lonely = [str(p) for p in (source, target) if not p.is_file()]
            if lonely:
                found.problems.append(
                    Problem('unpaired', f'{path}, row {number}: {" and ".join(lonely)}: no such file')
                )
                continue
            name = f'{split or own or path.stem}/{number}:{Path(cells[0]).stem}'
            scene = cells[2] or name
            found.records.append(Record(name, Source(target), Source(source), scene=scene, split=split or own))
    return found


def _find_clean(root: Path, _: Selection) -> Found:
    """Single clean images, which a degradation turns into conditions; optionally below train/, val/, test/."""
    if root.is_file():
        raise MismatchError('a folder is needed, this is a file')
    records = []
    for split, folder in _split_folders(root):
        for path in _files(folder):
            name = path.relative_to(root).with_suffix('').as_posix()
            records.append(Record(name, Source(path), scene=name, split=split))
    return Found(records)


def _sure_clean(root: Path, selection: Selection) -> Found:
    """The same where the images lie in one folder, or one for each split; deeper trees may mean anything."""
    found = _find_clean(root, selection)
    deep = next((r.name for r in found.records if len(Path(r.name).parts) > (2 if r.split else 1)), None)
    if deep:
        raise MismatchError(f'its images lie in subfolders ({deep}); data.layout=clean takes them all')
    return found


def _sided(
    paths: Iterable[Path], pattern: str, name: str, sides: tuple[str, str]
) -> tuple[list[tuple[str, Path, Path]], list[Problem]]:
    """Pairs files whose name has the side as group 'side', and whose key is `name` filled with all groups."""
    found: dict[str, dict[str, Path]] = {side: {} for side in sides}
    for path in paths:
        match = re.fullmatch(pattern, path.stem)
        if match and match['side'].lower() in found:
            found[match['side'].lower()][name.format(**match.groupdict(), folder=path.parent.name)] = path
    if not any(found.values()):
        raise MismatchError(f'no files named like {" and ".join(sides)}')
    return _pair(found[sides[0]], found[sides[1]])


def _find_polyu(root: Path, _: Selection) -> Found:
    """`CroppedImages/<camera>_<f>_<shutter>_<iso>_<object>_<n>_{real,mean}.JPG`; a scene's trailing `_` is a slip."""
    folder = _subfolder(root, 'CroppedImages')
    pairs, problems = _sided(_files(folder), r'(?P<key>.+)_(?P<side>real|mean)', '{key}', ('real', 'mean'))
    records = []
    for name, source, target in pairs:
        scene = re.sub(r'_+\d+$', '', name)
        fields = scene.split('_')
        known = dict(zip(('camera', 'aperture', 'shutter', 'iso', 'object'), fields, strict=False))
        attributes = known if len(fields) == 5 else {'camera': fields[0]}
        records.append(Record(name, Source(target), Source(source), scene=scene, attributes=attributes))
    return Found(records, problems)


def _find_polyu_full(root: Path, _: Selection) -> Found:
    """`OriginalImages/<camera>_<object>_{Real,mean}.JPG`: the full frames that the crops were cut from."""
    folder = _subfolder(root, 'OriginalImages')
    pairs, problems = _sided(_files(folder), r'(?P<key>.+)_(?P<side>[Rr]eal|mean)', '{key}', ('real', 'mean'))
    records = [
        Record(name, Source(target), Source(source), scene=name, attributes={'camera': name.split('_')[0]})
        for name, source, target in pairs
    ]
    return Found(records, problems)


_SIDD_FOLDER = re.compile(
    r'(?P<instance>\d+)_(?P<scene>\d+)_(?P<phone>[^_]+)_(?P<iso>\d+)_(?P<shutter>\d+)_(?P<temperature>\d+)'
    r'_(?P<brightness>[LNH])'
)


def _find_sidd(root: Path, _: Selection) -> Found:
    """`Data/<inst>_<scene>_<phone>_<iso>_…/<inst>_{NOISY,GT}_SRGB_<frame>.PNG` of SIDD-Medium and SIDD-Small."""
    _need_folder(root)
    base = root / 'Data' if (root / 'Data').is_dir() else root
    folders = {p.name: match for p in base.iterdir() if p.is_dir() and (match := _SIDD_FOLDER.fullmatch(p.name))}
    if not folders:
        raise MismatchError('no folders like Data/0001_001_S6_00100_00060_3200_L/')
    paths = [path for name in sorted(folders) for path in images.find_images(base / name)]
    pattern = r'\d+_(?P<side>NOISY|GT)_SRGB_(?P<frame>\d+)'
    pairs, problems = _sided(paths, pattern, '{folder}/{frame}', ('noisy', 'gt'))
    records = []
    for name, source, target in pairs:
        attributes = folders[target.parent.name].groupdict()
        records.append(
            Record(name, Source(target), Source(source), scene=attributes.pop('scene'), attributes=attributes)
        )
    return Found(records, problems)


def _find_sidd_blocks(root: Path, _: Selection) -> Found:
    """`ValidationNoisyBlocksSrgb.mat` with `ValidationGtBlocksSrgb.mat`, or `BenchmarkNoisyBlocksSrgb.mat` alone."""
    _need_folder(root)
    noisy, clean = (root / f'Validation{side}BlocksSrgb.mat' for side in ('Noisy', 'Gt'))
    benchmark = root / 'BenchmarkNoisyBlocksSrgb.mat'
    if not noisy.is_file() and not benchmark.is_file():
        raise MismatchError(f'neither {noisy.name} nor {benchmark.name}')
    if noisy.is_file() and not clean.is_file():
        return Found([], [Problem('unpaired', f'{noisy}: no {clean.name} beside it')])
    path = noisy if noisy.is_file() else benchmark
    blocks = sources.mat_blocks(path)
    if path == noisy and sources.mat_blocks(clean).shape != blocks.shape:
        shape = sources.mat_blocks(clean).shape
        raise UserError(f'{noisy} holds {blocks.shape} and {clean} {shape}: they belong to different sets')
    records = []
    for image, block in ((i, j) for i in range(blocks.shape[0]) for j in range(blocks.shape[1])):
        item = f'{image},{block}'
        source = Source(path, 'mat', item)
        target = Source(clean, 'mat', item) if path == noisy else source
        blind = path == benchmark
        record = Record(
            f'{image:02}/{block:02}', target, source, scene=f'{image:02}', split='test', size=blocks.shape[2:4],
            blind=blind,
        )  # fmt: skip
        records.append(record)
    return Found(records)


def _find_crops(root: Path, _: Selection) -> Found:
    """`{train,val,test}/…/{input_crops,target_crops}` (Restormer) or `…/{input_crops,gt_crops}` (NAFNet)."""
    _need_folder(root)
    found = Found([])
    for folder in sorted(path for path in root.glob('**/input_crops') if path.is_dir()):
        other = next((folder.parent / n for n in ('target_crops', 'gt_crops') if (folder.parent / n).is_dir()), None)
        below = folder.relative_to(root).parts[:-1]
        if other is None:
            found.problems.append(Problem('unpaired', f'{folder}: neither target_crops/ nor gt_crops/ beside it'))
            continue
        split = next((SPLIT_NAMES[part.lower()] for part in below if part.lower() in SPLIT_NAMES), None)
        (inputs, doubled), (targets, twice) = _by_stem(folder), _by_stem(other)
        pairs, lonely = _pair(inputs, targets)
        found.problems += [*doubled, *twice, *lonely]
        for stem, source, target in pairs:
            # The preparing scripts append the crop's number to the name of the photograph. Of SIDD's own names the
            # first number is the instance, whose frames show the same.
            photograph = re.sub(r'[-_]s?\d+$', '', stem)
            instance = re.match(r'\d+(?=_(?:NOISY_|GT_)?SRGB_)', photograph)
            scene = '/'.join([*below, instance[0] if instance else photograph])
            found.records.append(
                Record('/'.join([*below, stem]), Source(target), Source(source), scene=scene, split=split)
            )
    if not found.records and not found.problems:
        raise MismatchError('no folder input_crops/')
    return found


def _find_fmd(root: Path, _: Selection) -> Found:
    """`<type>/raw/<view>/*.png` with `<type>/gt/<view>/avg50.png`, for one type or many; view 19 is the test set's."""
    _need_folder(root)
    kinds = [root] if (root / 'raw').is_dir() else sorted(p.parent for p in root.glob('*/raw') if p.is_dir())
    if not kinds:
        raise MismatchError('no folders raw/ and gt/')
    found = Found([])
    for kind in kinds:
        if not (kind / 'gt').is_dir():
            raise MismatchError(f'{kind.name}/ has raw/ but no gt/')
        for view in sorted((p for p in (kind / 'raw').iterdir() if p.is_dir()), key=lambda p: (len(p.name), p.name)):
            truth = kind / 'gt' / view.name / 'avg50.png'
            if not truth.is_file():
                found.problems.append(Problem('unpaired', f'{view}: no {truth}'))
                continue
            # The channels R, G and B of one sample show the same place.
            scene = f'{re.sub("_[RGB]$", "", kind.name)}/{view.name}'
            attributes = {'type': kind.name, 'microscope': kind.name.split('_')[0], 'view': view.name}
            split = 'test' if view.name == '19' else 'train'
            for path in images.find_images(view):
                name = f'{kind.name}/{view.name}/{path.stem}'
                found.records.append(
                    Record(name, Source(truth), Source(path), scene=scene, split=split, attributes=attributes)
                )
    return found


def _find_inria(root: Path, _: Selection) -> Found:
    """`train/{images,gt}/<city><n>.tif`; A is the mask, B the photograph; 1 to 5 of each city are held out."""
    _need_folder(root)
    base = next((p for p in (root / 'AerialImageDataset', root) if (p / 'train' / 'gt').is_dir()), None)
    if base is None or not (base / 'train' / 'images').is_dir():
        raise MismatchError('no folders train/images/ and train/gt/')
    pattern = re.compile(r'(.+?)(\d+)')
    sides = [
        {path.stem: path for path in images.find_images(base / 'train' / side) if pattern.fullmatch(path.stem)}
        for side in ('gt', 'images')
    ]
    pairs, problems = _pair(*sides)
    if not pairs:
        raise MismatchError('no files like train/gt/austin1.tif')
    records = []
    for name, mask, photograph in pairs:
        match = pattern.fullmatch(name)
        assert match is not None
        # By integer: a lexical order gives 1, 10, 11, ….
        split = 'val' if int(match[2]) <= 5 else 'train'
        attributes = {'city': match[1], 'number': match[2]}
        records.append(Record(name, Source(photograph), Source(mask), scene=name, split=split, attributes=attributes))
    return Found(records, problems)


def _find_ffhq(root: Path, _: Selection) -> Found:
    """`images1024x1024/00000/00000.png`, `thumbnails128x128/…`, or flat; the last 10,000 of 70,000 are held out."""
    _need_folder(root)
    folder = next((root / n for n in ('images1024x1024', 'thumbnails128x128') if (root / n).is_dir()), root)
    files = [path for path in _files(folder) if re.fullmatch(r'\d{5}', path.stem)]
    if not files:
        raise MismatchError('no files like 00000.png')
    height, width = images.header(str(files[0]), files[0]).size
    if folder == root and (height != width or height not in (128, 256, 512, 1024)):
        raise MismatchError(f'{files[0].name} is {height}×{width}, no square face')
    published = any(int(path.stem) >= 60_000 for path in files)
    records = []
    for path in files:
        split = ('val' if int(path.stem) >= 60_000 else 'train') if published else None
        records.append(Record(path.stem, Source(path), scene=path.stem, split=split))
    return Found(records)


PAIRS = Layout(_find_pairs, '{train,val,test}/{input,target}/*.png, or one input/ and target/; equal stems are a pair')
LIST = Layout(
    _find_list, 'pairs.csv with the columns input,target[,scene[,split]], or pairs.txt; or such a file itself'
)
SIDE_BY_SIDE = Layout(
    _find_side_by_side,
    '*.jpg that hold A in the left and B in the right half (data.direction)',
    recognise=_sure_side_by_side,
)
CLEAN = Layout(
    _find_clean, '*.png, or {train,val,test}/*.png: clean images, for a synthetic degradation', recognise=_sure_clean
)
POLYU = Layout(
    _find_polyu,
    'CroppedImages/<camera>_<f>_<shutter>_<iso>_<object>_<n>_{real,mean}.JPG',
    'https://github.com/csjunxu/PolyU-Real-World-Noisy-Images-Dataset',
)
POLYU_FULL = Layout(_find_polyu_full, 'OriginalImages/<camera>_<object>_{Real,mean}.JPG', POLYU.source)
SIDD = Layout(
    _find_sidd,
    'Data/<instance>_<scene>_<phone>_<iso>_<shutter>_<temperature>_<L|N|H>/<instance>_{NOISY,GT}_SRGB_010.PNG, '
    'which is how SIDD-Medium sRGB and SIDD-Small sRGB unpack',
    'https://abdokamel.github.io/sidd/ (SIDD-Medium sRGB or SIDD-Small sRGB)',
)
SIDD_BLOCKS = Layout(
    _find_sidd_blocks,
    'ValidationNoisyBlocksSrgb.mat and ValidationGtBlocksSrgb.mat, or BenchmarkNoisyBlocksSrgb.mat',
    'https://abdokamel.github.io/sidd/',
)
CROPS = Layout(_find_crops, '{train,val}/SIDD/{input_crops,target_crops}/*.png, as Restormer and NAFNet prepare them')
FMD = Layout(
    _find_fmd,
    '<type>/raw/<view>/*.png and <type>/gt/<view>/avg50.png',
    'https://github.com/yinhaoz/denoising-fluorescence',
)
INRIA = Layout(
    _find_inria,
    'AerialImageDataset/train/{images,gt}/<city><n>.tif',
    'https://project.inria.fr/aerialimagelabeling/',
)
FFHQ = Layout(
    _find_ffhq,
    'images1024x1024/00000/00000.png, thumbnails128x128/00000/00000.png, or 00000.png …',
    'https://github.com/NVlabs/ffhq-dataset',
)
assert set(SPLIT_NAMES.values()) == set(SPLITS)
