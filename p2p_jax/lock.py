"""One training a workdir: the second is refused, and what a killed one left behind is taken over."""

import contextlib
import datetime
import json
import os
import shlex
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from p2p_jax.lookup import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = '.lock'
# Seconds between an owner's signs of life, and after which one that gives none is taken to be gone.
_BEAT, _SILENCE = 10.0, 45.0


class Lock:
    """Holds a workdir while the context lasts.

    The system's lock on the file ends with the process, whatever ended it, and so tells a running owner from one that
    was killed. Where a storage has no such locks, or the owner is on another host, whose locks a storage may not show,
    it is watched for signs of life: a job that is put in a queue again after its host died must go on by itself.
    """

    def __init__(self, workdir: Path):
        """
        Args:
          workdir: of the training; it is made where there is none.
        """
        self._path = workdir / NAME
        self._new = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
        self._file = -1
        self._left = threading.Event()

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
            if self._beat():
                break
            os.close(self._file)  # its owner removed it between the opening and the lock
        threading.Thread(target=self._keep_beating, daemon=True).start()
        return self

    def _beat(self) -> bool:
        """Gives a sign of life; False where the file at the path is no longer this one."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.sameopenfile(self._file, probe := os.open(self._path, os.O_RDONLY)):
                os.close(probe)
                os.utime(self._path)
                return True
            os.close(probe)
        return False

    def _keep_beating(self) -> None:
        while not self._left.wait(_BEAT):
            with contextlib.suppress(OSError):  # the storage may be away for a while
                os.utime(self._path)

    def _take(self) -> None:
        owner, sure = self._owner(), fcntl is not None
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                owner = self._owner()
            except BlockingIOError:
                raise self._refusal(owner) from None
            except OSError:  # no such locks on this storage
                sure = False
        if owner and (owner['host'] != socket.gethostname() or not sure) and self._lives():
            raise self._refusal(owner)
        mine = {
            'host': socket.gethostname(),
            'pid': os.getpid(),
            'started': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'command': shlex.join(sys.argv),
        }
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, json.dumps(mine).encode())

    def _lives(self) -> bool:
        """Watches the file for its owner's signs of life."""
        print(f'{self._path}: is its owner still there? Looking for {_SILENCE:.0f} s …', flush=True)
        before, deadline = os.stat(self._path).st_mtime_ns, time.monotonic() + _SILENCE
        while time.monotonic() < deadline:
            time.sleep(min(1.0, _SILENCE / 4))
            with contextlib.suppress(FileNotFoundError), self._path.open('rb') as file:  # opened anew, or it may be old
                if os.fstat(file.fileno()).st_mtime_ns != before:
                    return True
        return False

    def _owner(self) -> dict[str, Any] | None:
        """What the file says; None where it is new, or its owner was killed while writing it."""
        try:
            owner = json.loads(self._path.read_bytes())
            return owner if {'host', 'pid'} <= owner.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def _refusal(self, owner: dict[str, Any] | None) -> UserError:
        who = 'another training'
        if owner:
            who = f'process {owner["pid"]} on {owner["host"]}, started {owner.get("started")}: {owner.get("command")}'
        return UserError(f'{self._path.parent} is in use by {who}. Wait for it, or end it.')

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Removes the file, and the folders that it made where nothing was written to them."""
        self._left.set()
        self._path.unlink(missing_ok=True)
        os.close(self._file)
        with contextlib.suppress(OSError):  # not empty
            for folder in self._new:
                folder.rmdir()
