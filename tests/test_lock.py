"""One training a workdir."""

import json
import os
import re
import socket
import threading
import time

import pytest

from p2p_jax import lock
from p2p_jax.lock import NAME, Lock
from p2p_jax.lookup import UserError


def owner(**changes):
    """What a lock says that this process, or another, wrote."""
    facts = {'host': socket.gethostname(), 'pid': os.getpid()}
    return {**facts, 'started': '2026-01-02T03:04:05+00:00', 'command': 'main train', **changes}


def test_the_second_is_refused_and_told_by_whom(tmp_path):
    with Lock(tmp_path / 'run'):
        said = (
            rf'run is in use by process {os.getpid()} on {re.escape(socket.gethostname())}, started 20.*: .*Wait for it'
        )
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
    with Lock(tmp_path / 'new' / 'run'):
        pass
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('left', ['', '{"host"', '[]', json.dumps(owner(pid=7))])
def test_what_a_killed_training_left_is_taken_over(tmp_path, left):
    (tmp_path / NAME).write_text(left)
    with Lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())['pid'] == os.getpid()
    assert not (tmp_path / NAME).exists()


def beats(path, stop):
    while not stop.wait(0.02):
        os.utime(path)


@pytest.mark.parametrize('where', ['elsewhere', 'here, without locks'])
def test_an_owner_that_cannot_be_asked_is_watched_for_signs_of_life(tmp_path, monkeypatch, where):
    monkeypatch.setattr(lock, '_SILENCE', 0.4)
    host = 'elsewhere'
    if where != host:
        host = socket.gethostname()

        def unsupported(*_):
            raise OSError(95, 'Operation not supported')

        monkeypatch.setattr(lock.fcntl, 'flock', unsupported)
    (tmp_path / NAME).write_text(json.dumps(owner(host=host, pid=7)))
    stop = threading.Event()
    thread = threading.Thread(target=beats, args=(tmp_path / NAME, stop))
    thread.start()
    with pytest.raises(UserError, match=f'in use by process 7 on {host}.*main train. Wait for it'):
        Lock(tmp_path).__enter__()
    stop.set()
    thread.join()
    assert json.loads((tmp_path / NAME).read_text())['pid'] == 7
    with Lock(tmp_path):  # its owner has gone
        assert json.loads((tmp_path / NAME).read_text())['pid'] == os.getpid()


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, '_BEAT', 0.02)
    with Lock(tmp_path):
        os.utime(tmp_path / NAME, (0, 0))
        deadline = time.monotonic() + 10
        while not os.stat(tmp_path / NAME).st_mtime and time.monotonic() < deadline:
            time.sleep(0.02)
        assert os.stat(tmp_path / NAME).st_mtime > 0


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / 'a').touch()
    with pytest.raises(UserError, match='that is a file; expected a folder'):
        Lock(tmp_path / 'a').__enter__()
