"""One-file models: a network's weights as safetensors, with all that is needed to apply it in the header."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from p2p_jax import __version__
from p2p_jax.lookup import UserError

VERSION = 3
_KEY = 'p2p_jax'  # of the header's entry
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a model file says about itself.

    Attributes:
      config: complete, of the training.
      step: of the checkpoint; 0 for weights of another origin.
      weights: 'ema', the moving averages, 'raw', or 'imported'.
      scale: side of the training examples over the side of the part of the photograph that they show.
      scores: of the validation at that step, where known: 'psnr' in dB, 'ssim', and those of the input.
      network: what the weights are of, 'generator' or 'discriminator'.
      folded: spectral norm is inside the kernels: the network is built without it.
      examples: how many of the data set `config` names each split had, where known.
      p2p_jax: the version that wrote the file.
    """

    config: dict[str, Any]
    step: int
    weights: str
    scale: float
    scores: dict[str, float]
    network: str = 'generator'
    folded: bool = False
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    p2p_jax: str = __version__


def fold_spectral_norm(variables: PyTree) -> PyTree:
    """Returns variables whose kernels and embeddings are divided by their largest singular value, as by SpectralNorm.

    One power iteration from the stored vector, which is what a network in evaluation does; its vectors are left out.

    Args:
      variables: 'params', and 'batch_stats' with `<layer>_spectral/<layer>/<parameter>/u`.
    """
    params = traverse_util.flatten_dict(variables['params'])
    statistics = traverse_util.flatten_dict(variables.get('batch_stats', {}))
    kept = {}
    for path, value in statistics.items():
        *parents, wrapper, name = path
        if not wrapper.endswith('_spectral'):
            kept[path] = value
            continue
        layer, parameter, kind = name.rsplit('/', 2)
        if kind == 'u':
            key = (*parents, layer, parameter)
            matrix = jnp.reshape(params[key], (-1, params[key].shape[-1]))
            v = _normalised(value @ matrix.T)
            u = _normalised(v @ matrix)
            sigma = (v @ matrix @ u.T)[0, 0]
            params[key] = params[key] / jnp.where(sigma != 0, sigma, 1)
    folded = {'params': traverse_util.unflatten_dict(params)}
    return folded | ({'batch_stats': traverse_util.unflatten_dict(kept)} if kept else {})


def _normalised(row: Any) -> Any:
    return row / jnp.sqrt(jnp.sum(row**2) + 1e-12)


def write(path: Path, variables: PyTree, facts: Facts) -> None:
    """Writes a model file, under a temporary name first.

    Args:
      path: of the file.
      variables: of the network, 'params' and 'batch_stats'.
      facts: what the header says.
    """
    flat = traverse_util.flatten_dict(variables, sep='|')
    arrays = {key: np.ascontiguousarray(value) for key, value in flat.items()}
    header = {_KEY: json.dumps({'version': VERSION, **dataclasses.asdict(facts)})}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        # Not `save_file`, whose files nobody else may read.
        temporary.write_bytes(save(arrays, header))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> tuple[PyTree, Facts]:
    """Returns the variables and the facts of a model file.

    Raises:
      UserError: it is missing, truncated, written by something else or by a newer version.
    """
    if not path.is_file():
        raise UserError(f'--model={path}: no such file')
    try:
        with safe_open(path, framework='numpy') as file:
            header = (file.metadata() or {}).get(_KEY)
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f'--model={path}: truncated, or no safetensors file ({error})') from None
    if header is None:
        raise UserError(
            f'--model={path}: its header is not one of p2p_jax; it was written by something else. '
            'A model file is made by `python -m p2p_jax.main export`, or import_torch from weights of PyTorch.'
        )
    try:
        return traverse_util.unflatten_dict(arrays, sep='|'), _facts(path, json.loads(header))
    # Of keys such as 'a' and 'a|b', one is no leaf.
    except (ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
        raise UserError(f'--model={path}: its header is damaged ({error})') from None


def _facts(path: Path, content: Any) -> Facts:
    """The facts that the header of a file holds.

    Raises:
      UserError: a newer version wrote them.
      ValueError: they are none.
    """
    if not isinstance(content, dict) or not isinstance(content.get('version'), int):
        raise ValueError('it names no version')
    if content.pop('version') > VERSION:
        writer = content.get('p2p_jax')
        raise UserError(f'--model={path}: written by p2p_jax {writer}, whose files this version cannot read; update it')
    fields = {field.name: field for field in dataclasses.fields(Facts)}
    needed = {name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING}
    if not needed <= content.keys() <= fields.keys():
        raise ValueError(f'it should have {", ".join(fields)}, not {", ".join(content)}')
    kinds: dict[str, Any] = {'config': dict, 'step': int, 'scale': (int, float), 'scores': dict}
    kinds |= {'folded': bool, 'examples': dict}
    for name, value in content.items():
        if not isinstance(value, kinds.get(name, str)):
            raise ValueError(f'{name}={value!r}')
    return Facts(**content)
