"""The small trainings that faults are tried on: data, commands, what they are doing, whether two of them are equal."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
STEPS, LOG, EVALUATE, SAVE = 60, 4, 20, 6  # checkpoints fall between two logs and between two evaluations
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


def make_data(folder: Path, *, labelled: bool) -> None:
    """Writes small pictures below train/, val/ and test/, as pairs or by class."""
    random = np.random.default_rng(0)
    sides = ('cat', 'dog') if labelled else ('input', 'target')
    for split, count in (('train', 6), ('val', 4), ('test', 4)):
        for i in range(count):
            for side in sides:
                if labelled or side == 'input':  # a pair shows the same, two classes do not
                    image = np.kron(random.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
                path = folder / split / side / f'{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image if side == sides[0] else image // 2).save(path)


def keys(job: str, steps: int) -> dict[str, Any]:
    """Returns what of the default configuration is changed for a job."""
    return _SMALL | JOBS[job] | {'train.steps': steps}


def commands(job: str, folder: Path, name: str, steps: int) -> list[list[str]]:
    """Returns the command that prepares the files below `folder` and the one that trains on them in folder/name."""
    prepared = folder / f'{name}_data'
    main = [sys.executable, '-m', 'p2p_jax.main']
    config = ['--config=configs/default.py', *(f'--config.{key}={value}' for key, value in keys(job, steps).items())]
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
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
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


def _log_values(workdir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ('time', 'images_per_second', 'data_wait')} for line in lines]


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
