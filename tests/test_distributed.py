"""How a process finds out that it is one of several."""

import pytest

from p2p_jax.distributed import Plan, plan
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
        ),  # sbatch, no srun
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
