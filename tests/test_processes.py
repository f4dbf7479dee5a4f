"""Processes on loopback train, lose one another, resume and score as a single device does."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from p2p_jax.checkpoint import FOLDER
from p2p_jax.train import train
from p2p_jax.watch import LOST
from tests.conftest import small_config, write_pairs
from tests.test_watch import free_port

ROOT = Path(__file__).parents[1]
STEPS, KILLED, KEPT = 20, 15, 10  # in all; the checkpoint that is not saved, and the one that is
# The command line, with something done whenever a checkpoint is saved.
PROGRAM = """
import hashlib, os, signal, sys
import jax
from p2p_jax import checkpoint, main

save = checkpoint.Checkpoints.save

def die(checkpoints, state, step, *more):
    if step == {killed}:
        checkpoints._manager.wait_until_finished()
        os.kill(os.getpid(), signal.SIGKILL)
    save(checkpoints, state, step, *more)

def compare(checkpoints, state, step, *more):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key))):
        copies = [shard.data.__array__().tobytes() for shard in leaf.addressable_shards]
        assert len(copies) == 2 and len(set(copies)) == 1, 'the copies differ'
        digest.update(copies[0])
    print('copies', step, digest.hexdigest(), flush=True)
    save(checkpoints, state, step, *more)

checkpoint.Checkpoints.save = {act}
sys.exit(main.main(sys.argv))
"""


def tiny_config(data):
    """A training of 1×1 convolutions in D, which compiles fast; batch norm and instance norm, no dropout."""
    config = small_config(data)
    config.update_from_flattened_dict(
        {'generator.unet.width': 4, 'discriminator.patchgan.strided': 0, 'discriminator.patchgan.unstrided': 2}
        | {'train.steps': STEPS, 'log.every_steps': 1, 'eval.every_steps': 10, 'checkpoint.every_steps': 5}
    )
    return config


def free(port):
    with socket.socket() as s, contextlib.suppress(OSError):
        s.bind(('localhost', port))
        return True
    return False


def launch(root, workdir, *, devices=1, act='save', environ=None, flags=()):
    """Starts a process that trains in `workdir`; returns it."""
    forced = '' if devices == 1 else f'--xla_force_host_platform_device_count={devices}'
    env = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': f'--xla_backend_optimization_level=1 {forced}'}
    program = PROGRAM.format(act=act, killed=KILLED)
    return subprocess.Popen(
        [sys.executable, '-c', program, f'--config={root / "config.py"}', f'--workdir={workdir}', *flags],
        env=env | (environ or {}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(running):
    """Waits for processes; returns the exit code of each and what it printed."""
    try:
        printed = [process.communicate(timeout=500)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, printed, strict=True)]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """What was printed by one process, by two of which one is killed, and by two that go on where those were."""
    root = tmp_path_factory.mktemp('processes')
    for seed, split in ((0, 'train'), (100, 'val'), (200, 'test')):
        write_pairs(root / 'pairs' / split, 5, seed)
    # The configuration without what the tests' own module does to the devices.
    values = tiny_config(root / 'pairs').to_dict()
    (root / 'config.py').write_text(
        f'import ml_collections\nget_config = lambda: ml_collections.ConfigDict({values!r})\n'
    )
    port = free_port()
    meet = [f'--coordinator=localhost:{port}', '--num_processes=2']
    killed = [
        launch(root, root / 'two', act=act, flags=[*meet, f'--process_id={i}']) for i, act in enumerate(('save', 'die'))
    ]
    one = launch(root, root / 'one')
    printed = {'killed': finish(killed), 'one': finish([one])}
    shutil.copytree(root / 'two', root / 'elsewhere')
    # As srun on a host of its own sets them; JAX's port depends on the number of the job.
    job = next(job for job in range(4096) if free(61440 + job))
    slurm = {'SLURM_JOB_ID': str(job), 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2'}
    printed['resumed'] = finish(
        [
            launch(
                root,
                root / 'two',
                devices=2,
                act='compare',
                environ=slurm | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)},
            )
            for i in range(2)
        ]
    )
    return root, printed


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.split('/')[0] in ('loss', 'd', 'grad_norm', 'val')} for line in lines]


def assert_same_training(workdir, other):
    one, two = losses(workdir), losses(other)
    assert len(one) == len(two) == STEPS + 2
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    scores = [json.loads((path / 'test.json').read_text()) for path in (workdir, other)]
    for side in ('input', 'output'):
        assert scores[0][side] == pytest.approx(scores[1][side], abs=1e-4)
    assert scores[0]['count'] == scores[1]['count'] == 5


def test_a_killed_process_ends_the_others_by_name(runs):
    (code, said), (killed, _) = runs[1]['killed']
    assert killed < 0 and code == LOST, said
    assert re.search(r'^error: process 1 of 2 \(.+, pid \d+\) is gone: killed, or its host is', said, re.MULTILINE), (
        said
    )
    assert 'Start all processes again' in said
    assert 'Traceback' not in said and 'Check failure stack trace' not in said


def test_two_processes_with_one_device_and_then_with_two_each_equal_one_device(runs):
    root, printed = runs
    (code, first), (other_code, second) = printed['resumed']
    assert code == other_code == printed['one'][0][0] == 0, first + second
    assert 'training on 1 cpu device(s)' in printed['one'][0][1]
    assert 'training on 2 cpu device(s)' in printed['killed'][0][1]
    assert 'Slurm started 2 processes' in first
    assert 'training on 4 cpu device(s)' in first and f'resuming at step {KEPT}' in first
    assert 'step' not in re.sub('copies.*', '', second) and 'test' not in second  # only the first process talks
    assert_same_training(root / 'one', root / 'two')


def test_all_copies_of_the_state_agree(runs):
    copies = [[line for line in text.splitlines() if line.startswith('copies')] for _, text in runs[1]['resumed']]
    assert copies[0] == copies[1]
    assert [line.split()[1] for line in copies[0]] == ['15', '20']


def test_one_process_goes_on_where_two_were_and_two_devices_where_one_was(runs, capsys):
    root = runs[0]
    train(tiny_config(root / 'pairs'), root / 'elsewhere')
    assert f'resuming at step {KEPT}' in capsys.readouterr().out
    assert_same_training(root / 'one', root / 'elsewhere')
    shutil.copytree(root / 'one', root / 'more devices')
    shutil.rmtree(root / 'more devices' / FOLDER / str(STEPS))
    train(tiny_config(root / 'pairs'), root / 'more devices')
    printed = capsys.readouterr().out
    assert f'resuming at step {STEPS - 5}' in printed and 'training on 2 cpu device(s)' in printed
    assert_same_training(root / 'one', root / 'more devices')
