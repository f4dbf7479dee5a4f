import contextlib
import errno
import functools
import shutil

import jax
import numpy as np
import pytest

from p2p_jax import integrity
from p2p_jax.checkpoint import FOLDER, Checkpoints, replicate
from p2p_jax.integrity import MANIFEST, find_damage
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


def damage(path, how):
    """Damages a file as disks and people do."""
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    path.write_bytes({'flipped': flipped, 'truncated': content[:-1], 'empty': b''}.get(how, content))
    if how == 'missing':
        path.unlink()


@pytest.fixture(scope='module')
def saved(tmp_path_factory, state):
    """A workdir with checkpoints of three steps, of which the first is the best."""
    workdir = tmp_path_factory.mktemp('saved')
    save_all(workdir, state, {1: 30.0, 2: 20.0, 3: 25.0})
    return workdir


def test_any_damage_to_any_file_is_found_and_the_file_named(saved):
    folder = saved / FOLDER / '3'
    assert find_damage(folder) is None
    for path in [path for path in folder.rglob('*') if path.is_file()]:
        content = path.read_bytes()
        # The middle of that one is a path, which nobody reads.
        for how in ('flipped', 'truncated', 'empty', 'missing')[path == folder / 'commit_success.txt' :]:
            damage(path, how)
            found = find_damage(folder)
            # A damaged list may accuse what it lists.
            assert found is not None and (str(path) in found or path.name == MANIFEST), (path, how, found)
            path.write_bytes(content)
    (folder / 'state' / 'more').touch()
    assert 'state/more does not belong there' in find_damage(folder)
    (folder / 'state' / 'more').unlink()
    assert find_damage(folder) is None


def test_a_damaged_checkpoint_is_passed_over(saved, tmp_path, job, capsys):
    shutil.copytree(saved, tmp_path / 'run')
    folder = tmp_path / 'run' / FOLDER
    broken = next((folder / '3' / 'state' / 'd').iterdir())
    damage(broken, 'flipped')
    with contextlib.closing(Checkpoints(tmp_path / 'run', read_only=True)) as checkpoints:
        assert checkpoints.find('latest') == 2
        assert f'warning: {broken} is damaged; the checkpoint of step 3 is passed over' in capsys.readouterr().err
        with pytest.raises(UserError, match=rf'--checkpoint=3: {broken} is damaged'):
            checkpoints.find('3')
        assert checkpoints.find('best') == 1
        damage(folder / '1' / 'metrics' / 'metrics', 'empty')
        assert checkpoints.find('best') == 2  # of what is whole
    with contextlib.closing(Checkpoints(tmp_path / 'run', read_only=True)) as checkpoints:
        assert checkpoints.find('best') == 2 and checkpoints.config(2)
    assert sorted(path.name for path in folder.iterdir()) == ['1', '2', '3']  # who only reads touches nothing
    for again in range(2):
        with contextlib.closing(Checkpoints(tmp_path / 'run')) as checkpoints:
            assert checkpoints.latest() == 2
        assert (f'moved to {folder.parent}/damaged/3' in capsys.readouterr().err) == (not again)
    assert sorted(path.name for path in (folder.parent / 'damaged').iterdir()) == ['1', '3']
    assert (folder.parent / 'damaged' / '3' / MANIFEST).is_file()


def test_where_all_are_damaged_nothing_is_touched(saved, tmp_path):
    shutil.copytree(saved, tmp_path / 'run')
    for path in (tmp_path / 'run').rglob('manifest.ocdbt'):
        damage(path, 'missing')
    before = sorted((tmp_path / 'run').rglob('*'))
    with pytest.raises(UserError, match=r'no checkpoint is as it was saved \(nothing was touched\)(.|\n)*is missing'):
        Checkpoints(tmp_path / 'run')
    with (
        contextlib.closing(Checkpoints(tmp_path / 'run', read_only=True)) as checkpoints,
        pytest.raises(UserError, match='no checkpoint is as it was saved'),
    ):
        checkpoints.find('best')
    assert sorted((tmp_path / 'run').rglob('*')) == before


def test_a_checkpoint_of_a_version_without_a_list_is_taken(saved, tmp_path):
    shutil.copytree(saved, tmp_path / 'run')
    folder = tmp_path / 'run' / FOLDER / '3'
    (folder / MANIFEST).unlink()
    assert 'is missing' in find_damage(folder)
    shutil.rmtree(folder / 'standing')
    assert find_damage(folder) is None
    with contextlib.closing(Checkpoints(tmp_path / 'run', read_only=True)) as checkpoints:
        assert checkpoints.find('latest') == 3 and checkpoints.standing(3) == {} and checkpoints.config(3)


def test_a_save_of_the_same_step_replaces_it(tmp_path, state):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, 1, {'seed': 1}, None, {'due': True})
        checkpoints.save(state, 1, {'seed': 1}, 20.0, {'due': False})
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert checkpoints.standing(1) == {'due': False}
        assert checkpoints.find('best') == 1


@pytest.mark.parametrize('where', ['during the next step', 'at the end'])
def test_a_save_that_fails_in_the_background_is_told(tmp_path, state, monkeypatch, where):
    def full(folder):
        raise OSError(errno.ENOSPC, 'No space left on device')

    workdir = tmp_path / 'größe 1'
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, 1, {}, None)
    checkpoints._manager.wait_until_finished()
    checkpoints.check()
    monkeypatch.setattr(integrity, 'seal', full)
    checkpoints.save(state, 2, {}, None)
    said = r'größe 1/checkpoints: the checkpoint of step 2 was not written \(No space left on device; make room\); '
    with pytest.raises(UserError, match=f'{said}the last good one is that of step 1'):
        if where == 'at the end':
            checkpoints.close()
        while True:
            checkpoints.check()
    monkeypatch.undo()
    save_all(workdir, state, {3: None})  # which also removes what was left unfinished
    assert steps_on_disk(workdir) == [1, 3]
