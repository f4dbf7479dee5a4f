"""Which of many images resembles another most: how a generator that repeats its training images is found out."""

from collections.abc import Callable

import numpy as np
from PIL import Image

SIDE = 32  # pixels; larger images are compared at this size
_AT_ONCE = 4096


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 (h, w, 3), at SIDE × SIDE where it is larger, by area."""
    if max(image.shape[:2]) <= SIDE:
        return image
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def nearest(
    queries: np.ndarray, pool: np.ndarray, update: Callable[[int], object] = lambda count: None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each query the image of a pool that is nearest to it, mirrored or not.

    Args:
      queries: uint8 (n, h, w, c).
      pool: uint8 (m, h, w, c).
      update: is told how many images of the pool have been compared since it was last told.

    Returns:
      Its place in the pool, int (n,); the root of the mean squared difference of the pixels in [0, 1], float32 (n,).
    """
    asked = [_flat(queries), _flat(queries[:, :, ::-1])]
    best = np.full(len(queries), np.inf, np.float32)
    place = np.zeros(len(queries), np.int64)
    for start in range(0, len(pool), _AT_ONCE):
        chunk = _flat(pool[start : start + _AT_ONCE])
        lengths = np.einsum('ij,ij->i', chunk, chunk)
        for flat in asked:
            squared = np.einsum('ij,ij->i', flat, flat)[:, None] - 2 * flat @ chunk.T + lengths
            found = squared.argmin(axis=1)
            least = squared[np.arange(len(flat)), found]
            closer = least < best
            place[closer], best[closer] = start + found[closer], least[closer]
        update(len(chunk))
    return place, np.sqrt(np.maximum(best, 0) / asked[0].shape[1])
