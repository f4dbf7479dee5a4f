"""Does a training that is killed again and again end as one that never was?

python -m experiments.faults.kill_loop --job=gan --kills=50 --json=kills.json

It prepares a data set and trains a small network on it by the command line, twice without interruption; then the same
with SIGKILL at random moments, started again after each, in as many rounds as it takes until all kills are used. At the
end of each round the last checkpoint, metrics.jsonl and test.json are compared with those of the first run.
"""

import collections
import dataclasses
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from PIL import Image

_JOB = flags.DEFINE_enum('job', 'gan', ['gan', 'generator', 'labels'], 'What is trained.')
_KILLS = flags.DEFINE_integer('kills', 50, 'In all.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')
_JSON = flags.DEFINE_string('json', None, 'File for the table.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where to work; default: a temporary folder.')

ROOT = Path(__file__).parents[2]
STEPS, LOG, EVALUATE, SAVE = 60, 4, 20, 6  # no interval divides another, which is the harder case
# Moments that are aimed at, in turn.
AIMS = ('preparing', 'start-up', 'step', 'save', 'evaluation', 'any')
_SMALL = {
    'seed': 3,
    'deterministic': True,
    'data.crop_size': 16,
    'generator.unet.depth': 2,
    'generator.unet.width': 8,
    'generator.unet.norm': 'batch',
    'generator.unet.dropout': 0.0,
    'generator.dcgan.width': 4,
    'discriminator.patchgan.strided': 1,
    'discriminator.patchgan.width': 8,
    'discriminator.dcgan.width': 4,
    'ema.decay': 0.9,
    'train.batch_size': 2,
    'log.every_steps': LOG,
    'eval.every_steps': EVALUATE,
    'checkpoint.every_steps': SAVE,
}
JOBS: dict[str, dict[str, Any]] = {
    'gan': {'gan.start_step': 7, 'gan.pretrain_steps': 5, 'gan.d_steps': 2},
    'generator': {'gan.weight': 0.0, 'degrade.name': 'awgn', 'optim.schedule': 'plateau', 'optim.final_lr': 1e-6}
    | {'optim.plateau_patience': 0, 'optim.plateau_metric': 'loss'},
    'labels': {'generator.name': 'dcgan', 'discriminator.name': 'dcgan', 'loss.l1.weight': 0.0},
}


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill: the moment aimed at, the one it hit, and what the next start went on from."""

    aim: str
    hit: str
    seconds: float
    resumed: str


def make_data(folder: Path, *, labelled: bool) -> None:
    """Writes small pictures below train/, val/ and test/, as pairs or by class."""
    random_ = np.random.default_rng(0)
    for split, count in (('train', 6), ('val', 4), ('test', 4)):
        for i in range(count):
            image = np.kron(random_.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
            sides = ('cat', 'dog') if labelled else ('input', 'target')
            for side in sides:
                path = folder / split / side / f'{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image if side == sides[0] else image // 2).save(path)


def commands(job: str, folder: Path, name: str, steps: int) -> list[list[str]]:
    """Returns the command that prepares data below `folder` and the one that trains on them in folder/name."""
    prepared = folder / f'{name}_data'
    keys = _SMALL | JOBS[job] | {'train.steps': steps}
    main = [sys.executable, '-m', 'p2p_jax.main']
    config = ['--config=configs/default.py', *(f'--config.{key}={value}' for key, value in keys.items())]
    return [
        [*main, 'prepare', *config, f'--config.data.dir={folder / "files"}', f'--output={prepared}'],
        [*main, 'train', *config, f'--config.data.dir={prepared}', f'--workdir={folder / name}'],
    ]


def start(command: list[str], log: Path, compiled: Path) -> subprocess.Popen[bytes]:
    """Starts a command; what it prints goes to a file."""
    env = os.environ | {
        'PYTHONPATH': str(ROOT),
        'PYTHONUNBUFFERED': '1',
        'JAX_COMPILATION_CACHE_DIR': str(compiled),
        'JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    with log.open('wb') as file:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)


def last_step(printed: str) -> int:
    """Returns the last step that a training printed, or -1."""
    lines = [line for line in printed.splitlines() if line.startswith('step ') and '/' in line]
    return int(lines[-1].split()[1].partition('/')[0]) if lines else -1


def phase(workdir: Path, log: Path) -> str:
    """Returns what a training is doing, by what it printed and wrote."""
    printed = log.read_text(errors='replace')
    if 'first step after' not in printed:
        return 'start-up'
    if list(workdir.glob('checkpoints/*.orbax-checkpoint-tmp')):
        return 'save'
    step = last_step(printed)
    if step > 0 and step % EVALUATE == 0 and not (workdir / 'samples' / f'{step:07}.png').exists():
        return 'evaluation'
    return 'test' if ' test examples …' in printed else 'step'


def wait_and_kill(process: subprocess.Popen[bytes], due: Callable[[], bool], delay: float) -> bool:
    """Kills a process some seconds after something is due; returns whether it was still there."""
    while not due():
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


@dataclasses.dataclass
class Times:
    """Seconds that an uninterrupted run took: to prepare, to the first step, and from there to the end."""

    prepare: float
    first: float
    rest: float


def _moment(
    aim: str, workdir: Path, log: Path, times: Times, chance: random.Random
) -> tuple[Callable[[], bool], float]:
    """Returns what to wait for, and the seconds from there on to the kill."""
    began = lambda: 'first step after' in log.read_text(errors='replace')  # noqa: E731
    if aim == 'step':
        return began, chance.uniform(0, times.rest / 3)
    if aim == 'save':
        return lambda: phase(workdir, log) == 'save', chance.uniform(0, 0.03)
    if aim == 'evaluation':
        return lambda: began() and phase(workdir, log) == 'evaluation', chance.uniform(0, 0.05)
    lengths = {'preparing': times.prepare, 'start-up': times.first, 'any': times.first + times.rest}
    return lambda: True, chance.uniform(0, lengths[aim])


def uninterrupted(job: str, folder: Path, name: str, steps: int) -> Times:
    """Prepares and trains; returns how long that took.

    Raises:
      RuntimeError: it failed; the message has what was printed.
    """
    seconds, log = [], folder / f'{name}.log'
    first = 0.0
    for command in commands(job, folder, name, steps):
        began = time.monotonic()
        process = start(command, log, folder / 'compiled')
        while process.poll() is None:
            time.sleep(0.01)
            if not first and command[3] == 'train' and 'first step after' in log.read_text(errors='replace'):
                first = time.monotonic() - began
        if process.returncode:
            raise RuntimeError(f'{" ".join(command)}: exit code {process.returncode}\n{log.read_text()[-3000:]}')
        seconds.append(time.monotonic() - began)
    return Times(seconds[0], first, seconds[1] - first)


def interrupted(
    job: str, folder: Path, name: str, steps: int, aims: collections.deque[str], times: Times, chance: random.Random
) -> list[Kill]:
    """Prepares and trains likewise, killed at the moments that are aimed at, taken from the front of `aims`.

    Raises:
      RuntimeError: a start failed of itself.
    """
    kills: list[Kill] = []
    workdir, log = folder / name, folder / f'{name}.log'
    for command in commands(job, folder, name, steps):
        training = command[3] == 'train'
        while True:
            aim = aims[0] if aims and (aims[0] != 'preparing') == training else None
            began = time.monotonic()
            process = start(command, log, folder / 'compiled')
            due, delay = _moment(aim, workdir, log, times, chance) if aim else (lambda: False, 0.0)
            killed = wait_and_kill(process, due, delay)
            printed = log.read_text(errors='replace')
            went_on = [line.split('resuming at ')[1] for line in printed.splitlines() if 'resuming at ' in line]
            if kills and training and not kills[-1].resumed and (went_on or 'first step after' in printed):
                kills[-1] = dataclasses.replace(kills[-1], resumed=went_on[0] if went_on else 'the beginning')
            if not killed:
                if process.returncode:
                    raise RuntimeError(f'{" ".join(command)}: exit code {process.returncode}\n{printed[-3000:]}')
                break
            assert aim
            aims.popleft()
            hit = phase(workdir, log) if training else 'preparing'
            kills.append(Kill(aim, hit, round(time.monotonic() - began, 2), '' if training else 'the beginning'))
    return kills


def _log_values(workdir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ('time', 'images_per_second')} for line in lines]


def differences(one: Path, other: Path) -> list[str]:
    """Returns what differs between two trainings, bit for bit: leaves of the last state, the log, the test's scores."""
    import jax

    from p2p_jax.inference import load_state

    def leaves(workdir: Path) -> dict[str, Any]:
        state = load_state(workdir, 'latest')[2]
        state = state.replace(key=jax.random.key_data(state.key))
        return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}

    a, b = leaves(one), leaves(other)
    found = [name for name in a if a[name].tobytes() != b[name].tobytes()] if a.keys() == b.keys() else ['structure']
    if _log_values(one) != _log_values(other):
        found.append('metrics.jsonl')
    tests = [(workdir / 'test.json').read_text() for workdir in (one, other) if (workdir / 'test.json').exists()]
    if len(set(tests)) > 1 or len(tests) == 1:
        found.append('test.json')
    return found


def table(kills: list[Kill]) -> str:
    """Returns the table: how many kills hit each phase, and what was gone on from."""
    rows: dict[str, list[Kill]] = collections.defaultdict(list)
    for kill in kills:
        rows[kill.hit].append(kill)
    lines = [f'{"hit":12}{"kills":>6}  went on from']
    for hit, members in sorted(rows.items()):
        steps = collections.Counter(kill.resumed for kill in members)
        lines.append(f'{hit:12}{len(members):6}  ' + ', '.join(f'{k} ({n}×)' for k, n in sorted(steps.items())))
    return '\n'.join(lines)


def run(job: str, folder: Path, aims: list[str], steps: int = STEPS, seed: int = 0) -> tuple[list[Kill], list[str]]:
    """Trains twice without interruption, of which the second finds all compiled, and then, in rounds, with kills.

    Args:
      job: a key of JOBS.
      folder: receives everything; new.
      aims: the moments of the kills, of AIMS.
      steps: of each training.
      seed: of the moments.

    Returns:
      The kills, and what differed at the end of any round.
    """
    make_data(folder / 'files', labelled=job == 'labels')
    say = functools.partial(print, flush=True)
    uninterrupted(job, folder, 'whole', steps)
    times = uninterrupted(job, folder, 'timed', steps)
    found = differences(folder / 'whole', folder / 'timed')
    say(f'uninterrupted: {times}; {"DIFFERENT: " + ", ".join(found) if found else "two of them equal"}')
    left, chance, number = collections.deque(aims), random.Random(seed), 0
    kills: list[Kill] = []
    while left:
        number += 1
        new = interrupted(job, folder, f'parts{number}', steps, left, times, chance)
        differing = differences(folder / 'whole', folder / f'parts{number}')
        say(f'round {number}: {len(new)} kills; {"DIFFERENT: " + ", ".join(differing) if differing else "equal"}')
        for kill in new:
            say(f'  aimed at {kill.aim:11} hit {kill.hit:11} after {kill.seconds:6.2f} s, went on from {kill.resumed}')
        kills += new
        found += differing
    return kills, found


def main(argv: list[str]) -> int:
    """Runs it; exit code 1 where anything differs."""
    del argv
    logging.set_verbosity('error')
    from p2p_jax import report

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_WORKDIR.value or temporary).absolute()
        aims = [AIMS[i % len(AIMS)] for i in range(_KILLS.value)]
        kills, found = run(_JOB.value, folder, aims, seed=_SEED.value)
    print(f'{_JOB.value}: {len(kills)} kills\n{table(kills)}')
    print('DIFFERENT' if found else 'every leaf, every logged value and the scores of the test equal')
    if _JSON.value:
        content = {'job': _JOB.value, 'seed': _SEED.value, 'different': found}
        report.write_json(Path(_JSON.value), content | {'kills': [dataclasses.asdict(kill) for kill in kills]})
    return 1 if found else 0


if __name__ == '__main__':
    app.run(main)
