import contextlib
import functools

import jax
import numpy as np
import pytest

from p2p_jax.checkpoint import FOLDER, Checkpoints, replicate
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from tests.conftest import small_config

SIZE = (16, 16, 3)


@pytest.fixture(scope='module')
def job():
    config = small_config()
    config.ema.decay = 0.9
    return build_job(config, 10)


@pytest.fixture(scope='module')
def state(job):
    return replicate(jax.jit(functools.partial(job.create_state, 3, SIZE))())


def steps_on_disk(workdir):
    return sorted(int(path.name) for path in (workdir / FOLDER).iterdir())


def save_all(workdir, state, scores):
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        for step, psnr in scores.items():
            checkpoints.save(state, step, {'seed': step}, psnr)


def test_keeps_the_latest_two_and_the_best(tmp_path, state):
    save_all(tmp_path, state, {1: 30.0, 2: 33.0, 3: None, 4: 31.0, 5: None, 6: 32.0})
    assert steps_on_disk(tmp_path) == [2, 5, 6]
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert checkpoints.find('best') == 2
        assert checkpoints.find('latest') == 6
        assert checkpoints.find('5') == 5
        assert checkpoints.config(2) == {'seed': 2}
        with pytest.raises(UserError, match=r'--checkpoint=4: expected best, latest or one of .*: 2, 5, 6'):
            checkpoints.find('4')


def test_a_save_without_a_score_never_competes_for_best(tmp_path, state):
    save_all(tmp_path, state, {1: None, 2: 10.0, 3: None, 4: None, 5: None})
    assert steps_on_disk(tmp_path) == [2, 4, 5]
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.find('best') == 2


def test_best_is_the_latest_where_nothing_was_scored(tmp_path, state):
    save_all(tmp_path, state, {1: None, 2: None})
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.find('best') == 2


def test_restores_bit_for_bit_onto_all_local_devices(tmp_path, job, state):
    save_all(tmp_path, state, {7: 20.0})
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        restored = checkpoints.restore(7, jax.eval_shape(functools.partial(job.create_state, 3, SIZE)))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    plain = [s.replace(key=jax.random.key_data(s.key)) for s in (restored, state)]
    for a, b in zip(*map(jax.tree.leaves, plain), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
        assert len(a.sharding.device_set) == jax.local_device_count()


def test_a_folder_without_checkpoints_is_an_error_and_stays_as_it_is(tmp_path):
    with pytest.raises(UserError, match='no checkpoints there'):
        Checkpoints(tmp_path, read_only=True)
    assert not list(tmp_path.iterdir())


def test_a_half_written_checkpoint_is_passed_over(tmp_path, state):
    save_all(tmp_path, state, {1: 10.0, 2: 11.0})
    (tmp_path / FOLDER / '3.orbax-checkpoint-tmp').mkdir()
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.latest() == 2
