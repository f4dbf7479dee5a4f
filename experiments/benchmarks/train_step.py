"""How fast the train step is, beside the same networks and step in PyTorch.

python -m experiments.benchmarks.train_step --json=train_step.json

Each contender has a process of its own and they take turns, so that whatever else slows the machine down slows all of
them. PyTorch is asked for by `pip install -e '.[benchmark]'`; without it its columns are left out.
"""

import dataclasses
import importlib.util
import multiprocessing
import os
import re
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from configs import cifar10, default, sidd
from p2p_jax import report, startup

_JSON = flags.DEFINE_string('json', None, 'File for the figures.')
_CASES = flags.DEFINE_string('cases', '', 'Only cases whose name this regular expression is found in.')
_PEERS = flags.DEFINE_list('peers', None, 'Only these of: channels_last, nchw, compiled. Default: all.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns of each contender; the median of their steps counts.')
_SECONDS = flags.DEFINE_float('seconds', 2.0, 'Length of a turn, at least a step.')

PEERS = {
    'channels_last': {'channels_last': True, 'compiled': False},
    'nchw': {'channels_last': False, 'compiled': False},
    'compiled': {'channels_last': True, 'compiled': True},
}


def _unet(config: Any) -> None:
    """The default: U-Net-256 and the 70×70 PatchGAN."""


def _resnet_unet(config: Any) -> None:
    config.generator.name = 'resnet_unet'


class Network(NamedTuple):
    """What is trained: its configuration, and what stands for it in the table."""

    label: str
    config: Callable[[], Any]
    change: Callable[[Any], None] = _unet


NETWORKS = {
    'unet': Network('U-Net-256 + PatchGAN', default.get_config),
    'resnet_unet': Network('ResNet U-Net + PatchGAN', default.get_config, _resnet_unet),
    'nafnet': Network('NAFNet-32', lambda: sidd.get_config('nafnet')),
    'labels': Network('label to image, 32²', lambda: cifar10.get_config('dcgan')),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table."""

    network: str
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        """For the JSON and for --cases."""
        return f'{self.network}-{self.batch}-{self.dtype}'


def all_cases(gpu: bool) -> list[Case]:
    """The rows: batches of 64 are for a GPU, but for labels, whose images are small."""
    sizes = {'unet': (1, 4, 16, *([64] if gpu else [])), 'labels': (64,)}
    others = (1, 16) if gpu else (1,)
    cases = [Case(n, batch, t) for n in NETWORKS for t in ('float32', 'bfloat16') for batch in sizes.get(n, others)]
    return cases if gpu else [case for case in cases if case.dtype == 'float32' or case.network == 'unet']


def batch_of(case: Case, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images or labels, and images: uint8 (n, size, size, 3), int32 (n,)."""
    random = np.random.default_rng(0)
    condition, target = (random.integers(0, 256, (case.batch, size, size, 3), np.uint8) for _ in range(2))
    return (random.integers(0, 10, case.batch, np.int32) if case.network == 'labels' else condition), target


def size_of(case: Case) -> int:
    """Height and width of the images."""
    return 32 if case.network == 'labels' else 256


def _peak_mib() -> float:
    """The most memory that this process has had resident, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Ours:
    """This project's step."""

    def __init__(self, case: Case) -> None:
        """Builds state and step, and compiles it."""
        import jax

        from p2p_jax.checkpoint import replicate
        from p2p_jax.data.pipeline import split_over_devices
        from p2p_jax.job import build_job, training_size
        from p2p_jax.loop import compiler_options, map_step

        jax.config.update('jax_enable_compilation_cache', False)
        config = NETWORKS[case.network].config()
        NETWORKS[case.network].change(config)
        config.train.batch_size, config.dtype = case.batch, case.dtype
        config.gan.pretrain_steps = 0
        job = build_job(config, 10**5)
        self._state = replicate(jax.jit(lambda: job.create_state(0, training_size(config)))())
        networks = self._state.generator.params, self._state.discriminator and self._state.discriminator.params
        parameters = sum(leaf.size for leaf in jax.tree.leaves(networks))
        condition, target = batch_of(case, size_of(case))
        arrays = {'condition': condition, 'target': target}
        arrays |= {'mask': np.ones(case.batch, np.float32), 'index': np.arange(case.batch, dtype=np.int32)}
        self._batch = split_over_devices(arrays, jax.local_device_count())
        phase = 'both' if job.adversary else 'generator'
        began = time.perf_counter()
        lowered = map_step(job, phase).lower(self._state, self._batch, {})
        self._step = lowered.compile(compiler_options())
        seconds = time.perf_counter() - began
        config.conv_form = 'native'
        plain = map_step(build_job(config, 10**5), phase).lower(self._state, self._batch, {})
        self.facts = {
            'parameters': parameters,
            'compile_s': seconds,
            # Of the plain form, in which nothing is multiplied by zero.
            'flop': float(plain.cost_analysis()['flops']) * jax.local_device_count(),
            'device': jax.devices()[0].device_kind,
            'devices': jax.local_device_count(),
        }
        self._jax = jax

    def step(self) -> None:
        """One step, waited for."""
        self._state, metrics = self._step(self._state, self._batch, {})
        self._jax.block_until_ready((self._state, metrics))

    def peak_mib(self) -> float:
        """The most memory that was in use: the GPU's, or this process's."""
        stats = self._jax.local_devices()[0].memory_stats() or {}
        return stats['peak_bytes_in_use'] / 2**20 if 'peak_bytes_in_use' in stats else _peak_mib()


class Theirs:
    """PyTorch's step."""

    def __init__(self, case: Case, options: dict[str, bool]) -> None:
        """Builds networks and optimisers, and makes a step, which compiles where that is asked for."""
        from experiments.benchmarks.peer import Trainer

        self._trainer = Trainer(case.network, bfloat16=case.dtype == 'bfloat16', **options)
        self._batch = batch_of(case, size_of(case))
        began = time.perf_counter()
        self.step()
        self.facts = {'parameters': self._trainer.parameters, 'compile_s': time.perf_counter() - began}

    def step(self) -> None:
        """One step, waited for: it returns the losses."""
        self._trainer.step(*self._batch)

    def peak_mib(self) -> float:
        """The most memory that was in use: the GPU's, or this process's."""
        return self._trainer.peak_mib() or _peak_mib()


class Ceiling:
    """The machine's quickest matrix product of square matrices."""

    def __init__(self, dtype: str) -> None:
        import jax
        import jax.numpy as jnp

        self.facts: dict[str, Any] = {}
        best, product = 0.0, jax.jit(jnp.dot)
        sides = (1024, 2048, 4096) if jax.default_backend() == 'cpu' else (4096, 8192, 16384)
        for side in sides:
            matrix = jnp.ones((side, side), dtype)
            for _ in range(6):
                began = time.perf_counter()
                product(matrix, matrix).block_until_ready()
                best = max(best, 2 * side**3 / (time.perf_counter() - began))
        self.facts = {'flop_per_s': best, 'backend': jax.default_backend()}


def _serve(connection: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Runs in a contender's process: builds it, then makes steps for as long as it is told, until told to end."""
    try:
        contender = build(*arguments)
        connection.send(contender.facts)
        while seconds := connection.recv():
            taken: list[float] = []
            while len(taken) < 3 or sum(taken[1:]) < seconds:
                began = time.perf_counter()
                contender.step()
                taken.append(time.perf_counter() - began)
            # The first has to get memory back that the system took away during the others' turns.
            connection.send((taken[1:], contender.peak_mib()))
    except Exception as error:
        connection.send(error)


class Contender:
    """One of those that take turns, in a process of its own."""

    def __init__(self, build: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context('spawn')
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.taken: list[float] = []
        self.peak = 0.0
        self.facts = self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            answer = RuntimeError(f'its process ended with code {self._process.exitcode}')
        if isinstance(answer, Exception):
            raise answer
        return answer

    def turn(self, seconds: float) -> None:
        """Makes steps for so many seconds."""
        self._connection.send(seconds)
        taken, self.peak = self._receive()
        self.taken += taken

    def end(self) -> None:
        """Ends the process."""
        if self._process.is_alive():
            self._connection.send(0)
        self._process.join(30)
        self._process.kill()

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured."""
        return {'step_s': statistics.median(self.taken), 'steps': len(self.taken), 'peak_mib': self.peak} | self.facts


def measure(case: Case, peers: dict[str, dict[str, bool]], ceilings: dict[str, float]) -> dict[str, Any]:
    """Measures a case: all contenders take turns."""
    contenders: dict[str, Contender] = {}
    failed = {}
    for name, options in {'p2p_jax': None, **peers}.items():
        try:
            contender = Contender(Ours, case) if options is None else Contender(Theirs, case, options)
            contenders[name] = contender
        except Exception as error:
            if options is None:
                raise
            failed[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
    for _ in range(_ROUNDS.value):
        for contender in contenders.values():
            contender.turn(_SECONDS.value)
    figures = {name: contender.figures for name, contender in contenders.items()}
    for contender in contenders.values():
        contender.end()
    ours = figures['p2p_jax']
    counts = {name: row['parameters'] for name, row in figures.items()}
    if len(set(counts.values())) > 1:
        raise AssertionError(f'{case.name}: these are not the same networks: {counts} parameters')
    speed = ours['flop'] / ours['step_s']
    row = {
        'case': case.name,
        'images_per_s': case.batch / ours['step_s'],
        'flop_per_s': speed,
        'share_of_ceiling': speed / ceilings[case.dtype],
        'contenders': figures,
        'failed': failed,
    }
    return row | {f'ratio_to_torch_{n}': figures[n]['step_s'] / ours['step_s'] for n in peers if n in figures}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    columns = ('case', 'ms/step', 'images/s', 'compile s', 'MiB', 'GFLOP/s', 'ceiling', *PEERS)
    lines = [f'{columns[0]:24}' + ''.join(f'{name:>14}' for name in columns[1:])]
    for row in rows:
        ours = row['contenders']['p2p_jax']
        cells = [
            f'{1000 * ours["step_s"]:.1f}',
            f'{row["images_per_s"]:.2f}',
            f'{ours["compile_s"]:.1f}',
            f'{ours["peak_mib"]:.0f}',
            f'{row["flop_per_s"] / 1e9:.0f}',
            f'{row["share_of_ceiling"]:.0%}',
        ]
        for name in PEERS:
            ratio = row.get(f'ratio_to_torch_{name}')
            theirs = row['contenders'].get(name, {}).get('step_s', 0)
            cells.append('–' if ratio is None else f'{1000 * theirs:.0f} ({ratio:.2f}×)')
        lines.append(f'{row["case"]:24}' + ''.join(f'{cell:>14}' for cell in cells))
    return '\n'.join(lines)


def main(_: list[str]) -> None:
    """Prints the table."""
    has_torch = importlib.util.find_spec('torch') is not None
    if not has_torch:
        print('PyTorch is not installed: without its figures')
    peers = {n: options for n, options in PEERS.items() if has_torch and n in (_PEERS.value or PEERS)}
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # several processes share a GPU
    ceilings, backend = {}, ''
    for dtype in ('float32', 'bfloat16'):
        contender = Contender(Ceiling, dtype)
        ceilings[dtype], backend = contender.facts['flop_per_s'], contender.facts['backend']
        contender.end()
        print(f'matrix products, {dtype}: {ceilings[dtype] / 1e9:.0f} GFLOP/s', flush=True)
    cases = [case for case in all_cases(backend != 'cpu') if re.search(_CASES.value, case.name)]
    rows = []
    for number, case in enumerate(cases, 1):
        rows.append(measure(case, peers, ceilings))
        print(f'{number}/{len(cases)}\n{table(rows[-1:])}', flush=True)
        for name, reason in rows[-1]['failed'].items():
            print(f'  {name}: {reason}')
        if _JSON.value:
            facts = {'cores': os.cpu_count(), 'backend': backend, 'ceilings_flop_per_s': ceilings}
            report.write_json(Path(_JSON.value), facts | {'cases': rows})
    print(f'\n{table(rows)}\nof PyTorch: ms a step, and how many times as long as here')


if __name__ == '__main__':
    startup.use_huge_pages()
    app.run(main)
