"""The data that a configuration means: found, looked over, cut; and prepared once for fast reading."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from p2p_jax import report
from p2p_jax.data import LAYOUTS
from p2p_jax.data.audit import Audit, audit, measure
from p2p_jax.data.prepared import check_same, prepared_folder
from p2p_jax.data.records import SPLITS, Found, Record, Selection, Splits, cut, find, limit
from p2p_jax.lookup import UserError, shortlist
from p2p_jax.settings import least_scored, takes_labels

STORED = 'data.json'
_GLANCE = 48  # examples that a training looks at fully before it starts; `audit` looks at all


def selection(config: ml_collections.ConfigDict) -> Selection:
    """Returns the part of the section `data` that says what of a set is used and how it is cut."""
    values = {field.name: config.data[field.name] for field in dataclasses.fields(Selection)}
    # A configuration that was restored from JSON has lists.
    chosen: dict[str, Any] = {key: tuple(v) if isinstance(v, list | tuple) else v for key, v in values.items()}
    return Selection(**chosen)


def _least(config: ml_collections.ConfigDict) -> dict[str, tuple[int, str]]:
    """The smallest image of each split that will do, in pixels, and what asks for it."""
    if config.data.resize or tuple(config.data.grid) != (1, 1):
        return {}  # of images that are cut or resized, the parts count
    scored = least_scored(config)
    return {'train': (config.data.crop_size, f'data.crop_size={config.data.crop_size}'), 'val': scored, 'test': scored}


def _check_parts(config: ml_collections.ConfigDict, splits: Splits) -> None:
    least, what = least_scored(config)
    small = [
        f'{record.name}: {record.size[0]}×{record.size[1]}'
        for split, records in splits.items()
        for record in records
        if min(record.size) < (config.data.crop_size if split == 'train' else least)
    ]
    if small:
        raise UserError(
            f'data.grid={tuple(config.data.grid)} leaves parts that are smaller than data.crop_size='
            f'{config.data.crop_size} (train) or {what}:{shortlist(small)}'
        )


def _found(config: ml_collections.ConfigDict) -> tuple[str, Found]:
    root = None if config.data.dir is None else Path(config.data.dir).expanduser()
    return find(LAYOUTS, config.data.layout, root, selection(config))


def _examine(
    config: ml_collections.ConfigDict, found: Found, names: Sequence[str], sample: int | None
) -> tuple[list[Record], Audit]:
    """Reads headers and looks at examples of the named splits, before they are cut."""
    records = [record for record in found.records if record.split in names]
    records, wrong = measure(records, least=_least(config), threads=config.data.threads)
    if found.prepared:
        return records, Audit(list(wrong), 0, len(records), [])
    look = functools.partial(
        audit,
        records,
        [*found.problems, *wrong],
        mask_values=config.data.mask_values,
        mask_side='target' if config.data.direction == 'BtoA' else 'input',
        threads=config.data.threads,
        sample=sample,
    )
    if sample is not None:
        return records, look(progress=None)
    with report.progress_bar(len(records), 'looking at the data') as bar:
        return records, look(progress=lambda done, total: bar.update(done - bar.n))


def _without_problems(
    config: ml_collections.ConfigDict, found: Found, names: Sequence[str], say: Callable[[str], None]
) -> list[Record]:
    """Looks at the data and returns the examples of at least the named splits that are to be used.

    Raises:
      UserError: problems were found, and `data.on_problem` is to stop.
    """
    drop = config.data.on_problem == 'drop'
    # What is dropped must not depend on who asks: it is all that `audit` finds, in all splits.
    records, seen = _examine(config, found, SPLITS if drop else names, None if drop else _GLANCE)
    if seen.problems:
        # Where no pair fits, nothing would be left.
        if not drop or any(problem.kind == 'mismatched' and not problem.records for problem in seen.problems):
            raise UserError(
                f'{seen.table()}\nTo see all that is wrong: python -m p2p_jax.main audit with the same --config flags. '
                'To go on without these examples: --config.data.on_problem=drop'
            )
        dropped = seen.dropped()
        records = [record for record in records if record.name not in dropped]
        lost = len(found.records) - len(records)
        say(f'data.on_problem=drop: {len(seen.problems)} problems; going on without {lost} examples')
    return records


def _ready(config: ml_collections.ConfigDict, found: Found, names: Sequence[str], say: Callable[[str], None]) -> Splits:
    """Looks over, cuts and limits the examples of the named splits."""
    if any(record.blind for record in found.records):
        raise UserError(
            f'data.dir={config.data.dir!r}: the targets of this benchmark are not published; '
            'nothing can be trained on it or scored here.'
        )
    records = _without_problems(config, found, names, say)
    splits: Splits = {name: [record for record in records if record.split == name] for name in names}
    if not found.prepared:
        chosen = selection(config)
        for name, members in splits.items():
            tiles = [tile for record in members for tile in cut(record, chosen)]
            splits[name] = limit(tiles, chosen.limit[SPLITS.index(name)])
        _check_parts(config, splits)
    empty = [name for name, members in splits.items() if not members]
    if empty:
        there = {name: sum(r.split == name for r in found.records) for name in SPLITS}
        raise UserError(f'data.dir={config.data.dir!r}: no images for {", ".join(empty)}; found: {there}')
    return splits


def find_splits(config: ml_collections.ConfigDict, names: Sequence[str], say: Callable[[str], None] = print) -> Splits:
    """Finds the examples of the named splits, looks at some of them, and cuts them as configured.

    Args:
      config: complete.
      names: of the splits.
      say: receives lines for people.

    Raises:
      UserError: whatever is wrong with the data, all at once.
    """
    layout, found = _found(config)
    if config.data.layout == 'auto' or layout == 'prepared':
        say(f'data.layout={layout}: recognised in {config.data.dir}')
    if takes_labels(config):
        if any(record.label is None for record in found.records):
            raise UserError(
                f'data.layout={layout}: this set has no labels, and generator.name={config.generator.name} makes '
                'images from labels. Folders of classes are data.layout=labelled; images become images with '
                'generator.name=unet.'
            )
    elif config.degrade.name == 'none' and any(record.input is None for record in found.records):
        what = 'labels' if found.classes else 'clean images alone'
        other = ' Images from labels are configs/cifar10.py.' if found.classes else ''
        raise UserError(
            f'data.layout={layout}: this set has {what}, no input images. Choose the degradation that makes the '
            f'inputs, for example --config.degrade.name=poisson_gaussian.{other}'
        )
    return _ready(config, found, names, say)


def has_split(config: ml_collections.ConfigDict, name: str) -> bool:
    """Whether the data have examples of a split; a UserError where there are no such data."""
    return any(record.split == name for record in _found(config)[1].records)


def with_classes(config: ml_collections.ConfigDict, splits: Splits) -> ml_collections.ConfigDict:
    """Returns the configuration with the names of the labels in `data.classes`, where the generator takes labels.

    Raises:
      UserError: it has other names already, or a class has no training example.
    """
    if not takes_labels(config):
        return config
    names = {r.label: r.attributes['class'] for records in splits.values() for r in records if r.label is not None}
    classes = tuple(names[label] for label in sorted(names))
    missing = sorted(set(names) - {record.label for record in splits['train']})
    if missing:
        listed = ', '.join(names[label] for label in missing)
        raise UserError(f'data.dir={config.data.dir!r}: no training images of the classes {listed}')
    if tuple(config.data.classes) not in ((), classes):
        raise UserError(
            f'data.classes={tuple(config.data.classes)}, but data.dir={config.data.dir!r} has {classes}; set it to '
            'them, or to () for whatever is there'
        )
    config = ml_collections.ConfigDict(config.to_dict())
    config.data.classes = classes
    return config.lock()


def describe(splits: Splits) -> str:
    """Returns a line that says how many examples and scenes each split has, and which scenes are held out."""
    parts = []
    for name, records in splits.items():
        scenes = sorted({record.scene for record in records})
        shown = f' ({", ".join(scenes[:6])}{", …" if len(scenes) > 6 else ""})' if name != 'train' else ''
        parts.append(f'{name} {len(records)} examples of {len(scenes)} scenes{shown}')
    return 'data: ' + '; '.join(parts)


def store_splits(workdir: Path, splits: Splits) -> None:
    """Writes what a training is on, where `check_stored_splits` finds it.

    'splits' has the names of all examples, in order. 'scale' is the median over the training examples of their side
    over the side of the part of the photograph that they show: a model sees photographs at this scale.
    """
    names = {split: [record.name for record in records] for split, records in splits.items()}
    scale = statistics.median(record.scale for record in splits['train'])
    report.write_json(workdir / STORED, {'scale': scale, 'splits': names})


def _stored_splits(workdir: Path) -> dict[str, list[str]]:
    """The names of the examples of each split that a training began with; empty where nothing says so."""
    path = workdir / STORED
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())['splits']
    except (ValueError, KeyError) as error:
        raise UserError(f'{path}: damaged ({error!r}); remove it to go on without comparing the data') from None


def trained_on(workdir: Path, records: Sequence[Record]) -> list[str]:
    """Returns the names of those examples that a training was trained on, as far as names tell."""
    names = {record.name for record in records}
    return [name for name in _stored_splits(workdir).get('train', []) if name in names]


def check_stored_splits(workdir: Path, splits: Splits) -> None:
    """Compares splits with those that a training began with.

    Raises:
      UserError: examples came, went, or moved to another split; nothing was touched.
    """
    stored = _stored_splits(workdir)
    if not stored:
        return
    lines = []
    for split, records in splits.items():
        before, now = stored.get(split, []), [record.name for record in records]
        gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
        lines += [f'{split}: {name} is gone' for name in gone] + [f'{split}: {name} is new' for name in new]
        if not gone and not new and before != now:
            lines.append(f'{split}: the same examples in another order')
    if lines:
        raise UserError(
            f'{workdir} holds a training on other data than is there now (nothing was touched):{shortlist(lines)}\n'
            'Restore the data, or give another --workdir.'
        )


def audit_data(config: ml_collections.ConfigDict, output: Path | None) -> bool:
    """Looks at every example of a configuration's data and prints all that is wrong.

    Args:
      config: complete.
      output: a JSON file to write everything to.

    Returns:
      Whether nothing is wrong.

    Raises:
      UserError: the data cannot be found at all.
    """
    layout, found = _found(config)
    records, seen = _examine(config, found, SPLITS, None)
    splits = {name: [record for record in records if record.split == name] for name in SPLITS}
    print(f'data.layout={layout}: {config.data.dir or "its own folder"}; data.direction={config.data.direction}')
    print(describe({name: members for name, members in splits.items() if members}))
    print(seen.table())
    if output:
        content: dict[str, Any] = {'layout': layout, 'dir': config.data.dir, **seen.to_json()}
        content['splits'] = {name: [record.name for record in members] for name, members in splits.items()}
        report.write_json(output, content)
        print(f'all of it: {output}')
    return not seen.problems


def prepare(config: ml_collections.ConfigDict, output: Path) -> Path:
    """Cuts the data of a configuration once and stores it as array_record.

    A set that is whole already and was prepared alike is left as it is.

    Args:
      config: complete.
      output: folder of the prepared set.

    Returns:
      The set's own folder below `output`.

    Raises:
      UserError: something wrong with the data; `output` holds another set; the disk is too small.
    """
    there = prepared_folder(output) if output.is_dir() else None
    if there:
        check_same(there, selection(config))
        print(f'{there} is prepared already')
        return there
    if output.exists() and not output.is_dir():
        raise UserError(f'--output={output}: that is a file; expected a folder, which may be new')
    layout, found = _found(config)
    if found.prepared:
        raise UserError(f'data.dir={config.data.dir!r} is a prepared set itself')
    print(f'data.layout={layout}: {config.data.dir or "its own folder"}')
    splits = _ready(config, found, SPLITS, print)
    print(describe(splits))
    from p2p_jax.data.builders import build  # imports TFDS

    with report.progress_bar(sum(map(len, splits.values())), 'preparing') as bar:
        folder = build(layout, selection(config), found.classes, splits, output, config.data.threads, bar.update)
    print(f'prepared: {folder}\ntrain on it with --config.data.dir={output}')
    return folder
