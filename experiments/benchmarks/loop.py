"""What a training costs beside its steps: how long its loop takes for a step, and how long the step takes alone.

python -m experiments.benchmarks.loop --json=loop.json

It trains on photographs of the sample set, as PNG pairs of 286², with crops, flips and logs; checkpoint, picture and
scores come at the end, after the last log.
The loop's own record of images a second is compared with the same compiled step on one batch that lies on the device,
measured before and after in the same process. Start-up is that of the command line, in processes of its own: without
compiled programs on disk, and with those that the first start left there.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from configs import default
from experiments.benchmarks.pairs import make_pairs
from p2p_jax import report, startup

_JSON = flags.DEFINE_string('json', None, 'File for the figures.')
_STEPS = flags.DEFINE_integer('steps', 60, 'Length of the training.')
_BATCH = flags.DEFINE_integer('batch', 4, 'Images of a step.')
_SIZE = flags.DEFINE_integer('size', 286, 'Of the images, pixels; the crops are of 256.')


def make_config(folder: Path, steps: int, batch: int) -> Any:
    """Returns the default U-Net-256 and PatchGAN on the pairs, logged after each third."""
    config = default.get_config()
    config.data.update(dir=str(folder), limit=(None, 2, 2))
    config.train.update(steps=steps, batch_size=batch)
    config.log.every_steps = max(steps // 3, 1)
    config.eval.every_steps = config.checkpoint.every_steps = steps
    return config


def step_alone(config: Any, count: int) -> list[float]:
    """Seconds of each of `count` steps of the compiled program on one batch on the device, after one."""
    import jax

    from p2p_jax.checkpoint import replicate
    from p2p_jax.data.pipeline import split_over_devices
    from p2p_jax.job import build_job, training_size
    from p2p_jax.loop import map_steps

    job = build_job(config, config.train.steps)
    step = map_steps(job, config.train.steps)['both']
    state = replicate(jax.jit(lambda: job.create_state(0, training_size(config)))())
    batch, size = config.train.batch_size, config.data.crop_size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    arrays = {'condition': pixels, 'target': pixels, 'mask': np.ones(batch, np.float32)}
    arrays['index'] = np.arange(batch, dtype=np.int32)
    local = split_over_devices(arrays, jax.local_device_count())
    taken = []
    for _ in range(count + 1):
        began = time.perf_counter()
        state, metrics = step(state, local, {})
        jax.block_until_ready((state, metrics))
        taken.append(time.perf_counter() - began)
    return taken[1:]


def in_the_loop(config: Any, workdir: Path) -> dict[str, float]:
    """Trains; returns seconds a step and the share of time waited for data, means over the logs but the first."""
    from p2p_jax.train import train

    train(config, workdir)
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    logs = [line for line in lines if 'images_per_second' in line][1:]
    seconds = [config.train.batch_size / line['images_per_second'] for line in logs]
    return {'step_s': statistics.mean(seconds), 'data_wait': statistics.mean(line['data_wait'] for line in logs)}


def seconds_to_first_step(folder: Path, name: str, cache: Path) -> float:
    """Seconds from the command, on the sample configuration, to the end of the first step; the training then ends."""
    command = [sys.executable, '-m', 'p2p_jax.main', '--config=configs/sample.py', f'--workdir={folder / name}']
    began = time.perf_counter()
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        for line in process.stdout:
            if re.match('first step', line):
                seconds = time.perf_counter() - began
                process.send_signal(signal.SIGKILL)
                return seconds
    raise RuntimeError(f'{" ".join(command)} ended with code {process.returncode} before its first step')


def main(_: list[str]) -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cold, warm = (seconds_to_first_step(folder, run, folder / 'compiled') for run in ('cold', 'warm'))
        began = time.perf_counter()
        subprocess.run([sys.executable, '-m', 'p2p_jax.main', '--help'], check=True, stdout=subprocess.DEVNULL)
        help_seconds = time.perf_counter() - began
        make_pairs(folder / 'pairs', _SIZE.value, 32)
        config = make_config(folder / 'pairs', _STEPS.value, _BATCH.value)
        alone = step_alone(config, _STEPS.value // 3)
        loop = in_the_loop(config, folder / 'run')
        alone += step_alone(config, _STEPS.value // 3)
    figures = {
        'step_alone_s': statistics.median(alone),
        'step_alone_mean_s': statistics.mean(alone),
        'step_in_loop_s': loop['step_s'],
        'overhead': loop['step_s'] / statistics.mean(alone) - 1,
        'data_wait': loop['data_wait'],
        'help_s': help_seconds,
        'first_step_cold_s': cold,
        'first_step_warm_s': warm,
    }
    print(
        f'\nstep alone {1000 * figures["step_alone_mean_s"]:.0f} ms, in the loop {1000 * loop["step_s"]:.0f} ms: '
        f'{figures["overhead"]:+.1%}; {loop["data_wait"]:.2%} of the time waited for data\n'
        f'--help {help_seconds:.2f} s; first step of the sample training after {cold:.1f} s, '
        f'with compiled programs on disk after {warm:.1f} s'
    )
    if _JSON.value:
        report.write_json(Path(_JSON.value), {'cores': os.cpu_count(), 'steps': _STEPS.value} | figures)


if __name__ == '__main__':
    startup.use_huge_pages()
    logging.use_absl_handler()
    logging.get_absl_handler().setLevel('CRITICAL')
    app.run(main)
