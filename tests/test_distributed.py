"""How a process finds out that it is one of several."""

import socket
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from p2p_jax import distributed
from p2p_jax.data.records import Record
from p2p_jax.data.sources import Source
from p2p_jax.distributed import Plan, joined, plan
from p2p_jax.lookup import UserError
from p2p_jax.watch import Place

SLURM = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'node[1-2]', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}
OPEN_MPI = {'OMPI_MCA_orte_hnp_uri': '0.0;tcp://10.0.0.1:1', 'OMPI_COMM_WORLD_SIZE': '4'}


@pytest.mark.parametrize(
    ('environ', 'found'),
    [
        ({}, None),
        (SLURM | {'SLURM_NTASKS': '2'}, 'Slurm started 2 processes'),
        (SLURM | {'SLURM_NTASKS': '1'}, None),
        (SLURM | {'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '1'}, None),  # a shell inside an allocation
        (
            {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'},
            None,
        ),
        (OPEN_MPI, 'Open MPI started 4 processes'),
        (OPEN_MPI | {'OMPI_COMM_WORLD_SIZE': '1'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b,c'}, 'TPU started 3 processes'),
        ({'TPU_WORKER_HOSTNAMES': 'a'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b', 'MEGASCALE_NUM_SLICES': '2'}, 'TPU started 4 processes'),
    ],
)
def test_launchers_are_known_by_their_environment(environ, found):
    planned = plan(None, None, None, 'auto', environ)
    assert (planned and planned.found) == found
    assert plan(None, None, None, 'off', environ) is None
    on = plan(None, None, None, 'on', environ)
    assert on and on.address is None


def test_flags_come_before_the_environment():
    assert plan('node1:1234', 1, 2, 'auto', OPEN_MPI) == Plan(('node1', 1234), Place(1, 2))
    assert plan('[fe80::1]:1234', 0, 2, 'on', {}) == Plan(('fe80::1', 1234), Place(0, 2))
    assert plan('node1:1234', 0, 1, 'auto', {}) is None


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (('node1:1', None, None, 'auto'), '--coordinator needs --process_id and --num_processes as well'),
        ((None, 0, None, 'auto'), '--process_id needs --coordinator and --num_processes as well'),
        (('node1:1', 0, None, 'off'), '--coordinator, --process_id needs --num_processes as well'),
        (('node1:1', 0, 2, 'off'), '--distributed=off contradicts --coordinator'),
        (('node1:1', 2, 2, 'auto'), '--process_id=2 --num_processes=2: processes are numbered from 0 to 1'),
        (('node1', 0, 2, 'auto'), '--coordinator=node1: expected host:port'),
        ((':1', 0, 2, 'auto'), '--coordinator=:1: expected host:port'),
        (('node1:99999', 0, 2, 'auto'), '--coordinator=node1:99999: expected host:port'),
        ((None, None, None, 'yes'), "--distributed='yes' is unknown"),
    ],
)
def test_flags_that_do_not_go_together(given, message):
    with pytest.raises(UserError, match=message):
        plan(*given, OPEN_MPI)


def test_processes_with_other_numbers_of_devices_are_an_error(monkeypatch):
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **where: None)
    monkeypatch.setattr(jax, 'devices', lambda: [SimpleNamespace(process_index=i) for i in (0, 1, 1, 2)])
    with pytest.raises(UserError, match='process 0 has 1, process 1 has 2, process 2 has 1'), joined(plan_of('on')):
        pass


def test_a_launcher_that_jax_does_not_know_is_an_error(monkeypatch):
    def initialize(**where):
        raise ValueError('coordinator_address should be defined.')

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    with pytest.raises(UserError, match='--distributed=on, but JAX cannot .*defined. Give --co'), joined(plan_of('on')):
        pass
    with joined(plan_of('off')):
        pass


def plan_of(mode):
    return plan(None, None, None, mode, {})


def others_say(monkeypatch, change):
    """Makes a second process of this one, which says the same, changed."""
    monkeypatch.setattr(distributed, 'gather', lambda text: [text, change(text)])
    monkeypatch.setattr(jax, 'process_count', lambda: 2)


def splits(*names):
    records = [Record(name, Source('file', Path(name)), size=(8, 8)) for name in names]
    return {'train': records, 'val': records[:1]}


def test_one_process_agrees_with_itself(tmp_path):
    distributed.check_same_config({'seed': 0})
    distributed.check_same_data(splits('a', 'b'))
    distributed.check_shared(tmp_path / 'run')
    assert not list(tmp_path.iterdir())


def test_another_configuration_is_an_error_that_lists_the_keys(monkeypatch):
    others_say(monkeypatch, lambda text: text.replace('lr": 0.1', 'lr": 0.2'))
    with pytest.raises(
        UserError, match=r'process 1 was started with another .*:\n  optim.lr: 0.1 in process 0, 0.2 in'
    ):
        distributed.check_same_config({'optim.lr': 0.1, 'seed': 3})
    distributed.check_same_config({'optim.lr': 0.3, 'data.dir': '0.1'})  # each host may keep its data elsewhere


def test_other_data_are_an_error_that_says_where(monkeypatch):
    others_say(monkeypatch, lambda text: distributed._fingerprint(splits('b', 'a')))
    distributed.check_same_data(splits('b', 'a'))
    for mine in (splits('a', 'b'), splits('b', 'a', 'c')):
        with pytest.raises(UserError, match=r'process 1 found other data than process 0') as error:
            distributed.check_same_data(mine)
        lines = str(error.value).splitlines()[1:]
        assert f'process 0 on {socket.gethostname()}: train {len(mine["train"])} examples (hash ' in lines[0]
        assert f'process 1 on {socket.gethostname()}: train 2 examples (hash ' in lines[1]


def test_a_workdir_that_is_not_shared_is_an_error(monkeypatch, tmp_path):
    others_say(monkeypatch, lambda text: text)
    distributed.check_shared(tmp_path / 'run')
    others_say(monkeypatch, lambda text: text.replace('True', 'False'))
    with pytest.raises(UserError, match=r'--workdir=.*/run: process 1 on .+ cannot see what process 0 writes there'):
        distributed.check_shared(tmp_path / 'run')
    assert not list((tmp_path / 'run').iterdir())
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'--workdir=.*/file: File exists; expected a folder'):
        distributed.check_shared(tmp_path / 'file')
