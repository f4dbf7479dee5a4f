"""State dictionaries: the weights of networks that were trained in PyTorch, by their names there."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from p2p_jax.lookup import UserError


def _from_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework='numpy') as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary


def _from_torch(path: Path, flag: str) -> dict[str, Any]:
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        raise UserError(
            f"{flag}={path}: PyTorch is needed to read it (pip install 'p2p_jax[torch]'); "
            'a .safetensors file of the same keys needs nothing'
        ) from None
    content = torch.load(path, map_location='cpu', weights_only=True)  # never runs code from the file
    return {str(key): value.numpy() for key, value in content.items()}


def read_state_dict(path: Path, flag: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a .safetensors, .pth or .pt file by their keys.

    Args:
      path: of the file; one of PyTorch needs PyTorch, and must hold tensors alone.
      flag: the flag or configuration key that named the file, for messages.

    Raises:
      UserError: it is missing, truncated, of another kind, or PyTorch is not installed.
    """
    if not path.is_file():
        raise UserError(f'{flag}={path}: no such file')
    if path.suffix not in ('.safetensors', '.pth', '.pt'):
        raise UserError(f'{flag}={path}: expected a file of weights that ends in .safetensors, .pth or .pt')
    try:
        return _from_safetensors(path) if path.suffix == '.safetensors' else _from_torch(path, flag)
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f'{flag}={path}: truncated, or no safetensors file ({error})') from None
    except Exception as error:  # torch.load has no error of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f'{flag}={path}: truncated, or no dictionary of tensors ({lines[0]})') from None
