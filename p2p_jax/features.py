"""What images look like to trained networks."""

from collections.abc import Callable

import jax
import numpy as np


def in_batches(function: Callable[[jax.Array], jax.Array], images: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns a function's values of images, which it is given in batches of one size, as it is compiled for.

    Args:
      function: of (batch_size, …), to an array with a row for each.
      images: (n, …), at least one.
      batch_size: the last batch is filled up with its first image.
    """
    rows = []
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        filled = np.concatenate([batch, np.repeat(batch[:1], batch_size - len(batch), axis=0)])
        rows.append(np.asarray(function(filled))[: len(batch)])
    return np.concatenate(rows)
