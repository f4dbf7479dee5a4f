"""A training that is asked to stop, then killed while it saves, ends as one that never was."""

import os
import shlex
import signal
import time
from pathlib import Path

from configs import default
from experiments.faults import training
from p2p_jax.train import train as in_process

STEPS = 14


def test_stopped_and_killed_it_ends_as_if_it_had_not_been(tmp_path, capsys):
    folder = tmp_path / 'größe 1'
    training.make_data(folder / 'files', labelled=False)

    def train(name):
        command = training.commands('generator', folder, name, STEPS)[1]
        command = [part.replace(f'{name}_data', 'files') for part in command]
        return command, training.start(command, folder / f'{name}.log', Path(os.environ['JAX_COMPILATION_CACHE_DIR']))

    def printed():
        return (folder / 'parts.log').read_text()

    config = default.get_config()
    config.update_from_flattened_dict(training.keys('generator', STEPS) | {'data.dir': str(folder / 'files')})
    in_process(config, folder / 'whole')
    command, process = train('parts')
    while 'first step after' not in printed():
        assert process.poll() is None, printed()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 128 + signal.SIGTERM, printed()
    assert 'Traceback' not in printed()
    again = printed().splitlines()[-1]
    assert shlex.split(again) == ['python', *command[1:]]

    command, process = train('parts')
    assert training.wait_and_kill(process, lambda: training.phase(folder / 'parts', folder / 'parts.log') == 'save', 0)
    assert process.returncode == -signal.SIGKILL

    capsys.readouterr()
    in_process(config, folder / 'parts')
    assert 'resuming at step' in capsys.readouterr().out
    assert training.differences(folder / 'whole', folder / 'parts') == []
    assert not list((folder / 'parts').rglob('*tmp'))
