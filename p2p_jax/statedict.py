"""State dictionaries: the weights of networks that were trained in PyTorch, by their names there."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from p2p_jax.lookup import UserError, shortlist

State = dict[str, np.ndarray]

_WRAPPERS = ('params_ema', 'params', 'state_dict')  # the first that is there is taken
_PREFIX = 'module.'  # of every key, where the network was trained on several devices


def _read(path: Path, flag: str) -> Any:
    """Returns what a file holds: tensors in dictionaries, if all is well."""
    if not path.is_file():
        raise UserError(f'{flag}={path}: no such file')
    if path.suffix == '.safetensors':
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f'{flag}={path}: truncated, or no safetensors file that can be read ({error})') from None
    try:
        import torch  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError(
            f"{flag}={path}: PyTorch reads this file, and is not installed: pip install -e '.[torch]'. Without it, "
            'the same state dict saved as .safetensors can be read.'
        ) from None
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever PyTorch's readers of several formats stumble over in a broken file
        # The first sentence only: PyTorch goes on with advice to trust the file, which may run any code.
        reason = str(error).split('. ')[0].split('\n')[0][:200]
        raise UserError(
            f'{flag}={path}: truncated, no file of PyTorch, or one that holds more than tensors, which is not read '
            f'as it could run any code ({type(error).__name__}: {reason}). Expected what '
            'torch.save(network.state_dict(), FILE) writes.'
        ) from None


def _array(value: Any) -> np.ndarray | None:
    """Returns a tensor as float32; None for anything else."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float32)
    try:
        return value.detach().float().numpy()
    except (AttributeError, RuntimeError, TypeError):  # no tensor; one that is sparse, quantised or has no content
        return None


def _unwrap(path: Path, flag: str, content: Any) -> State:
    """Returns the arrays by their keys in the network."""
    if isinstance(content, dict):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)]
        content = inner[0] if inner else content
    if not isinstance(content, dict) or not content:
        raise UserError(f'{flag}={path}: expected a dictionary of tensors, not {content!r:.80}')
    names = {str(key): value for key, value in content.items()}
    if all(name.startswith(_PREFIX) for name in names):
        names = {name.removeprefix(_PREFIX): value for name, value in names.items()}
    arrays = {name: _array(value) for name, value in names.items()}
    foreign = [f'{name}: {type(names[name]).__name__}' for name, array in arrays.items() if array is None]
    if foreign:
        raise UserError(f'{flag}={path}: these are not the dense tensors that a state dict has:{shortlist(foreign)}')
    return {name: array for name, array in arrays.items() if array is not None}


def read_state_dict(path: Path, flag: str) -> State:
    """Returns the arrays of a state dict as float32, by their keys in the network.

    Args:
      path: what `torch.save(network.state_dict(), …)` wrote, which PyTorch is needed to read; bare or below params_ema,
        params or state_dict, and with or without the prefix of a network on several devices. Or the same keys as
        .safetensors.
      flag: the flag or configuration key that named the file, for messages.

    Raises:
      UserError: it is missing, truncated, of another kind or holds more than tensors, or PyTorch is not installed.
    """
    return _unwrap(path, flag, _read(path, flag))
