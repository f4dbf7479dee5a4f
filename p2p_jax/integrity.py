"""Whether a checkpoint is what was saved: a list of its files and their digests, inside it from the start."""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = 'manifest.json'
SINCE = 'standing'  # part of all checkpoints that have a list
# What Orbax still writes when the list is made already: the time of the commit, and that it was.
_METADATA = '_CHECKPOINT_METADATA'
_COMMITTED = 'commit_success.txt'
_COMMITTED_TEXT = b'Checkpoint commit was successful to '
_LATER = 'commit_timestamp_nsecs'


def _digest(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """All files by name, without those that are not covered by a digest."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob('*') if path.is_file()}
    return {name: path for name, path in sorted(found.items()) if name not in (MANIFEST, _METADATA, _COMMITTED)}


def _metadata(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / _METADATA).read_bytes())
    content.pop(_LATER, None)
    return content


def seal(folder: Path) -> None:
    """Writes the list into a checkpoint that is complete but for its name.

    Args:
      folder: of the checkpoint, under its temporary name.
    """
    content = {'sha256': {name: _digest(path) for name, path in _files(folder).items()}, 'metadata': _metadata(folder)}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1))


def find_damage(folder: Path) -> str | None:
    """Compares a checkpoint with its list.

    Args:
      folder: of the checkpoint.

    Returns:
      The first file that is not as it was saved, and what is wrong; None where all are, or where there is no list: a
      checkpoint of a version that made none.
    """
    path = folder / MANIFEST
    if not path.exists():
        return f'{path} is missing' if (folder / SINCE).exists() else None
    try:
        content = json.loads(path.read_bytes())
        wanted, metadata = dict(content['sha256']), content['metadata']
    except (OSError, ValueError, KeyError, TypeError):
        return f'{path} is damaged'
    there = _files(folder)
    for name, digest in wanted.items():
        if name not in there:
            return f'{folder / name} is missing'
        try:
            if _digest(there[name]) != digest:
                return f'{folder / name} is damaged'
        except OSError as error:
            return f'{folder / name} cannot be read ({error.strerror})'
    for name in there.keys() - wanted.keys():
        return f'{folder / name} does not belong there'
    return _find_later_damage(folder, metadata)


def _find_later_damage(folder: Path, metadata: dict[str, Any]) -> str | None:
    """Looks at the two files that no digest can be of."""
    for name in (_METADATA, _COMMITTED):
        if not (folder / name).is_file():
            return f'{folder / name} is missing'
    try:
        same = _metadata(folder) == metadata
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        return f'{folder / _METADATA} is damaged'
    text = (folder / _COMMITTED).read_bytes()
    if not text.startswith(_COMMITTED_TEXT) or not text.endswith(f'/{folder.parent.name}/{folder.name}'.encode()):
        return f'{folder / _COMMITTED} is damaged'
    return None
