"""The data that benchmarks make for themselves: photographs of the sample set, with and without noise."""

from pathlib import Path

import numpy as np

from configs import sample
from p2p_jax import datasets
from p2p_jax.data import images


def photographs() -> list[np.ndarray]:
    """Returns the photographs of the sample set, uint8 (h, w, 3)."""
    splits = datasets.find_splits(sample.get_config(), ('train', 'val', 'test'), lambda line: None)
    return [images.to_format(r.target.read(), 3, 8) for records in splits.values() for r in records]


def write_pair(folder: Path, name: str, image: np.ndarray, random: np.random.Generator) -> None:
    """Writes an image below target/ and the same with noise below input/, as PNG."""
    noisy = np.clip(np.rint(image + random.normal(0, 12, image.shape)), 0, 255).astype(np.uint8)
    images.write_image(folder / 'target' / f'{name}.png', image)
    images.write_image(folder / 'input' / f'{name}.png', noisy)


def make_pairs(folder: Path, size: int, count: int) -> None:
    """Writes `count` pairs of random square crops of `size` pixels."""
    random, whole = np.random.default_rng(0), photographs()
    for number in range(count):
        image = whole[number % len(whole)]
        top, left = (int(random.integers(length - size + 1)) for length in image.shape[:2])
        write_pair(folder, str(number), image[top : top + size, left : left + size], random)
