"""One training a workdir."""

import json
import os
import re
import socket

import pytest

from p2p_jax import lock
from p2p_jax.lock import NAME, Lock
from p2p_jax.lookup import UserError


def owner(**changes):
    """What a lock says that this process, or another, wrote."""
    facts = {'host': socket.gethostname(), 'pid': os.getpid(), 'born': lock._born(os.getpid())}
    return {**facts, 'started': '2026-01-02T03:04:05+00:00', 'command': 'main train', **changes}


def test_the_second_is_refused_and_told_by_whom(tmp_path):
    with Lock(tmp_path / 'run'):
        said = rf'run is in use by process {os.getpid()} on {re.escape(socket.gethostname())}, started 20.*: .*pytest'
        with pytest.raises(UserError, match=said), Lock(tmp_path / 'run'):
            pass
        (tmp_path / 'run' / 'a').touch()
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['a']
    with Lock(tmp_path / 'run'):
        pass


def test_a_workdir_that_nothing_was_written_to_goes_again(tmp_path):
    with Lock(tmp_path / 'run'):
        assert (tmp_path / 'run' / NAME).is_file()
    assert not (tmp_path / 'run').exists()
    (tmp_path / 'empty').mkdir()
    with Lock(tmp_path / 'empty'):
        pass
    assert (tmp_path / 'empty').is_dir()


@pytest.mark.parametrize('left', ['', '{"host"', '[]', json.dumps(owner())])
def test_what_a_killed_training_left_is_taken_over(tmp_path, left):
    (tmp_path / NAME).write_text(left)
    with Lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())['pid'] == os.getpid()
    assert not (tmp_path / NAME).exists()


def test_another_host_is_refused_and_how_to_go_on(tmp_path):
    (tmp_path / NAME).write_text(json.dumps(owner(host='elsewhere', pid=7)))
    with pytest.raises(UserError, match=rf'process 7 on elsewhere.* if it does not, remove {tmp_path}/{NAME}'):
        Lock(tmp_path).__enter__()
    assert json.loads((tmp_path / NAME).read_text())['host'] == 'elsewhere'


def test_where_a_storage_has_no_locks_the_process_is_looked_for(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, 'Operation not supported')

    monkeypatch.setattr(lock.fcntl, 'flock', unsupported)
    (tmp_path / NAME).write_text(json.dumps(owner()))
    with pytest.raises(UserError, match='is in use by process'):
        Lock(tmp_path).__enter__()
    # The number belongs to a younger process; there is none of that number.
    for gone in (owner(born='1'), owner(pid=2**22 - 1)):
        (tmp_path / NAME).write_text(json.dumps(gone))
        with Lock(tmp_path):
            pass


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / 'a').touch()
    with pytest.raises(UserError, match='that is a file; expected a folder'):
        Lock(tmp_path / 'a').__enter__()
