"""How long a photograph of 12 megapixels takes in tiles, and how much memory, beside the same network in PyTorch.

python -m experiments.benchmarks.predict --json=predict.json

The photograph is one of the sample set, enlarged; weights are random, which does not change the time. PyTorch is asked
for by `pip install -e '.[benchmark]'`; without it its rows are left out.
"""

import concurrent.futures
import importlib.util
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from configs import default, sample
from p2p_jax import datasets, report
from p2p_jax.data import images

_JSON = flags.DEFINE_string('json', None, 'File for the figures.')
_HEIGHT = flags.DEFINE_integer('height', 3000, 'Of the photograph, pixels.')
_WIDTH = flags.DEFINE_integer('width', 4000, 'Of the photograph, pixels.')
_TILES = flags.DEFINE_integer('tiles', 16, 'Tiles that are computed by themselves; their median time counts.')


def make_photograph(path: Path, size: tuple[int, int]) -> None:
    """Writes an enlarged photograph as PNG."""
    record = datasets.find_splits(sample.get_config(), ('test',), lambda line: None)['test'][0]
    images.write_image(path, images.resize(images.to_format(record.target.read(), 3, 8), size))


def build_model(name: str) -> Any:
    """Returns the default U-Net-256 or NAFNet-32 of random weights."""
    import jax

    from p2p_jax import inference
    from p2p_jax.job import build_job

    config = default.get_config()
    config.generator.name = name
    config.generator.unet.last_activation = 'none'
    job = build_job(config, 1)
    shapes = jax.eval_shape(lambda: job.create_state(0, (256, 256, 3))).generator.variables
    random = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        # Kernels that keep the size of a signal; scales and variances of about 1.
        std = np.prod(leaf.shape[:3]) ** -0.5 if leaf.ndim == 4 else 0.1
        return random.normal(leaf.ndim == 1, std, leaf.shape).astype(np.float32)

    return inference.Model(config, job, jax.device_put(jax.tree.map(draw, shapes)), 0, Path(name), 1.0)


def peak_mib() -> float:
    """The most memory that this process has had resident (Linux), in MiB."""
    return int(re.findall(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[0]) / 1024


def timed(call: Callable[[], Any], count: int) -> list[float]:
    """The median of (seconds, seconds of all cores) that a call takes, after one call that is not counted.

    The second is what to compare by where other programs share the cores.
    """
    taken = []
    for _ in range(count + 1):
        start = np.array([time.perf_counter(), time.process_time()])
        call()
        taken.append(np.array([time.perf_counter(), time.process_time()]) - start)
    return np.median(taken[1:], axis=0).tolist()


def measure(name: str, photograph: Path, tiles: int) -> dict[str, Any]:
    """Applies a network to the photograph, file to file, and to single tiles; alone in its process."""
    import jax

    from p2p_jax import tiling
    from p2p_jax.predictor import PredictOptions, Predictor

    size = tiling.fitting_size(1)
    predictor = Predictor(build_model(name), PredictOptions(tile=size))
    warm = np.zeros((size + 1, size + 1, 3), np.uint8)
    predictor(warm)  # compiles what the photograph needs
    start = time.perf_counter()
    image = images.decode(str(photograph), photograph)
    read, cores = time.perf_counter(), time.process_time()
    result = predictor(image)
    applied, cores = time.perf_counter(), time.process_time() - cores
    images.write_image(photograph.with_name(f'{name}.png'), result)
    end, peak = time.perf_counter(), peak_mib()
    rows, columns = (predictor.tiling.axis(length) for length in image.shape[:2])
    count = len(rows.starts) * len(columns.starts)
    tile = np.ascontiguousarray(image[None, :size, :size])
    alone, cores_alone = (count * seconds for seconds in timed(lambda: np.asarray(predictor.apply(tile)), tiles))
    return {
        'device': jax.devices()[0].device_kind,
        'tile': size,
        'tiles': count,
        'seconds': end - start,
        'seconds_decoding': read - start,
        'seconds_encoding': end - applied,
        'seconds_applying': applied - read,
        'megapixels_per_second': image.shape[0] * image.shape[1] / 1e6 / (end - start),
        'peak_mib': peak,
        'core_seconds_applying': cores,
        'seconds_of_tiles_alone': alone,
        'core_seconds_of_tiles_alone': cores_alone,
    }


LABELS = {'unet': 'U-Net-256', 'nafnet': 'NAFNet-32'}


def measure_torch(name: str, size: int, tiles: int) -> dict[str, Any]:
    """The time of a tile in PyTorch, channels first or last, whichever is quicker, and the number of parameters."""
    import torch

    from experiments.benchmarks import peer

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    network, seconds = {'unet': peer.unet, 'nafnet': peer.nafnet}[name]().eval().to(device), []
    for form in (torch.contiguous_format, torch.channels_last):
        placed = network.to(memory_format=form)
        tile = torch.rand(1, 3, size, size).to(device, memory_format=form)

        def apply(placed: Any = placed, tile: Any = tile) -> None:
            with torch.inference_mode():
                placed(tile).cpu()

        seconds.append(timed(apply, tiles))
    best, cores = min(seconds, key=lambda pair: pair[0])
    parameters = sum(p.numel() for p in network.parameters())
    return {'parameters': parameters, 'seconds_of_a_tile': best, 'core_seconds_of_a_tile': cores}


def alone(call: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Calls a function in a fresh process."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(call, *arguments).result()


def main(_: list[str]) -> None:
    """Prints the table."""
    has_torch = importlib.util.find_spec('torch') is not None
    if not has_torch:
        print('PyTorch is not installed: without its figures')
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        photograph = Path(folder) / 'photograph.png'
        make_photograph(photograph, (_HEIGHT.value, _WIDTH.value))
        for name, label in LABELS.items():
            row = rows[label] = alone(measure, name, photograph, _TILES.value)
            if has_torch:
                peer = alone(measure_torch, name, row['tile'], _TILES.value)
                row['seconds_of_tiles_in_torch'] = peer['seconds_of_a_tile'] * row['tiles']
                row['core_seconds_of_tiles_in_torch'] = peer['core_seconds_of_a_tile'] * row['tiles']
                row['parameters_in_torch'] = peer['parameters']
            print(f'{label}: {row}', flush=True)
    print(f'\n{_WIDTH.value}×{_HEIGHT.value}, blend, {os.cpu_count()} cores')
    print(f'{"":32} seconds  of all cores')
    for label, row in rows.items():
        print(
            f'{label}, {row["tiles"]} tiles of {row["tile"]}²: {row["megapixels_per_second"]:.2f} megapixels/s, '
            f'at most {row["peak_mib"]:.0f} MiB'
        )
        print(f'  {"file to file":30} {row["seconds"]:7.1f}')
        for what, key in (('tiled', 'applying'), ('tiles alone', 'of_tiles_alone'), ('PyTorch', 'of_tiles_in_torch')):
            if f'seconds_{key}' in row:
                print(f'  {what:30} {row[f"seconds_{key}"]:7.1f} {row[f"core_seconds_{key}"]:13.1f}')
    if _JSON.value:
        report.write_json(Path(_JSON.value), {'cores': os.cpu_count(), 'rows': rows})


if __name__ == '__main__':
    app.run(main)
