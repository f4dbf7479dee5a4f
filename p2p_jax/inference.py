"""A trained generator: loaded from a training or a model file, and written to one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections

from p2p_jax import modelfile
from p2p_jax.checkpoint import Checkpoints
from p2p_jax.datasets import STORED as DATA
from p2p_jax.job import Job, build_job, training_size
from p2p_jax.lookup import UserError, pick
from p2p_jax.models.layers import STATISTICS
from p2p_jax.state import TrainState


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained generator.

    Attributes:
      config: it was trained with.
      job: what the configuration means.
      variables: of the generator; the moving averages where there are any.
      step: of the checkpoint.
      origin: the workdir or the model file, for messages.
      scale: side of the training examples over the side of the part of the photograph that they show.
    """

    config: ml_collections.ConfigDict
    job: Job
    variables: Any
    step: int
    origin: Path
    scale: float

    def __str__(self) -> str:
        return f'{self.origin}: step {self.step}'


def in_mode(model: Model, statistics: str | None, *, dropout: bool) -> Model:
    """Returns the model as it is to behave outside training, whatever it was stored with.

    The reference pix2pix tests with the statistics of the test image in batch norm, and with dropout on.

    Args:
      model: a generator of images.
      statistics: 'running' or 'batch', of its batch norm; None: as stored.
      dropout: dropout is on, as noise that is the same for each image; otherwise as stored.

    Raises:
      UserError: its network has no batch norm, or no dropout.
    """
    config = ml_collections.ConfigDict(model.config.to_dict())
    options = config.generator[config.generator.name]
    if statistics is not None:
        pick(dict.fromkeys(STATISTICS), statistics, '--statistics')
        if options.get('norm') != 'batch':
            raise UserError(f'--statistics={statistics}: {model.origin} has no batch norm; leave the flag out')
        config.norm.statistics = statistics
    if dropout:
        if not options.get('dropout'):
            raise UserError(f'--dropout: {model.origin} has no dropout; leave the flag out')
        config.eval.dropout = True
    return dataclasses.replace(model, config=config, job=build_job(config, steps=1))


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
    variables = state.generator.variables if raw else state.evaluated
    description = json.loads((workdir / DATA).read_text()) if (workdir / DATA).is_file() else {}
    return Model(config, job, variables, step, workdir, description.get('scale', 1.0))


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
    modelfile.check_fit(variables, shapes, f'--model={path}')
    return Model(config, job, jax.device_put(variables), facts.step, path, facts.scale)
