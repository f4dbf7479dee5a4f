"""Does the memory of a training grow with its steps?

python -m experiments.faults.memory --steps=2000 --json=memory.json

It trains a small network on small pictures by the command line, with evaluations, checkpoints and pictures, and reads
the resident memory (RSS) of the process every half second, from Linux's /proc.
"""

import itertools
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from experiments.faults import training

_STEPS = flags.DEFINE_integer('steps', 2000, 'Of the training.')
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')

_INTERVALS = {'log.every_steps': 20, 'eval.every_steps': 200, 'checkpoint.every_steps': 100}
_ROWS = 10
_WARM = 0.25  # share of the steps before which the memory may grow: programs, caches and buffers come into being


def rss(pid: int) -> float:
    """Returns the resident memory of a process, MB of 10⁶ bytes; 0 where it is gone."""
    try:
        kilobytes = re.search(r'VmRSS:\s+(\d+) kB', Path(f'/proc/{pid}/status').read_text())
    except OSError:
        return 0.0
    return int(kilobytes[1]) * 1024 / 1e6 if kilobytes else 0.0


def measure(folder: Path, steps: int) -> list[tuple[int, float]]:
    """Trains; returns (step, MB) pairs.

    Raises:
      RuntimeError: the training failed; the message has what was printed.
    """
    training.make_data(folder / 'files', labelled=False)
    command = training.commands('gan', folder, 'run', steps)[1]
    command = [part.replace(str(folder / 'run_data'), str(folder / 'files')) for part in command]
    command += [f'--config.{key}={value}' for key, value in _INTERVALS.items()]
    log, samples = folder / 'run.log', []
    process = training.start(command, log, folder / 'compiled')
    while process.poll() is None:
        time.sleep(0.5)
        step, megabytes = training.last_step(log.read_text(errors='replace')), rss(process.pid)
        if step > 0 and megabytes:
            samples.append((step, megabytes))
    if process.returncode:
        raise RuntimeError(f'exit code {process.returncode}\n{log.read_text()[-3000:]}')
    return samples


def slope(samples: list[tuple[int, float]], steps: int) -> float:
    """Returns by how much the memory grows after the warm-up, MB per 1,000 steps (least squares)."""
    late = [sample for sample in samples if sample[0] >= _WARM * steps]
    return float(np.polyfit(*zip(*late, strict=True), 1)[0] * 1000)


def main(argv: list[str]) -> None:
    """Runs it."""
    del argv
    from p2p_jax import report

    steps = _STEPS.value
    with tempfile.TemporaryDirectory() as folder:
        samples = measure(Path(folder), steps)
    print(f'{"step":>8}{"RSS (MB)":>12}')
    for _, members in itertools.groupby(samples, lambda sample: sample[0] * _ROWS // steps):
        step, megabytes = next(members)
        print(f'{step:8}{megabytes:12.0f}')
    grows = slope(samples, steps)
    print(f'after step {_WARM * steps:.0f}: {grows:+.1f} MB per 1,000 steps')
    if _JSON.value:
        report.write_json(Path(_JSON.value), {'steps': steps, 'samples': samples, 'mb_per_1000_steps': grows})


if __name__ == '__main__':
    app.run(main)
