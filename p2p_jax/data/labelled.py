"""How sets of labelled images lie on disk: CIFAR-10 in its forms, folders of classes, and sets that TFDS names."""

import csv
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from p2p_jax.data import images, sources
from p2p_jax.data.layouts import SIDES, SPLIT_NAMES
from p2p_jax.data.records import Found, Layout, MismatchError, Problem, Record, Selection
from p2p_jax.data.sources import Source
from p2p_jax.lookup import UserError
from p2p_jax.unpickle import read_pickle


def _label(entries: Iterable[tuple[str, str, str | None, Source]]) -> Found:
    """Numbers the classes in alphabetical order; entries are (name, class, split, image)."""
    listed = list(entries)
    classes = tuple(sorted({kind for _, kind, _, _ in listed}))
    number = {kind: i for i, kind in enumerate(classes)}
    records = [
        Record(name, image, scene=name, split=split, label=number[kind], attributes={'class': kind})
        for name, kind, split, image in listed
    ]
    return Found(records, classes=classes)


def _by_class(paths: Iterable[PurePosixPath]) -> list[tuple[PurePosixPath, str, str | None]]:
    """Finds class and split in paths like `train/horse/1.jpg` or `horse/1.jpg`; (path, class, split)."""
    listed = [path for path in paths if path.suffix.lower() in images.EXTENSIONS and not path.name.startswith('.')]
    if not listed:
        raise MismatchError('no images in it')
    # One folder around everything, as archives often have, says nothing.
    while len({path.parts[0] for path in listed}) == 1 and min(len(path.parts) for path in listed) > 2:
        if listed[0].parts[0].lower() in SPLIT_NAMES:
            break
        listed = [PurePosixPath(*path.parts[1:]) for path in listed]
    splits = all(len(path.parts) >= 2 and path.parts[0].lower() in SPLIT_NAMES for path in listed)
    place = 1 if splits else 0
    if any(len(path.parts) != place + 2 for path in listed):
        odd = next(path for path in listed if len(path.parts) != place + 2)
        raise MismatchError(f'expected <class>/<image>{" below each split" if splits else ""}; {odd} is not')
    if len({path.parts[place] for path in listed}) < 2:
        raise MismatchError('only one folder of images, so no classes')
    return [(path, path.parts[place], SPLIT_NAMES[path.parts[0].lower()] if splits else None) for path in listed]


def _find_zip(path: Path) -> Found:
    """Folders of classes inside an archive, which stays as it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(info.filename) for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise MismatchError(f'{path.name} is no readable zip ({error})') from None
    full: dict[PurePosixPath, PurePosixPath] = {}
    for name in names:
        for start in range(len(name.parts)):
            full.setdefault(PurePosixPath(*name.parts[start:]), name)
    return _label(
        (name.with_suffix('').as_posix(), kind, split, Source(path, 'zip', full[name].as_posix()))
        for name, kind, split in _by_class(names)
    )


def _find_labelled(root: Path, _: Selection) -> Found:
    """`<class>/*`, or `{train,val,test}/<class>/*`, in a folder or in a zip."""
    if root.is_file():
        if root.suffix.lower() == '.zip':
            return _find_zip(root)
        raise MismatchError('a folder or a zip is needed')
    paths = images.find_images(root)
    archives = [path for path in root.iterdir() if path.suffix.lower() == '.zip']
    if not paths and len(archives) == 1:
        return _find_zip(archives[0])
    return _label(
        (name.with_suffix('').as_posix(), kind, split, Source(root / name))
        for name, kind, split in _by_class(PurePosixPath(path.relative_to(root)) for path in paths)
    )


def _batches(folder: Path, ending: str, classes: tuple[str, ...]) -> Found:
    found = Found([], classes=classes)
    for path in [folder / f'{name}{ending}' for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch')]:
        if not path.is_file():
            found.problems.append(Problem('unreadable', f'{path}: missing; the set was not unpacked completely'))
            continue
        try:
            _, labels = sources.cifar_batch(path)
        except UserError as error:
            found.problems.append(Problem('unreadable', str(error)))
            continue
        split = 'test' if path.name.startswith('test') else 'train'
        for row, label in enumerate(labels.tolist()):
            if not 0 <= label < len(classes):
                found.problems.append(Problem('unreadable', f'{path}, row {row}: label {label} of {len(classes)}'))
                continue
            name = f'{path.name}/{row}'
            attributes = {'class': classes[label]}
            image = Source(path, 'cifar', str(row))
            found.records.append(Record(name, image, scene=name, split=split, label=label, attributes=attributes))
    return found


def _find_kaggle(root: Path) -> Found:
    """`train/<n>.png` with `trainLabels.csv`, whose columns are id,label."""
    table = root / 'trainLabels.csv'
    try:
        with table.open(newline='', encoding='utf-8-sig') as file:
            rows = {row['id']: row['label'] for row in csv.DictReader(file) if row.get('id') and row.get('label')}
    except (UnicodeDecodeError, csv.Error) as error:
        raise MismatchError(f'{table.name} is no table of id,label ({error})') from None
    files = {path.stem: path for path in images.find_images(root / 'train')}
    numbers = sorted(rows.keys() & files.keys(), key=lambda n: (len(n), n))
    found = _label((f'train/{n}', rows[n], None, Source(files[n])) for n in numbers)
    found.problems = [
        Problem('unpaired', f'{files[n]}: not in {table.name}') for n in sorted(files.keys() - rows.keys())
    ]
    found.problems += [
        Problem('unpaired', f'{table}: id {n} has no image in train/') for n in sorted(rows.keys() - files.keys())
    ]
    return found


def _find_cifar10(root: Path, _: Selection) -> Found:
    """Binary batches, python pickles, or Kaggle's PNG files with their table."""
    if not root.is_dir():
        raise MismatchError('a folder is needed')
    for folder in (root, root / 'cifar-10-batches-bin', root / 'cifar-10-batches-py'):
        if (folder / 'data_batch_1.bin').is_file():
            meta = folder / 'batches.meta.txt'
            lines = meta.read_text().split() if meta.is_file() else [str(i) for i in range(10)]
            return _batches(folder, '.bin', tuple(lines))
        if (folder / 'data_batch_1').is_file():
            names = read_pickle(folder / 'batches.meta', sources.CIFAR).get('label_names', [])
            classes = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
            return _batches(folder, '', classes or tuple(map(str, range(10))))
    if (root / 'trainLabels.csv').is_file() and (root / 'train').is_dir():
        return _find_kaggle(root)
    raise MismatchError('no data_batch_1(.bin), and no train/ with trainLabels.csv')


def _sides(features: dict[str, Any], name: str) -> tuple[str | None, str, str | None]:
    """Chooses (input, target, label) among a TFDS set's features."""
    pictures = [key for key, f in features.items() if len(f.shape or ()) == 3 and f.shape[-1] in (1, 3, 4)]
    labels = [key for key, f in features.items() if hasattr(f, 'num_classes')]
    for a, b in SIDES:
        if {a, b} <= set(pictures):
            return a, b, None
    if len(pictures) == 2:
        return pictures[0], pictures[1], None
    if len(pictures) == 1:
        return None, pictures[0], labels[0] if labels else None
    raise UserError(f'data.dir={name!r}: TFDS set with images {pictures}; expected one, with a label, or two')


def _find_tfds(root: Path, _: Selection) -> Found:
    """A set that TFDS knows by name; prepared by it first, in TFDS_DATA_DIR or its default folder."""
    import tensorflow_datasets as tfds

    name = root.as_posix()
    try:
        builder = tfds.builder(name, file_format='array_record', data_dir=os.environ.get('TFDS_DATA_DIR'))
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(f'data.dir={name!r}: TFDS knows no such set ({str(error).splitlines()[0]})') from None
    builder.download_and_prepare()
    a, b, label = _sides(dict(builder.info.features), name)
    classes = tuple(builder.info.features[label].names) if label else ()
    records = []
    for theirs in builder.info.splits:
        split = SPLIT_NAMES.get(theirs)
        if split is None:
            continue
        count = builder.info.splits[theirs].num_examples
        undecoded = {b: tfds.decode.SkipDecoding()}
        numbers = builder.as_data_source(theirs, decoders=undecoded) if label else None

        def image(i: int, feature: str, theirs: str = theirs) -> Source:
            return Source(builder.data_path, 'tfds', f'{theirs}/{i}/{feature}')

        for i in range(count):
            kind = None if numbers is None else int(numbers[i][label])
            scene = f'{theirs}/{i}'
            known = {} if kind is None else {'class': classes[kind]}
            source = image(i, a) if a else None
            records.append(Record(scene, image(i, b), source, scene=scene, split=split, label=kind, attributes=known))
    return Found(records, classes=classes)


LABELLED = Layout(_find_labelled, '<class>/*.jpg, or {train,val,test}/<class>/*.jpg, as a folder or in a zip')
CIFAR10 = Layout(
    _find_cifar10,
    'data_batch_1.bin …, data_batch_1 … (python), or train/<n>.png with trainLabels.csv (Kaggle)',
    'https://www.cs.toronto.edu/~kriz/cifar.html',
)
TFDS = Layout(
    _find_tfds, 'the name of a set, such as cifar10, in data.dir', 'https://www.tensorflow.org/datasets', named=True
)
