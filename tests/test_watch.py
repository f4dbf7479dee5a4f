"""Processes that watch one another: who goes, and what the others do and say. No JAX, so that it is quick."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from p2p_jax import watch
from p2p_jax.lookup import UserError
from p2p_jax.watch import Place

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, signal, sys, time
from p2p_jax import watch
from p2p_jax.lookup import UserError
watch._GRACE = 1.0
index, port, act = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
place = watch.Place(index, 3)
if index == 0:
    with watch.listen(port) as server:
        peers = watch.assemble(server, place, 20)
else:
    peers = {0: watch.call([('localhost', port)], place, 20)[0]}
try:
    with watch.Watch(place, peers, 1.5):
        time.sleep(0.3)
        if act in ('KILL', 'STOP'):
            os.kill(os.getpid(), getattr(signal, f'SIG{act}'))
        if 'late' in act:
            time.sleep(0.6)
        if 'error' in act:
            raise UserError('bad input')
        if act == 'collective':
            time.sleep(0.1)
            raise ValueError('connection reset by peer')
        time.sleep(60 if act == 'wait' else 0.1)
except UserError as error:
    print(f'own error: {error}', file=sys.stderr)
    sys.exit(2)
"""


def free_port():
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]


def play(*acts):
    """Runs three processes; returns the exit code of each and what it said."""
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    port = str(free_port())
    running = [
        subprocess.Popen([sys.executable, '-c', PROGRAM, str(i), port, act], env=env, stderr=subprocess.PIPE, text=True)
        for i, act in enumerate(acts)
    ]
    try:
        for process, act in zip(running, acts, strict=True):
            if act != 'STOP':
                process.wait(timeout=30)
    finally:
        for process in running:
            process.kill()
    said = [process.communicate()[1] for process in running]
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize(
    ('act', 'code', 'message'),
    [
        ('KILL', -signal.SIGKILL, r'is gone: killed, or its host is.* Start all processes again'),
        ('STOP', -signal.SIGKILL, r'has given no sign of life for 2 s. Start all processes again'),
        ('error', 2, r'ended with error: bad input'),
    ],
)
def test_whoever_goes_ends_the_others_by_name(victim, act, code, message):
    ends = play(*(act if i == victim else 'wait' for i in range(3)))
    assert ends.pop(victim)[0] == code
    for returncode, said in ends:
        assert returncode == watch.LOST, said
        assert re.fullmatch(rf'error: process {victim} of 3 \(.+, pid \d+\) {message}.*\n', said), said


@pytest.mark.parametrize(('act', 'said'), [('KILL', 'is gone'), ('error', 'ended with error: bad input')])
def test_an_operation_that_failed_since_another_went_is_told_as_that(act, said):
    for code, text in play('collective', act, 'collective')[::2]:
        assert re.fullmatch(rf'error: process 1 of 3 \(.+\) {said}.*\n', text), text
        assert code == watch.LOST


def test_an_error_of_all_is_told_by_each_as_its_own():
    assert play('late error', 'error', 'late error') == [(2, 'own error: bad input\n')] * 3


def test_a_farewell_is_no_loss():
    assert play('late', 'done', 'done') == [(0, '')] * 3


def hello(port, index, count, name):
    with socket.create_connection(('localhost', port)) as caller:
        peer = watch.Peer(caller)
        peer.send(index=index, count=count, name=name)
        return peer.receive(5)


@pytest.mark.parametrize(
    ('callers', 'message'),
    [
        ([(2, 3)], r'process 1 of 3 did not come to .+:\d+ within 1 s'),
        ([(1, 3), (1, 3)], r'two processes have the same number: caller 1 and caller 0'),
        ([(0, 3)], r'two processes have the same number: caller 0 and process 0 of 3'),
        ([(1, 2)], r'caller 0 was started as one of 2 processes, process 0 of 3 \(.+\) as one of 3'),
    ],
)
def test_the_first_process_says_what_is_wrong_and_tells_those_that_came(callers, message):
    answers = []
    with watch.listen() as server:
        port = server.getsockname()[1]
        threads = [
            threading.Thread(target=lambda i=i, c=c: answers.append(hello(port, *c, f'caller {i}')))
            for i, c in enumerate(callers)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        with pytest.raises(UserError, match=message) as error:
            watch.assemble(server, Place(0, 3), 1)
        for thread in threads:
            thread.join()
    assert answers == [{'refused': str(error.value)}] * len(callers)


def test_strangers_and_processes_that_were_started_again_do_not_disturb():
    told = {}
    with watch.listen() as server, contextlib.ExitStack() as stack:
        port = server.getsockname()[1]
        for said in (b'GET / HTTP/1.1\r\n', b'[]\n', b'{}\n', b'{"index": 1, "count": 3, "name": "at once"}\n'):
            with socket.create_connection(('localhost', port)) as stranger:
                stranger.sendall(said)
        earlier = stack.enter_context(socket.create_connection(('localhost', port)))
        earlier.sendall(b'{"index": 1, "count": 3, "name": "earlier"}\n')
        threads = [threading.Thread(target=lambda: told.update(watch.assemble(server, Place(0, 3), 5, port=7)))]
        threads += [
            threading.Thread(target=lambda i=i: told.update({-i: watch.call([('localhost', port)], Place(i, 3), 5)}))
            for i in (1, 2)
        ]
        threads[0].start()
        time.sleep(0.2)
        earlier.close()
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(told) == [-2, -1, 1, 2]
    for i in (1, 2):
        peer, announced = told[-i]
        assert announced == {'port': 7} and peer.name.startswith('process 0 of 3')
        assert told[i].name == str(Place(i, 3))
        peer.close()
        told[i].close()


def test_a_first_process_that_cannot_be_reached_is_an_error_in_time():
    port = free_port()
    began = time.monotonic()
    with pytest.raises(UserError, match=rf'could not reach the first process at localhost:{port} within 1 s'):
        watch.call([('localhost', port)], Place(1, 2), 1)
    assert time.monotonic() - began < 3
    with pytest.raises(UserError, match=r'nowhere.invalid:1 within 1 s'):
        watch.call([('nowhere.invalid', 1)], Place(1, 2), 1)


def test_a_port_that_is_taken_is_an_error():
    with watch.listen() as server, pytest.raises(UserError, match=r'port \d+ of .+ cannot be opened'):
        watch.listen(server.getsockname()[1])
