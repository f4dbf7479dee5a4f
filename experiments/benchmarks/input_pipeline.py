"""How many training pairs a second the input pipeline gives, beside a PyTorch DataLoader on the same files.

python -m experiments.benchmarks.input_pipeline --json=input_pipeline.json

It makes its own data: photographs of the sample set with noise, as PNG pairs of 256² and of 12 megapixels, and the
former prepared. PyTorch is asked for by `pip install -e '.[benchmark]'`; without it that row is left out.
"""

import concurrent.futures
import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from configs import default
from experiments.benchmarks.pairs import make_pairs, photographs, write_pair
from p2p_jax import datasets, report
from p2p_jax.data import images
from p2p_jax.data.pipeline import Augmentation, Shard, TrainData

_JSON = flags.DEFINE_string('json', None, 'File for the figures.')
_SECONDS = flags.DEFINE_float('seconds', 5.0, 'Length of one measurement.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Measurements of each row, one after another in turn; the median counts.')
_FOLDER = flags.DEFINE_string('folder', None, 'Where to make the data; default: a temporary folder.')

BATCH, CROP, PAIRS, LARGE = 16, 256, 800, 6
SIDES = ('input', 'target')


def make_files(folder: Path) -> None:
    """Writes `small/` (800 pairs of 256²) and `large/` (6 pairs of 4000×3000) below input/ and target/."""
    make_pairs(folder / 'small', CROP, PAIRS)
    random = np.random.default_rng(0)
    for number, image in enumerate(photographs()[:LARGE]):
        write_pair(folder / 'large', str(number), images.resize(image, (3000, 4000)), random)


def _config(folder: Path) -> Any:
    config = default.get_config()
    config.data.dir = str(folder)
    config.data.on_problem = 'drop'  # crops of few photographs resemble one another
    return config


def ours(folder: Path) -> Iterator[int]:
    """Yields the pairs of each batch, for ever: crop 256, mirrored half of the time, nothing cached."""
    records = datasets.find_splits(_config(folder), ('train',), lambda line: None)['train']
    data = TrainData(
        records,
        batch_size=BATCH,
        channels=3,
        labels=False,
        balanced=False,
        augmentation=Augmentation(CROP, flip=True, rotate=False),
        seed=0,
        cache_mb=0,
        threads=None,
        prefetch=4,
        shard=Shard(),
    )
    for batch in data.batches(0, 10**9):
        yield len(batch['target'])


def dataloader(folder: Path) -> Iterator[int]:
    """The same as a PyTorch user writes it: Pillow, random crop and flip, worker processes, one for each core."""
    import torch

    class Pairs(torch.utils.data.Dataset):
        """Pairs of files."""

        names = sorted(path.name for path in (folder / 'target').iterdir())

        def __len__(self) -> int:
            return len(self.names)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            pair = [np.array(Image.open(folder / side / self.names[index]).convert('RGB')) for side in SIDES]
            top, left = (int(torch.randint(length - CROP + 1, ())) for length in pair[0].shape[:2])
            pair = [image[top : top + CROP, left : left + CROP] for image in pair]
            if torch.rand(()) < 0.5:
                pair = [image[:, ::-1] for image in pair]
            source, target = (torch.from_numpy(np.ascontiguousarray(image)) for image in pair)
            return source, target

    loader = torch.utils.data.DataLoader(
        Pairs(),
        BATCH,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        drop_last=True,
        multiprocessing_context='fork',  # PyTorch's default on Linux, but not in a process that was spawned
    )
    while True:
        for source, _ in loader:
            yield len(source)


STREAMS: dict[str, tuple[Callable[[Path], Iterator[int]], str]] = {
    'prepared, 256²': (ours, 'prepared'),
    'PNG, 256²': (ours, 'small'),
    'PNG, 12 megapixels': (ours, 'large'),
    'PyTorch DataLoader, PNG, 256²': (dataloader, 'small'),
}
PEER = 'PyTorch DataLoader, PNG, 256²'


def measure(name: str, folder: Path, seconds: float) -> dict[str, list[float]]:
    """Takes batches for so long, after some that are not counted; alone in its process.

    Returns:
      'pairs_per_second': one value; 'memory_mib': resident memory after each quarter of the time.
    """
    build, place = STREAMS[name]
    stream, pairs, memory = build(folder / place), 0, []
    for _ in range(2):
        next(stream)
    start = time.perf_counter()
    for quarter in range(1, 5):
        while time.perf_counter() - start < seconds * quarter / 4:
            pairs += next(stream)
        # Linux: resident pages of this process; PyTorch's workers are others.
        memory.append(int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGESIZE') / 2**20)
    return {'pairs_per_second': [pairs / (time.perf_counter() - start)], 'memory_mib': memory}


def run(folder: Path) -> dict[str, Any]:
    """Makes the data, measures all rows in turn, and returns the figures."""
    make_files(folder)
    datasets.prepare(_config(folder / 'small'), folder / 'prepared')
    names = list(STREAMS)
    if importlib.util.find_spec('torch') is None:
        print(f'PyTorch is not installed: without the row {PEER!r}')
        names.remove(PEER)
    results: dict[str, list[dict[str, list[float]]]] = {name: [] for name in names}
    for number in range(_ROUNDS.value):
        for name in names:
            # A fresh process: what one row reads ahead must not take the next one's time.
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
                results[name].append(pool.submit(measure, name, folder, _SECONDS.value).result())
            rate = results[name][-1]['pairs_per_second'][0]
            print(f'round {number + 1}/{_ROUNDS.value}: {name}: {rate:.0f} pairs/s', flush=True)
    rows = {
        name: {
            'pairs_per_second': statistics.median(rates),
            'rounds': rates,
            'memory_mib': [round(value) for value in rounds[-1]['memory_mib']],
        }
        for name, rounds in results.items()
        if (rates := [result['pairs_per_second'][0] for result in rounds])
    }
    return {'cores': os.cpu_count(), 'batch': BATCH, 'rows': rows}


def main(_: list[str]) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as temporary:
        figures = run(Path(_FOLDER.value or temporary))
    peer = figures['rows'].get(PEER, {}).get('pairs_per_second')
    print(f'\n{figures["cores"]} cores, batches of {BATCH}, {_ROUNDS.value} rounds of {_SECONDS.value:g} s')
    print(f'{"":32} pairs/s  to DataLoader  memory after each quarter, MiB')
    for name, row in figures['rows'].items():
        row['ratio_to_dataloader'] = row['pairs_per_second'] / peer if peer else None
        ratio = f'{row["ratio_to_dataloader"]:.2f}×' if peer else '–'
        print(f'{name:32} {row["pairs_per_second"]:7.0f}  {ratio:>13}  {row["memory_mib"]}')
    if _JSON.value:
        report.write_json(Path(_JSON.value), figures)


if __name__ == '__main__':
    app.run(main)
