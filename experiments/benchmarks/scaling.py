"""How the train step scales over the devices of one host, each with a batch of its own.

python -m experiments.benchmarks.scaling --devices=1 --devices=2 [--cases=unet-4-float32] [--json=scaling.json]

One process for each number of devices, in turn. On a CPU a device is a core: the process is bound to as many, so that
one device cannot take the others' share.
"""

import os
import re
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.benchmarks.train_step import Case, Contender, Ours, all_cases
from p2p_jax import report, startup

_DEVICES = flags.DEFINE_multi_integer(
    'devices', [1, 2], 'Numbers of devices; the first is what the others are compared with.', lower_bound=1
)


class Host:
    """Says in `facts` what JAX runs on here, and how many devices there are."""

    def __init__(self) -> None:
        import jax

        backend = jax.default_backend()
        devices = len(os.sched_getaffinity(0)) if backend == 'cpu' else jax.local_device_count()
        self.facts = {'backend': backend, 'devices': devices}


class OnDevices(Ours):
    """This project's step on some of the host's devices, with a batch for each."""

    def __init__(self, case: Case, devices: int, backend: str) -> None:
        """Restricts its process to the devices, before JAX starts."""
        if backend == 'cpu':
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:devices])
        os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(map(str, range(devices)))
        flag = f'--xla_force_host_platform_device_count={devices}'
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'
        super().__init__(Case(case.network, case.batch * devices, case.dtype))


def measure(case: Case, counts: list[int], backend: str) -> list[dict[str, Any]]:
    """Measures a case on so many devices each: time per step, images/s, and those to as many as the first ones make."""
    contenders = [Contender(OnDevices, case, count, backend) for count in counts]
    for _ in range(flags.FLAGS.rounds):
        for contender in contenders:
            contender.turn(flags.FLAGS.seconds)
    rows: list[dict[str, Any]] = []
    for count, contender in zip(counts, contenders, strict=True):
        contender.end()
        row = {'case': case.name, 'devices': count, 'images_per_s': case.batch * count / contender.figures['step_s']}
        first = rows[0] if rows else row
        row['efficiency'] = row['images_per_s'] / first['images_per_s'] * first['devices'] / count
        rows.append(row | contender.figures)
    return rows


def main(_: list[str]) -> None:
    """Prints the table."""
    host = Contender(Host)
    host.end()
    if max(_DEVICES.value) > host.facts['devices']:
        raise app.UsageError(f'--devices={max(_DEVICES.value)}: this host has {host.facts["devices"]}')
    pattern = flags.FLAGS.cases or '^unet-4-float32$'
    rows = []
    print(f'{"case":24}{"devices":>9}{"batch":>7}{"ms/step":>10}{"images/s":>10}{"efficiency":>12}')
    for case in [case for case in all_cases(gpu=True) if re.search(pattern, case.name)]:
        for row in measure(case, _DEVICES.value, host.facts['backend']):
            cells = f'{1000 * row["step_s"]:>10.1f}{row["images_per_s"]:>10.2f}{row["efficiency"]:>12.0%}'
            print(f'{case.name:24}{row["devices"]:>9}{case.batch * row["devices"]:>7}{cells}', flush=True)
            rows.append(row)
    if flags.FLAGS.json:
        report.write_json(Path(flags.FLAGS.json), host.facts | {'cases': rows})


if __name__ == '__main__':
    startup.use_huge_pages()
    app.run(main)
