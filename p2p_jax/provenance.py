"""Where a training comes from: code, versions, devices, command line and configuration, noted at each start."""

import datetime
import importlib.metadata
import json
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from p2p_jax import __version__, report
from p2p_jax.lookup import UserError

FILE = 'provenance.json'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy')


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Returns the 'commit' of the checkout that a folder of code belongs to and whether it is 'dirty', or None.

    Args:
      folder: with an `__init__.py`. Where git does not track that, as in an installed package that lies in somebody's
        checkout by chance, there is none.
    """

    def ask(*command: str) -> str:
        done = subprocess.run(
            ['git', '-C', str(folder), *command], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        ask('ls-files', '--error-unmatch', '__init__.py')
        return {'commit': ask('rev-parse', 'HEAD'), 'dirty': bool(ask('status', '--porcelain'))}
    except (OSError, subprocess.SubprocessError):
        return None


def describe(step: int, config: dict[str, Any]) -> dict[str, Any]:
    """Returns all that is to be noted of a start.

    Args:
      step: it starts from.
      config: complete.
    """
    return {
        'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'step': step,
        'seed': config['seed'],
        'command': list(sys.orig_argv),
        'host': socket.gethostname(),
        'platform': platform.platform(),
        'devices': [f'{device.platform}: {device.device_kind}' for device in jax.devices()],
        'processes': jax.process_count(),
        'git': git_commit(Path(__file__).parent),
        'versions': {'python': platform.python_version(), 'p2p_jax': __version__}
        | {package: _version(package) for package in _PACKAGES},
        'config': config,
    }


def read(workdir: Path) -> list[dict[str, Any]]:
    """Returns what was noted of the starts so far.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / FILE
    try:
        starts = json.loads(path.read_text()) if path.is_file() else []
    except ValueError as error:
        raise UserError(f'{path}: damaged ({error}); remove it to go on without the former starts') from None
    if not isinstance(starts, list):
        raise UserError(f'{path}: damaged, no list; remove it to go on without the former starts')
    return starts


def append(workdir: Path, start: dict[str, Any]) -> None:
    """Notes a start after the others; a crash leaves either the old list or the new one."""
    report.write_json(workdir / FILE, [*read(workdir), start])
