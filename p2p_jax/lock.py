"""One training a workdir: the second is refused, and what a killed one left behind is taken over."""

import datetime
import fcntl
import json
import os
import shlex
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from p2p_jax.lookup import UserError

NAME = '.lock'


def _born(pid: int) -> str | None:
    """When a process of this host was started, in the kernel's ticks since boot; None: it is gone, or nobody knows."""
    try:
        # The command, in parentheses, may contain anything.
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
    except OSError:
        return None


def _runs(owner: dict[str, Any]) -> bool:
    """Whether the process that wrote a lock on this host is there still; another may have its number by now."""
    try:
        os.kill(owner['pid'], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return owner['born'] in (None, _born(owner['pid']))


class Lock:
    """Holds a workdir while the context lasts.

    The system's lock on the file ends with the process, whatever ended it, and so tells a running owner from one that
    was killed. Where a storage has no such locks, or the owner is on another host, what the file says decides.
    """

    def __init__(self, workdir: Path):
        """
        Args:
          workdir: of the training; it is made where there is none.
        """
        self._path = workdir / NAME
        self._new = not workdir.exists()
        self._file = -1

    def __enter__(self) -> 'Lock':
        """
        Raises:
          UserError: another training holds the workdir, or it is a file.
        """
        if self._path.parent.exists() and not self._path.parent.is_dir():
            raise UserError(f'--workdir={self._path.parent}: that is a file; expected a folder, which may be new')
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._take()
            except BaseException:
                os.close(self._file)
                raise
            try:
                if os.stat(self._path).st_ino == os.fstat(self._file).st_ino:
                    break
            except FileNotFoundError:
                pass
            os.close(self._file)  # its owner removed it between the opening and the lock
        return self

    def _take(self) -> None:
        owner = self._owner()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owner, held = self._owner(), False
        except BlockingIOError:
            held = True
        except OSError:  # no such locks on this storage
            held = owner is not None and owner['host'] == socket.gethostname() and _runs(owner)
        if held:
            raise UserError(f'{self._path.parent} is in use by {self._describe(owner)}. Wait for it, or end it.')
        if owner and owner['host'] != socket.gethostname():
            raise UserError(
                f'{self._path.parent} is in use by {self._describe(owner)}. Whether it still runs cannot be seen from '
                f'{socket.gethostname()}; if it does not, remove {self._path}'
            )
        mine = {
            'host': socket.gethostname(),
            'pid': os.getpid(),
            'born': _born(os.getpid()),
            'started': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'command': shlex.join(sys.argv),
        }
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(mine).encode(), 0)

    def _owner(self) -> dict[str, Any] | None:
        """What the file says; None where it is new, or its owner was killed while writing it."""
        try:
            owner = json.loads(os.pread(self._file, 1 << 20, 0))
            return owner if {'host', 'pid', 'born'} <= owner.keys() else None
        except (ValueError, AttributeError):
            return None

    @staticmethod
    def _describe(owner: dict[str, Any] | None) -> str:
        if not owner:
            return 'another training'
        return f'process {owner["pid"]} on {owner["host"]}, started {owner.get("started")}: {owner.get("command")}'

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Removes the file, and the workdir if nothing was written to it."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)
        if self._new and not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()
