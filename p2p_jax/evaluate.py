"""Scores: every example of a split exactly once."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from p2p_jax import inference, report
from p2p_jax.checkpoint import replicate
from p2p_jax.data import images
from p2p_jax.data.pipeline import Shard, evaluation_batches, split_over_devices
from p2p_jax.data.records import Record
from p2p_jax.datasets import check_stored_splits, find_splits
from p2p_jax.job import AXIS, Job
from p2p_jax.lookup import UserError
from p2p_jax.metrics import EvaluationMetrics
from p2p_jax.steps import evaluation_step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Means over a split.

    Attributes:
      scores: {'input': {'psnr' in dB, 'ssim', 'lpips' where asked for}, 'output': the same, 'count': of examples}.
      pictures: of the first examples: input, output, target, float (h, w, 3) in [0, 1].
    """

    scores: dict[str, Any]
    pictures: list[list[np.ndarray]]


def build_evaluator(
    job: Job, config: ml_collections.ConfigDict, records: Sequence[Record]
) -> Callable[[Any], Evaluation]:
    """Returns a function of the generator's variables that scores them on the records.

    It compiles once for each image size. Degradations depend on the seed and the example's place alone, and the
    result does not depend on the batch size or the number of devices.

    Args:
      job: what was trained.
      config: complete.
      records: of one split, checked.

    Raises:
      UserError: LPIPS is asked for and its weights are missing.
    """
    step = jax.pmap(
        functools.partial(evaluation_step, job), axis_name=AXIS, in_axes=(None, None, 0, None), out_axes=(None, 0, 0)
    )
    devices = jax.device_count()
    batch_size = -(-config.eval.batch_size // devices) * devices
    shard = Shard(jax.process_index(), jax.process_count())
    key = replicate(jax.random.key(config.seed))
    frozen = replicate(job.lpips.read_weights()) if job.lpips else None

    def evaluate(variables: Any) -> Evaluation:
        """Scores the variables, which are equal on all devices."""
        total: EvaluationMetrics | None = None
        pictures: list[list[np.ndarray]] = []
        batches = evaluation_batches(
            records,
            batch_size=batch_size,
            crop_size=config.eval.crop_size,
            channels=config.data.channels,
            shard=shard,
            threads=config.data.threads,
        )
        for batch in batches:
            scores, *shown = step(variables, key, split_over_devices(batch, jax.local_device_count()), frozen)
            total = scores if total is None else total.merge(scores)
            wanted = min(config.eval.pictures - len(pictures), int(batch['mask'].sum()))
            if wanted > 0:
                flat = [np.asarray(image).reshape(-1, *image.shape[2:])[:wanted] for image in shown]
                targets = batch['target'][:wanted] / np.float32(np.iinfo(batch['target'].dtype).max)
                pictures += [list(row) for row in zip(*flat, targets, strict=True)]
        assert total is not None, 'a split is never empty'
        return Evaluation(_scores(total), pictures)

    return evaluate


def build_sampler(job: Job, config: ml_collections.ConfigDict) -> Callable[[Any], list[list[np.ndarray]]]:
    """Returns a function of the generator's variables that makes a row of images of each class, (h, w, c) in [0, 1].

    The noise is the same each time; there are `eval.pictures` images in a row.
    """
    count = config.eval.pictures
    labels = jnp.repeat(jnp.arange(len(job.classes), dtype=jnp.int32), count)

    @jax.jit
    def make(variables: Any) -> jax.Array:
        return job.apply(variables, job.given(labels, jax.random.split(jax.random.key(config.seed), len(labels))))

    def sample(variables: Any) -> list[list[np.ndarray]]:
        """Makes the rows."""
        made = list(np.asarray(make(variables))) if count else []
        return [made[i : i + count] for i in range(0, len(made), count)] if count else []

    return sample


def _scores(total: EvaluationMetrics) -> dict[str, Any]:
    values = {name: float(value) for name, value in total.compute().items()}
    names = [name.removeprefix('output_') for name in values if name.startswith('output_')]
    sides = {side: {m: values[f'{side}_{m}'] for m in names} for side in ('input', 'output')}
    return {**sides, 'count': int(total.output_psnr.count)}


def describe(config: ml_collections.ConfigDict, split: str, evaluation: Evaluation) -> str:
    """Returns the table of an evaluation, with what the numbers depend on."""
    crop = config.eval.crop_size
    shown = f'central {crop}×{crop}' if crop else 'whole images'
    scores = evaluation.scores
    title = f'{split}: {scores["count"]} examples, {shown}; float, clamped; SSIM per channel, 11×11 Gaussian, valid'
    if config.eval.lpips != 'none':
        title += f'; LPIPS 0.1 ({config.eval.lpips}), less is better'
    return report.table(
        title, {name: scores[side] for name, side in zip(config.eval.names, ('input', 'output'), strict=True)}
    )


def evaluate_model(model: inference.Model, output: Path | None = None, picture: Path | None = None) -> Evaluation:
    """Scores a model on the test split and prints the table.

    Args:
      model: what is scored.
      output: a JSON file to write the scores to.
      picture: a PNG file to draw the first examples to.

    Raises:
      UserError: something wrong with the data, or a model that makes images from labels.
    """
    if model.job.classes:
        raise UserError(f'{model.origin} makes images from labels: there is no target for PSNR and SSIM')
    splits = find_splits(model.config, ['test'])
    check_stored_splits(model.origin, splits)
    print(f'{model}, {len(splits["test"])} test examples …', flush=True)
    evaluation = build_evaluator(model.job, model.config, splits['test'])(model.variables)
    print(describe(model.config, 'test', evaluation))
    if output and jax.process_index() == 0:
        report.write_json(output, evaluation.scores)
        print(f'numbers: {output}')
    if picture and evaluation.pictures and jax.process_index() == 0:
        images.write_image(picture, report.grid(evaluation.pictures, [*model.config.eval.names, 'target']))
        print(f'picture: {picture}')
    return evaluation
