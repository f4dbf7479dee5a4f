"""Starting from weights that were trained before: what fits is taken, and it is said what does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from p2p_jax import inference, modelfile
from p2p_jax.lookup import UserError, shortlist
from p2p_jax.state import NetworkState, TrainState

PyTree = Any


def _adapt(value: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
    """Fits an array to another number of image channels, 1 instead of 3 or 3 instead of 1; None where that is no way.

    Kernels are (height, width, in, out). Grey light enters all three channels alike, so that kernels on the input are
    summed or divided; outputs are averaged or repeated.
    """
    differing = [axis for axis, (a, b) in enumerate(zip(value.shape, shape, strict=True)) if a != b]
    if value.ndim not in (1, 4) or len(differing) != 1:
        return None
    axis = differing[0]
    there, wanted = value.shape[axis], shape[axis]
    # A discriminator on pairs sees two images: 6 and 2.
    if (there, wanted) not in ((3, 1), (1, 3), (6, 2), (2, 6)):
        return None
    groups = min(there, wanted)
    enters = axis == value.ndim - 2
    if there > wanted:
        parts = value.reshape(*value.shape[:axis], groups, there // groups, *value.shape[axis + 1 :])
        return parts.sum(axis + 1) if enters else parts.mean(axis + 1)
    repeated = jnp.repeat(value, wanted // there, axis)
    return repeated / (wanted // there) if enters else repeated


def merge(network: str, fresh: PyTree, trained: PyTree) -> tuple[PyTree, list[str]]:
    """Returns fresh variables with those of trained ones that fit in their place, and what is to be said about it.

    Args:
      network: its name, for the lines.
      fresh: 'params' and 'batch_stats'.
      trained: likewise, of a network that need not be the same.

    Raises:
      UserError: nothing fits.
    """
    wanted, there = (traverse_util.flatten_dict(tree, sep='/') for tree in (fresh, trained))
    merged, notes, taken = dict(wanted), [], 0
    for name, value in wanted.items():
        if name not in there:
            notes.append(f'{name}: new, as initialised')
            continue
        old = there[name]
        fitted = old if old.shape == value.shape else None
        if fitted is None and len(old.shape) == len(value.shape):
            fitted = _adapt(jnp.asarray(old), value.shape)
            if fitted is not None:
                notes.append(f'{name}: {old.shape} adapted to {value.shape}')
        if fitted is None:
            notes.append(f'{name}: {old.shape} there, {value.shape} here: as initialised')
            continue
        merged[name] = jnp.asarray(fitted, value.dtype)
        taken += 1
    notes += [f'{name}: has no place here' for name in there if name not in wanted]
    if not taken:
        raise UserError(f'init_from: nothing of the {network} fits:{shortlist(notes)}')
    lines = [f'{network}: {taken} of {len(wanted)} arrays taken' + (shortlist(notes) if notes else '')]
    return traverse_util.unflatten_dict(merged, sep='/'), lines


def _network(network: str, fresh: NetworkState, trained: PyTree) -> tuple[NetworkState, list[str]]:
    variables, lines = merge(network, fresh.variables, trained)
    return fresh.replace(params=variables['params'], batch_stats=variables.get('batch_stats', {})), lines


def initialise(state: TrainState, source: Path, say: Callable[[str], None]) -> TrainState:
    """Returns a state at step 0 that starts from trained weights.

    Args:
      state: fresh; its optimisers and its step stay.
      source: a model file, which holds a generator or a discriminator (the other starts at random), or the workdir of
        a training, whose best checkpoint's generator (its moving averages, where there are any) and discriminator are
        taken.
      say: receives lines for people: what was taken and what was not.

    Raises:
      UserError: there is no such model, nothing of it fits, or it is of a network that is not trained.
    """
    if source.is_dir():
        _, _, trained, _ = inference.load_state(source, 'best')
        there = {'generator': trained.evaluated}
        if trained.discriminator is not None and state.discriminator is not None:
            there['discriminator'] = trained.discriminator.variables
    else:
        variables, facts = modelfile.read(source)
        there = {facts.network: variables}
    if 'discriminator' in there and state.discriminator is None:
        raise UserError(f'init_from={source}: it holds a discriminator, and with gan.weight=0 none is trained')
    networks, lines = {'generator': state.generator}, []
    if state.discriminator is not None:
        networks['discriminator'] = state.discriminator
    for name, fresh in networks.items():
        if name in there:
            networks[name], more = _network(name, fresh, there[name])
            lines += more
        else:
            lines.append(f'{name}: not in there, as initialised')
    for line in lines:
        say(f'init_from={source}: {line}')
    # Copies, for a donated buffer must not be in the state twice.
    ema = None if state.ema is None else jax.tree.map(jnp.copy, networks['generator'].variables)
    return state.replace(**networks, ema=ema)
