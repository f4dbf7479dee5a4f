"""The largest batch and the largest crop that fit in memory, with and without `train.remat`.

python -m experiments.benchmarks.largest --config=configs/sidd.py [--memory_gib=24]

Nothing runs: XLA compiles the train step and says what memory it needs, which the search compares with what there is.
On a CPU that is the machine's memory, on an accelerator its own; --memory_gib asks for another.
"""

import os
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from experiments.benchmarks.search import largest
from p2p_jax import report
from p2p_jax.settings import takes_labels

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/default.py', 'What would be trained.')
_MEMORY = flags.DEFINE_float('memory_gib', None, 'Memory of a device, GiB. Default: what it has.')
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')
_LIMIT = flags.DEFINE_integer('limit', 1024, 'Batches above this are not tried; crops not above four times it.')


def memory_of_device() -> int:
    """Bytes of memory of the first device: its own, or on a CPU the machine's."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get('bytes_limit') or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def needed(config: Any, *, batch: int, crop: int, remat: bool) -> int:
    """Bytes that the train step needs on one device for a batch of crops: state, data, and what lies between."""
    import jax
    import numpy as np

    from p2p_jax.job import build_job, training_size
    from p2p_jax.loop import compiler_options, map_step

    config = config.copy_and_resolve_references()
    config.data.crop_size, config.train.batch_size, config.train.remat = crop, batch, remat
    config.data.tile_size = config.data.resize = None  # whatever the images' size, the step is the same
    job = build_job(config, 1)
    state = jax.eval_shape(lambda: job.create_state(0, training_size(config)))
    devices = jax.local_device_count()

    def shape(dtype: Any, *sides: int) -> Any:
        return jax.ShapeDtypeStruct((devices, batch, *sides), dtype)

    images = shape(np.uint8, *training_size(config))
    condition = shape(np.int32) if job.classes else images
    arrays = {'condition': condition, 'target': images, 'mask': shape(np.float32), 'index': shape(np.int32)}
    phase = 'both' if job.adversary else 'generator'
    frozen = jax.eval_shape(job.read_frozen) if job.pixel_losses else {}
    program = map_step(job, phase).lower(state, arrays, frozen).compile(compiler_options())
    sizes = program.memory_analysis()
    # The new state takes the place of the old one.
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes


def main(_: list[str]) -> None:
    """Prints the figures."""
    config, limit = _CONFIG.value, _LIMIT.value
    memory = int(_MEMORY.value * 2**30) if _MEMORY.value else memory_of_device()
    crop, batch = config.data.crop_size, config.train.batch_size
    print(f'{memory / 2**30:.1f} GiB of memory a device')
    figures: dict[str, Any] = {'memory_bytes': memory}
    for remat in (False, True):

        def fits(batch: int, crop: int, remat: bool = remat) -> bool:
            size = needed(config, batch=batch, crop=crop, remat=remat)
            print(f'  batch {batch}, crop {crop}, remat {remat}: {size / 2**30:.2f} GiB', flush=True)
            return size <= memory

        batches = largest(lambda n: fits(n, crop), 1, limit)
        # Images from labels have a size of their own.
        crops = crop if takes_labels(config) else largest(lambda side: fits(1, side), 256, 4 * limit, 128)
        print(f'train.remat={remat}: crops of {crop} up to a batch of {batches}; a batch of 1 up to crops of {crops}')
        figures[f'remat_{remat}'.lower()] = {'batch_at_crop': [batches, crop], 'crop_at_batch_1': crops}
    print(f'configured: batch {batch}, crop {crop}')
    if _JSON.value:
        report.write_json(Path(_JSON.value), figures)


if __name__ == '__main__':
    app.run(main)
