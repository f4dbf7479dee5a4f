"""One-file models: a network's weights as safetensors, with all that is needed to apply it in the header."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from p2p_jax import __version__
from p2p_jax.files import write_file
from p2p_jax.lookup import UserError, shortlist

VERSION = 3
_KEY = 'p2p_jax'  # of the header's entry
PyTree = Any
T = TypeVar('T')


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
    write_described(path, variables, dataclasses.asdict(facts))


def read(path: Path) -> tuple[PyTree, Facts]:
    """Returns the variables and the facts of a model file.

    Raises:
      UserError: it is missing, truncated, written by something else or by a newer version, or holds a classifier.
    """
    made = 'A model file is made by `python -m p2p_jax.main export`, or import_torch from weights of PyTorch.'

    def parse(content: dict[str, Any]) -> Facts:
        if 'kind' in content:
            raise UserError(f'--model={path}: it holds a {content["kind"]}, which makes no images. {made}')
        kinds = {'config': dict, 'step': int, 'scale': (int, float), 'scores': dict, 'folded': bool, 'examples': dict}
        return parse_fields(Facts, content, kinds)

    return read_described(path, '--model', made, parse)


def write_described(path: Path, variables: PyTree, content: dict[str, Any]) -> None:
    """Writes arrays and what is to be known of them as one safetensors file, under a temporary name first.

    Args:
      path: of the file.
      variables: arrays in dictionaries, whose keys have no `|`.
      content: what the header says, beside the version of such files; 'kind' where it is no model file.
    """
    flat = traverse_util.flatten_dict(variables, sep='|')
    arrays = {key: np.ascontiguousarray(value) for key, value in flat.items()}
    header = {_KEY: json.dumps({'version': VERSION, **content})}
    # Not `save_file`, whose files nobody else may read.
    write_file(path, save(arrays, header))


def read_described(path: Path, flag: str, made: str, parse: Callable[[dict[str, Any]], T]) -> tuple[PyTree, T]:
    """Returns the arrays and the content of a file of `write_described`.

    Args:
      path: of the file.
      flag: that named it, for messages.
      made: a sentence that says how such a file is made, for messages.
      parse: makes of the header what is returned; a ValueError or TypeError is that of a damaged one.

    Raises:
      UserError: it is missing, truncated, written by something else or by a newer version.
    """
    if not path.is_file():
        raise UserError(f'{flag}={path}: no such file')
    try:
        with safe_open(path, framework='numpy') as file:
            header = (file.metadata() or {}).get(_KEY)
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f'{flag}={path}: truncated, or no safetensors file ({error})') from None
    if header is None:
        raise UserError(f'{flag}={path}: its header is not one of p2p_jax; it was written by something else. {made}')
    try:
        content = json.loads(header)
        if not isinstance(content, dict) or not isinstance(content.get('version'), int):
            raise ValueError('it names no version')
        if content.pop('version') > VERSION:
            raise UserError(
                f'{flag}={path}: written by p2p_jax {content.get("p2p_jax")}, whose files this version cannot read; '
                'update it'
            )
        # Of keys such as 'a' and 'a|b', one is no leaf.
        return traverse_util.unflatten_dict(arrays, sep='|'), parse(content)
    except (ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
        raise UserError(f'{flag}={path}: its header is damaged ({error})') from None


def parse_fields(kind: type[T], content: dict[str, Any], kinds: dict[str, Any]) -> T:
    """Returns a dataclass of what a header says.

    Args:
      kind: the dataclass.
      content: of the header.
      kinds: field to what its value must be, where that is no text.

    Raises:
      ValueError: fields are missing or unknown, or a value is of another kind.
    """
    fields: dict[str, Any] = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    needed = {name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING}
    if not needed <= content.keys() <= fields.keys():
        raise ValueError(f'it should have {", ".join(fields)}, not {", ".join(content)}')
    for name, value in content.items():
        if not isinstance(value, kinds.get(name, str)):
            raise ValueError(f'{name}={value!r}')
    return kind(**content)


def check_fit(variables: PyTree, shapes: PyTree, where: str) -> None:
    """Compares arrays with those that a network has.

    Args:
      variables: that were read.
      shapes: of the network, from `jax.eval_shape`.
      where: they were read, for messages.

    Raises:
      UserError: other names or shapes.
    """
    wanted, there = (
        {jax.tree_util.keystr(place): leaf.shape for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (shapes, variables)
    )
    if wanted != there:
        differing = [k for k in sorted(wanted.keys() | there.keys()) if wanted.get(k) != there.get(k)]
        lines = [f'{k}: {there.get(k, "missing")} there, {wanted.get(k, "nothing")} wanted' for k in differing]
        raise UserError(f'{where}: its weights do not fit its configuration:{shortlist(lines)}')
