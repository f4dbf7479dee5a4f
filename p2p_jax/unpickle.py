"""Pickles of arrays, read without running code from them."""

import hashlib
import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from p2p_jax.lookup import UserError


class _NumpyOnly(pickle.Unpickler):
    """Reads pickles that hold nothing but built-in containers and numpy arrays; whatever else could run code."""

    _ALLOWED = frozenset(
        (module, name)
        for package in ('numpy', 'numpy.core.multiarray', 'numpy._core.multiarray')
        for module, name in ((package, '_reconstruct'), (package, 'ndarray'), (package, 'dtype'))
    ) | {('_codecs', 'encode')}

    def find_class(self, module: str, name: str) -> Any:
        """Gives the few names that arrays need."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which data does not need')
        return super().find_class(module, name)


def _check_memo(content: bytes) -> None:
    """Refuses places in the memo that no pickle of this length needs: the memo is an array up to the highest one."""
    for code, argument, _ in pickletools.genops(content):
        if code.name in ('PUT', 'LONG_BINPUT') and argument is not None and argument > len(content):
            raise pickle.UnpicklingError(f'it keeps something in place {argument}')


def read_pickle(path: Path, publisher: str, sha256: str | None = None) -> dict[str, Any]:
    """Returns the dictionary in a pickle without running code from it; its keys are made texts, those inside are not.

    Args:
      path: of the file.
      publisher: whose file it should be, for messages.
      sha256: of the file, where only one will do.

    Raises:
      UserError: it is missing, damaged, another file, no dictionary, or asks for anything but numpy arrays.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f'{path}: damaged, or not the file of {publisher} (its SHA-256 differs); nothing was read')
    try:
        _check_memo(content)
        read = _NumpyOnly(io.BytesIO(content), encoding='bytes').load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in read.items()}
    except Exception as error:  # a pickle can fail in every way
        raise UserError(f'{path}: not a pickle of arrays as {publisher} publishes it ({error})') from None
