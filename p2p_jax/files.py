"""Files that are whole or not there, and what a storage refuses as an error that a person can read."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from p2p_jax.lookup import UserError

# What a storage says that is full, read-only, closed to this user, broken, or has something else in that place.
_HINTS = {
    errno.ENOSPC: 'make room',
    errno.EDQUOT: 'make room',
    errno.EFBIG: 'a limit on the size of files stands in the way',
    errno.EROFS: 'give a folder that can be written to',
    errno.EACCES: 'give a folder that can be written to',
    errno.EPERM: 'give a folder that can be written to',
    errno.ENOTDIR: 'a file lies where a folder should be',
    errno.EEXIST: 'a file lies where a folder should be',
    errno.EISDIR: 'a folder lies where a file should be',
    errno.ENAMETOOLONG: 'give a shorter path',
    errno.EIO: 'look at the disk',
    errno.ESTALE: 'look at the network storage',
}


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path to an OSError that has none: writing, unlike opening, does not say to which file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_file(path: Path, content: bytes, ready: Callable[[os.stat_result], None] = lambda _: None) -> None:
    """Writes a file under a temporary name first, so that no half file is left.

    Args:
      path: of the file; its folder is made where there is none.
      content: all of it.
      ready: is told size and time of the whole file just before it gets its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with naming(path):
            temporary.write_bytes(content)
        ready(temporary.stat())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of writes that were killed; nobody else may write there meanwhile."""
    for leftover in folder.glob('.*.tmp'):
        leftover.unlink()


def reason(error: OSError) -> str:
    """Returns what the storage said, and what helps."""
    hint = _HINTS.get(error.errno or 0)
    return f'{error.strerror or error}{f"; {hint}" if hint else ""}'


@contextlib.contextmanager
def storage_errors(where: Path | str) -> Iterator[None]:
    """Turns what a storage refuses into a UserError that names the path and the reason; other errors pass.

    Args:
      where: named where the error itself names nothing.

    Raises:
      UserError: the storage is full, cannot be written to, or has something else in that place.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # CLU's asynchronous writer wraps what its thread met.
        refused = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(refused, OSError) or refused.errno not in _HINTS:
            raise
        first = error.__context__
        while first is not None and not isinstance(first, UserError):
            first = first.__context__
        if first:  # what was closed because of it could not be written either
            raise first from None
        raise UserError(f'{refused.filename or where}: {reason(refused)}') from error
