"""Several processes as one training: who they are, that they mean the same, and that the end of one is the end of all.

Started by hand, they meet at the address of the first (`--coordinator`); under Slurm, Open MPI and on TPU pods JAX
finds out from the environment.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from p2p_jax import watch
from p2p_jax.data.records import Splits
from p2p_jax.lookup import UserError, pick, shortlist

# Seconds that processes wait for one another at the start; for a sign of life afterwards; and after which JAX ends them
# where the watch could not.
JOIN, SILENCE, JAX_SILENCE = 300, 40, 50
_SEEN = 30  # seconds until a network file system shows what another host wrote
_OF_A_HOST = ('data.dir', 'data.cache_mb', 'data.threads', 'data.prefetch')  # keys that may differ between hosts
_ADDRESSES = 1024  # bytes in which the first process tells where it listens


def _slurm(environ: Mapping[str, str]) -> int:
    """Tasks of the step that srun started; a shell in an allocation is no step of several."""
    if not {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID'} <= environ.keys():
        return 1
    return int(environ.get('SLURM_STEP_NUM_TASKS', environ.get('SLURM_NTASKS', '1')))


def _open_mpi(environ: Mapping[str, str]) -> int:
    return int(environ.get('OMPI_COMM_WORLD_SIZE', '1')) if 'OMPI_MCA_orte_hnp_uri' in environ else 1


def _tpu(environ: Mapping[str, str]) -> int:
    """Hosts of a slice, times slices, as GKE and Cloud TPU name them."""
    hosts = environ.get('TPU_PROCESS_ADDRESSES') or environ.get('TPU_WORKER_HOSTNAMES') or ''
    return len(hosts.split(',')) * int(environ.get('MEGASCALE_NUM_SLICES') or '1')


# What of JAX's own detection shows in the environment: name and number of processes. The rest needs --distributed=on.
LAUNCHERS: dict[str, Callable[[Mapping[str, str]], int]] = {'Slurm': _slurm, 'Open MPI': _open_mpi, 'TPU': _tpu}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the processes of a training find one another.

    Attributes:
      address: host and port of the first process; None: JAX finds them.
      place: of this process, where the address is given.
      found: what shows that JAX will find them, for messages.
    """

    address: tuple[str, int] | None
    place: watch.Place
    found: str = ''


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f'--coordinator={coordinator}: expected host:port of the first process, such as node1:1234')
    return host.removeprefix('[').removesuffix(']'), int(port)


def plan(
    coordinator: str | None,
    process_id: int | None,
    num_processes: int | None,
    mode: str,
    environ: Mapping[str, str],
) -> Plan | None:
    """Decides whether this is one of several processes.

    Args:
      coordinator: 'host:port' of the first process.
      process_id: number of this process, from 0.
      num_processes: how many there are.
      mode: 'auto', 'on' or 'off'.
      environ: of the process.

    Returns:
      None for a process of its own.

    Raises:
      UserError: the three go together and do not, or contradict one another or the mode.
    """
    pick(dict.fromkeys(('auto', 'on', 'off')), mode, '--distributed')
    given = {'--coordinator': coordinator, '--process_id': process_id, '--num_processes': num_processes}
    missing = [name for name, value in given.items() if value is None]
    if not missing:
        assert coordinator is not None and process_id is not None and num_processes is not None
        if mode == 'off':
            raise UserError('--distributed=off contradicts --coordinator; leave one of them out')
        if not 0 <= process_id < num_processes:
            raise UserError(
                f'--process_id={process_id} --num_processes={num_processes}: processes are numbered from 0 to '
                f'{num_processes - 1}'
            )
        return Plan(_address(coordinator), watch.Place(process_id, num_processes)) if num_processes > 1 else None
    if len(missing) < len(given):
        there = ', '.join(name for name in given if name not in missing)
        raise UserError(f'{there} needs {" and ".join(missing)} as well: each process is given all three')
    counts = {name: count(environ) for name, count in LAUNCHERS.items()}
    found = [f'{name} started {count} processes' for name, count in counts.items() if count > 1]
    if mode == 'on' or (mode == 'auto' and found):
        return Plan(None, watch.Place(0, 0), found[0] if found else '--distributed=on')
    return None


def _meet(address: tuple[str, int], place: watch.Place) -> tuple[dict[int, watch.Peer], str]:
    """Lets the processes meet at the first one's address.

    JAX would end a process with a stack trace where another does not come; here it is an error that says which.

    Returns:
      The connections of this process, and the address of JAX's own service: a free port beside.
    """
    host, port = address
    if place.index == 0:
        with watch.listen(port) as server, watch.listen() as free:
            print(f'waiting for {place.count - 1} more process(es) at {host}:{port}, at most {JOIN} s …', flush=True)
            port = free.getsockname()[1]
            peers = watch.assemble(server, place, JOIN, port=port)
    else:
        peer, announced = watch.call([address], place, JOIN)
        peers, port = {0: peer}, announced['port']
    return peers, f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def _initialize(**where: Any) -> None:
    """Starts JAX's service, and looks at what each process has; every one sees all devices."""
    jax.distributed.initialize(**where, initialization_timeout=JOIN, heartbeat_timeout_seconds=JAX_SILENCE)
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        shown = ', '.join(f'process {index} has {count}' for index, count in sorted(counts.items()))
        raise UserError(f'expected as many devices in each process; {shown}')


def _own_addresses() -> list[str]:
    """Names and numbers by which others may reach this host, the likeliest first."""
    addresses = [socket.gethostname()]
    # Connecting a datagram socket sends nothing, and shows the interface to the outside.
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(('10.255.255.255', 1))
        addresses.append(probe.getsockname()[0])
    return [*addresses, 'localhost']


def _detect(found: str) -> tuple[watch.Place, dict[int, watch.Peer]]:
    """Lets JAX find the processes, and then connects them for the watch."""
    print(f'{found}; waiting for all of them, at most {JOIN} s …', flush=True)
    try:
        _initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f'{found}, but JAX cannot start them as one: {str(error).rstrip(".")}. Give --coordinator, --process_id '
            'and --num_processes, or --distributed=off for a process of its own.'
        ) from None
    place = watch.Place(jax.process_index(), jax.process_count())
    if place.count == 1:
        return place, {}
    server = watch.listen() if place.index == 0 else None
    where = [(host, server.getsockname()[1]) for host in _own_addresses()] if server else []
    told = np.frombuffer(json.dumps(where).encode().ljust(_ADDRESSES), np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(told))
    if server:
        with server:
            return place, watch.assemble(server, place, JOIN)
    addresses = [(host, port) for host, port in json.loads(told.tobytes())]
    peer, _ = watch.call(addresses, place, JOIN)
    return place, {0: peer}


@contextlib.contextmanager
def joined(chosen: Plan | None) -> Iterator[None]:
    """Makes this process one of several while the context lasts; whoever of them goes ends the others.

    Raises:
      UserError: the others cannot be reached, do not come, or have other numbers of devices.
    """
    if chosen is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if chosen.address:
            peers, service = _meet(chosen.address, chosen.place)
            stack.enter_context(watch.Watch(chosen.place, peers, SILENCE))
            _initialize(
                coordinator_address=service,
                num_processes=chosen.place.count,
                process_id=chosen.place.index,
                cluster_detection_method='deactivate',
            )
        else:
            stack.enter_context(watch.Watch(*_detect(chosen.found), SILENCE))
        yield


def gather(text: str) -> list[str]:
    """Returns the text that each process gives, in their order; all must call it, and as often."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(own.size)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: own.size] = own
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes().decode() for row, length in zip(texts, lengths, strict=True)]


def check_same_config(flat: Mapping[str, Any]) -> None:
    """Checks that all processes have the same configuration.

    Args:
      flat: key: value.

    Raises:
      UserError: they differ; lists the keys, and the values of the first process and of one that differs.
    """
    flat = {key: value for key, value in flat.items() if key not in _OF_A_HOST}
    flat |= {'versions of Python packages': f'jax {jax.__version__}, numpy {np.__version__}'}
    texts = gather(json.dumps(flat, sort_keys=True, default=str))
    first = json.loads(texts[0])
    for index, text in enumerate(texts):
        other = json.loads(text)
        lines = [
            f'{key}: {first.get(key)!r} in process 0, {other.get(key)!r} in process {index}'
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if lines:
            raise UserError(f'process {index} was started with another configuration:{shortlist(lines)}')


def _fingerprint(splits: Splits) -> str:
    """Numbers of examples, and a hash of their names, sizes, labels and order."""
    parts = []
    for name, records in splits.items():
        lines = (f'{record.name} {record.size} {record.bits} {record.label}' for record in records)
        digest = hashlib.sha256('\n'.join(lines).encode()).hexdigest()
        parts.append(f'{name} {len(records)} examples (hash {digest[:12]})')
    return f'{socket.gethostname()}: {", ".join(parts)}'


def check_same_data(splits: Splits) -> None:
    """Checks that all processes found the same examples.

    Raises:
      UserError: they differ; says in which process, and how many examples each found.
    """
    texts = gather(_fingerprint(splits))
    found = [text.partition(': ')[2] for text in texts]
    differing = [i for i, text in enumerate(found) if text != found[0]]
    if differing:
        lines = [f'process {i} on {texts[i]}' for i in (0, *differing)]
        raise UserError(
            f'process {", ".join(map(str, differing))} found other data than process 0; expected the same files on all '
            f'hosts:{shortlist(lines)}'
        )


def check_shared(workdir: Path) -> None:
    """Checks that all processes see the same folder, in which each writes its part of a checkpoint.

    Raises:
      UserError: some do not; says which.
    """
    if jax.process_count() == 1:
        return
    token = gather(secrets.token_hex(8))[0]
    mark = workdir / f'.shared-{token}'
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            raise UserError(f'--workdir={workdir}: {error.strerror}; expected a folder to write to') from None
    gather('written')
    deadline = time.monotonic() + _SEEN
    while not (seen := mark.exists()) and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.listdir(workdir)  # a network file system looks again
        time.sleep(0.2)
    answers = gather(f'{seen} {socket.gethostname()}')
    if jax.process_index() == 0:
        mark.unlink()
    blind = [f'process {i} on {text.split()[1]}' for i, text in enumerate(answers) if not text.startswith('True')]
    if blind:
        raise UserError(
            f'--workdir={workdir}: {", ".join(blind)} cannot see what process 0 writes there; expected one folder that '
            'all hosts share'
        )
