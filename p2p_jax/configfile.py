"""Configurations as JSON: --config=WORKDIR/config.json repeats a training. config_flags runs this file as one."""

import json
import runpy
from pathlib import Path
from typing import Any

import ml_collections

from p2p_jax.lookup import UserError, shortlist


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns nested dictionaries as one, whose keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value}
    return flat


def defaults() -> ml_collections.ConfigDict:
    """Returns configs/default.py, which lies beside the package.

    Raises:
      UserError: it does not.
    """
    path = Path(__file__).parents[1] / 'configs' / 'default.py'
    if not path.is_file():
        raise UserError(f'{path} is not there, and is needed; run from a checkout of the repository')
    return runpy.run_path(str(path))['get_config']()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def get_config(path: str) -> ml_collections.ConfigDict:
    """Returns the configuration in a file as a training leaves it in its workdir.

    Args:
      path: of the JSON file.

    Raises:
      UserError: it is missing, damaged, no configuration, or one of another version.
    """
    expected = 'expected the config.json in the workdir of a training'
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(f'--config={path}: cannot be read ({error.strerror}); {expected}') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'--config={path}: damaged, or no JSON ({error}); {expected}') from None
    config = defaults()
    known = flatten(config.to_dict())
    given = flatten(content) if isinstance(content, dict) else {}
    if not known.keys() & given.keys():
        raise UserError(f'--config={path}: no configuration; {expected}')
    for what, keys in (('unknown', given.keys() - known.keys()), ('missing', known.keys() - given.keys())):
        if keys:
            raise UserError(
                f'--config={path}: {len(keys)} {what} keys; it was written by another version of p2p_jax, or by hand:'
                f'{shortlist(sorted(keys))}'
            )
    problems = []
    for key, value in given.items():
        try:
            config.update_from_flattened_dict({key: _tuples(value)})
        except (TypeError, ValueError):
            problems.append(f'{key}={value!r}: expected a value like {known[key]!r}')
    if problems:
        raise UserError(f'--config={path}: {len(problems)} values of another type:{shortlist(problems)}')
    return config
