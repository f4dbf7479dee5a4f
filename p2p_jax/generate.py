"""Images from labels, written to files."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax import report
from p2p_jax.data import images
from p2p_jax.inference import Model
from p2p_jax.job import Job
from p2p_jax.lookup import UserError, pick, shortlist

BATCH = 64  # images that are made at a time; other numbers change them by rounding alone
_SHOWN = 10  # images of each class in the grid


def build_sampler(job: Job, batch_size: int) -> Callable[..., list[np.ndarray]]:
    """Returns a function that makes images of a label; it compiles once without truncation, once with any.

    Its arguments are the generator's variables, the label's number, a range, a seed, and a truncation: the noise is
    drawn from N(0, 1) within ± this (Brock et al. 2019, section 3.1), for less varied, more typical images; None, the
    default, draws all of it. It returns the images of the numbers in the range, (h, w, c) in [0, 1]. Image i depends on
    seed, label, i and truncation alone, not on the batch size or on what else is made.

    Args:
      job: that makes images from labels.
      batch_size: images that are made at a time.
    """

    @jax.jit
    def make(variables: Any, labels: jax.Array, keys: jax.Array, truncation: jax.Array | None) -> jax.Array:
        return job.apply(variables, job.given(labels, keys, truncation))

    def sample(
        variables: Any, label: int, numbers: range, seed: int, truncation: float | None = None
    ) -> list[np.ndarray]:
        """Makes the images."""
        base = jax.random.fold_in(jax.random.key(seed), label)
        made: list[np.ndarray] = []
        for first in range(numbers.start, numbers.stop, batch_size):
            # Always a whole batch, for one program.
            keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.arange(first, first + batch_size))
            made += list(np.asarray(make(variables, jnp.full(batch_size, label, jnp.int32), keys, truncation)))
        return made[: len(numbers)]

    return sample


def _on_sphere(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    """What lies between two noises, as long as noise is: spherical interpolation (Shoemake 1985; White 2016)."""
    cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    return (jnp.sin((1 - share) * angle) * a + jnp.sin(share * angle) * b) / jnp.sin(angle)


def interpolate(job: Job, variables: Any, count: int, seed: int) -> dict[str, list[list[np.ndarray]]]:
    """Makes images on the way from label to label, and from noise to noise.

    Args:
      job: that makes images from labels.
      variables: of the generator.
      count: of images in each row, ends included; at least 2.
      seed: of the noise.

    Returns:
      'labels': a row for each class, of one noise, from this class to the next, the last to the first; none where there
      is one class. 'noises': a row for each class, from one noise to another. Images are (h, w, c) in [0, 1].
    """
    make = jax.jit(lambda labels, noise: job.apply(variables, (labels, noise)))
    shares, classes = jnp.linspace(0, 1, count), len(job.classes)
    base, kinds = jax.random.key(seed), jnp.eye(classes)
    rows: dict[str, list[list[np.ndarray]]] = {'labels': [], 'noises': []}
    for kind in range(classes):
        keys = jax.vmap(lambda i, kind=kind: jax.random.fold_in(jax.random.fold_in(base, kind), i))(jnp.arange(2))
        _, (first, second) = job.given(jnp.full(2, kind), keys)
        if classes > 1:
            mixed = jax.vmap(lambda s, kind=kind: (1 - s) * kinds[kind] + s * kinds[(kind + 1) % classes])(shares)
            rows['labels'].append(list(np.asarray(make(mixed, jnp.tile(first, (count, 1))))))
        noises = jax.vmap(functools.partial(_on_sphere, first, second))(shares)
        rows['noises'].append(list(np.asarray(make(jnp.tile(kinds[kind], (count, 1)), noises))))
    return rows


def generate(
    model: Model,
    names: Sequence[str],
    output: Path,
    *,
    count: int,
    seed: int,
    batch_size: int,
    truncation: float | None,
) -> None:
    """Writes images as `<output>/<label>/<seed>_<number>.png`, and a grid of the first of each class.

    Args:
      model: what makes them.
      names: of the labels; () takes all.
      output: folder of the results.
      count: of images of each class.
      seed: of the noise.
      batch_size: images that are made at a time; it does not change them.
      truncation: see `build_sampler`.

    Raises:
      UserError: a model that makes no images from labels, an unknown label, numbers out of range, or a file that
        exists; nothing was written then.
    """
    classes = model.job.classes
    if not classes:
        raise UserError(f'{model.origin} makes images from images, not from labels; see predict')
    if count < 1 or batch_size < 1 or (truncation is not None and truncation <= 0):
        given = f'--count={count} --batch={batch_size} --truncation={truncation}'
        raise UserError(f'{given}: expected counts of at least 1 and a truncation above 0')
    numbers = {name: i for i, name in enumerate(classes)}
    chosen = {name: pick(numbers, name, '--label') for name in names} if names else numbers
    files = {name: [output / name / f'{seed}_{i:05}.png' for i in range(count)] for name in chosen}
    grid = output / f'grid_{seed}.png'
    there = [str(path) for path in [grid, *(path for paths in files.values() for path in paths)] if path.exists()]
    if there:
        raise UserError(f'{len(there)} files exist and are not overwritten (nothing was done):{shortlist(there)}')
    print(f'{model}; {count} images of each of {len(chosen)} classes', flush=True)
    sample = build_sampler(model.job, batch_size)
    start, rows = time.monotonic(), []
    for done, (name, label) in enumerate(chosen.items(), 1):
        made = sample(model.variables, label, range(count), seed, truncation)
        for image, path in zip(made, files[name], strict=True):
            images.write_image(path, np.rint(image * 255).astype(np.uint8))
        rows.append(made[:_SHOWN])
        left = (time.monotonic() - start) / done * (len(chosen) - done)
        print(f'{done}/{len(chosen)} | ETA {report.duration(left)} | {name}: {output / name}', flush=True)
    images.write_image(grid, report.grid(rows, names=list(chosen)))
    print(f'the first of each class: {grid}')
