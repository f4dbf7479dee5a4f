"""Training: find the data, build or restore the state, loop, report."""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils

from p2p_jax import datasets, diagnosis, distributed, files, finetune, inference, provenance, report
from p2p_jax.checkpoint import Checkpoints, replicate
from p2p_jax.configfile import flatten
from p2p_jax.data.pipeline import Augmentation, Shard, TrainData
from p2p_jax.data.records import SPLITS, Splits
from p2p_jax.evaluate import build_evaluator, evaluate_model
from p2p_jax.generate import build_sampler
from p2p_jax.job import Job, build_job, training_size
from p2p_jax.lock import Lock
from p2p_jax.lookup import UserError, shortlist
from p2p_jax.loop import Lengths, NonFinite, Run, Standing, compiler_options, map_steps, say
from p2p_jax.settings import check, takes_labels
from p2p_jax.state import Fault, TrainState
from p2p_jax.stop import Stop

if TYPE_CHECKING:
    from clu.metric_writers import MetricWriter

# A resumed training must not change these: the networks, or the data that scores were measured on.
_FIXED_DATA = ('split', 'split_seed', 'own_split', 'limit', 'direction', 'channels', 'classes')
_FIXED_CUTS = ('square', 'grid', 'tile_size', 'tile_overlap', 'resize')
_FIXED = ('generator', 'discriminator', 'value_range', 'seed', *(f'data.{key}' for key in (*_FIXED_DATA, *_FIXED_CUTS)))
_FIXED_SWITCHES = ('gan.weight', 'ema.decay')  # zero or not decides what the state holds


def check_resume(stored: dict[str, Any], given: dict[str, Any], workdir: Path) -> list[str]:
    """Compares the configuration in a checkpoint with the given one.

    Returns:
      The harmless differences, a line each.

    Raises:
      UserError: the state in `workdir` does not fit the given configuration; lists the keys that differ.
    """
    old, new = flatten(stored), flatten(json.loads(json.dumps(given)))
    differing = [key for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]
    fixed = [part for part in _FIXED if part != 'discriminator' or old['gan.weight'] or new['gan.weight']]
    fatal = [key for key in differing if any(f'{key}.'.startswith(f'{part}.') for part in fixed)]
    fatal += [key for key in differing if key in _FIXED_SWITCHES and bool(old[key]) != bool(new[key])]
    lines = {key: f'{key}: {old[key]!r} there, {new[key]!r} given' for key in differing}
    if fatal:
        raise UserError(
            f'{workdir} holds a training whose configuration contradicts the given one (nothing was touched):'
            f'{shortlist([lines[key] for key in fatal])}\nGive another --workdir, or the same values.'
        )
    return list(lines.values())


def _check_batch(config: ml_collections.ConfigDict) -> None:
    devices, parts = jax.device_count(), config.train.accumulate
    divisor = devices * parts
    if config.train.batch_size % divisor:
        times = f' times train.accumulate={parts}' if parts > 1 else ''
        raise UserError(
            f'train.batch_size={config.train.batch_size} does not divide by the {devices} devices{times}. '
            f'Take {-(-config.train.batch_size // divisor) * divisor}, or fewer devices.'
        )


def _log_to_file(workdir: Path) -> contextlib.ExitStack:
    """Sends the log, CLU's and Orbax's included, to `train.log` while the context lasts; one file a process."""
    process = f'.{jax.process_index()}' if jax.process_index() else ''
    handler = logging.FileHandler(workdir / f'train{process}.log')
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # of a full disk the rest tells
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    logger = logging.getLogger('absl')
    stack = contextlib.ExitStack()
    stack.callback(handler.close)
    stack.callback(logger.setLevel, logger.level)
    stack.callback(logger.removeHandler, handler)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return stack


def _cut_back(path: Path, step: int) -> None:
    """Drops the lines after a step from metrics.jsonl, which the resumed training writes again."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= step]
        files.write_file(path, ''.join(kept).encode())


def _initial_state(
    job: Job, config: ml_collections.ConfigDict, checkpoints: Checkpoints, workdir: Path
) -> tuple[TrainState, Standing]:
    """Restores the latest checkpoint, or builds the state at step 0."""
    create = functools.partial(job.create_state, config.seed, training_size(config))
    step = checkpoints.latest()
    if step is None:
        state = jax.jit(create, compiler_options=compiler_options())()
        state = finetune.initialise(state, Path(config.init_from), say) if config.init_from else state
        return replicate(state), Standing()
    for line in check_resume(checkpoints.config(step), config.to_dict(), workdir):
        say(f'changed since the checkpoint: {line}')
    say(f'{workdir}: resuming at step {step}')
    return checkpoints.restore(step, jax.eval_shape(create)), Standing.of(checkpoints.standing(step))


def _data(config: ml_collections.ConfigDict, splits: Splits) -> TrainData:
    return TrainData(
        splits['train'],
        batch_size=config.train.batch_size,
        channels=config.data.channels,
        labels=takes_labels(config),
        balanced=config.data.balanced,
        augmentation=Augmentation(**{f.name: config.data[f.name] for f in dataclasses.fields(Augmentation)}),
        seed=config.seed,
        cache_mb=config.data.cache_mb,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        shard=Shard(jax.process_index(), jax.process_count()),
    )


def _rows(
    job: Job, config: ml_collections.ConfigDict, between: Callable[[], None]
) -> Callable[[Any], list[list[np.ndarray]]]:
    """Returns a function of the generator's variables that makes a row of each class, of the same noise each time."""
    count = config.eval.pictures
    sample = build_sampler(job, max(count, 1))

    def rows(variables: Any) -> list[list[np.ndarray]]:
        made = []
        for label in range(len(job.classes)):
            between()
            made.append(sample(variables, label, range(count), config.seed))
        return made

    return rows


def _pin_algorithms() -> None:
    """Has XLA choose the same algorithms on a GPU each time, none of them with atomic sums."""
    flag = '--xla_gpu_deterministic_ops=true'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()


def _signals() -> Stop:
    """What listens for signals; several processes agree through the runtime's coordination service."""
    return Stop(multihost_utils.reached_preemption_sync_point if jax.process_count() > 1 else None)


def _go_back(run: Run, state: TrainState) -> tuple[TrainState, Standing]:
    """Returns the latest checkpoint, or the start, with lower rates and the batches after the bad one.

    What a checkpoint says of former rollbacks is what was known when it was saved, and a training that is killed after
    this comes to the same point again: it equals one that was never interrupted.
    """
    fault = jax.device_get(state.fault)
    run.checkpoints.wait()
    count = int(fault.rollbacks) + 1
    say(
        f'step {fault.step}: {run.job.terms[fault.term]} became NaN or infinite; going back, {count} of at most '
        f'{run.job.faults.rollback_limit} times, with learning rates times {run.job.faults.rollback_lr_factor**count:g}'
    )
    before, standing = _initial_state(run.job, run.config, run.checkpoints, run.workdir)
    return replicate(before.replace(batch=fault.batch + 1, fault=Fault.none(count))), standing


def _diagnose(run: Run, state: TrainState, began: tuple[int, int]) -> str:
    """Keeps the update that stopped a training, looks at it, and returns what there is to say.

    Args:
      run: the training.
      state: as it was stopped.
      began: the counts of steps and of batches at which the loop's plan began.
    """
    fault, last = jax.device_get(state.fault), run.checkpoints.latest()
    step, batch = began
    phase = next(itertools.islice(run.job.phases(step, run.lengths.total), int(fault.batch) - batch, None))[1]
    facts = {'phase': phase, 'steps': run.lengths.total, 'checkpoint': last}
    folder = diagnosis.keep(run.workdir, run.config, run.job, run.data, state, facts)
    before = diagnosis.state_before(state)
    numbers = diagnosis.inspect(run.job, phase, before, run.data.batch(int(fault.batch)), run.frozen, jax.devices())
    diagnosis.note(folder, numbers)
    good = f'the last good checkpoint is that of step {last}' if last is not None else 'no checkpoint exists'
    tried = {'skip': f', in {fault.row} updates in a row', 'rollback': f', after going back {fault.rollbacks} times'}
    how = tried.get(run.job.faults.on_nonfinite, '')
    return (
        f'step {fault.step}: {run.job.terms[fault.term]} became NaN or infinite first{how}; '
        f'{good} in {run.checkpoints.folder}. Nothing later was saved. A lower optim.lr may help.\n'
        f'{diagnosis.summary(numbers)}\n'
        f'Once more: python -m p2p_jax.main replay --input={folder}'
    )


def _run(
    build: Callable[['MetricWriter', Standing], Run], workdir: Path, state: TrainState, standing: Standing
) -> None:
    """Trains to the end, back and forth where the configuration wants it.

    Args:
      build: makes what runs.
      workdir: of the training.
      state: to start from.
      standing: of that state.

    Raises:
      UserError: the numbers went wrong; with a diagnosis.
    """
    # After the checks, for it imports TensorFlow.
    from p2p_jax.writers import build_writer

    while True:
        began = int(state.step), int(state.batch) - standing.alone
        if jax.process_index() == 0:
            _cut_back(workdir / 'metrics.jsonl', began[0])
        with contextlib.closing(build_writer(workdir, only_log=jax.process_index() > 0)) as writer:
            _introduce(state, writer)
            run = build(writer, standing)
            run.signals.defer()
            try:
                return run.loop(state)
            except NonFinite as stopped:
                state = stopped.state
        faults = run.job.faults
        if faults.on_nonfinite != 'rollback' or state.fault.rollbacks >= faults.rollback_limit:
            raise UserError(_diagnose(run, state, began))
        state, standing = _go_back(run, state)


def _introduce(state: TrainState, writer: 'MetricWriter') -> None:
    """Says what is trained, and on what."""
    overview = parameter_overview.get_parameter_overview(state.generator.params, include_stats=False)
    writer.write_texts(int(state.step), {'generator': f'```\n{overview}\n```'})
    # Its thread imports parts of TensorBoard, which fails while another imports TFDS for a prepared set.
    writer.flush()
    parameters = {'generator': parameter_overview.count_parameters(state.generator.params)}
    if state.discriminator:
        parameters['discriminator'] = parameter_overview.count_parameters(state.discriminator.params)
    say(', '.join(f'{name} of {count:,} parameters' for name, count in parameters.items()))
    say(f'training on {jax.device_count()} {jax.default_backend()} device(s); compiling the step …')


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Trains what a configuration says, resuming where `workdir` holds a training, and scores the test split.

    Args:
      config: complete and locked.
      workdir: receives checkpoints, logs, pictures and `test.json`.

    Raises:
      UserError: bad configuration or data, before anything is computed; a loss that is not finite; another training
        in the workdir; a storage that cannot be written to.
      Stopped: the process was asked to stop; what was done is saved.
    """
    check(config)
    if config.deterministic:
        _pin_algorithms()  # before anything asks for a device
    _check_batch(config)
    lock = Lock(workdir) if jax.process_index() == 0 else contextlib.nullcontext()
    with _signals() as signals, files.storage_errors(workdir), lock:
        _train(config, workdir, signals)


def _train(config: ml_collections.ConfigDict, workdir: Path, signals: Stop) -> None:
    distributed.check_same_config(flatten(config.to_dict()))
    if config.init_from and not Path(config.init_from).exists():
        raise UserError(f'init_from={config.init_from}: no such model file or workdir')
    splits = datasets.find_splits(config, SPLITS, say)
    say(datasets.describe(splits))
    distributed.check_same_data(splits)
    distributed.check_shared(workdir)
    datasets.check_stored_splits(workdir, splits)
    config = datasets.with_classes(config, splits)
    lengths = Lengths.of(config, len(splits['train']))
    job = build_job(config, lengths.total)
    frozen = replicate(job.read_frozen())
    asked = signals.check
    evaluate = _rows(job, config, asked) if job.classes else build_evaluator(job, config, splits['val'], asked)
    size = training_size(config)
    jax.eval_shape(lambda: job.create_state(config.seed, size))  # raises where options do not go together

    checkpoints = Checkpoints(workdir)
    with contextlib.closing(checkpoints):
        state, standing = _initial_state(job, config, checkpoints, workdir)
        patience = config.train.patience
        if standing.due or (int(state.step) < lengths.total and (patience is None or state.stalled < patience)):
            if jax.process_index() == 0:
                for folder in (workdir, workdir / 'samples'):
                    files.remove_leftovers(folder)
                report.write_json(workdir / 'config.json', config.to_dict())
                datasets.store_splits(workdir, splits)
                provenance.append(workdir, provenance.describe(int(state.step), config.to_dict()))
            parts = (config, job, map_steps(job, lengths.total), frozen, lengths, _data(config, splits), evaluate)
            with _log_to_file(workdir):
                _run(functools.partial(Run, *parts, checkpoints, workdir, signals), workdir, state, standing)
    signals.resume()
    if job.classes:
        say(f'pictures of each class: {workdir / "samples"}')
        return
    best = inference.load(workdir, 'best')
    evaluate_model(best, workdir / 'test.json', workdir / 'samples' / 'test.png', asked, say)
