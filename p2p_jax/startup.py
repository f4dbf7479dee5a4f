"""What is settled before the libraries start: how memory is got from the system, and where compiled programs are kept.

Imports nothing of them, so that a command that needs none of them ends at once.
"""

import hashlib
import os
import platform
import sys
from pathlib import Path

_TUNABLES = 'GLIBC_TUNABLES'
# Of the compiled programs on disk, bytes; those that were not used for longest go first.
_CACHE_LIMIT = 2 * 1024**3


def use_huge_pages() -> None:
    """Starts this program again, once, with large buffers in pages of 2 MiB instead of 4 KiB, where the system can.

    A train step on a CPU writes hundreds of MiB of buffers anew each time. In small pages a fifth of its time goes into
    handing them out and looking them up (measured: experiments/benchmarks/NOTES.md). The C library reads how it is to
    ask for them when a program starts only, from the environment variable GLIBC_TUNABLES; one that is set is left as
    it is. Does nothing but on Linux. To be called before anything else was done.
    """
    if sys.platform != 'linux' or _TUNABLES in os.environ:
        return
    os.environ[_TUNABLES] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, sys.orig_argv)


def cache_folder() -> Path:
    """Returns where compiled programs are kept: below the user's cache folder, apart for each kind of processor.

    What XLA compiles for a CPU uses all its instructions, and others may not have them: a home folder may be shared.
    """
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    description = [platform.machine(), platform.processor()]
    try:
        # Of the first core: model and flags; not its clock, which changes.
        first = Path('/proc/cpuinfo').read_text().partition('\n\n')[0].splitlines()
        description += [line for line in first if line.split('\t')[0] in ('model name', 'flags', 'Features')]
    except OSError:
        pass
    processor = hashlib.sha256('\n'.join(description).encode()).hexdigest()[:12]
    return Path(base) / 'p2p_jax' / 'compiled' / processor


def keep_compiled() -> None:
    """Has JAX keep what it compiles on disk, so that the next start need not; to be called before jax is imported.

    The folder is bounded and may be deleted at any time. What JAX's own environment variables say takes precedence:
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing, JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, or there is no home: it is then compiled each time
        return
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
    os.environ.setdefault('JAX_COMPILATION_CACHE_MAX_SIZE', str(_CACHE_LIMIT))
