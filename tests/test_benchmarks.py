"""The parts of the benchmarks that decide whether their figures are right; what measures is not run."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import train_step
from experiments.benchmarks.search import largest
from p2p_jax.job import build_job, training_size


@pytest.mark.parametrize('name', train_step.NETWORKS)
def test_the_peer_has_the_same_networks(name):
    peer = pytest.importorskip('experiments.benchmarks.peer', exc_type=ImportError)
    config = train_step.NETWORKS[name].config()
    train_step.NETWORKS[name].change(config)
    job = build_job(config, 1)
    state = jax.eval_shape(lambda: job.create_state(0, training_size(config)))
    networks = [state.generator, *([state.discriminator] if state.discriminator else [])]
    ours = [sum(leaf.size for leaf in jax.tree.leaves(network.params)) for network in networks]
    assert ours == [peer.count(network) for network in peer.NETWORKS[name]() if network is not None]


def test_the_peer_learns():
    peer = pytest.importorskip('experiments.benchmarks.peer', exc_type=ImportError)
    trainer = peer.Trainer('labels', channels_last=True, compiled=False, bfloat16=False)
    condition, target = train_step.batch_of(train_step.Case('labels', 8, 'float32'), 32)
    losses = [trainer.step(condition, target) for _ in range(5)]
    assert all(np.isfinite(list(values.values())).all() for values in losses)
    assert losses[-1]['d_real'] < losses[0]['d_real']


@pytest.mark.parametrize('most', [0, 1, 2, 5, 12, 64, 1000])
def test_the_largest_number_that_fits_is_found(most):
    tried = []

    def fits(number):
        tried.append(number)
        return number <= most

    assert largest(fits, 1, 64) == min(most, 64)
    assert len(tried) == len(set(tried)) <= 14
    assert largest(lambda number: number <= most, 256, 1024, 128) == min(most // 128 * 128, 1024)


def test_the_rows_of_the_table():
    names = {case.name for case in train_step.all_cases(gpu=False)}
    assert {f'unet-{batch}-{dtype}' for batch in (1, 4, 16) for dtype in ('float32', 'bfloat16')} < names
    assert 'unet-64-bfloat16' in {case.name for case in train_step.all_cases(gpu=True)}


def test_scale_on_paper(tmp_path):
    """More GPUs: less time, more to exchange and to deliver; a GPU alone waits for no other."""
    output = tmp_path / 'scale.json'
    command = [sys.executable, '-m', 'experiments.benchmarks.scale', '--tflops=50', f'--json={output}']
    subprocess.run(command, check=True, capture_output=True)
    figures = json.loads(output.read_text())
    work, rows = figures['work'], figures['rows'][:3]
    assert [row['gpus'] for row in rows] == [1, 8, 64] and rows[0]['exchange_s'] == 0
    assert rows[0]['epoch_s'] == pytest.approx(16_000 * work['flop'] / 50e12)
    assert rows[2]['exchange_s'] == pytest.approx(2 * 63 / 64 * work['exchanged'] / 25e9)
    assert rows[0]['epoch_s'] > rows[1]['epoch_s'] > rows[2]['epoch_s']
    assert rows[0]['pairs_per_second'] < rows[1]['pairs_per_second'] < rows[2]['pairs_per_second']
