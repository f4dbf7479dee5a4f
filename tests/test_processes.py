"""Two processes on loopback train, save, resume and score as one process with two devices does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_pairs

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
import jax
rank, count, port, data, workdir, steps = sys.argv[1:]
if int(count) > 1:
    jax.distributed.initialize(f'localhost:{port}', int(count), int(rank))
from p2p_jax.train import train
from tests.conftest import small_config
config = small_config(Path(data))
config.train.steps = int(steps)
train(config, Path(workdir))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]


def launch(count, data, workdir, steps):
    """Trains in `count` processes with two devices between them."""
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    code = PROGRAM
    if count > 1:  # the conftest that the program imports would give each process two devices
        code = code.replace('import jax', 'import tests.conftest, os; os.environ["XLA_FLAGS"] = ""\nimport jax', 1)
    port = free_port()
    arguments = [str(port), str(data), str(workdir), str(steps)]
    running = [
        subprocess.Popen(
            [sys.executable, '-c', code, str(rank), str(count), *arguments],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        printed = [process.communicate(timeout=200)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * count, '\n'.join(p[-3000:] for p in printed)
    return printed


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.split('/')[0] in ('loss', 'd', 'grad_norm', 'val')} for line in lines]


def test_two_processes_equal_one(tmp_path):
    for seed, split in ((0, 'train'), (100, 'val'), (200, 'test')):
        write_pairs(tmp_path / 'pairs' / split, 5, seed)
    launch(1, tmp_path / 'pairs', tmp_path / 'one', 6)
    first, second = launch(2, tmp_path / 'pairs', tmp_path / 'two', 4)
    assert 'training on 2 cpu device(s)' in first
    assert 'training on' not in second  # only the first process talks
    resumed, _ = launch(2, tmp_path / 'pairs', tmp_path / 'two', 6)
    assert 'resuming at step 4' in resumed
    one, two = losses(tmp_path / 'one'), losses(tmp_path / 'two')
    assert len(one) == len(two) >= 5
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    scores = [json.loads((tmp_path / name / 'test.json').read_text()) for name in ('one', 'two')]
    for side in ('input', 'output'):
        assert scores[0][side] == pytest.approx(scores[1][side], abs=1e-4)
    assert scores[0]['count'] == scores[1]['count'] == 5
