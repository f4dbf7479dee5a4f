"""What an epoch of SIDD-Medium costs on 1, 8 and 64 GPUs, on paper: see SCALE.md.

python -m experiments.benchmarks.scale --tflops=60 --pairs_per_second=2453 [--config=configs/sidd.py]

Counted here: the operations of the train step (XLA's analysis of its plain form), the bytes of gradients that devices
exchange, of the data, and of a checkpoint. Given: what a GPU gets done, as experiments.benchmarks.train_step measures
it; what its links carry; what a data pipeline delivers, as experiments.benchmarks.input_pipeline measures it.
"""

from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import config_flags

from p2p_jax import report

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/sidd.py', 'What would be trained.')
_TFLOPS = flags.DEFINE_float('tflops', 60.0, 'What a GPU gets done of the train step, TFLOP/s.')
_PAIRS = flags.DEFINE_float('pairs_per_second', 2453.0, 'What the input pipeline of one host delivers.')
_INSIDE = flags.DEFINE_float('inside_gb_s', 300.0, 'What a GPU exchanges with others of its host, GB/s.')
_BETWEEN = flags.DEFINE_float('between_gb_s', 25.0, 'What a GPU exchanges with those of other hosts, GB/s.')
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')

GPUS_OF_A_HOST = 8
# SIDD-Medium: 320 pairs; a typical one is 5328×3000, which tiles of 512 cut into 10 × 5, the rest left out.
TILES = 320 * 10 * 5


class Work(NamedTuple):
    """What a training step is made of, counted.

    Attributes:
      flop: operations for one image.
      exchanged: bytes of gradients and statistics that each device gives and takes.
      state: bytes of a checkpoint.
      pair: bytes of one input and target, as they travel to the device.
    """

    flop: float
    exchanged: int
    state: int
    pair: int


class Estimate(NamedTuple):
    """A step and an epoch on so many GPUs, in seconds, and what they need."""

    gpus: int
    compute_s: float
    exchange_s: float
    epoch_s: float
    pairs_per_second: float
    hosts_pipelines: float


def count(config: Any) -> Work:
    """Counts on shapes alone: nothing is computed."""
    import jax
    import numpy as np

    from p2p_jax.job import build_job, training_size
    from p2p_jax.loop import map_step

    config = config.copy_and_resolve_references()
    batch = 4
    config.conv_form, config.train.batch_size = 'native', batch * jax.local_device_count()
    job = build_job(config, 1)
    state = jax.eval_shape(lambda: job.create_state(0, training_size(config)))
    leading = (jax.local_device_count(), batch)
    images = jax.ShapeDtypeStruct((*leading, *training_size(config)), np.uint8)
    floats, numbers = (jax.ShapeDtypeStruct(leading, dtype) for dtype in (np.float32, np.int32))
    arrays = {'condition': images, 'target': images, 'mask': floats, 'index': numbers}
    phase = 'both' if job.adversary else 'generator'
    flop = map_step(job, phase).lower(state, arrays, {}).cost_analysis()['flops'] / batch

    def size(tree: Any) -> int:
        return sum(leaf.size * 4 for leaf in jax.tree.leaves(tree))

    networks = [network.variables for network in (state.generator, state.discriminator) if network]
    height, width, channels = training_size(config)
    return Work(
        flop, size(networks), size((state.generator, state.discriminator, state.ema)), 2 * height * width * channels
    )


def exchange_seconds(exchanged: int, gpus: int, inside: float, between: float) -> float:
    """A ring's all-reduce (each device gives and takes 2 (n - 1) / n of the bytes), over the slowest link; GB/s."""
    if gpus == 1:
        return 0.0
    return 2 * (gpus - 1) / gpus * exchanged / (1e9 * (inside if gpus <= GPUS_OF_A_HOST else between))


def estimate(work: Work, batch: int, gpus: int, tflops: float, pairs: float, inside: float, between: float) -> Estimate:
    """An epoch of TILES crops with `batch` images a GPU; nothing overlaps, which is the worst case."""
    compute = work.flop * batch / (tflops * 1e12)
    exchange = exchange_seconds(work.exchanged, gpus, inside, between)
    wanted = gpus * batch / (compute + exchange)
    hosts = -(-gpus // GPUS_OF_A_HOST)
    return Estimate(gpus, compute, exchange, TILES / wanted, wanted, wanted / hosts / pairs)


def main(_: list[str]) -> None:
    """Prints the table."""
    work, given = count(_CONFIG.value), (_TFLOPS.value, _PAIRS.value, _INSIDE.value, _BETWEEN.value)
    print(
        f'{work.flop / 1e9:.1f} GFLOP an image, {work.exchanged / 1e6:.1f} MB exchanged a step, '
        f'{work.state / 1e6:.0f} MB a checkpoint, {work.pair / 1e3:.0f} kB a pair; {_TFLOPS.value:g} TFLOP/s a GPU'
    )
    rows = []
    for batch in (2, 16):
        print(f'\n{batch} images a GPU\nGPUs  compute ms  exchange ms  epoch s  pairs/s  of what a host delivers')
        for gpus in (1, 8, 64):
            row = estimate(work, batch, gpus, *given)
            rows.append({'batch': batch, **row._asdict()})
            print(
                f'{gpus:4}  {1000 * row.compute_s:10.2f}  {1000 * row.exchange_s:11.2f}  {row.epoch_s:7.1f}  '
                f'{row.pairs_per_second:7.0f}  {row.hosts_pipelines:.2f}×'
            )
    for gpus, name in ((8, 'one host'), (64, 'eight hosts')):
        per_image = work.flop / (_TFLOPS.value * 1e12)
        least = exchange_seconds(work.exchanged, gpus, _INSIDE.value, _BETWEEN.value) / per_image
        print(f'{name}: the exchange takes longer than the work below {least:.1f} images a GPU')
    if _JSON.value:
        report.write_json(Path(_JSON.value), {'work': work._asdict(), 'rows': rows})


if __name__ == '__main__':
    app.run(main)
