"""A trained generator, loaded and applied to files."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from p2p_jax import modelfile
from p2p_jax.checkpoint import Checkpoints
from p2p_jax.data import images
from p2p_jax.job import Job, build_job, training_size
from p2p_jax.lookup import UserError, shortlist
from p2p_jax.report import duration
from p2p_jax.state import TrainState

# Compiled programs held at a time, one for each image size: on the CPU each takes some hundred memory maps, of which
# Linux gives a process 65,530.
_PROGRAMS = 64


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained generator.

    Attributes:
      config: it was trained with.
      job: what the configuration means.
      variables: of the generator; the moving averages where there are any.
      step: of the checkpoint.
      origin: the workdir or the model file, for messages.
    """

    config: ml_collections.ConfigDict
    job: Job
    variables: Any
    step: int
    origin: Path

    def __str__(self) -> str:
        return f'{self.origin}: step {self.step}'


def load_state(workdir: Path, which: str) -> tuple[ml_collections.ConfigDict, Job, TrainState, int]:
    """Restores a training: its configuration, what that means, its state, and the checkpoint's step.

    Args:
      workdir: of the training.
      which: 'best', 'latest' or a step.

    Raises:
      UserError: no such checkpoint.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        step = checkpoints.find(which)
        config = ml_collections.ConfigDict(checkpoints.config(step))
        job = build_job(config, steps=1)  # nothing is trained: the schedules' length plays no part
        shapes = jax.eval_shape(lambda: job.create_state(config.seed, training_size(config)))
        return config, job, checkpoints.restore(step, shapes), step
    finally:
        checkpoints.close()


def load(workdir: Path, which: str, *, raw: bool = False) -> Model:
    """Loads the generator of a training.

    Args:
      workdir: of the training.
      which: 'best', 'latest' or a step.
      raw: the weights themselves, also where there are moving averages.

    Raises:
      UserError: no such checkpoint.
    """
    config, job, state, step = load_state(workdir, which)
    return Model(config, job, state.generator.variables if raw else state.evaluated, step, workdir)


def load_file(path: Path) -> Model:
    """Loads a model file.

    Raises:
      UserError: it cannot be read, holds no generator, or its weights do not fit the network that it names.
    """
    variables, facts = modelfile.read(path)
    if facts.network != 'generator':
        raise UserError(
            f'--model={path}: it holds a {facts.network}, which makes no images; a training starts from it with '
            f'--config.init_from={path}'
        )
    config = ml_collections.ConfigDict(facts.config)
    if facts.folded:
        config.generator[config.generator.name].norm = 'none'
    job = build_job(config, steps=1)
    shapes = jax.eval_shape(lambda: job.create_state(config.seed, training_size(config))).generator.variables
    wanted, there = (
        {jax.tree_util.keystr(place): leaf.shape for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (shapes, variables)
    )
    if wanted != there:
        differing = [k for k in sorted(wanted.keys() | there.keys()) if wanted.get(k) != there.get(k)]
        lines = [f'{k}: {there.get(k, "missing")} there, {wanted.get(k, "nothing")} wanted' for k in differing]
        raise UserError(f'--model={path}: its weights do not fit its configuration:{shortlist(lines)}')
    return Model(config, job, jax.device_put(variables), facts.step, path)


def _plan(source: Path, output: Path) -> list[tuple[Path, Path]]:
    """Pairs every input file with its output file; finds all that would go wrong before anything is done."""
    if not source.exists():
        raise UserError(f'--input={source}: no such file or folder')
    files = images.find_images(source) if source.is_dir() else [source]
    if not files:
        raise UserError(f'--input={source}: no images there ({", ".join(sorted(images.EXTENSIONS))})')
    root = source if source.is_dir() else source.parent
    plan: dict[Path, Path] = {}
    problems = []
    for path in files:
        target = output / path.relative_to(root).with_suffix('.png')
        if target in plan:
            problems.append(f'{path} and {plan[target]} would both be written to {target}')
        elif target.exists():
            problems.append(f'{target} exists and is not overwritten')
        plan.setdefault(target, path)
        try:
            images.header(str(path), path)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(f'nothing was done, for {len(problems)} reasons:{shortlist(problems)}')
    return [(path, target) for target, path in plan.items()]


def _to_batch(image: np.ndarray, channels: int) -> np.ndarray:
    """Returns what a network of 1 or 3 channels takes, float32 (n, h, w, channels) in [0, 1].

    A network for grey images takes the three colours one after another.
    """
    scaled = image.astype(np.float32) / np.iinfo(image.dtype).max
    colours = scaled[..., :1] if image.shape[-1] < 3 else scaled[..., :3]
    if channels == 1:
        return np.moveaxis(colours, -1, 0)[..., None]
    return np.broadcast_to(colours, (*colours.shape[:2], channels))[None]


def _from_batch(result: np.ndarray) -> np.ndarray:
    """Undoes `_to_batch`: (h, w, 1 or 3)."""
    return np.moveaxis(result[..., 0], 0, -1) if result.shape[-1] == 1 else result[0]


def predict(model: Model, source: Path, output: Path) -> int:
    """Applies a generator to whole images and writes PNGs of the images' own depth and channels.

    Args:
      model: what is applied.
      source: a file, or a folder whose subfolders are kept.
      output: folder of the results.

    Returns:
      The number of images written.

    Raises:
      UserError: unreadable input, a result that exists, or a model that takes no images; nothing was written then.
    """
    if model.job.classes:
        raise UserError(f'{model.origin} makes images from labels ({", ".join(model.job.classes)}), not from images')
    plan = _plan(source, output)
    print(f'{model}; {len(plan)} images', flush=True)

    apply = jax.jit(lambda variables, image: model.job.apply(variables, image))
    start = time.monotonic()
    sizes: set[tuple[int, ...]] = set()
    for done, (path, target) in enumerate(plan, 1):
        original = images.decode(str(path), path)
        pixels = _to_batch(original, model.config.data.channels)
        sizes.add(pixels.shape)
        if len(sizes) > _PROGRAMS:
            apply.clear_cache()  # type: ignore[attr-defined]
            sizes = {pixels.shape}
        result = _from_batch(np.asarray(apply(model.variables, pixels)))
        images.write_image(target, images.restore_format(result, original))
        left = (time.monotonic() - start) / done * (len(plan) - done)
        print(f'{done}/{len(plan)} | ETA {duration(left)} | {target}', flush=True)
    return len(plan)
