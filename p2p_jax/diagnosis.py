"""The update that was not finite: what is kept of it, what is said about it, and doing it again."""

import contextlib
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from p2p_jax import report
from p2p_jax.checkpoint import Checkpoints, replicate
from p2p_jax.data.pipeline import TrainData, split_over_devices
from p2p_jax.job import AXIS, Adversary, Job, build_job, training_size
from p2p_jax.lookup import UserError
from p2p_jax.state import Fault, TrainState
from p2p_jax.steps import Part, parts_of, train_step

FACTS = 'diagnosis.json'
_BATCH = 'batch'
Numbers = dict[str, float]
PyTree = Any


def _largest(tree: PyTree) -> jax.Array:
    """The greatest magnitude of all leaves; NaN where there is one."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]))


def _layers(prefix: str, apply: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
    """The greatest magnitude that each module gives in train mode, in the order in which they run."""
    mutable = ['batch_stats', 'features', 'intermediates']
    _, changed = apply(*args, **kwargs, train=True, mutable=mutable, capture_intermediates=True)
    outputs = traverse_util.flatten_dict(changed['intermediates'])
    return {'/'.join((prefix, *path[:-1])): _largest(output) for path, output in outputs.items()}


def _judged(adversary: Adversary, variables: PyTree, part: Part, image: jax.Array, of: str) -> dict[str, jax.Array]:
    shown = adversary.shown(image, part.shown)
    return _layers(f'discriminator of {of}', adversary.network.apply, variables, part.condition, shown)


def _trace(job: Job, state: TrainState, batch: dict[str, jax.Array], judges: bool) -> dict[str, jax.Array]:
    """The greatest magnitudes of inputs, parameters and all modules' outputs, before anything is updated."""
    networks = {'generator': state.generator} | ({'discriminator': state.discriminator} if judges else {})
    found = {
        f'parameters of {network}/{group}': _largest(tree)
        for network, inside in networks.items()
        if inside
        for group, tree in inside.params.items()
    }
    names: list[str] = []

    def look(part: Part) -> tuple[jax.Array, ...]:
        """Runs both networks on one part; notes the names of what it gives."""
        seen = {} if job.classes else {'condition': _largest(part.condition)}
        seen['target'] = _largest(part.target)
        rngs, variables = {'dropout': part.key}, state.generator.variables
        seen |= _layers('generator', job.generator.apply, variables, part.given, rngs=rngs)
        if job.adversary and state.discriminator and judges:
            applied = job.generator.apply(variables, part.given, train=True, rngs=rngs, mutable=['batch_stats'])
            for of, image in (('real', part.target), ('generated', applied[0])):
                seen |= _judged(job.adversary, state.discriminator.variables, part, image, of)
        names[:] = list(seen)
        return tuple(seen.values())

    values = jax.lax.map(look, parts_of(job, batch, jax.random.fold_in(state.key, state.batch)))
    everywhere = [jnp.max(jax.lax.all_gather(value, AXIS)) for value in values]
    return found | dict(zip(names, everywhere, strict=True))


def inspect(
    job: Job, phase: str, state: TrainState, batch: dict[str, np.ndarray], frozen: PyTree, devices: list[jax.Device]
) -> Numbers:
    """Does an update again and looks at everything in it.

    Args:
      job: what is trained.
      phase: see `steps.train_step`.
      state: before the update.
      batch: this process's, of `TrainData.batch`.
      frozen: what `job.read_frozen` gave.
      devices: all that the update is spread over.

    Returns:
      In the order in which it is computed: the greatest magnitudes of inputs, parameters and modules' outputs, then
      the losses, and of the gradients the norms, of each group of parameters and of all.
    """
    names: list[str] = []

    def step(state: TrainState, batch: dict[str, jax.Array], frozen: PyTree) -> tuple[jax.Array, ...]:
        found = _trace(job, state, batch, phase != 'generator')
        _, logged = train_step(job, phase, state, batch, frozen, detailed=True)
        for term in job.terms:
            groups = {name: value for name, value in logged.items() if name.startswith(f'{term}/')}
            found |= groups | ({term: logged[term]} if term in logged else {})
        names[:] = list(found)
        return tuple(found.values())

    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, devices=devices)
    local = split_over_devices(batch, sum(device.process_index == jax.process_index() for device in devices))
    values = jax.device_get(mapped(state, local, frozen))
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def first_non_finite(numbers: Numbers) -> str | None:
    """Returns the name of the first that is NaN or infinite, or None."""
    return next((name for name, value in numbers.items() if not math.isfinite(value)), None)


def state_before(state: TrainState) -> TrainState:
    """The state that a stopped training was in before the update that stopped it."""
    fault = state.fault
    return state.replace(step=fault.step - 1, batch=fault.batch, fault=Fault.none(int(fault.rollbacks)))


def keep(
    workdir: Path,
    config: ml_collections.ConfigDict,
    job: Job,
    data: TrainData,
    state: TrainState,
    facts: dict[str, Any],
) -> Path:
    """Keeps the update that stopped a training: the state before it, its batch, and where both come from.

    Args:
      workdir: of the training.
      config: complete.
      job: what it means.
      data: that the batch is of.
      state: as it was stopped.
      facts: what else is known: 'phase' and 'steps', the length of the training, are needed to do it again.

    Returns:
      The new folder in `workdir`: a checkpoint, `batch_<process>.npz` and `diagnosis.json`.
    """
    fault = jax.device_get(state.fault)
    step, number = int(fault.step), int(fault.batch)
    folder = workdir / f'nonfinite_{step:07}'
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier training that stopped at the same step
        facts = facts | {
            'step': step,
            'batch': number,
            'seed': config.seed,
            'term': job.terms[fault.term],
            'skipped': int(fault.skipped),
            'rollbacks': int(fault.rollbacks),
            'devices': jax.device_count(),
            'records': [data.record(number, place).name for place in range(config.train.batch_size)],
        }
        report.write_json(folder / FACTS, facts)
    multihost_utils.sync_global_devices(str(folder))
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(replicate(state_before(state)), step, config.to_dict(), None)
    arrays: dict[str, Any] = {**data.batch(number)}
    np.savez(folder / f'{_BATCH}_{jax.process_index()}.npz', **arrays)
    return folder


def note(folder: Path, numbers: Numbers) -> None:
    """Adds what an inspection found to `diagnosis.json`; what is not finite as text, for JSON has no NaN."""
    if jax.process_index() == 0:
        facts = json.loads((folder / FACTS).read_text())
        as_json = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
        report.write_json(folder / FACTS, facts | {'numbers': as_json})


def summary(numbers: Numbers) -> str:
    """Says in a few lines where the first value arose that is not finite, and how large the gradients were."""
    first = first_non_finite(numbers)
    arose = f'the first value that is not finite: {first}' if first else 'done again, all values were finite'
    norms = {name: value for name, value in numbers.items() if name.startswith('grad_norm/')}
    return '\n'.join([f'  {arose}', *(f'  {name}: {value:.4g}' for name, value in norms.items())])


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The facts and the whole batch of a folder that `keep` wrote."""
    if not (folder / FACTS).is_file():
        raise UserError(f'--input={folder}: no {FACTS} there; expected a folder nonfinite_… that a training left')
    try:
        facts = json.loads((folder / FACTS).read_text())
        missing = sorted({'step', 'phase', 'steps', 'devices', 'term'} - facts.keys())
        files = sorted(folder.glob(f'{_BATCH}_*.npz'), key=lambda path: int(path.stem.rpartition('_')[2]))
        parts = [dict(np.load(path, allow_pickle=False)) for path in files]
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f'--input={folder}: damaged ({error}); expected what a training left there') from None
    if missing or not parts:
        raise UserError(f'--input={folder}: damaged, without {", ".join(missing) or "a batch"}')
    return facts, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def replay(folder: Path) -> Numbers:
    """Does the update again at which a training stopped, and prints what there is to see in it.

    Args:
      folder: that the training left.

    Returns:
      As `inspect`.

    Raises:
      UserError: it is no such folder, or damaged.
    """
    facts, batch = _read(folder)
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        config = ml_collections.ConfigDict(checkpoints.config(facts['step']))
        job = build_job(config, facts['steps'])
        shapes = jax.eval_shape(lambda: job.create_state(config.seed, training_size(config)))
        state = checkpoints.restore(facts['step'], shapes)
    devices = jax.devices()[: facts['devices']]
    if len(batch['target']) % (len(devices) * job.accumulate):
        raise UserError(
            f'--input={folder}: its batch of {len(batch["target"])} does not divide by {len(devices)} devices; '
            f'the training had {facts["devices"]}'
        )
    if len(devices) != facts['devices']:
        print(f'note: on {len(devices)} devices, not {facts["devices"]}; dropout differs, and the last digits')
    numbers = inspect(job, facts['phase'], jax.device_get(state), batch, job.read_frozen(), devices)
    width = max(map(len, numbers))
    for name, value in numbers.items():
        print(f'{name:{width}} {value:12.5g}')
    first = first_non_finite(numbers)
    print(f'step {facts["step"]}: ' + (f'first not finite: {first}' if first else 'all values are finite here'))
    return numbers
