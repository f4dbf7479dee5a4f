"""What a validation costs beside its forward passes: 1,280 blocks of 256², as many as SIDD's.

python -m experiments.benchmarks.evaluation --json=evaluation.json

The blocks are crops of the sample photographs with noise, as PNG files; the network is that of configs/sidd.py, of
random weights. The whole of what training does at an evaluation is measured: reading and decoding, the forward pass,
PSNR and SSIM of inputs and outputs on the device. Beside it, the forward pass alone on a batch that is at hand. Both
are compiled before, and they take turns.
"""

import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from configs import sidd
from experiments.benchmarks.pairs import make_pairs
from p2p_jax import datasets, report, startup

_JSON = flags.DEFINE_string('json', None, 'File for the figures.')
_BLOCKS = flags.DEFINE_integer('blocks', 1280, 'Blocks of the validation.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Parts of equal size that the validation is measured in, in turn.')
_PRESET = flags.DEFINE_string('preset', 'unet', 'Of configs/sidd.py: unet or nafnet.')

SIZE = 256


def measure(folder: Path, blocks: int, rounds: int, preset: str) -> dict[str, Any]:
    """Returns seconds a block of an evaluation and of the forward pass alone, and their ratio."""
    import jax

    from p2p_jax.checkpoint import replicate
    from p2p_jax.evaluate import build_evaluator
    from p2p_jax.job import build_job

    config = sidd.get_config(preset)
    config.data.update(dir=str(folder), layout='pairs', tile_size=None, split=(0.1, 0.8, 0.1), limit=(None, None, None))
    records = datasets.find_splits(config, ('val',), lambda line: None)['val']
    count = blocks // rounds
    job = build_job(config, 1)
    variables = replicate(jax.jit(lambda: job.create_state(0, (SIZE, SIZE, 3)))().evaluated)
    evaluate = build_evaluator(job, config, list(itertools.islice(itertools.cycle(records), count)))
    batch = jax.random.uniform(jax.random.key(0), (config.eval.batch_size, SIZE, SIZE, 3))
    forward = jax.jit(job.apply)
    evaluate(variables)
    forward(variables, batch).block_until_ready()
    whole, alone = [], []
    for turn in range(rounds):
        began = time.perf_counter()
        evaluate(variables)
        middle = time.perf_counter()
        for _ in range(count // len(batch)):
            forward(variables, batch).block_until_ready()
        end = time.perf_counter()
        whole.append((middle - began) / count)
        alone.append((end - middle) / (count // len(batch) * len(batch)))
        print(f'{turn + 1}/{rounds}: {1000 * whole[-1]:.1f} ms a block, forward {1000 * alone[-1]:.1f} ms', flush=True)
    figures = {'block_s': statistics.median(whole), 'forward_s': statistics.median(alone)}
    return figures | {'ratio': figures['block_s'] / figures['forward_s'], 'device': jax.devices()[0].device_kind}


def main(_: list[str]) -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as name:
        make_pairs(Path(name), SIZE, 10)  # one of each photograph
        figures = measure(Path(name), _BLOCKS.value, _ROUNDS.value, _PRESET.value)
    print(
        f'{_BLOCKS.value} blocks of {SIZE}²: {_BLOCKS.value * figures["block_s"]:.1f} s, forward passes alone '
        f'{_BLOCKS.value * figures["forward_s"]:.1f} s: {figures["ratio"]:.2f}×'
    )
    if _JSON.value:
        report.write_json(Path(_JSON.value), {'cores': os.cpu_count(), 'blocks': _BLOCKS.value} | figures)


if __name__ == '__main__':
    startup.use_huge_pages()
    app.run(main)
