"""Does a training that is killed again and again end as one that never was?

python -m experiments.faults.kill_loop --job=gan --kills=50 --json=kills.json

It prepares a data set and trains a small network on it by the command line, twice without interruption; then the same
with SIGKILL at random moments, started again after each, in as many rounds as it takes until all kills are used. At the
end of each round the last checkpoint, metrics.jsonl and test.json are compared with those of the first run.
"""

import collections
import dataclasses
import functools
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from experiments.faults.training import (
    JOBS,
    STEPS,
    commands,
    differences,
    make_data,
    phase,
    start,
    wait_and_kill,
)

_JOB = flags.DEFINE_enum('job', 'gan', list(JOBS), 'What is trained.')
_KILLS = flags.DEFINE_integer('kills', 50, 'In all.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')
_JSON = flags.DEFINE_string('json', None, 'File for the table.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where to work; default: a temporary folder.')

# Moments that are aimed at, in turn.
AIMS = ('preparing', 'start-up', 'step', 'save', 'evaluation', 'any')
_ROUND = 12  # kills in a round at most, so that there are several ends to compare


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill: the moment aimed at, the one it hit, and what the next start went on from."""

    aim: str
    hit: str
    seconds: float
    resumed: str


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
    # A start that is quicker than the one that was timed is not to be missed.
    moment = time.monotonic() + chance.uniform(0, 0.9 * lengths[aim])
    return lambda: time.monotonic() > moment or (aim == 'start-up' and began()), 0.0


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
    job: str, folder: Path, name: str, steps: int, aims: list[str], times: Times, chance: random.Random
) -> list[Kill]:
    """Prepares and trains likewise, killed at the moments that are aimed at; those that were hit are taken from `aims`.

    Raises:
      RuntimeError: a start failed of itself.
    """
    kills: list[Kill] = []
    workdir, log = folder / name, folder / f'{name}.log'
    for command in commands(job, folder, name, steps):
        training = command[3] == 'train'
        while True:
            aim = next((aim for aim in aims if (aim != 'preparing') == training), None)
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
            aims.remove(aim)
            hit = phase(workdir, log) if training else 'preparing'
            kills.append(Kill(aim, hit, round(time.monotonic() - began, 2), '' if training else 'the beginning'))
    return kills


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
    left, chance, number = list(aims), random.Random(seed), 0
    kills: list[Kill] = []
    while left:
        number += 1
        now, left = left[:_ROUND], left[_ROUND:]
        new = interrupted(job, folder, f'parts{number}', steps, now, times, chance)
        left += now  # missed: it was done before
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
