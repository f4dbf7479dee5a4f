"""Prepared sets: cut once, stored as array_record by TFDS, with a manifest that says what they hold."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from p2p_jax.data.records import SPLITS, Found, Layout, MismatchError, Record, Selection
from p2p_jax.data.sources import Source
from p2p_jax.lookup import UserError, shortlist

VERSION = 1
MANIFEST = 'metadata.json'  # TFDS's own name; written last, so that a set that has it is whole


def manifest(
    layout: str, selection: Selection, classes: tuple[str, ...], splits: dict[str, list[Record]]
) -> dict[str, Any]:
    """Returns what `find_prepared` needs to know, for TFDS to store beside the examples."""
    return {
        'version': VERSION,
        'layout': layout,
        'selection': dataclasses.asdict(selection),
        'classes': list(classes),
        'splits': {split: [_row(record) for record in records] for split, records in splits.items()},
    }


def _row(record: Record) -> dict[str, Any]:
    row = {'name': record.name, 'scene': record.scene, 'size': record.size, 'bits': record.bits}
    row |= {} if record.scale == 1 else {'scale': record.scale}
    row |= {'paired': True} if record.input else {}
    row |= {} if record.label is None else {'label': record.label}
    return row | ({'attributes': dict(record.attributes)} if record.attributes else {})


def _record(folder: Path, split: str, number: int, row: dict[str, Any]) -> Record:
    image = {side: Source(folder, 'tfds', f'{split}/{number}/{side}') for side in ('input', 'target')}
    return Record(
        row['name'],
        image['target'],
        image['input'] if row.get('paired') else None,
        scene=row['scene'],
        split=split,
        label=row.get('label'),
        attributes=row.get('attributes', {}),
        size=tuple(row['size']),
        bits=row['bits'],
        scale=row.get('scale', 1.0),
    )


def _is_ours(folder: Path) -> bool:
    with (folder / MANIFEST).open('rb') as file:
        return b'"manifest"' in file.read(64) and (folder / 'dataset_info.json').is_file()


def prepared_folder(root: Path) -> Path | None:
    """Returns the folder of the one prepared set at or below the root, or None.

    Raises:
      UserError: there are several.
    """
    # TFDS: <data_dir>/<builder>/<version>/; while it builds, the last is called incomplete.….
    found = [path.parent for depth in ('', '*/', '*/*/') for path in sorted(root.glob(f'{depth}{MANIFEST}'))]
    whole = [folder for folder in found if not folder.name.startswith('incomplete') and _is_ours(folder)]
    if len(whole) > 1:
        raise UserError(f'data.dir={str(root)!r}: several prepared sets; give one of:{shortlist([*map(str, whole)])}')
    return whole[0] if whole else None


def _read(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MANIFEST).read_text()).get('manifest')
    except (OSError, ValueError) as error:
        raise UserError(f'{folder / MANIFEST}: cannot be read ({error}). Prepare the set anew.') from None
    if content is None or content.get('version') != VERSION:
        raise UserError(f'{folder}: not written by this version of p2p_jax. Prepare the set anew.')
    return content


def check_same(folder: Path, selection: Selection) -> dict[str, Any]:
    """Returns the manifest of a prepared set, if it was prepared for this selection.

    Raises:
      UserError: it was prepared otherwise; the message lists the keys.
    """
    content = _read(folder)
    # Through JSON, which knows no tuples.
    wanted = json.loads(json.dumps(dataclasses.asdict(selection)))
    there = content['selection']
    differing = [f'data.{k}: {there.get(k)!r} there, {v!r} wanted' for k, v in wanted.items() if there.get(k) != v]
    if differing:
        raise UserError(
            f'{folder} was prepared otherwise:{shortlist(differing)}\nGive the same values, or prepare another set.'
        )
    return content


def find_prepared(root: Path, selection: Selection) -> Found:
    """Finds the examples of a prepared set.

    Raises:
      MismatchError: there is none.
      UserError: it was prepared for another selection.
    """
    folder = prepared_folder(root) if root.is_dir() else None
    if folder is None:
        raise MismatchError('not written by `prepare`')
    content = check_same(folder, selection)
    records = [
        _record(folder, split, number, row)
        for split in SPLITS
        for number, row in enumerate(content['splits'].get(split, []))
    ]
    return Found(records, classes=tuple(content['classes']), prepared=True)


PREPARED = Layout(find_prepared, 'a set that `python -m p2p_jax.main prepare` wrote')
